"""The sensors that clean up after runs, and the schedule that checks before it sweeps."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import psutil
import psycopg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.events import EngineEventData, JobFailureData, RunFailureReason
from dagster._core.execution.api import execute_run
from dagster._core.execution.plan.objects import StepFailureData, UserFailureData
from dagster._core.instance.methods import event_methods
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.impl import core_execute_run
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster_shared.error import SerializableErrorInfo
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from batch_pipeline.database.models import OPEN_BATCH
from batch_pipeline.orchestration import run_ends, sweep
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.run_ends import (
    RunCleanup,
    cancel_batch_of_terminated_run,
    close_dead_runs,
    close_runs_of_ended_workers,
    dead_runs,
)
from batch_pipeline.orchestration.sensors import runs_in_flight
from batch_pipeline.orchestration.sweep import (
    JOBS,
    delete_old_runs,
    sweep_once,
    tidy,
    work_for_a_sweep,
)
from batch_pipeline.orchestration.tags import BATCH_TAG, OUTCOME_TAG, RUN_KEY_TAG, SLICE_TAG
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.short_ids import short
from batch_pipeline.services.states.backlog import MAX_DIED_RUNS
from batch_pipeline.testing.records import add_batch, batch_row, upload_rows
from batch_pipeline_tests.patience import DEADLINE
from batch_pipeline_tests.runs import record_run


@pytest.fixture
def definitions(pipeline):
    resource = dg.ResourceDefinition.hardcoded_resource(pipeline)
    return build_definitions(pipeline.settings, {"batch_pipeline": resource})


def lost_run(definitions, instance, pipeline, batch_id, slice_number=1):
    """A run that holds the first upload of a batch, and should have taken the others."""
    first, *_ = upload_rows(pipeline.database, batch_id)
    run = record_run(
        instance,
        definitions.resolve_job_def("process_batch"),
        run_config={"ops": {"load_batch": {"config": {"batch_id": str(batch_id)}}}},
        tags={BATCH_TAG: str(batch_id)} | ({SLICE_TAG: str(slice_number)} if slice_number else {}),
    )
    begun = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name)
    instance.report_dagster_event(begun, run.run_id)
    pipeline.states.start(first.id, run.run_id)
    return run


def evaluate(definitions, instance, pipeline, name, run, event_type):  # noqa: PLR0917
    [event] = [
        entry.dagster_event
        for entry in instance.all_logs(run.run_id)
        if entry.dagster_event and entry.dagster_event.event_type_value == event_type
    ]
    context = dg.build_run_status_sensor_context(
        name,
        event,
        instance,
        instance.get_run_by_id(run.run_id),
        resources={"batch_pipeline": pipeline},
    )
    sensor = definitions.resolve_sensor_def(name)
    return sensor(context.for_run_failure() if event.is_run_failure else context)


def test_a_worker_that_has_just_ended_a_long_call_and_has_yet_to_log_it_is_not_dead(
    pipeline, instance, definitions, monkeypatch
):
    run = lost_run(definitions, instance, pipeline, add_batch(pipeline.database, 2))
    pipeline.states.release_run(run.run_id)
    with pipeline.database.transaction() as connection:
        connection.execute(text("UPDATE uploads SET owner_run_id = NULL"))
    looks = []

    class Clock:
        """The clock at the first look is far ahead. Before the second look, the events arrive."""

        def time(self):
            return time.time() + 10 * pipeline.settings.lease_seconds * (not looks)

        def sleep(self, seconds):
            looks.append(seconds)
            instance.report_engine_event("still here", run)

    monkeypatch.setattr(run_ends, "time", Clock())
    assert [r.run_id for r in dead_runs(instance, pipeline, ["process_batch"], LeftOut())] == [
        run.run_id
    ]
    assert close_dead_runs(instance, pipeline, ["process_batch"], LeftOut()) == 0
    assert looks
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED


def test_a_run_that_was_recorded_waits_for_the_daemon_that_will_launch_it(
    instance, change, open_pipeline, monkeypatch
):
    pipeline = open_pipeline(change(lease_seconds=5))
    job = build_definitions(pipeline.settings).resolve_job_def("process_batch")
    config = {"batch_id": str(uuid.uuid4())}
    run = record_run(instance, job, run_config={"ops": {"load_batch": {"config": config}}})
    assert run.status == dg.DagsterRunStatus.NOT_STARTED

    def dead_after(seconds):
        clock = SimpleNamespace(time=lambda: time.time() + seconds)
        monkeypatch.setattr(run_ends, "time", clock)
        return [r.run_id for r in dead_runs(instance, pipeline, ["process_batch"], LeftOut())]

    assert dead_after(60) == []
    assert dead_after(300) == [run.run_id]


def test_a_run_whose_worker_does_not_start_is_left_to_the_monitoring_of_dagster(
    pipeline, instance, definitions, monkeypatch
):
    job = definitions.resolve_job_def("process_batch")
    config = {"ops": {"load_batch": {"config": {"batch_id": str(uuid.uuid4())}}}}
    run = record_run(instance, job, run_config=config, status=dg.DagsterRunStatus.STARTING)

    def dead_after(seconds):
        clock = SimpleNamespace(time=lambda: time.time() + seconds)
        monkeypatch.setattr(run_ends, "time", clock)
        return [r.run_id for r in dead_runs(instance, pipeline, ["process_batch"], LeftOut())]

    silent = 3 * pipeline.settings.lease_seconds
    assert dead_after(silent) == [run.run_id]
    monkeypatch.setattr(instance, "_run_monitoring_enabled", True)
    monkeypatch.setattr(instance, "get_settings", lambda _: {"start_timeout_seconds": silent})
    assert dead_after(silent) == []
    assert dead_after(3 * silent) == [run.run_id]


@pytest.mark.parametrize("name", ["sweep_backlog", "pause", "resume"])
def test_a_dead_run_of_another_of_our_jobs_is_found_as_soon_as_any_other(
    pipeline, instance, definitions, monkeypatch, name
):
    job = definitions.resolve_job_def(name)
    run = record_run(instance, job, status=dg.DagsterRunStatus.STARTED)
    silent = 3 * pipeline.settings.lease_seconds
    monkeypatch.setattr(run_ends, "time", SimpleNamespace(time=lambda: time.time() + silent))

    assert [r.run_id for r in dead_runs(instance, pipeline, JOBS, LeftOut())] == [run.run_id]


@pytest.mark.parametrize("name", JOBS)
def test_runs_of_another_project_whose_job_has_the_name_of_one_of_ours_are_left_alone(
    change, open_pipeline, instance, monkeypatch, name
):
    pipeline = open_pipeline(change(keep_runs_days=30))

    @dg.job(name=name)
    def of_another_project():
        pass

    silent = record_run(instance, of_another_project, status=dg.DagsterRunStatus.STARTED)
    ended = record_run(instance, of_another_project, status=dg.DagsterRunStatus.SUCCESS)
    with instance.run_storage.connect() as connection:
        connection.execute(
            text(
                "UPDATE runs SET update_timestamp = now() - interval '31 days' "
                "WHERE run_id IN (:silent, :ended)"
            ),
            {"silent": silent.run_id, "ended": ended.run_id},
        )
    later = time.time() + 10 * pipeline.settings.lease_seconds
    monkeypatch.setattr(run_ends, "time", SimpleNamespace(time=lambda: later))

    assert dead_runs(instance, pipeline, JOBS, LeftOut()) == []
    assert delete_old_runs(instance, pipeline, LeftOut()) == 0
    assert instance.get_run_by_id(ended.run_id)
    assert runs_in_flight(instance, name, LeftOut()).total == 0


@pytest.mark.slow
def test_a_sweep_that_takes_long_is_not_dead(instance, change, open_pipeline):
    pipeline = open_pipeline(change(lease_seconds=1))
    resource = dg.ResourceDefinition.hardcoded_resource(pipeline)
    definitions = build_definitions(pipeline.settings, {"batch_pipeline": resource})
    job = definitions.resolve_job_def("sweep_backlog")
    with ThreadPoolExecutor(1) as pool:
        with pipeline.database.transaction() as connection:
            connection.execute(text("LOCK made_thumbnails"))  # which the tidy reads
            swept = pool.submit(job.execute_in_process, instance=instance)
            time.sleep(4)
            under_way = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            dead = dead_runs(instance, pipeline, JOBS, LeftOut())
        assert swept.result().success
    assert [run.run_id for run in under_way] == [swept.result().run_id]
    assert dead == []


def test_a_sweep_that_hangs_gives_signs_of_life_for_a_limited_time(instance, monkeypatch):
    monkeypatch.setattr(sweep, "_LONGEST_SWEEP_SECONDS", 0.0)
    context = dg.build_op_context(instance=instance)
    with sweep._signs_of_life(context.log, 0.001):
        [signs] = [t for t in threading.enumerate() if t.name == "signs-of-life"]
        signs.join(DEADLINE)
        assert not signs.is_alive(), "it counts as alive, so no other sweep would begin"


@pytest.mark.parametrize(
    "name", ["release_uploads_of_failed_runs", "cancel_batches_of_terminated_runs"]
)
def test_a_tick_that_finds_no_ended_run_keeps_its_place_and_one_that_does_names_it(
    pipeline, instance, definitions, name
):
    sensor = definitions.get_repository_def().get_sensor_def(name)

    def tick(cursor):
        with dg.build_sensor_context(
            instance=instance,
            cursor=cursor,
            resources={"batch_pipeline": pipeline},
        ) as context:
            return sensor.evaluate_tick(context)

    first = tick(None)
    idle = tick(first.cursor)
    assert (idle.dagster_run_reactions, idle.cursor) == ([], first.cursor)
    batch_id = add_batch(pipeline.database, [{"slice": 1}] * 2, slices=1, status="processing")
    run = lost_run(definitions, instance, pipeline, batch_id)
    if "failed" in name:
        instance.report_run_failed(run)
    else:
        instance.report_run_canceled(run)
    busy = tick(idle.cursor)
    assert [reaction.dagster_run.run_id for reaction in busy.dagster_run_reactions] == [run.run_id]
    assert busy.dagster_run_reactions[0].error is None
    assert tick(busy.cursor).dagster_run_reactions == []


def test_the_message_for_a_run_that_held_nothing_says_that_it_needs_no_clean_up():
    assert str(RunCleanup()) == "nothing to clean up; it held no upload any more"
    assert str(RunCleanup(returned=2)) == "uploads that it held and that are pending again: 2"


def newest_clean_up(instance):
    [record] = instance.fetch_materializations(dg.AssetKey("run_cleanups"), limit=1).records
    return record.asset_materialization


def test_a_failed_run_gives_back_what_it_held_and_says_so(pipeline, instance, definitions):
    batch_id = add_batch(pipeline.database, [{"slice": 1}] * 3, slices=1, status="processing")
    run = lost_run(definitions, instance, pipeline, batch_id)
    instance.report_run_failed(run, "exited with code 139")
    evaluate(
        definitions, instance, pipeline, "release_uploads_of_failed_runs", run, "PIPELINE_FAILURE"
    )
    rows = upload_rows(pipeline.database, batch_id)
    assert {(row.processing_status, row.owner_run_id, row.slice) for row in rows} == {
        ("pending", None, None)
    }
    assert [row.deaths for row in rows] == [1, 0, 0]
    batch = batch_row(pipeline.database, batch_id)
    assert batch.died_runs == 1
    assert batch.error_message.endswith("continues its work: exited with code 139")
    seen = newest_clean_up(instance)
    assert seen.partition == str(batch_id)
    assert seen.metadata["uploads_returned"].value == 1
    assert seen.metadata["uploads_released"].value == 2
    assert seen.metadata["reason"].value == "exited with code 139"


def unstarted(instance, definitions, batch_id):
    return record_run(
        instance,
        definitions.resolve_job_def("process_batch"),
        run_config={"ops": {"load_batch": {"config": {"batch_id": str(batch_id)}}}},
        tags={BATCH_TAG: str(batch_id), SLICE_TAG: "1"},
    )


class BrokenLauncher(DefaultRunLauncher):
    """A launcher that cannot reach the code location."""

    def launch_run(self, context):
        try:
            raise ConnectionRefusedError("connection to code-location:4000 refused")
        except ConnectionRefusedError as error:
            raise dg.DagsterError("Could not reach user code server") from error


def launched_in_vain(instance, run, pipeline, monkeypatch):
    launcher = BrokenLauncher()
    launcher.register_instance(instance)
    monkeypatch.setattr(instance, "_run_launcher", launcher)
    with pytest.raises(dg.DagsterError):
        instance.launch_run(run.run_id, None)


def started_without_its_code(instance, run, pipeline, monkeypatch):
    """Fail like a worker whose container has another version of the code."""
    pointer = ModuleCodePointer("batch_pipeline_of_last_year", "defs", working_directory=None)
    job = ReconstructableJob(ReconstructableRepository(pointer), run.job_name)
    with pytest.raises(dg.DagsterError):
        list(core_execute_run(job, run, instance, inject_env_vars=False))


def killed_at_its_start(instance, run, pipeline, monkeypatch):
    """Report the death like a code server whose own worker was killed."""
    instance.report_engine_event("Run execution process unexpectedly exited with code -9.", run)
    instance.report_run_failed(run)


def started_with_a_wrong_setting(instance, run, pipeline, monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_MAX_ATTEMPTS", "many")
    job = build_definitions(pipeline.settings).resolve_job_def("process_batch")
    execute_run(InMemoryJob(job), run, instance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (
            launched_in_vain,
            "it could not start: DagsterError: Could not reach user code server: "
            "ConnectionRefusedError: connection to code-location:4000 refused",
        ),
        (
            started_without_its_code,
            "it could not start: DagsterImportError: Encountered ImportError: "
            "`No module named 'batch_pipeline_of_last_year'`",
        ),
        (
            killed_at_its_start,
            "it could not start: Run execution process unexpectedly exited with code -9.",
        ),
        (
            started_with_a_wrong_setting,
            "ConfigurationError: settings are not valid: BATCH_PIPELINE_MAX_ATTEMPTS='many'",
        ),
    ],
)
def test_a_run_that_could_not_start_tells_its_reason_in_status_and_in_the_catalog(  # noqa: PLR0917
    console, database, pipeline, instance, definitions, monkeypatch, ended, reason
):
    batch_id = add_batch(database, [{"slice": 1}], slices=1, status="processing", name="Rome")
    run = unstarted(instance, definitions, batch_id)
    with monkeypatch.context() as patch:
        ended(instance, run, pipeline, patch)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE

    name = "release_uploads_of_failed_runs"
    evaluate(definitions, instance, pipeline, name, run, "PIPELINE_FAILURE")

    said = " ".join(console("status", batch_id).out.split())
    assert reason in said
    assert "a run died, another run continues its work: " in said
    assert reason in newest_clean_up(instance).metadata["reason"].value


#: Nothing listens at this port.
NO_DATABASE = "postgresql://nobody@127.0.0.1:9/nothing"


def started_while_the_database_is_down(instance, run, pipeline, monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_DATABASE_URL", NO_DATABASE)
    job = build_definitions(pipeline.settings).resolve_job_def("process_batch")
    execute_run(InMemoryJob(job), run, instance)


def started_while_the_database_of_dagster_is_down(instance, run, pipeline, monkeypatch):
    """Fail like a worker that cannot use the instance when it reads the run's job."""
    try:
        create_engine(NO_DATABASE.replace("://", "+psycopg://")).connect()
    except OperationalError:
        error = serializable_error_info_from_exc_info(sys.exc_info())
    said = EngineEventData.engine_error(error)
    instance.report_engine_event("Could not load job definition.", run, said)
    instance.report_run_failed(run)


