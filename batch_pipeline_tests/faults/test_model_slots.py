"""The cap on model calls over real processes: it holds, is fair, and survives dead processes."""

import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.model_servers.base import never_cancelled
from batch_pipeline.services.shared_call_slots import SharedCallSlots
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline_tests.faults import forked
from batch_pipeline_tests.integration.model_servers.conftest import IMAGE, picture
from batch_pipeline_tests.patience import wait_until


class Caller:
    """A process that calls the vision model; it begins when all processes are ready."""

    def __init__(self, variables: dict[str, str], threads: int, calls: int) -> None:
        arguments = ["--threads", str(threads), "--calls", str(calls)]
        self._process, self._file = forked.start_model_caller(arguments, os.environ | variables)

    def begin(self) -> None:
        assert self._file.readline() == "ready\n"
        self._file.write("go\n")
        self._file.flush()

    def outcomes(self) -> Counter[str]:
        return Counter(json.loads(self._file.readline()))

    def send(self, what: signal.Signals) -> None:
        os.kill(self._process.pid, what)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._file.close()


@pytest.fixture
def servers(model_server) -> Iterator[list[ScriptedModelServer]]:
    with ScriptedModelServer() as second:
        yield [model_server, second]


@pytest.fixture
def caller(settings, model_server) -> Iterator[Callable[..., Caller]]:
    """Starts a process; `slots` is the cap, `over` the servers that it uses."""
    started: list[Caller] = []

    def start(threads: int, calls: int, *, slots: int, over=None) -> Caller:
        variables = {
            "HOME": settings.home,
            "DATABASE_URL": settings.database_url,
            "ANALYZER": "ollama",
            "OLLAMA_HOST": ",".join(each.ollama_url for each in over or [model_server]),
            "MAX_VISION_CALLS": slots,
            "LEASE_SECONDS": 2,
        }
        named = {f"BATCH_PIPELINE_{name}": str(value) for name, value in variables.items()}
        started.append(Caller(named, threads, calls))
        return started[-1]

    yield start
    for each in started:
        each.end()


def total(callers: list[Caller]) -> Counter[str]:
    return sum((each.outcomes() for each in callers), Counter[str]())


def waiting_processes(database) -> int:
    with database.transaction() as connection:
        return connection.scalar(
            text("SELECT count(*) FROM model_call_slots WHERE held = 0 AND wanted > 0")
        )


@pytest.mark.parametrize(("threads", "slots"), [(8, 5), (1, 2)])
def test_four_workers_together_keep_to_the_cap_and_use_all_of_it(
    caller, model_server, threads, slots
):
    model_server.latency_seconds = 0.05
    callers = [caller(threads, 25, slots=slots) for _ in range(4)]
    for each in callers:
        each.begin()

    assert total(callers) == {"described": 100}
    assert model_server.most_in_flight["vision"] == slots
    assert len(model_server.calls) == 100


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_slots_of_a_worker_that_is_killed_or_stopped_come_back(
    caller, model_server, database, how
):
    model_server.play("vision", itertools.repeat(Fault.HANG, 3))
    holder, other = caller(3, 3, slots=3), caller(1, 1, slots=3)
    holder.begin()
    model_server.wait_for_calls(3)
    other.begin()
    wait_until(lambda: waiting_processes(database) == 1, "the other waits")
    assert len(model_server.calls) == 3

    holder.send(how)

    assert other.outcomes() == {"described": 1}
    assert len(model_server.calls) == 4


def test_everything_finishes_on_the_other_server_when_one_dies(caller, servers):
    for each in servers:
        each.latency_seconds = 0.05
    first, second = servers
    callers = [caller(4, 40, slots=4, over=servers) for _ in range(2)]
    for each in callers:
        each.begin()
    wait_until(lambda: min(len(first.calls), len(second.calls)) >= 10, "both are called")
    first.stop()

    assert total(callers) == {"described": 80}
    assert second.most_in_flight["vision"] == 4
    assert len(second.calls) > 40


