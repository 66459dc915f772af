"""*Re-execute from failure* after the causes are fixed, and something happens meanwhile."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import dagster as dg
import pytest
from sqlalchemy import create_engine, make_url, text

from batch_pipeline.database.models import PauseScope
from batch_pipeline.orchestration.failures import why_it_failed
from batch_pipeline.services.pauses import pause, resume
from batch_pipeline.testing.model_server import Fault
from batch_pipeline_tests.patience import wait_until

from .conftest import failures

NAMES = ("city.jpg", "forest.webp", "night.jpg", "sea.jpg")


@pytest.fixture
def repaired(work, tmp_path):
    """Runs a batch whose files are cut off, and repairs them; returns batch and run."""

    def fail_and_repair(work):
        batch_id = work.submit_cut_off(tmp_path, *NAMES)
        failed = work.run(batch_id)
        assert work.counts(batch_id) == ("completed", 0, len(NAMES))
        work.repair(batch_id)
        return batch_id, failed

    return fail_and_repair


@pytest.fixture
def unreachable(settings):
    """Makes the database of the pipeline refuse connections; Dagster's database still answers."""
    url = make_url(settings.database_url)
    name = url.database

    @contextmanager
    def refusing():
        server = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(text(end), {"name": name})
            try:
                yield
            finally:
                connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
        server.dispose()

    return refusing


def during_the_first_call(model_server, action):
    """Do something in another thread while the first vision call is in flight."""

    def wait_and_act():
        wait_until(lambda: model_server.calls_of("vision"), "the first call")
        action()

    threads = ThreadPoolExecutor(1)
    acted = threads.submit(wait_and_act)
    threads.shutdown(wait=False)
    return acted


def test_a_pause_in_the_first_call_lets_the_others_wait_for_its_end(work, repaired, model_server):
    work = work(max_concurrent_uploads=1)
    batch_id, failed = repaired(work)
    model_server.latency_seconds = 1.0

    paused = during_the_first_call(
        model_server,
        lambda: pause(
            work.pipeline.database, work.pipeline.settings, PauseScope.EVERYTHING, "", "new card"
        ),
    )
    again = work.re_execute(failed.run_id)
    paused.result()

    assert again.success
    assert len(model_server.calls) == 1
    assert work.column(batch_id, "processing_status") == ["pending"] * 4
    assert work.column(batch_id, "owner_run_id") == [None] * 4
    assert not work.tick().run_requests

    resume(work.pipeline.database, PauseScope.EVERYTHING, "")
    model_server.latency_seconds = 0
    assert all(result.success for result in work.run_what_is_asked_for())
    assert work.counts(batch_id) == ("completed", 4, 0)


def test_an_outage_in_the_first_call_leaves_the_others_pending_as_their_steps_say(
    work, repaired, model_server
):
    work = work(max_concurrent_uploads=1)
    batch_id, failed = repaired(work)
    model_server.play("vision", itertools.repeat(Fault.HANG))

    stopped = during_the_first_call(model_server, model_server.stop)
    again = work.re_execute(failed.run_id)
    stopped.result()

    first, *rest = failures(again)
    assert first.startswith("model_server_down: ")
    assert rest == [f"stopped, the upload is pending: {first}"] * 3
    assert work.column(batch_id, "processing_status") == ["pending"] * 4
    assert work.column(batch_id, "owner_run_id") == [None] * 4
    assert work.column(batch_id, "attempts") == [0] * 4

    model_server.play("vision", [])
    model_server.start()
    work.end_the_pause()
    while results := work.run_what_is_asked_for():
        assert all(result.success for result in results)
    assert work.counts(batch_id) == ("completed", 4, 0)


@pytest.mark.parametrize("count", [4, 2], ids=["from failure", "chosen steps"])
def test_the_uploads_of_all_its_steps_are_reserved_at_once_and_no_others(
    work, repaired, model_server, count
):
    work = work(max_concurrent_uploads=1)
    batch_id, failed = repaired(work)
    red = [event.step_key for event in failed.all_events if event.is_step_failure]
    model_server.latency_seconds = 1.0
    seen = []

    looked = during_the_first_call(model_server, lambda: seen.extend(work.uploads(batch_id)))
    again = work.re_execute(failed.run_id, red[:count] if count < len(red) else [])
    looked.result()

    assert again.success
    assert [row.owner_run_id for row in seen].count(again.run_id) == count
    assert [row.processing_status for row in seen].count("failed") == 4 - count
    assert work.counts(batch_id) == ("completed", count, 4 - count)


def test_uploads_of_a_cancelled_batch_stay_as_they_are(work, repaired, model_server):
    work = work()
    batch_id, failed = repaired(work)
    row, *_ = work.uploads(batch_id)
    work.pipeline.batches.retry_batch(batch_id, [row.id])
    work.pipeline.batches.cancel_batch(batch_id)

    assert work.re_execute(failed.run_id).success

    assert work.counts(batch_id) == ("cancelled", 0, 3)
    assert work.column(batch_id, "owner_run_id") == [None] * 4
    assert model_server.calls == []


def test_a_run_by_hand_that_finds_the_server_down_leaves_failed_uploads_that_it_names_pending(
    work, repaired, model_server
):
    work = work()
    batch_id, _ = repaired(work)
    model_server.stop()

    result = work.run(batch_id, upload_ids=[str(row.id) for row in work.uploads(batch_id)])

    [said] = [event for event in result.all_events if event.is_step_failure]
    told = said.step_failure_data.user_failure_data.metadata
    assert told["uploads_handed_back"] == dg.IntMetadataValue(4)
    assert work.column(batch_id, "processing_status") == ["pending"] * 4
    assert work.counts(batch_id) == ("processing", 0, 0)


def test_a_database_that_is_down_at_the_start_fails_the_run_which_can_be_executed_again(
    work, repaired, unreachable
):
    work = work()
    batch_id, failed = repaired(work)

    with unreachable():
        in_vain = work.re_execute(failed.run_id)

    assert not in_vain.success
    [ended] = [event for event in in_vain.all_events if event.is_run_failure]
    why = why_it_failed(work.instance, in_vain.run_id, ended, [])
    assert why.is_stop
    assert why.reason.startswith("ServiceDownError: "), why.reason
    assert work.counts(batch_id) == ("completed", 0, 4)

    assert work.re_execute(in_vain.run_id).success
    assert work.counts(batch_id) == ("completed", 4, 0)
