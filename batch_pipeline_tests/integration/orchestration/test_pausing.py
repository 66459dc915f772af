"""Pauses in Dagster: the sensor, runs in progress, and the two jobs of the UI."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from batch_pipeline.database.models import PauseScope
from batch_pipeline.errors import WorkPausedError
from batch_pipeline.model_servers.base import Caller
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.sweep import work_for_a_sweep
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.pauses import active_pauses, pause, resume
from batch_pipeline.services.short_ids import short
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline.testing.records import (
    USER,
    add_batch,
    batch_row,
    open_all_slices,
    upload_rows,
)
from batch_pipeline_tests.patience import wait_until
from batch_pipeline_tests.runs import record_run

from .test_pending_batches import (
    Daemon,
    batches_of,
    daemon_of,  # noqa: F401 - a fixture
)

FILES = ("fog.webp", "lighthouse.gif", "sea.jpg")


def hold(pipeline, scope=PauseScope.EVERYTHING, target="", reason=""):
    return pause(pipeline.database, pipeline.settings, scope, str(target), reason)


def release(pipeline, scope=PauseScope.EVERYTHING, target=""):
    return resume(pipeline.database, scope, str(target))


def column(pipeline, batch_id, name):
    return [getattr(row, name) for row in upload_rows(pipeline.database, batch_id)]


def tick(runner):
    """Return the run requests of the sensor."""
    return Daemon(runner.pipeline, runner.instance).tick(launch=False)


# The sensor


def test_no_run_is_requested_for_a_paused_batch_and_the_tick_says_so(daemon_of):  # noqa: F811
    daemon = daemon_of()
    held, other = (add_batch(daemon.pipeline.database, 2) for _ in range(2))
    hold(daemon.pipeline, PauseScope.BATCH, held, "wrong folder")
    assert batches_of(daemon.tick()) == [str(other)]
    said = daemon.tick().skip_message
    assert f"1 paused [{short(held)}]" in said
    assert f"batch {short(held)} has been paused since" in said
    assert "(wrong folder)" in said

    release(daemon.pipeline, PauseScope.BATCH, held)
    assert batches_of(daemon.tick()) == [str(held)]


def test_a_slice_that_has_its_number_already_waits_too(daemon_of):  # noqa: F811
    daemon = daemon_of()
    batch_id = add_batch(daemon.pipeline.database, 2)
    [slice_] = open_all_slices(daemon.pipeline.database, 250)
    hold(daemon.pipeline)
    assert not daemon.tick().run_requests
    release(daemon.pipeline)
    [request] = daemon.tick().run_requests
    assert request.run_key == slice_.key == f"{batch_id}/1"


def test_while_all_servers_are_paused_no_slice_is_opened_and_nothing_counts_as_an_outage(
    daemon_of,  # noqa: F811
):
    with ScriptedModelServer() as server:
        daemon = daemon_of(analyzer="ollama", ollama_host=server.ollama_url)
        batch_id = add_batch(daemon.pipeline.database, 2)
        hold(daemon.pipeline, PauseScope.SERVER, server.ollama_url)
        said = daemon.tick().skip_message
        assert f"1 batch waits [{short(batch_id)}], because every vision server is paused" in said
        assert column(daemon.pipeline, batch_id, "slice") == [None, None]
        assert column(daemon.pipeline, batch_id, "not_before") == [None, None]
        release(daemon.pipeline, PauseScope.SERVER, server.ollama_url)
        assert batches_of(daemon.tick()) == [str(batch_id)]


def test_the_sweep_asks_no_model_while_everything_is_paused(runner, model_server, change):
    settings = change(analyzer="ollama", ollama_host=model_server.ollama_url, refresh_stale=10)
    runner.pipeline.settings = settings
    hold(runner.pipeline)
    left_out = LeftOut()
    work_for_a_sweep(runner.instance, runner.pipeline, left_out)
    assert not left_out
    assert model_server.calls == []


# Runs


def test_a_run_that_was_launched_before_the_pause_releases_its_slice(runner, model_server):
    pipeline = runner.pipeline
    batch_id = runner.submit(*FILES)
    [launched] = tick(runner).run_requests
    hold(pipeline)
    assert runner.run(batch_id, slice=1).success
    assert column(pipeline, batch_id, "slice") == [None] * 3
    assert batch_row(pipeline.database, batch_id).status == "pending"
    assert model_server.calls == []

    release(pipeline)
    [again] = tick(runner).run_requests
    assert again.run_key != launched.run_key
    assert runner.run(batch_id, slice=2).success
    assert batch_row(pipeline.database, batch_id).successful_uploads == 3


def paused_in_the_first_call(runner, model_server, *, scope, target):
    """Run a batch, and pause while its first call is in flight; return batch and run."""
    model_server.latency_seconds = 1.0
    batch_id = runner.submit(*FILES)
    targets = {"batch": batch_id, "server": model_server.ollama_url}
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(runner.run, batch_id)
        model_server.wait_for_calls(1)
        hold(runner.pipeline, scope, targets.get(scope, target))
        result = running.result()
    return batch_id, result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "target"),
    [("everything", ""), ("user", uuid.UUID(int=0)), ("batch", ""), ("server", "")],
)
def test_the_call_in_flight_is_stored_and_the_rest_waits(runner, model_server, scope, target):
    pipeline, scope = runner.pipeline, PauseScope(scope)
    batch_id, result = paused_in_the_first_call(runner, model_server, scope=scope, target=target)
    assert result.success, "nothing has failed"
    assert len(model_server.calls) == 1
    rows = upload_rows(pipeline.database, batch_id)
    assert [bool(row.description) for row in rows] == [True, False, False]
    assert {(row.processing_status, row.owner_run_id, row.attempts) for row in rows} == {
        ("pending", None, 0)
    }
    assert {row.error_kind for row in rows} == {None}

    [held] = active_pauses(pipeline.database)
    release(pipeline, held.scope, held.target)
    model_server.latency_seconds = 0.0
    runner.run(batch_id)
    assert batch_row(pipeline.database, batch_id).status == "completed"
    assert set(column(pipeline, batch_id, "attempts")) == {1}
    assert len(model_server.calls_of("vision")) == 3


@pytest.mark.slow
def test_a_video_whose_frames_are_described_one_by_one_starts_again_after_the_pause(
    runner, model_server
):
    pipeline = runner.pipeline
    model_server.latency_seconds = 1.0
    batch_id = runner.submit("ball_on_meadow.mp4")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(runner.run, batch_id)
        model_server.wait_for_calls(1)
        hold(pipeline)
        assert running.result().success
    assert len(model_server.calls) == 1
    assert column(pipeline, batch_id, "description") == [None]
    release(pipeline)
    model_server.latency_seconds = 0.0
    runner.run(batch_id)
    assert batch_row(pipeline.database, batch_id).status == "completed"
    assert column(pipeline, batch_id, "attempts") == [1]


def test_calls_that_wait_for_their_turn_give_up_while_the_one_in_flight_goes_on(
    change, open_pipeline
):
    """Of three calls at the same time, two wait for the only slot; their process holds it."""
    with ScriptedModelServer() as server:
        server.play("embedding", [Fault.HANG])
        settings = change(analyzer="ollama", ollama_host=server.ollama_url, max_embedding_calls=1)
        pipeline = open_pipeline(settings)
        asked = pipeline.pauses.of(add_batch(pipeline.database, 1))
        with ThreadPoolExecutor(3) as threads:
            calls = [
                threads.submit(
                    pipeline.analyzer.embedding.embed, ["sea"], caller=Caller(paused=asked)
                )
                for _ in range(3)
            ]
            try:
                server.wait_for_calls(1)
                hold(pipeline)
                wait_until(lambda: sum(call.done() for call in calls) == 2, "two give up", 20)
                errors = [type(call.exception()) for call in calls if call.done()]
            finally:
                server.stop()
        assert errors == [WorkPausedError] * 2
        assert len(server.calls) == 1


@pytest.mark.slow
def test_a_call_that_was_turned_away_is_not_made_again_during_a_pause(runner, model_server):
    model_server.play("vision", [Fault.BUSY_429, Fault.BUSY_429])
    batch_id, result = paused_in_the_first_call(
        runner, model_server, scope=PauseScope.EVERYTHING, target=""
    )
    assert result.success
    assert len(model_server.calls) == 1
    assert set(column(runner.pipeline, batch_id, "attempts")) == {0}


def test_failed_uploads_that_are_executed_again_are_processed_after_the_pause(runner, model_server):
    pipeline = runner.pipeline
    model_server.play("vision", [Fault.REFUSED_INPUT_400])
    batch_id = runner.submit("fog.webp")
    runner.run(batch_id)
    assert column(pipeline, batch_id, "processing_status") == ["failed"]
    [upload] = upload_rows(pipeline.database, batch_id)
    hold(pipeline)
    assert runner.run(batch_id, upload_ids=[str(upload.id)]).success
    assert column(pipeline, batch_id, "processing_status") == ["pending"]
    release(pipeline)
    runner.run(batch_id)
    assert batch_row(pipeline.database, batch_id).successful_uploads == 1


# The jobs of the UI


@pytest.fixture
def press(pipeline, instance):
    """Launches a job with config, like the launchpad."""
    resource = dg.ResourceDefinition.hardcoded_resource(pipeline)
    definitions = build_definitions(pipeline.settings, {"batch_pipeline": resource})

    def press_(job, **config):
        return definitions.resolve_job_def(job).execute_in_process(
            run_config={"ops": {f"{job}_work": {"config": config}}} if config else {},
            instance=instance,
            raise_on_error=False,
        )

    return press_


def test_the_jobs_pause_and_resume_what_their_config_names(pipeline, press):
    batch_id = add_batch(pipeline.database, 1)
    assert press("pause").success
    assert press("pause", batch=str(batch_id), reason="blurred").success
    assert press("pause", user=str(USER)).success
    held = {(p.scope, p.target, p.reason) for p in active_pauses(pipeline.database)}
    assert held == {
        ("everything", "", ""),
        ("batch", str(batch_id), "blurred"),
        ("user", str(USER), ""),
    }
    assert press("resume").success
    assert press("resume", batch=str(batch_id)).success
    assert press("resume", user=str(USER)).success
    assert active_pauses(pipeline.database) == []


@pytest.mark.parametrize(
    ("job", "config", "said"),
    [
        ("pause", {"user": "me"}, "user: 'me' is not an id"),
        ("pause", {"server": "http://gpu1"}, "the models are embedded"),
        ("pause", {"user": str(USER), "batch": str(USER)}, "expected at most one"),
        ("resume", {}, "there is no pause of everything"),
    ],
)
def test_a_pause_or_resume_that_is_not_possible_fails_its_step_with_the_reason(
    press, job, config, said
):
    result = press(job, **config)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert said in failure.step_failure_data.user_failure_data.description


@pytest.mark.parametrize("name", ["pause", "resume", "sweep_backlog"])
def test_a_short_job_goes_before_the_runs_that_wait_in_the_queue(runner, name):
    definitions = build_definitions(runner.pipeline.settings)

    def queued(job_name, **config):
        job = definitions.resolve_job_def(job_name)
        return record_run(runner.instance, job, **config)

    config = {"ops": {"load_batch": {"config": {"batch_id": str(uuid.uuid4())}}}}
    waiting = [queued("process_batch", run_config=config), queued(name)]

    queue = QueuedRunCoordinatorDaemon(interval_seconds=1)._priority_sort(waiting)

    assert [run.job_name for run in queue] == [name, "process_batch"]