def test_a_server_that_was_down_is_called_again_when_it_is_back(caller, servers):
    for each in servers:
        each.latency_seconds = 0.05
    first, second = servers
    endless = caller(4, 0, slots=4, over=servers)
    endless.begin()
    wait_until(lambda: first.calls, "it is called")
    first.stop()
    second.wait_for_calls(len(second.calls) + 8)  # earlier calls have ended by then
    before = len(first.calls)
    second.wait_for_calls(len(second.calls) + 20)
    assert len(first.calls) == before
    first.start()

    wait_until(lambda: len(first.calls) > before + 4, "it is called again")


def test_the_load_of_many_workers_is_spread_over_the_servers(caller, servers):
    for each in servers:
        each.latency_seconds = 0.05
    callers = [caller(2, 30, slots=4, over=servers) for _ in range(4)]
    for each in callers:
        each.begin()

    assert total(callers) == {"described": 120}
    calls = [len(each.calls) for each in servers]
    assert min(calls) > 120 * 0.35, calls


@pytest.mark.parametrize(("workers", "slots"), [(1, 2), (3, 1)])
def test_a_single_call_gets_its_turn_among_workers_that_never_pause(
    caller, model_server, workers, slots
):
    model_server.latency_seconds = 0.05
    for each in [caller(8, 0, slots=slots) for _ in range(workers)]:
        each.begin()
    model_server.wait_for_calls(20)
    single = caller(1, 1, slots=slots)
    single.begin()

    assert single.outcomes() == {"described": 1}
    assert model_server.most_in_flight["vision"] == slots


# The database


@pytest.fixture
def vision(proxied, change, open_pipeline, model_server):
    """A vision model with two slots, whose database is behind a proxy."""
    behind, _ = proxied
    settings = change(
        database_url=behind.settings.database_url,
        analyzer="ollama",
        ollama_host=model_server.ollama_url,
        max_vision_calls=2,
        lease_seconds=2,
    )
    yield open_pipeline(settings).analyzer.vision
    close_analyzers()


def describe(vision) -> str:
    return vision.describe(IMAGE, [picture()]).text


def test_while_the_database_sleeps_calls_pass_on_the_slots_they_have_and_then_say_why_they_stop(
    vision, proxied, model_server
):
    _, proxy = proxied
    model_server.latency_seconds = 0.02
    test_ended = threading.Event()

    def until_it_is_refused(_: int) -> str:
        try:
            while not test_ended.is_set():
                describe(vision)
        except ServiceDownError as error:
            return f"{error.kind}: {error}"
        return "never refused"

    # The threads must end even after a failure, because a pool waits for them.
    with ThreadPoolExecutor(4) as threads, ExitStack() as at_end:
        at_end.callback(test_ended.set)
        refused = threads.map(until_it_is_refused, range(4))
        model_server.wait_for_calls(10)
        with proxy.holding():
            assert proxy.held.wait(timeout=60)
            model_server.wait_for_calls(len(model_server.calls) + 10)
            for reason in refused:
                assert reason.startswith("database_down: ")
                assert "has not answered for" in reason

    assert describe(vision)
    assert model_server.most_in_flight["vision"] == 2


def test_an_agreement_whose_reply_is_lost_costs_no_slot(vision, proxied, model_server):
    _, proxy = proxied
    proxy.lose_the_reply_to(b"COMMIT\x00")
    model_server.latency_seconds = 0.05

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: describe(vision), range(8)))

    assert proxy.dropped.is_set()
    assert model_server.most_in_flight["vision"] == 2


def test_after_a_start_of_the_database_slots_that_could_not_be_renewed_are_kept(tmp_path):
    url = with_driver(embedded_server_url(tmp_path), "psycopg", variable="HOME")
    database = Database(url)
    database.upgrade()
    of_somebody_who_comes_back = """
        INSERT INTO model_call_slots (server, kind, holder, wanted, held, since, leased_until)
        VALUES ('http://a', 'vision', gen_random_uuid(), 1, 1, now(), now() - interval '1 minute')
    """
    with database.transaction() as connection:
        connection.execute(text(of_somebody_who_comes_back))
    process = SharedCallSlots(url, lease_seconds=6)

    with process.of("vision", 1).taken(lambda: ["http://a"], never_cancelled):
        with database.transaction() as connection:
            up = connection.scalar(
                text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
            )
        assert up >= 6

    process.close()
    database.close()