def not_started_in_time(instance, run, pipeline, monkeypatch):
    """End like Dagster's monitoring of runs: the cluster has no room for the pod."""
    reason = JobFailureData(error=None, failure_reason=RunFailureReason.START_TIMEOUT)
    instance.report_run_failed(run, "Run timed out due to taking longer than 300 seconds", reason)


def stopped_with_its_host(instance, run, pipeline, monkeypatch):
    """Receive SIGTERM, as a container engine sends it, once the run has begun."""

    def stop(event):
        if event.is_dagster_event and event.dagster_event.event_type_value == "PIPELINE_START":
            os.kill(os.getpid(), signal.SIGTERM)

    instance.add_event_listener(run.run_id, stop)
    job = build_definitions(pipeline.settings).resolve_job_def("process_batch")
    execute_run(InMemoryJob(job), run, instance)


@pytest.mark.parametrize(
    "ended",
    [
        started_while_the_database_is_down,
        started_while_the_database_of_dagster_is_down,
        not_started_in_time,
        stopped_with_its_host,
    ],
)
def test_runs_that_an_outage_or_a_stop_ends_do_not_end_their_batch(
    pipeline, instance, definitions, monkeypatch, ended
):
    batch_id = add_batch(pipeline.database, [{"slice": 1}], slices=1, died_runs=MAX_DIED_RUNS - 1)
    run = unstarted(instance, definitions, batch_id)
    with monkeypatch.context() as patch:
        ended(instance, run, pipeline, patch)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE

    name = "release_uploads_of_failed_runs"
    evaluate(definitions, instance, pipeline, name, run, "PIPELINE_FAILURE")

    batch = batch_row(pipeline.database, batch_id)
    assert (batch.status, batch.died_runs) == ("pending", MAX_DIED_RUNS - 1)
    assert upload_rows(pipeline.database, batch_id)[0].slice is None, "another run gets it"
    assert instance.get_run_by_id(run.run_id).tags[OUTCOME_TAG] == "stopped"


