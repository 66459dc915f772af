"""The sensor: what it asks for, and what it never asks for twice."""

from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
from sqlalchemy import func, update

from batch_pipeline.database.models import AskedSlice, UploadBatch
from batch_pipeline.definitions import build_definitions
from batch_pipeline.orchestration.tags import BATCH_TAG, REASON_TAG, RUN_KEY_TAG, SLICE_TAG
from batch_pipeline.services.dispatch.turns import ASKED_SECONDS
from batch_pipeline.services.states.transitions import interval
from batch_pipeline.testing.records import add_batch, upload_rows


class Daemon:
    """Ticks the sensor, and records a run for every request, as Dagster's daemon does."""

    def __init__(self, pipeline, instance):
        self.pipeline, self.instance = pipeline, instance
        resource = dg.ResourceDefinition.hardcoded_resource(pipeline)
        definitions = build_definitions(pipeline.settings, {"batch_pipeline": resource})
        self.job = definitions.resolve_job_def("process_batch")
        self.sensor = definitions.get_repository_def().get_sensor_def("pending_batches")
        self.runs = []

    def tick(self, *, launch=True):
        context = dg.build_sensor_context(
            instance=self.instance, resources={"batch_pipeline": self.pipeline}
        )
        result = self.sensor.evaluate_tick(context)
        if launch:
            for request in result.run_requests:
                tags = request.tags | {RUN_KEY_TAG: request.run_key}
                self.runs.append(
                    self.instance.create_run_for_job(
                        self.job,
                        run_config=request.run_config,
                        tags=tags,
                        status=dg.DagsterRunStatus.STARTED,
                    )
                )
        return result


@pytest.fixture
def daemon_of(instance, open_pipeline, change):
    daemons = []

    def start(**settings):
        daemons.append(Daemon(open_pipeline(change(**settings)), instance))
        return daemons[-1]

    yield start
    for daemon in daemons:
        for run in daemon.runs:
            instance.delete_run(run.run_id)


def batches_of(result):
    return [request.tags[BATCH_TAG] for request in result.run_requests]


def make_older(daemon, batch_id, *, seconds):
    with daemon.pipeline.database.transaction() as connection:
        connection.execute(
            update(UploadBatch)
            .where(UploadBatch.id == batch_id)
            .values(created_at=UploadBatch.created_at - interval(seconds))
        )


def test_nothing_pending_is_a_skip_with_its_reason(daemon_of):
    assert daemon_of().tick().skip_message == "no upload is pending"


def test_a_batch_becomes_one_run_per_slice_oldest_uploads_first(daemon_of):
    daemon = daemon_of(uploads_per_run=2)
    batch_id = add_batch(daemon.pipeline.database, 5)
    requests = [*daemon.tick().run_requests]
    daemon.pipeline.states.load_batch(batch_id, daemon.runs[0].run_id, slice_number=1, limit=2)
    requests += daemon.tick().run_requests
    assert [request.run_key for request in requests] == [f"{batch_id}/{n}" for n in (1, 2, 3)]
    assert [request.tags[SLICE_TAG] for request in requests] == ["1", "2", "3"]
    assert {request.tags[REASON_TAG] for request in requests} == {"new"}
    slices = [row.slice for row in upload_rows(daemon.pipeline.database, batch_id)]
    assert slices == [1, 1, 2, 2, 3]


def test_the_first_run_of_a_new_batch_has_a_head_start_until_it_has_begun(daemon_of):
    daemon = daemon_of(uploads_per_run=2)
    batch_id = add_batch(daemon.pipeline.database, 5)
    make_older(daemon, batch_id, seconds=-3600)  # however slow the machine, it stays new
    assert len(daemon.tick().run_requests) == 1
    waiting = daemon.tick()
    assert not waiting.run_requests
    assert waiting.skip_message == (
        "slices that wait: 3, 1 of them for a run that was launched, 2 for the first run of their "
        "batch to begin; runs in flight: 1 of 4"
    )
    daemon.pipeline.states.load_batch(batch_id, daemon.runs[0].run_id, slice_number=1, limit=2)
    assert len(daemon.tick().run_requests) == 2


def test_a_first_run_that_takes_long_to_begin_keeps_the_others_for_ten_seconds_only(daemon_of):
    daemon = daemon_of(uploads_per_run=2)
    batch_id = add_batch(daemon.pipeline.database, 5)
    assert len(daemon.tick().run_requests) == 1
    make_older(daemon, batch_id, seconds=11)
    assert len(daemon.tick().run_requests) == 2


def test_the_oldest_batch_comes_first(daemon_of):
    daemon = daemon_of()
    newer = add_batch(daemon.pipeline.database, 1)
    older = add_batch(daemon.pipeline.database, 1)
    make_older(daemon, older, seconds=86400)
    assert batches_of(daemon.tick()) == [str(older), str(newer)]


def test_a_thousand_files_do_not_keep_three_waiting(daemon_of):
    daemon = daemon_of(uploads_per_run=10, max_runs_in_flight=4)
    large = add_batch(daemon.pipeline.database, 1000, status="processing")
    small = add_batch(daemon.pipeline.database, 3)
    assert batches_of(daemon.tick()) == [str(large), str(small), str(large), str(large)]


