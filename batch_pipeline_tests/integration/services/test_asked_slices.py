"""Notes by which sensors of several code locations coordinate."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text, update

from batch_pipeline.database.models import AskedSlice
from batch_pipeline.database.readings import interval
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.services.dispatch import asked_slices
from batch_pipeline.services.dispatch.asked_slices import ASKED_SECONDS, one_sensor_at_a_time
from batch_pipeline_tests.patience import DEADLINE, wait_until

WAITS = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def test_a_sensor_waits_for_the_active_one_and_then_knows_its_requests(database):
    def look():
        with one_sensor_at_a_time(database) as asked:
            return asked.recent()

    def somebody_waits():
        with database.transaction() as connection:
            return connection.scalar(WAITS)

    with ThreadPoolExecutor(1) as other:
        with one_sensor_at_a_time(database) as asked:
            assert asked.recent() == set()
            answer = other.submit(look)
            wait_until(lambda: somebody_waits() or answer.done(), "the other sensor waits")
            asked.note(["batch/1", "batch/2"])
        assert answer.result(DEADLINE) == {"batch/1", "batch/2"}


def test_requests_of_a_slow_sensor_count_from_the_end_of_its_tick(database, monkeypatch):
    monkeypatch.setattr(asked_slices, "ASKED_SECONDS", 1.0)
    with one_sensor_at_a_time(database) as asked:
        asked.recent()
        time.sleep(1.2)
        asked.note(["slow"])
    with one_sensor_at_a_time(database) as asked:
        assert asked.recent() == {"slow"}


def test_a_sensor_that_hangs_does_not_keep_others_waiting(database, monkeypatch):
    monkeypatch.setattr(asked_slices, "STANDSTILL_SECONDS", 1, raising=False)

    def look():
        with one_sensor_at_a_time(database) as asked:
            asked.note(["batch/1"])
            return True

    def stand_still():
        with one_sensor_at_a_time(database) as asked:
            assert other.submit(look).result(DEADLINE)
            asked.note(["batch/1"])

    with ThreadPoolExecutor(1) as other, pytest.raises(ServiceDownError):
        stand_still()
    assert look()


def test_old_requests_are_forgotten(database):
    with one_sensor_at_a_time(database) as asked:
        asked.note(["old"])
    earlier = AskedSlice.asked_at - interval(ASKED_SECONDS)
    with database.transaction() as connection:
        connection.execute(update(AskedSlice).values(asked_at=earlier))
    with one_sensor_at_a_time(database) as asked:
        asked.note(["new"])
        assert asked.recent() == {"new"}