@pytest.mark.parametrize("slice_number", [1, None], ids=["of the sensor", "launched by hand"])
def test_a_run_that_was_terminated_before_it_began_cancels_its_batch_until_a_retry(
    pipeline, instance, definitions, slice_number
):
    batch_id = add_batch(pipeline.database, [{"slice": slice_number}] * 2, slices=1)
    run = lost_run(definitions, instance, pipeline, batch_id, slice_number)
    instance.report_run_canceled(run)
    name = "cancel_batches_of_terminated_runs"
    evaluate(definitions, instance, pipeline, name, run, "PIPELINE_CANCELED")
    batch = batch_row(pipeline.database, batch_id)
    assert batch.status == "cancelled"
    assert batch.error_message.startswith(
        f"run {run.run_id} was terminated; `batch-pipeline retry`"
    )
    assert {row.owner_run_id for row in upload_rows(pipeline.database, batch_id)} == {None}
    pipeline.batches.retry_batch(batch_id)
    evaluate(definitions, instance, pipeline, name, run, "PIPELINE_CANCELED")
    assert batch_row(pipeline.database, batch_id).status == "pending", "cancelled a second time"


def test_a_step_that_ends_after_the_retry_does_not_cancel_the_batch_again(
    pipeline, instance, definitions
):
    """The last steps of a terminated run may still wait for a model when a person retries."""
    batch_id = add_batch(pipeline.database, [{}] * 2)
    run = lost_run(definitions, instance, pipeline, batch_id)
    instance.report_run_canceled(run)
    cancel_batch_of_terminated_run(instance, pipeline, run.run_id)
    assert batch_row(pipeline.database, batch_id).status == "cancelled"
    pipeline.batches.retry_batch(batch_id)

    cancel_batch_of_terminated_run(instance, pipeline, run.run_id)

    assert batch_row(pipeline.database, batch_id).status in OPEN_BATCH, "cancelled a second time"
    run = instance.get_run_by_id(run.run_id)  # Dagster copies its tags to runs that re-execute it
    job = definitions.resolve_job_def("process_batch")
    again = record_run(instance, job, run_config=run.run_config, tags=run.tags)
    instance.report_run_canceled(again)
    cancel_batch_of_terminated_run(instance, pipeline, again.run_id)
    assert batch_row(pipeline.database, batch_id).status == "cancelled", "a re-executed run"