def test_a_slice_is_never_asked_for_twice(daemon_of):
    daemon = daemon_of()
    add_batch(daemon.pipeline.database, 3)
    assert len(daemon.tick().run_requests) == 1
    again = daemon.tick()
    assert not again.run_requests
    assert again.skip_message == (
        "slices that wait: 1, 1 of them for a run that was launched, 0 for the first run of their "
        "batch to begin; runs in flight: 1 of 4"
    )


def test_a_tick_says_that_it_returned_the_uploads_of_a_dead_worker(daemon_of, instance):
    daemon = daemon_of()
    batch_id = add_batch(daemon.pipeline.database, 2)
    daemon.tick()
    [run] = daemon.runs
    daemon.pipeline.states.load_batch(batch_id, run.run_id, slice_number=1, limit=2)
    instance.report_run_failed(run)
    assert batches_of(daemon.tick(launch=False)) == [str(batch_id)]
    daemon.pipeline.states.load_batch(batch_id, run.run_id, limit=2)
    daemon.pipeline.batches.cancel_batch(batch_id)
    assert daemon.tick().skip_message == (
        "uploads of dead workers that are pending again: 2; no upload is pending"
    )


def test_a_daemon_killed_before_it_launched_asks_for_the_same_run_again(daemon_of):
    killed, restarted = daemon_of(), daemon_of()
    add_batch(killed.pipeline.database, 3)
    before = killed.tick(launch=False).run_requests
    assert not restarted.tick().run_requests  # it might be recorded yet
    with killed.pipeline.database.transaction() as connection:
        long_ago = func.now() - interval(ASKED_SECONDS + 1)
        connection.execute(update(AskedSlice).values(asked_at=long_ago))
    after = restarted.tick().run_requests
    assert [request.run_key for request in before] == [request.run_key for request in after]


def test_two_daemons_ask_for_the_same_keys_and_the_second_run_finds_nothing(daemon_of):
    one, two = daemon_of(), daemon_of()
    batch_id = add_batch(one.pipeline.database, 3)
    keys = {request.run_key for d in (one, two) for request in d.tick(launch=False).run_requests}
    assert len(keys) == 1
    first = one.pipeline.states.load_batch(batch_id, "a", slice_number=1, limit=250)
    second = two.pipeline.states.load_batch(batch_id, "b", slice_number=1, limit=250)
    assert (len(first.reserved), len(second.reserved)) == (3, 0)


def test_the_number_of_runs_in_flight_is_limited(daemon_of, instance):
    daemon = daemon_of(uploads_per_run=1, max_runs_in_flight=2)
    add_batch(daemon.pipeline.database, 5, status="processing")
    assert len(daemon.tick().run_requests) == 2
    assert not daemon.tick().run_requests
    instance.report_run_canceled(daemon.runs[0])
    assert len(daemon.tick().run_requests) == 1


def test_new_work_goes_before_retried_work(daemon_of):
    daemon = daemon_of(max_runs_in_flight=1)
    retried = add_batch(daemon.pipeline.database, [{"processing_status": "failed"}])
    daemon.pipeline.batches.retry_batch(retried)
    new = add_batch(daemon.pipeline.database, 1)
    assert batches_of(daemon.tick()) == [str(new)]


def test_a_retry_is_a_new_slice_with_its_reason(daemon_of):
    daemon = daemon_of()
    batch_id = add_batch(
        daemon.pipeline.database, [{"processing_status": "failed", "slice": 1}], slices=1
    )
    daemon.pipeline.batches.retry_batch(batch_id)
    [request] = daemon.tick().run_requests
    assert (request.run_key, request.tags[REASON_TAG]) == (f"{batch_id}/2", "retry")


def test_batches_that_are_over_are_left_alone(daemon_of):
    daemon = daemon_of()
    for status in ("completed", "cancelled", "failed"):
        add_batch(daemon.pipeline.database, 1, status=status)
    assert not daemon.tick().run_requests


def test_uploads_that_rest_after_an_outage_wait_for_their_time(daemon_of):
    daemon = daemon_of()
    batch_id = add_batch(daemon.pipeline.database, 1)
    daemon.pipeline.states.load_batch(batch_id, "run", limit=10)
    daemon.pipeline.states.release_run("run", resume_after_seconds=3600)
    assert not daemon.tick().run_requests
    [upload] = upload_rows(daemon.pipeline.database, batch_id)
    assert upload.not_before is not None


def test_two_sensors_that_look_at_the_same_moment_never_ask_for_the_same_slice(daemon_of):
    one, other = daemon_of(max_runs_in_flight=4), daemon_of(max_runs_in_flight=4)
    for _ in range(3):
        add_batch(one.pipeline.database, 2)
    with ThreadPoolExecutor(2) as pool:
        ticks = list(pool.map(lambda daemon: daemon.tick(launch=False), (one, other)))
    keys = [request.run_key for tick in ticks for request in tick.run_requests or ()]
    assert len(keys) == len(set(keys)) == 3
