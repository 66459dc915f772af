"""Slots over several holders, each with its own thread and connection, like processes."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.model_servers.base import CallSlots, never_cancelled
from batch_pipeline.model_servers.http_errors import error_for_status
from batch_pipeline.services.shared_call_slots import LEASE_SECONDS, SharedCallSlots
from batch_pipeline_tests.patience import DEADLINE, wait_until

A, B = "http://a:11434", "http://b:11434"

Opened = Callable[..., CallSlots]


@pytest.fixture
def opened(database: Database) -> Iterator[Opened]:
    """Slots of another process."""
    processes: list[SharedCallSlots] = []

    def open_(limit: int, lease_seconds: float = LEASE_SECONDS) -> CallSlots:
        processes.append(SharedCallSlots(database.url, lease_seconds=lease_seconds))
        return processes[-1].of("vision", limit)

    yield open_
    for process in processes:
        process.close()


def rows(database: Database) -> list[AnyRow]:
    with database.transaction() as connection:
        return list(connection.execute(text("SELECT * FROM model_call_slots ORDER BY held DESC")))


class Callers:
    """Threads that each hold a slot until the test releases it."""

    def __init__(self, slots: CallSlots, count: int, servers: tuple[str, ...] = (A,)) -> None:
        self._slots, self._servers = slots, servers
        self._let_go = threading.Semaphore(0)
        self._given_up = threading.Event()
        self._count = count
        self._told_to_go = 0
        self.entered: list[str] = []
        self._pool = ThreadPoolExecutor(count)
        self._calls = [self._pool.submit(self._call) for _ in range(count)]

    def _call(self) -> None:
        given_up = self._given_up.is_set
        with self._slots.taken(lambda: list(self._servers), given_up) as server:
            self.entered.append(server)
            self._let_go.acquire()

    @property
    def in_flight(self) -> int:
        return len(self.entered) - self._told_to_go

    def let_go(self, count: int) -> None:
        self._told_to_go += count
        self._let_go.release(count)

    def end(self) -> None:
        self.let_go(self._count)
        for call in self._calls:
            call.result(timeout=DEADLINE)

    def give_up(self) -> None:
        self._given_up.set()
        self._let_go.release(self._count)

    def wait(self) -> None:
        self._pool.shutdown()


Calling = Callable[..., Callers]


@pytest.fixture
def calling(opened: Opened) -> Iterator[Calling]:
    """Starts callers, and ends them even if a test fails: Python would wait for them at exit."""
    started: list[Callers] = []

    def start(*arguments: Any) -> Callers:
        started.append(Callers(*arguments))
        return started[-1]

    yield start
    for callers in started:
        callers.give_up()
    for callers in started:
        callers.wait()


def test_two_processes_never_exceed_the_limit_and_the_second_gets_its_fair_share(
    opened: Opened, calling: Calling, database: Database
) -> None:
    first = calling(opened(4), 20)
    wait_until(lambda: len(first.entered) == 4, "the first takes all there are")
    second = calling(opened(4), 8)
    wait_until(lambda: len(rows(database)) == 2, "the second asks")
    assert second.entered == []

    def first_has_heard() -> bool:
        holder, asking = rows(database)
        return bool(holder.leased_until - timedelta(seconds=LEASE_SECONDS) > asking.since)

    def first_makes_room() -> bool:
        if first.in_flight > 2:
            first.let_go(1)
        return len(second.entered) == 2

    wait_until(first_has_heard, "the first hears of it")
    wait_until(first_makes_room, "the first makes room for the second")
    assert len(first.entered) < 20, "it had more to do"
    assert [row.held for row in rows(database)] == [2, 2]

    before = len(first.entered)
    first.let_go(1)
    wait_until(lambda: len(first.entered) == before + 1, "and goes on with its own share")
    assert first.in_flight == len(second.entered) == 2
    second.end()
    first.end()


def test_a_holder_of_slots_keeps_renewing_its_heartbeat(
    opened: Opened, calling: Calling, database: Database
) -> None:
    callers = calling(opened(2, lease_seconds=3), 2)
    wait_until(lambda: len(callers.entered) == 2, "both are made")
    [before] = rows(database)

    def is_renewed() -> bool:
        return bool(rows(database)[0].leased_until > before.leased_until)

    wait_until(is_renewed, "it is renewed", DEADLINE)


def test_slots_of_a_process_that_is_silent_for_longer_than_its_lease_go_to_others(
    opened: Opened, calling: Calling, database: Database
) -> None:
    with database.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO model_call_slots"
                " (server, kind, holder, wanted, held, since, leased_until)"
                " VALUES (:server, 'vision', gen_random_uuid(), 2, 2, now(),"
                " now() - interval '1 second')"
            ),
            {"server": A},
        )
    callers = calling(opened(2, lease_seconds=0.5), 2)
    wait_until(lambda: len(callers.entered) == 2, "they are taken over", DEADLINE)
    assert [row.held for row in rows(database)] == [2]


def test_unused_slots_are_returned(opened: Opened, calling: Calling, database: Database) -> None:
    calling(opened(4), 2).end()

    wait_until(lambda: rows(database) == [], "the row is gone")


def test_a_process_that_closes_returns_its_slots_at_once(
    opened: Opened, calling: Calling, database: Database
) -> None:
    closing = SharedCallSlots(database.url)
    calling(closing.of("vision", 1), 1).end()
    closing.close()

    assert rows(database) == []


def test_calls_of_one_process_spread_over_its_servers(opened: Opened, calling: Calling) -> None:
    callers = calling(opened(4), 6, (A, B))
    wait_until(lambda: len(callers.entered) == 6, "all find a slot")

    assert sorted(callers.entered) == [A, A, A, B, B, B]
    callers.end()


def test_a_server_that_comes_back_gets_its_part_of_the_calls_though_the_other_has_room(
    opened: Opened,
) -> None:
    slots, usable = opened(4), [A]

    def call(_: int) -> str:
        with slots.taken(lambda: list(usable), never_cancelled) as server:
            time.sleep(0.005)
            return server

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(call, range(40))) == {A}
        usable.append(B)
        wait_until(lambda: B in set(threads.map(call, range(40))), "the other is called too")


def test_a_loopback_address_is_another_server_on_each_host(
    opened: Opened, calling: Calling, database: Database
) -> None:
    callers = calling(opened(1), 1, ("http://127.0.0.1:11434",))
    wait_until(lambda: callers.entered, "the call is made")

    assert [row.server for row in rows(database)] == [
        f"http://127.0.0.1:11434 of {socket.gethostname()}"
    ]
    callers.end()


def test_a_pause_that_a_server_asks_one_process_for_is_kept_by_the_others_and_by_new_ones(
    opened: Opened, database: Database
) -> None:
    first, second = opened(4), opened(4)

    def pauses() -> list[AnyRow]:
        with database.transaction() as connection:
            return list(connection.execute(text("SELECT * FROM model_pauses")))

    def begins(slots: CallSlots) -> float:
        with slots.taken(lambda: [A], never_cancelled):
            return time.monotonic()

    def begins_once_it_has_heard(slots: CallSlots) -> float:
        while (began := begins(slots)) - paused_at < 1.9:
            # The message needs a moment. A holder that never gets it would go on beginning calls.
            assert began - paused_at < 1.0, "it has not heard of the pause"
        return began

    begins(second)
    with first.taken(lambda: [A], never_cancelled):
        first.pause(A, 2.0, "too many requests")
        paused_at = time.monotonic()
    wait_until(lambda: pauses() != [], "the pause is sent")
    third = opened(4)

    with ThreadPoolExecutor(3) as threads:
        others = threads.map(begins, (first, third))
        began = [begins_once_it_has_heard(second), *others]

    assert min(began) - paused_at >= 1.9
    [row] = pauses()
    assert (row.server, row.kind, row.reason) == (A, "vision", "too many requests")


def test_words_of_a_server_that_postgresql_refuses_stop_no_later_call(
    opened: Opened, database: Database
) -> None:
    body = '{"error": "half of an emoji: \\ud83d, and \\u0000"}'
    slots = opened(4, lease_seconds=1.0)
    with slots.taken(lambda: [A], never_cancelled):
        slots.pause(A, 0.1, str(error_for_status(A, 429, body, {})))

    def reasons() -> list[str]:
        with database.transaction() as connection:
            return list(connection.scalars(text("SELECT reason FROM model_pauses")))

    told = wait_until(reasons, "the pause is sent")
    time.sleep(1.1)  # longer than the lease
    with slots.taken(lambda: [A], never_cancelled) as server:
        assert server == A
    assert told == [f"model server {A} answered 429: half of an emoji: �, and �"]


def test_no_call_waits_for_a_server_that_asked_for_a_long_pause(opened: Opened) -> None:
    slots = opened(4)
    with slots.taken(lambda: [A], never_cancelled):
        slots.pause(A, 600, "daily limit")

    with (
        pytest.raises(ServiceDownError, match="daily limit") as raised,
        slots.taken(lambda: [A], never_cancelled),
    ):
        pass
    assert raised.value.kind == "model_rate_limited"
    with slots.taken(lambda: [A, B], never_cancelled) as server:
        assert server == B