def test_a_sweep_cancels_the_batch_of_a_run_that_was_terminated_in_the_queue(
    pipeline, instance, definitions
):
    batch_id = add_batch(pipeline.database, [{"slice": 1}] * 2, slices=1)
    run = record_run(
        instance,
        definitions.resolve_job_def("process_batch"),
        run_config={"ops": {"load_batch": {"config": {"batch_id": str(batch_id)}}}},
        tags={BATCH_TAG: str(batch_id), SLICE_TAG: "1", RUN_KEY_TAG: f"{batch_id}/1"},
    )
    instance.report_run_canceled(run)  # the sensor for terminated runs looks some seconds later

    sweep_once(instance, pipeline, LeftOut())

    batch = batch_row(pipeline.database, batch_id)
    assert (batch.status, batch.error_message[:40]) == ("cancelled", f"run {run.run_id}")
    assert {row.slice for row in upload_rows(pipeline.database, batch_id)} == {None}


@pytest.mark.parametrize(("minute", "tidies"), [(0, True), (1, None)])
def test_a_sweep_without_work_is_skipped_but_once_an_hour(
    pipeline, instance, definitions, minute, tidies
):
    for record in instance.get_run_records(dg.RunsFilter(job_name="process_batch")):
        instance.delete_run(record.dagster_run.run_id)
    request = tick_schedule(pipeline, instance, definitions, minute)
    if tidies is None:
        assert request.skip_message == "nothing to put right"
    else:
        [asked] = request.run_requests
        assert asked.run_config["ops"]["sweep"]["config"] == {"tidy": True}


