"""The sensor: which runs it requests, and that it requests none twice."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import psycopg
import pytest
from sqlalchemy import func, text, update

from batch_pipeline.database.models import AskedSlice, Upload, UploadBatch
from batch_pipeline.database.readings import interval
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.tags import (
    BATCH_TAG,
    NAME_TAG,
    REASON_TAG,
    RUN_KEY_TAG,
    SLICE_TAG,
)
from batch_pipeline.services.dispatch.asked_slices import ASKED_SECONDS
from batch_pipeline.services.dispatch.turns import Turns
from batch_pipeline.services.short_ids import short
from batch_pipeline.services.states.backlog import MAX_DEATHS
from batch_pipeline.testing.records import USER, add_batch, batch_row, embedded, upload_rows
from batch_pipeline_tests.patience import DEADLINE
from batch_pipeline_tests.runs import record_run


class Daemon:
    """Ticks the sensor, and records a run for every request, like Dagster's daemon."""

    def __init__(self, pipeline, instance):
        self.pipeline, self.instance, self.cursor = pipeline, instance, None
        resource = dg.ResourceDefinition.hardcoded_resource(pipeline)
        definitions = build_definitions(pipeline.settings, {"batch_pipeline": resource})
        self.job = definitions.resolve_job_def("process_batch")
        self.sensor = definitions.get_repository_def().get_sensor_def("pending_batches")
        self.runs = []

    def tick(self, *, launch=True):
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"batch_pipeline": self.pipeline}
        )
        result = self.sensor.evaluate_tick(context)
        self.cursor = result.cursor
        if launch:
            for request in result.run_requests:
                tags = request.tags | {RUN_KEY_TAG: request.run_key}
                self.runs.append(
                    record_run(
                        self.instance,
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
        for table, id_ in ((UploadBatch, UploadBatch.id), (Upload, Upload.batch_id)):
            connection.execute(
                update(table)
                .where(id_ == batch_id)
                .values(created_at=table.created_at - interval(seconds))
            )


def test_nothing_pending_is_a_skip_with_its_reason(daemon_of):
    assert daemon_of().tick().skip_message == "no upload is pending"


def test_a_batch_becomes_one_run_per_slice_oldest_uploads_first(daemon_of):
    daemon = daemon_of(uploads_per_run=2)
    batch_id = add_batch(daemon.pipeline.database, 5)
    requests = daemon.tick().run_requests
    assert [request.run_key for request in requests] == [f"{batch_id}/{n}" for n in (1, 2, 3)]
    assert [request.tags[SLICE_TAG] for request in requests] == ["1", "2", "3"]
    assert {request.tags[REASON_TAG] for request in requests} == {"new"}
    slices = [row.slice for row in upload_rows(daemon.pipeline.database, batch_id)]
    assert slices == [1, 1, 2, 2, 3]


def held_of(daemon, batch_id):
    """Uploads of a batch that runs hold, or will take."""
    rows = upload_rows(daemon.pipeline.database, batch_id)
    open_ = [row for row in rows if row.processing_status not in {"completed", "failed"}]
    return sum(row.owner_run_id is not None or row.slice is not None for row in open_)


def test_runs_hold_no_more_uploads_of_a_user_than_they_may_and_others_are_launched(daemon_of):
    daemon = daemon_of(uploads_per_run=10, max_uploads_per_user=6, max_runs_in_flight=5)
    states, database = daemon.pipeline.states, daemon.pipeline.database
    hers, other = add_batch(database, 20), add_batch(database, 3)
    with database.transaction() as connection:
        connection.execute(
            update(UploadBatch).where(UploadBatch.id == other).values(user_id=uuid.UUID(int=9))
        )
    assert sorted(batches_of(daemon.tick())) == sorted(map(str, (hers, other)))
    assert held_of(daemon, hers) == 6
    assert f"1 behind uploads of the same user [{short(hers)}]" in daemon.tick().skip_message

    taken = states.load_batch(hers, daemon.runs[0].run_id, slice_number=1, limit=10).reserved
    for row in taken[:2]:
        claim = states.start(row.id, daemon.runs[0].run_id).claim
        states.complete(claim, embedded=embedded(database), seconds={})
    assert not daemon.tick().run_requests, "room for two is less than half"
    claim = states.start(taken[2].id, daemon.runs[0].run_id).claim
    states.complete(claim, embedded=embedded(database), seconds={})
    [request] = daemon.tick().run_requests
    assert request.tags[BATCH_TAG] == str(hers)
    assert held_of(daemon, hers) == 6


def test_a_run_has_the_name_of_its_batch_in_a_tag_before_it_begins(daemon_of):
    daemon = daemon_of()
    add_batch(daemon.pipeline.database, 1, name="Rome\n2026")
    add_batch(daemon.pipeline.database, 1)
    named, unnamed = daemon.tick().run_requests
    assert named.tags[NAME_TAG] == "Rome 2026"
    assert NAME_TAG not in unnamed.tags


def test_the_oldest_batch_comes_first(daemon_of):
    daemon = daemon_of()
    newer = add_batch(daemon.pipeline.database, 1)
    older = add_batch(daemon.pipeline.database, 1)
    make_older(daemon, older, seconds=86400)
    assert batches_of(daemon.tick()) == [str(older), str(newer)]


def test_turns_recorded_by_a_clock_that_was_ahead_delay_no_user(daemon_of):
    daemon = daemon_of(max_runs_in_flight=1)
    older, newer = (add_batch(daemon.pipeline.database, 1) for _ in range(2))
    make_older(daemon, older, seconds=3600)
    tomorrow = time.time() + 86400
    daemon.cursor = str(Turns({}, {older: tomorrow}))
    assert batches_of(daemon.tick()) == [str(older)]
    assert Turns.parse(daemon.cursor).batches[older] < tomorrow
    assert newer not in Turns.parse(daemon.cursor).batches


def test_a_batch_of_a_thousand_files_does_not_delay_one_of_three(daemon_of):
    daemon = daemon_of(uploads_per_run=10, max_runs_in_flight=4)
    large = add_batch(daemon.pipeline.database, 1000, status="processing")
    small = add_batch(daemon.pipeline.database, 3)
    assert batches_of(daemon.tick()) == [str(large), str(small), str(large), str(large)]


def test_a_run_is_never_requested_twice_for_a_slice(daemon_of):
    daemon = daemon_of()
    batch_id = add_batch(daemon.pipeline.database, 3)
    assert len(daemon.tick().run_requests) == 1
    again = daemon.tick()
    assert not again.run_requests
    assert again.skip_message == (
        f"1 batch waits: 1 already launched [{short(batch_id)}]; 1 of 4 runs in flight"
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
    assert not restarted.tick().run_requests  # the daemon may still record it
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


def test_a_retried_upload_waits_from_the_retry_not_from_its_submission(daemon_of):
    daemon = daemon_of(max_runs_in_flight=1)
    retried = add_batch(daemon.pipeline.database, [{"processing_status": "failed"}])
    make_older(daemon, retried, seconds=86400)
    new = add_batch(daemon.pipeline.database, 1)
    daemon.pipeline.batches.retry_batch(retried)
    assert batches_of(daemon.tick()) == [str(new)]


def test_uploads_lost_with_their_run_go_before_later_submissions(daemon_of, instance):
    daemon = daemon_of(max_runs_in_flight=1)
    lost = add_batch(daemon.pipeline.database, 1)
    daemon.tick()
    [run] = daemon.runs
    daemon.pipeline.states.load_batch(lost, run.run_id, slice_number=1, limit=1)
    add_batch(daemon.pipeline.database, 1)
    instance.report_run_failed(run)
    [request] = daemon.tick().run_requests
    assert (request.run_key, request.tags[REASON_TAG]) == (f"{lost}/2", "rescue")


def test_one_user_with_many_files_does_not_delay_another(daemon_of, instance):
    """When the only place becomes free, no user has a run in flight: the cursor knows the turn."""
    daemon = daemon_of(uploads_per_run=1, max_runs_in_flight=1)
    large = add_batch(daemon.pipeline.database, 9, status="processing")
    make_older(daemon, large, seconds=3600)
    assert batches_of(daemon.tick()) == [str(large)]
    small = add_batch(daemon.pipeline.database, 1, user_id=uuid.uuid4())
    instance.report_run_canceled(daemon.runs[0])
    daemon.pipeline.batches.retry_batch(large)
    assert str(small) in batches_of(daemon.tick()) + end_and_tick(daemon, instance)


def end_and_tick(daemon, instance):
    instance.report_run_failed(daemon.runs[-1])
    return batches_of(daemon.tick())


def test_a_user_may_be_limited_so_that_a_place_stays_free_for_others(daemon_of):
    daemon = daemon_of(uploads_per_run=1, max_runs_in_flight=3, max_runs_per_user=2)
    large = add_batch(daemon.pipeline.database, 5, status="processing")
    assert batches_of(daemon.tick()) == [str(large)] * 2
    assert daemon.tick().skip_message.endswith(
        f"1 behind runs of the same user [{short(large)}]; 2 of 3 runs in flight"
    )


def test_only_slices_that_are_launched_get_a_number(daemon_of):
    daemon = daemon_of(uploads_per_run=2, max_runs_in_flight=1)
    batch_id = add_batch(daemon.pipeline.database, 9)
    daemon.tick()
    daemon.tick()
    slices = [row.slice for row in upload_rows(daemon.pipeline.database, batch_id)]
    assert slices == [1, 1] + [None] * 7


def test_a_run_whose_batch_tag_is_not_an_id_is_counted_and_named_and_the_others_go_on(
    daemon_of, instance
):
    daemon = daemon_of()
    foreign = record_run(
        instance,
        daemon.job,
        run_config={"ops": {"load_batch": {"config": {"batch_id": "summer <b>"}}}},
        tags={BATCH_TAG: "summer <b>"},
        status=dg.DagsterRunStatus.STARTED,
    )
    daemon.runs.append(foreign)
    said = f"left out: the tag of run {foreign.run_id} ('summer <b>' is not the id of a batch)"
    batch_id = add_batch(daemon.pipeline.database, 1)
    assert batches_of(daemon.tick()) == [str(batch_id)]
    tick = daemon.tick()
    assert f"2 of 4 runs in flight; {said}" in tick.skip_message


def test_a_batch_whose_row_is_locked_loses_its_turn_and_delays_no_other(daemon_of):
    daemon = daemon_of(max_runs_in_flight=1)
    held = add_batch(daemon.pipeline.database, 1)
    make_older(daemon, held, seconds=60)
    other = add_batch(daemon.pipeline.database, 1)
    with daemon.pipeline.database.transaction() as connection:
        connection.execute(
            text("SELECT 1 FROM upload_batches WHERE id = :id FOR UPDATE"), {"id": held}
        )
        tick = daemon.tick()
        assert not tick.run_requests
        assert f"left out: batch {short(held)} (another transaction has locked its row" in (
            tick.skip_message
        )
        assert batches_of(daemon.tick()) == [str(other)]


def test_a_batch_that_cannot_be_cancelled_now_delays_no_other(daemon_of, instance, database_url):
    daemon = daemon_of()
    held = add_batch(daemon.pipeline.database, 1)
    daemon.tick()
    [run] = daemon.runs
    daemon.pipeline.states.load_batch(held, run.run_id, limit=1)
    instance.report_run_canceled(run)
    other = add_batch(daemon.pipeline.database, 1)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as api:
        api.execute("SELECT FROM upload_batches WHERE id = %s FOR UPDATE", [held])
        assert batches_of(pool.submit(daemon.tick).result(DEADLINE)) == [str(other)]
    daemon.tick()
    assert batch_row(daemon.pipeline.database, held).status == "cancelled"


def test_batches_of_terminated_runs_are_cancelled_each_when_nobody_locks_it(
    daemon_of, instance, database_url
):
    """Also after the lease of their uploads, which keep the run that was terminated until then."""
    daemon = daemon_of()
    held, other = (
        add_batch(daemon.pipeline.database, 1, id=uuid.UUID(f"{number}" * 32)) for number in (1, 2)
    )
    daemon.tick()
    for run in daemon.runs:
        batch_id = uuid.UUID(run.tags[BATCH_TAG])
        daemon.pipeline.states.load_batch(batch_id, run.run_id, limit=1)
        instance.report_run_canceled(run)
    with daemon.pipeline.database.transaction() as connection:
        connection.execute(update(Upload).values(heartbeat_at=text("now() - interval '1 day'")))
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as api:
        api.execute("SELECT FROM upload_batches WHERE id = %s FOR UPDATE", [held])
        assert batches_of(pool.submit(daemon.tick).result(DEADLINE)) == []
        assert batch_row(daemon.pipeline.database, other).status == "cancelled"
    assert batches_of(daemon.tick()) == []
    assert batch_row(daemon.pipeline.database, held).status == "cancelled"


def test_an_upload_that_cannot_be_failed_now_delays_no_other(daemon_of, database_url):
    daemon = daemon_of()
    dead = {"processing_status": "analyzing", "heartbeat_at": text("now() - interval '1 day'")}
    killer = {**dead, "owner_run_id": "dead", "deaths": MAX_DEATHS - 1}
    held = add_batch(daemon.pipeline.database, [killer], status="processing")
    other = add_batch(daemon.pipeline.database, [dead], status="processing")
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as api:
        api.execute("SELECT FROM upload_batches WHERE id = %s FOR UPDATE", [held])
        assert batches_of(pool.submit(daemon.tick).result(DEADLINE)) == [str(other)]
    daemon.tick()
    assert batch_row(daemon.pipeline.database, held).status == "completed"


def test_a_batch_gets_a_run_while_an_api_has_an_insert_into_it_open(daemon_of, database_url):
    daemon = daemon_of()
    batch_id = add_batch(daemon.pipeline.database, 1)
    with psycopg.connect(database_url) as api:
        api.execute(
            "INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size) "
            "VALUES (%s, %s, 'new.jpg', 'new.jpg', 'image', 1)",
            [USER, batch_id],
        )
        assert batches_of(daemon.tick()) == [str(batch_id)]


def test_extreme_moments_stop_no_upload(daemon_of):
    daemon = daemon_of()
    odd = {
        add_batch(daemon.pipeline.database, [{"created_at": text(f"'{moment}'::timestamptz")}])
        for moment in ("infinity", "-infinity", "294276-01-01", "4713-01-01 BC")
    }
    assert set(batches_of(daemon.tick())) == set(map(str, odd))


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


def test_uploads_released_by_an_outage_wait_for_their_time(daemon_of):
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


@pytest.mark.parametrize(("loaded", "changed"), [("text", "json"), ("json", "text")])
def test_a_log_format_that_changed_after_the_job_was_loaded_does_not_stop_the_launch_of_runs(
    daemon_of, open_pipeline, change, loaded, changed
):
    daemon = daemon_of(log_format=loaded)
    add_batch(daemon.pipeline.database, 1)
    daemon.pipeline = open_pipeline(change(log_format=changed))  # each tick reads it again

    [request] = daemon.tick(launch=False).run_requests

    assert dg.validate_run_config(daemon.job, request.run_config)
