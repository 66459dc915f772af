"""The config of a run chooses its executor; results of uploads are the same."""

import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import dagster as dg
import pytest
from celery import states
from celery.result import AsyncResult
from dagster._core.definitions.reconstruct import ReconstructableRepository

from batch_pipeline.executor.dagster_internals import RetryMode
from batch_pipeline.orchestration.celery.executor import StepsOnWorkers, _Sent, _Steps
from batch_pipeline.orchestration.failures import step_failures_that_ended_it
from batch_pipeline.services.pipeline import shared_pipeline
from batch_pipeline.settings import ENVIRONMENT_PREFIX, load_settings
from batch_pipeline.testing.records import batch_row
from batch_pipeline_tests.integration.orchestration.conftest import Runner


@pytest.mark.parametrize(
    ("execution", "said"),
    [
        ({}, "Executing steps in up to 4 threads"),
        ({"threaded": {"max_concurrent": 2}}, "Executing steps in up to 2 threads"),
        ({"in_process": {}}, "Executing steps in process"),
    ],
    ids=["default", "threaded", "in_process"],
)
def test_the_executor_is_a_choice_of_the_run(settings, instance, monkeypatch, execution, said):
    with opened_pipeline(settings, monkeypatch) as pipeline:
        batch_id = Runner(pipeline, instance).submit("fog.webp")
        config = {"execution": {"config": execution}} if execution else {}
        result = run(batch_id, instance, config)
        assert result.success
        row = batch_row(pipeline.database, batch_id)
    assert (row.status, row.successful_uploads) == ("completed", 1)
    messages = [entry.message for entry in instance.all_logs(result.run_id)]
    assert any(said in message for message in messages), messages
    steps = instance.get_run_step_stats(result.run_id)
    assert len([step for step in steps if step.step_key.startswith("process_upload[")]) == 1


def test_a_run_with_a_failed_file_ends_with_the_counts_of_its_batch(
    settings, instance, monkeypatch
):
    with opened_pipeline(settings, monkeypatch) as pipeline:
        batch_id = Runner(pipeline, instance).submit("truncated.jpg", "fog.webp")
        result = run(batch_id, instance, {})
    messages = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert not result.success
    assert any("is completed: 2 uploads, 1 completed, 1 failed" in each for each in messages)
    assert not [each for each in messages if "Not executing" in each]


@pytest.mark.parametrize(
    "execution",
    [
        {"threaded": {}},
        {"in_process": {}},
        # It starts a process for each step, so that this is its only run in these tests.
        pytest.param({"multiprocess": {"max_concurrent": 2}}, marks=pytest.mark.slow),
    ],
    ids=["threaded", "in_process", "multiprocess"],
)
def test_every_executor_says_that_a_run_failed_because_of_its_steps(
    settings, instance, monkeypatch, execution
):
    with opened_pipeline(settings, monkeypatch) as pipeline:
        batch_id = Runner(pipeline, instance).submit("truncated.jpg", "fog.webp")
        result = run(batch_id, instance, {"execution": {"config": execution}})
        row = batch_row(pipeline.database, batch_id)
    assert (row.status, row.successful_uploads, row.failed_uploads) == ("completed", 1, 1)
    [name] = execution
    said = {
        "threaded": "in up to",
        "in_process": "in process",
        "multiprocess": "using multiprocess executor",
    }[name]
    messages = [entry.message for entry in instance.all_logs(result.run_id)]
    assert any(f"Executing steps {said}" in message for message in messages), messages
    end, *steps = (
        entry.dagster_event
        for kind in (dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.STEP_FAILURE)
        for entry in instance.all_logs(result.run_id, of_type=kind)
    )
    assert [step.step_key.partition("[")[0] for step in steps] == ["process_upload"]
    assert step_failures_that_ended_it(end, steps) == steps


@contextmanager
def opened_pipeline(settings, monkeypatch):
    """Open the pipeline as a run worker does, by the environment."""
    for name, value in {"home": settings.home, "database_url": settings.database_url}.items():
        monkeypatch.setenv(f"{ENVIRONMENT_PREFIX}{name.upper()}", str(value))
    pipeline = shared_pipeline(load_settings())
    yield pipeline
    pipeline.close()


def run(batch_id, instance, config):
    location = ReconstructableRepository.for_module("batch_pipeline.definitions", "defs")
    job = location.get_reconstructable_job("process_batch")
    ops = {"load_batch": {"config": {"batch_id": str(batch_id)}}}
    return dg.execute_job(job, instance, run_config={"ops": ops, **config})


def test_a_step_that_ends_while_its_worker_is_looked_up_ends_no_run(pipeline, monkeypatch):
    executor = StepsOnWorkers(
        pipeline.settings,
        retries=RetryMode.DISABLED,
        broker="memory://",
        backend="cache+memory://",
        include=[],
        config_source={},
    )
    steps = _Steps(pipeline, SimpleNamespace(run_id="a run"), executor)
    result = AsyncResult("a step", app=steps._app)
    started = {"status": states.STARTED, "result": {"hostname": "worker@a"}}
    ended = {"status": states.SUCCESS, "result": ["an event"]}
    answers = iter([started, ended])
    monkeypatch.setattr(result.backend, "get_task_meta", lambda *_: next(answers))
    sent = _Sent(steps, SimpleNamespace(), uuid.uuid4(), result)

    assert not sent.ready()
    assert sent.ready()
    assert sent.get() == ["an event"]