def test_a_sweep_is_asked_for_when_a_batch_has_wrong_counters(pipeline, instance, definitions):
    add_batch(pipeline.database, [{"processing_status": "completed"}], status="processing")
    [asked] = tick_schedule(pipeline, instance, definitions, 1).run_requests
    assert "1 batches to recount" in asked.tags["batch_pipeline/found"]
    assert asked.run_config["ops"]["sweep"]["config"] == {"tidy": False}


def test_the_start_of_a_stack_sweeps_once_after_the_previous_stack(pipeline, instance, definitions):
    add_batch(pipeline.database, [{"processing_status": "completed"}], status="processing")

    def tick(cursor):
        context = dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"batch_pipeline": pipeline}
        )
        return definitions.resolve_sensor_def("sweep_on_start").evaluate_tick(context)

    first = tick("the start before")
    [asked] = first.run_requests
    assert "1 batches to recount" in asked.tags["batch_pipeline/found"]
    assert asked.run_config["ops"]["sweep"]["config"] == {"tidy": True}
    assert tick(first.cursor).run_requests == []
    pipeline.backlog.reconcile_batches()
    for record in instance.get_run_records(dg.RunsFilter(job_name="process_batch")):
        instance.delete_run(record.dagster_run.run_id)
    tidy_start = tick(None)
    assert (tidy_start.run_requests, tidy_start.cursor) == ([], first.cursor)
    assert "nothing to put right" in tidy_start.skip_message


@pytest.mark.parametrize(
    "status",
    [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED],
)
def test_no_sweep_is_asked_for_while_one_is_in_flight_unless_its_worker_is_gone(
    pipeline, instance, definitions, monkeypatch, status
):
    add_batch(pipeline.database, [{"processing_status": "completed"}], status="processing")
    job = definitions.resolve_job_def("sweep_backlog")
    is_queued = status is dg.DagsterRunStatus.QUEUED
    server = GrpcServerCodeLocationOrigin("localhost", 1, None, "batch_pipeline")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(server, "one"), job.name)
    run = record_run(instance, job, status=status, remote_job_origin=origin if is_queued else None)
    skipped = tick_schedule(pipeline, instance, definitions, 1)
    assert skipped.run_requests == []
    assert f"run {run.run_id}" in skipped.skip_message
    [hourly] = tick_schedule(pipeline, instance, definitions, 0).run_requests
    assert hourly.run_config["ops"]["sweep"]["config"] == {"tidy": True}

    silent = 3 * pipeline.settings.lease_seconds
    monkeypatch.setattr(run_ends, "time", SimpleNamespace(time=lambda: time.time() + silent))
    later = tick_schedule(pipeline, instance, definitions, 1)
    assert len(later.run_requests) == (0 if is_queued else 1), "a queued run has no worker yet"


def tick_schedule(pipeline, instance, definitions, minute):
    schedule = definitions.resolve_schedule_def("backlog_sweep")
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2030, 1, 1, 12, minute, tzinfo=UTC),
        resources={"batch_pipeline": pipeline},
    )
    return schedule.evaluate_tick(context)


def test_the_sweep_as_a_job_reports_its_counts_and_prunes_old_partitions(
    pipeline, instance, definitions
):
    gone, kept = "00000000-0000-4000-8000-00000000dead", str(add_batch(pipeline.database, 1))
    instance.add_dynamic_partitions("batches", [gone, kept])
    result = definitions.resolve_job_def("sweep_backlog").execute_in_process(instance=instance)
    assert result.success
    [event] = result.asset_materializations_for_node("sweep")
    assert event.metadata["partitions_pruned"].value >= 1
    assert event.metadata["uploads_rescued"].value == 0
    assert gone not in instance.get_dynamic_partitions("batches")
    assert kept in instance.get_dynamic_partitions("batches")


def test_the_sweep_deletes_runs_of_long_ago_with_their_events_and_no_others(
    change, open_pipeline, instance, definitions, monkeypatch
):
    job = definitions.resolve_job_def("process_batch")
    config = {"ops": {"load_batch": {"config": {"batch_id": "0" * 32}}}}
    ended, recent, under_way = runs = [
        record_run(instance, job, run_config=config) for _ in range(3)
    ]
    for run in (ended, recent):
        instance.report_run_failed(run)
    instance.report_engine_event("here", under_way)
    with instance.run_storage.connect() as connection:
        for run, days in ((ended, 31), (recent, 29), (under_way, 31)):
            connection.execute(
                text(
                    "UPDATE runs SET update_timestamp = now() - make_interval(days => :days) "
                    "WHERE run_id = :run_id"
                ),
                {"days": days, "run_id": run.run_id},
            )

    def kept():
        return [
            run.run_id
            for run in runs
            if instance.get_run_by_id(run.run_id) or instance.all_logs(run.run_id)
        ]

    everything = [run.run_id for run in runs]
    assert delete_old_runs(instance, open_pipeline(change(keep_runs_days=0)), LeftOut()) == 0
    assert kept() == everything
    ahead = SimpleNamespace(now=lambda zone: datetime.now(zone) + timedelta(days=365))
    monkeypatch.setattr(sweep, "datetime", ahead, raising=False)
    assert delete_old_runs(instance, open_pipeline(change(keep_runs_days=30)), LeftOut()) == 1
    assert kept() == everything[1:]
    for run in (recent, under_way):
        instance.delete_run(run.run_id)  # the instance is shared, and counts unfinished runs


HERE = GrpcServerCodeLocationOrigin(host="code-location", port=4000)


