"""Only the group writer: order, limit, outages, refusals. It writes to a list."""

import subprocess
import sys
import threading

import pytest

from batch_pipeline.orchestration.dagster_storage import group_writer
from batch_pipeline.orchestration.dagster_storage.group_writer import GroupWriter

DEADLINE = 10


class OutageError(Exception):
    pass


class Shelf:
    """Keeps written items, or fails if a test says so."""

    def __init__(self):
        self.groups = []
        self.tries = []
        self.is_open = threading.Event()
        self.is_open.set()
        self.refuses = set()
        self.tried = threading.Event()

    def write(self, group, tried):
        self.tries.append(tried)
        self.tried.set()
        if not self.is_open.is_set():
            raise OutageError("closed")
        if self.refuses & set(group):
            raise ValueError("not this one")
        self.groups.append(list(group))

    @property
    def items(self):
        return [item for group in self.groups for item in group]


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def new_writer(shelf, monkeypatch):
    """Makes writers that write as late as possible."""
    monkeypatch.setattr(group_writer, "GATHER_SECONDS", 1000)
    monkeypatch.setattr(group_writer, "_LAST_PAUSE", 0.1)
    writers = []

    def new(patience=DEADLINE):
        writers.append(
            GroupWriter(
                shelf.write, lambda error: isinstance(error, OutageError), patience=patience
            )
        )
        return writers[-1]

    yield new
    shelf.is_open.set()
    shelf.refuses = set()
    for writer in writers:
        writer.stop()


def in_thread(call):
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_flushed_items_are_one_group_in_their_order(new_writer, shelf):
    writer = new_writer()
    for number in range(100):
        writer.put(number)
    assert shelf.groups == []
    writer.flush()
    assert shelf.groups == [list(range(100))]


def test_without_a_flush_items_are_written_after_a_moment(new_writer, shelf, monkeypatch):
    monkeypatch.setattr(group_writer, "GATHER_SECONDS", 0.01)
    new_writer().put("item")
    assert shelf.tried.wait(DEADLINE)


def test_a_full_group_is_written_at_once(new_writer, shelf):
    writer = new_writer()
    for number in range(group_writer.MAX_GROUP):
        writer.put(number)
    assert shelf.tried.wait(DEADLINE)


def test_each_thread_finds_its_items_in_its_order_and_none_twice(new_writer, shelf):
    writer = new_writer()

    def put(name):
        for number in range(1000):
            writer.put((name, number))
            if number % 100 == 0:
                writer.flush()
                assert (name, number) in shelf.items

    threads = [in_thread(lambda name=name: put(name)) for name in "abcd"]
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    writer.flush()
    for name in "abcd":
        assert [number for who, number in shelf.items if who == name] == list(range(1000))


def test_an_outage_blocks_writers_when_the_queue_is_full_and_loses_nothing(new_writer, shelf):
    writer = new_writer()
    shelf.is_open.clear()
    for number in range(group_writer.MAX_WAITING):
        writer.put(number)
    one_more = in_thread(lambda: writer.put("one more"))
    assert shelf.tried.wait(DEADLINE)
    one_more.join(0.2)
    assert one_more.is_alive()
    shelf.is_open.set()
    one_more.join(DEADLINE)
    assert not one_more.is_alive()
    writer.flush()
    assert shelf.items == [*range(group_writer.MAX_WAITING), "one more"]
    # The second attempt at a group is informed that the first may have succeeded.
    assert shelf.tries[:2] == [False, True]


def test_a_wait_that_takes_too_long_raises_and_the_items_stay(new_writer, shelf):
    writer = new_writer(patience=0.1)
    shelf.is_open.clear()
    writer.put("item")
    with pytest.raises(OutageError):
        writer.flush()
    shelf.is_open.set()
    writer.flush()
    assert shelf.items == ["item"]


def test_a_refused_item_does_not_delay_the_others_and_is_reported(new_writer, shelf, caplog):
    writer = new_writer()
    shelf.refuses = {"bad"}
    for item in ("before", "bad", "after"):
        writer.put(item)
    with pytest.raises(ValueError, match="not this one"):
        writer.flush()
    assert shelf.items == ["before", "after"]
    assert "an event cannot be written: bad" in caplog.text
    writer.flush()  # the error is raised only once


def test_stopping_writes_what_is_left_and_ends_the_thread(new_writer, shelf):
    before = set(threading.enumerate())  # another test may have left a writer
    writer = new_writer()
    writer.put("item")
    [own] = set(threading.enumerate()) - before
    writer.stop()
    assert shelf.items == ["item"]
    assert not own.is_alive()
    writer.put("next")
    writer.stop()
    assert shelf.items == ["item", "next"]


def test_items_that_are_put_in_while_others_are_written_follow_them(new_writer, shelf):
    writer = new_writer()
    shelf.is_open.clear()
    for number in range(group_writer.MAX_GROUP):
        writer.put(number)
    assert shelf.tried.wait(DEADLINE)
    writer.put("meanwhile")
    shelf.is_open.set()
    writer.flush()
    assert shelf.items == [*range(group_writer.MAX_GROUP), "meanwhile"]


def test_a_process_that_ends_writes_what_is_left():
    program = f"""
from {group_writer.__name__} import GroupWriter

writer = GroupWriter(lambda group, tried: print(*group, flush=True), lambda error: False)
for number in range(3):
    writer.put(number)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "0 1 2\n"