def started(instance, run, process_id, *, host="code-location", **address):
    """Write tag and event of a run whose process a code server has started."""
    place = json.dumps({"host": host} | (address or {"port": 4000}))
    instance.add_run_tags(run.run_id, {GRPC_INFO_TAG: place})
    instance.report_engine_event(
        f"Started process for run (pid: {process_id}).",
        run,
        EngineEventData.in_process(process_id),
    )


@pytest.mark.slow
def test_a_code_server_ends_the_runs_of_the_one_before_it_whose_workers_are_gone_and_no_others(
    pipeline, instance, definitions, monkeypatch
):
    gone, living, elsewhere, unknown, reused = (
        lost_run(definitions, instance, pipeline, add_batch(pipeline.database, 1)) for _ in range(5)
    )
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    started(instance, gone, ended.pid)
    started(instance, living, os.getpid())
    started(instance, elsewhere, ended.pid, host="another-host")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as younger:
        # The process has the same id as an earlier worker.
        clock = psutil.Process(younger.pid).create_time() - 1 - run_ends._CLOCK_SECONDS
        with monkeypatch.context() as then:
            then.setattr(event_methods, "get_current_timestamp", lambda: clock)
            started(instance, reused, younger.pid)
        jobs = ["process_batch"]
        assert close_runs_of_ended_workers(instance, pipeline, jobs, None, LeftOut()) == 0
        assert close_runs_of_ended_workers(instance, pipeline, jobs, HERE, LeftOut()) == 2
    statuses = {
        run.run_id: instance.get_run_by_id(run.run_id).status
        for run in (living, elsewhere, unknown)
    }
    for run in (gone, reused):
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert set(statuses.values()) == {dg.DagsterRunStatus.STARTED}


def test_a_worker_lives_on_although_the_clock_is_set_forward(
    pipeline, instance, definitions, monkeypatch
):
    run = lost_run(definitions, instance, pipeline, add_batch(pipeline.database, 1))
    hour = 3600
    monkeypatch.setattr(
        run_ends, "_CLOCK_AT_START", time.time() - time.monotonic() - hour, raising=False
    )
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        with monkeypatch.context() as before:
            before.setattr(event_methods, "get_current_timestamp", lambda: time.time() - hour)
            started(instance, run, worker.pid)
        closed = close_runs_of_ended_workers(instance, pipeline, ["process_batch"], HERE, LeftOut())
    assert closed == 0


def test_dagster_dev_ends_the_runs_of_the_one_before_it_although_its_socket_is_another(
    pipeline, instance, definitions
):
    gone, living = (
        lost_run(definitions, instance, pipeline, add_batch(pipeline.database, 1)) for _ in range(2)
    )
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for run, process_id in ((gone, ended.pid), (living, os.getpid())):
        started(instance, run, process_id, host="localhost", socket="/tmp/before")
    here = GrpcServerCodeLocationOrigin(host="localhost", socket="/tmp/now")

    assert close_runs_of_ended_workers(instance, pipeline, JOBS, here, LeftOut()) == 1
    assert instance.get_run_by_id(gone.run_id).status == dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(living.run_id).status == dg.DagsterRunStatus.STARTED


# Bad files and breakdowns can be told apart in the list of runs


def test_a_run_that_failed_for_its_files_says_so_in_a_tag(runner, definitions):
    batch_id = runner.submit("fog.webp", "lighthouse.gif")
    first, _ = upload_rows(runner.pipeline.database, batch_id)
    (Path(runner.pipeline.settings.storage_location) / first.file_path).unlink()
    run = runner.run(batch_id).dagster_run
    name = "release_uploads_of_failed_runs"
    evaluate(definitions, runner.instance, runner.pipeline, name, run, "PIPELINE_FAILURE")
    assert runner.instance.get_run_by_id(run.run_id).tags[OUTCOME_TAG] == "files_failed"


def file_failed_in(run, instance):
    """Report that the step of an upload failed because of its file, like any executor."""
    description = "fog.webp: source_missing: the file is gone"
    error = SerializableErrorInfo(description, [], dg.Failure.__name__)
    metadata = {"upload_id": dg.MetadataValue.text(str(uuid.uuid4()))}
    said = UserFailureData("intentional-failure", description, metadata)
    failed = dg.DagsterEvent(
        dg.DagsterEventType.STEP_FAILURE.value,
        run.job_name,
        step_key="process_upload[fog_webp__1]",
        event_specific_data=StepFailureData(error, said),
    )
    instance.report_dagster_event(failed, run.run_id)


def killed(instance, run):
    instance.report_engine_event("Run execution process unexpectedly exited with code -9.", run)
    instance.report_run_failed(run)


def stopped_by_a_signal(instance, run):
    reason = JobFailureData(error=None, failure_reason=RunFailureReason.UNEXPECTED_TERMINATION)
    instance.report_run_failed(run, "Execution was interrupted unexpectedly.", reason)


def ended_by_an_outage_of_the_database_of_dagster(instance, run):
    try:
        create_engine(NO_DATABASE.replace("://", "+psycopg://")).connect()
    except OperationalError:
        error = serializable_error_info_from_exc_info(sys.exc_info())
    reason = JobFailureData(error=error, failure_reason=RunFailureReason.RUN_EXCEPTION)
    instance.report_run_failed(run, "An exception was thrown during execution.", reason)


def ended_by_a_step_that_crashed(instance, run):
    """Fail like a run of Dagster's multiprocess executor, one of whose processes was killed."""
    error = SerializableErrorInfo("the process of a step crashed", [], "ChildProcessCrash")
    crashed = dg.DagsterEvent(
        dg.DagsterEventType.STEP_FAILURE.value,
        run.job_name,
        step_key="process_upload[oslo_jpg__2]",
        event_specific_data=StepFailureData(error, None),
    )
    instance.report_dagster_event(crashed, run.run_id)
    reason = JobFailureData(error=None, failure_reason=RunFailureReason.STEP_FAILURE)
    instance.report_run_failed(run, "Steps failed.", reason)


@pytest.mark.parametrize(
    ("end", "outcome", "said"),
    [
        (killed, "died", "Run execution process unexpectedly exited with code -9."),
        (ended_by_a_step_that_crashed, "died", "the process of a step crashed"),
        (stopped_by_a_signal, "stopped", None),
        (ended_by_an_outage_of_the_database_of_dagster, "stopped", None),
    ],
)
def test_a_run_that_broke_down_after_a_file_had_failed_did_not_fail_for_its_files(  # noqa: PLR0917
    pipeline, instance, definitions, end, outcome, said
):
    batch_id = add_batch(pipeline.database, 2)
    run = lost_run(definitions, instance, pipeline, batch_id)
    file_failed_in(run, instance)
    end(instance, run)
    name = "release_uploads_of_failed_runs"
    evaluate(definitions, instance, pipeline, name, run, "PIPELINE_FAILURE")
    assert instance.get_run_by_id(run.run_id).tags[OUTCOME_TAG] == outcome
    batch = batch_row(pipeline.database, batch_id)
    assert batch.died_runs == (outcome == "died")
    assert batch.error_message == (said and f"a run died, another run continues its work: {said}")


def test_a_run_that_found_a_service_down_was_stopped(runner, model_server, definitions):
    batch_id = runner.submit("fog.webp")
    model_server.stop()
    run = runner.run(batch_id).dagster_run
    name, pipeline = "release_uploads_of_failed_runs", runner.pipeline
    evaluate(definitions, runner.instance, pipeline, name, run, "PIPELINE_FAILURE")
    assert runner.instance.get_run_by_id(run.run_id).tags[OUTCOME_TAG] == "stopped"


@pytest.mark.parametrize(
    ("ending", "name", "event", "outcome"),
    [
        ("failed", "release_uploads_of_failed_runs", "PIPELINE_FAILURE", "died"),
        ("canceled", "cancel_batches_of_terminated_runs", "PIPELINE_CANCELED", "stopped"),
    ],
)
def test_a_run_that_died_differs_from_a_run_that_a_person_ended(  # noqa: PLR0917
    pipeline, instance, definitions, ending, name, event, outcome
):
    run = lost_run(definitions, instance, pipeline, add_batch(pipeline.database, 1))
    getattr(instance, f"report_run_{ending}")(run)
    evaluate(definitions, instance, pipeline, name, run, event)
    assert instance.get_run_by_id(run.run_id).tags[OUTCOME_TAG] == outcome


def test_a_re_executed_run_does_not_keep_the_outcome_of_the_failed_run(runner):
    """Dagster copies all tags of a run to the run that re-executes it."""
    batch_id = runner.submit("fog.webp")
    run = runner.run(batch_id, tags={OUTCOME_TAG: "died"}).dagster_run
    assert run.is_success
    assert runner.instance.get_run_by_id(run.run_id).tags[OUTCOME_TAG] == "not_failed"


# One bad run, partition or part


def foreign_run(definitions, instance, **values):
    """A run with tags that a person has changed."""
    return record_run(
        instance,
        definitions.resolve_job_def("process_batch"),
        run_config={"ops": {"load_batch": {"config": {"batch_id": "summer"}}}},
        tags={BATCH_TAG: "summer", SLICE_TAG: "first"},
        **values,
    )


@pytest.mark.parametrize("ending", ["failed", "canceled"])
def test_a_run_whose_tags_are_not_ours_is_cleaned_up_like_any_other(
    pipeline, instance, definitions, ending
):
    batch_id = add_batch(pipeline.database, 1, status="processing")
    run = foreign_run(definitions, instance, status=dg.DagsterRunStatus.STARTED)
    pipeline.states.load_batch(batch_id, run.run_id, limit=1)
    getattr(instance, f"report_run_{ending}")(run)
    name, event = {
        "failed": ("release_uploads_of_failed_runs", "PIPELINE_FAILURE"),
        "canceled": ("cancel_batches_of_terminated_runs", "PIPELINE_CANCELED"),
    }[ending]
    evaluate(definitions, instance, pipeline, name, run, event)
    [upload] = upload_rows(pipeline.database, batch_id)
    assert upload.owner_run_id is None
    assert newest_clean_up(instance).metadata["uploads_returned"].value == 1


def test_the_sweep_closes_dead_runs_whatever_their_tags_say(
    pipeline, instance, definitions, monkeypatch
):
    foreign = foreign_run(definitions, instance, status=dg.DagsterRunStatus.CANCELING)
    ours = lost_run(definitions, instance, pipeline, add_batch(pipeline.database, 1))
    pipeline.states.release_run(ours.run_id)
    with pipeline.database.transaction() as connection:
        connection.execute(text("UPDATE uploads SET owner_run_id = NULL"))
    later = time.time() + 10 * pipeline.settings.lease_seconds
    monkeypatch.setattr(run_ends.time, "time", lambda: later)
    monkeypatch.setattr(run_ends, "_SECOND_LOOK_SECONDS", 0)
    left_out = LeftOut()
    assert sweep_once(instance, pipeline, left_out)["runs_closed"] == 2
    assert not left_out
    assert instance.get_run_by_id(foreign.run_id).status == dg.DagsterRunStatus.CANCELED


DRIFTED = {"status": "processing", "total_uploads": 7}
DUE = {"processing_status": "failed", "retry_at": text("now() - interval '1 second'")}
DEAD = {
    "processing_status": "analyzing",
    "owner_run_id": "dead",
    "heartbeat_at": text("now() - interval '1 day'"),
}


@pytest.mark.parametrize(
    ("batch", "uploads", "repaired"),
    [
        (DRIFTED, [{}], ("processing", "pending")),
        ({"status": "completed"}, [DUE], ("processing", "pending")),
        ({"status": "completed"}, [{}], ("processing", "pending")),
        ({"status": "processing"}, [{**DEAD, "deaths": 2}], ("completed", "failed")),
    ],
    ids=["recount", "retry", "reopen", "quarantine"],
)
@pytest.mark.parametrize("obstacle", ["a lock", "a constraint"])
def test_a_sweep_leaves_out_a_batch_that_it_cannot_change_and_names_it(  # noqa: PLR0917
    pipeline, instance, database_url, batch, uploads, repaired, obstacle
):
    first, second = (
        add_batch(pipeline.database, uploads, id=uuid.UUID(f"{number}" * 32), **batch)
        for number in (1, 2)
    )
    left_out = LeftOut()
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as api:
        if obstacle == "a lock":
            api.execute("SELECT FROM upload_batches WHERE id = %s FOR UPDATE", [first])
        else:
            api.execute(
                f"ALTER TABLE upload_batches ADD CHECK (id <> '{first}' OR updated_at = created_at)"
            )
            api.commit()
        pool.submit(sweep_once, instance, pipeline, left_out).result(DEADLINE)
        said = str(left_out)
    assert f"batch {short(first)} (" in said
    assert ("another transaction has locked its row" in said) == (obstacle == "a lock")
    [upload] = upload_rows(pipeline.database, second)
    assert (batch_row(pipeline.database, second).status, upload.processing_status) == repaired
    assert batch_row(pipeline.database, first).status == batch["status"]
    assert len(left_out) == 1


def test_a_batch_that_refuses_its_recount_is_remembered_and_does_not_stop_that_of_others(
    pipeline, instance
):
    done = [{"processing_status": "completed"}] * 2
    counters = {"total_uploads": 2, "processed_uploads": 2, "successful_uploads": 2}
    first, second = (
        add_batch(
            pipeline.database, done, id=uuid.UUID(f"{number}" * 32), status="completed", **counters
        )
        for number in (1, 2)
    )
    with pipeline.database.transaction() as connection:
        connection.execute(
            text(
                "ALTER TABLE upload_batches ADD CONSTRAINT filled "
                f"CHECK (id <> '{first}' OR total_uploads > 0)"
            )
        )
        connection.execute(text("UPDATE upload_batches SET updated_at = now() - interval '1 day'"))
        for batch_id in (first, second):
            for upload in upload_rows(pipeline.database, batch_id):
                connection.execute(text("DELETE FROM uploads WHERE id = :id"), {"id": upload.id})
    left_out = LeftOut()
    assert sweep_once(instance, pipeline, left_out)["batches_recounted"] == 1
    assert f"batch {short(first)}" in left_out.reasons
    assert batch_row(pipeline.database, second).total_uploads == 0
    with pipeline.database.transaction() as connection:
        noted = connection.scalars(text("SELECT batch_id FROM batches_to_recount")).all()
        assert noted == [first]
        connection.execute(text("ALTER TABLE upload_batches DROP CONSTRAINT filled"))
    assert sweep_once(instance, pipeline, LeftOut())["batches_recounted"] == 1
    assert batch_row(pipeline.database, first).total_uploads == 0


def test_a_failed_part_of_a_sweep_does_not_stop_the_others(pipeline, instance):
    drifted = add_batch(pipeline.database, 1, status="processing", total_uploads=7)
    with pipeline.database.transaction() as connection:
        connection.execute(text("ALTER TABLE uploads RENAME COLUMN retry_at TO retry_then"))
    left_out = LeftOut()
    counts = sweep_once(instance, pipeline, left_out)
    assert batch_row(pipeline.database, drifted).total_uploads == 1
    assert counts["batches_recounted"] == 1
    assert "retrying" in left_out.reasons
    assert "uploads_retried" not in counts


def test_a_schedule_that_cannot_look_everywhere_says_so_and_sweeps_what_it_found(
    pipeline, instance, definitions
):
    run = lost_run(definitions, instance, pipeline, add_batch(pipeline.database, 1))
    instance.report_run_failed(run)
    with pipeline.database.transaction() as connection:
        connection.execute(text("ALTER TABLE uploads RENAME COLUMN retry_at TO retry_then"))
    left_out = LeftOut()
    assert work_for_a_sweep(instance, pipeline, left_out) == {"uploads of ended runs": 1}
    assert "left out: looking for what is due (column uploads.retry_at does not exist" in str(
        left_out
    )


def test_a_partition_that_is_not_a_batch_stays_and_is_named(pipeline, instance):
    gone = str(uuid.uuid4())
    instance.add_dynamic_partitions("batches", ["summer", gone])
    left_out = LeftOut()
    assert tidy(instance, pipeline, left_out)["partitions_pruned"] >= 1
    assert "partition summer" in left_out.reasons
    kept = instance.get_dynamic_partitions("batches")
    assert "summer" in kept
    assert gone not in kept
    instance.delete_dynamic_partition("batches", "summer")
