"""A separate run worker, a persistent instance, real signals."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from batch_pipeline.executor.step_threads import StepThreads
from batch_pipeline.executor.turns import Turns
from batch_pipeline_tests.integration.executor import stored_jobs
from batch_pipeline_tests.integration.executor.running import DEADLINE, outcome_of
from batch_pipeline_tests.patience import wait_until


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv(stored_jobs.FOLDER, str(tmp_path))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


class Worker:
    """A process that executes one run."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path, job: dg.JobDefinition) -> None:
        self.run_id = instance.create_run_for_job(job).run_id
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", stored_jobs.__name__, str(folder), job.name, self.run_id],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait_for(self, mark: str) -> None:
        def has_come() -> bool:
            found = (self._folder / mark).exists()
            assert found or self._process.poll() is None, "the worker has ended"
            return found

        # A fresh interpreter imports Dagster first.
        wait_until(has_come, f"the mark {mark}", 3 * DEADLINE)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        try:
            return self._process.wait(3 * DEADLINE)
        finally:
            self._process.kill()


def re_execute_from_failure(
    instance: dg.DagsterInstance, job: dg.JobDefinition, run_id: str
) -> str:
    with dg.execute_job(
        dg.reconstructable(job),
        instance,
        reexecution_options=dg.ReexecutionOptions.from_failure(run_id, instance),
    ) as result:
        return result.run_id


@pytest.mark.parametrize("by_a_person", [True, False], ids=["terminate", "sigterm"])
def test_an_interrupt_reaches_the_steps_in_flight_and_waits_for_them(
    instance: dg.DagsterInstance, tmp_path: Path, by_a_person: bool
) -> None:
    worker = Worker(instance, tmp_path, stored_jobs.stops_when_told)
    worker.wait_for("started")
    if by_a_person:  # what Terminate in the UI does, before the launcher sends the signal
        instance.report_run_canceling(instance.get_run_by_id(worker.run_id))
    worker.terminate()
    worker.wait()
    outcome = outcome_of(instance, worker.run_id)
    assert outcome.kinds("until_told")[-1] == "STEP_FAILURE"
    assert "never_begins" not in outcome.steps
    expected = dg.DagsterRunStatus.CANCELED if by_a_person else dg.DagsterRunStatus.FAILURE
    assert outcome.status == expected


def test_a_second_interrupt_no_longer_waits(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    worker = Worker(instance, tmp_path, stored_jobs.does_not_stop)
    worker.wait_for("started")
    worker.terminate()
    worker.wait_for("told")
    worker.terminate()
    worker.wait()
    assert outcome_of(instance, worker.run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_signal_whose_handler_ends_after_the_wait_for_reports_does_not_prolong_the_wait() -> None:
    handled = []

    def slow(number: int, frame: object) -> None:
        signal.sigtimedwait([], 0.4)
        handled.append(number)

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("the loop still waits for reports")

    before = {
        number: signal.signal(number, handler)
        for number, handler in {signal.SIGUSR1: slow, signal.SIGUSR2: give_up}.items()
    }
    timers = [
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)),
        threading.Timer(DEADLINE, os.kill, (os.getpid(), signal.SIGUSR2)),
    ]
    for timer in timers:
        timer.start()
    try:
        assert StepThreads(threading.Event(), Turns(0)).reports(timeout=0.2) == []
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert handled


def test_re_execution_from_failure_runs_what_failed_and_what_depends_on_it(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    job = stored_jobs.healed_by_re_execution
    with dg.execute_job(dg.reconstructable(job), instance) as first:
        assert not first.success
    (tmp_path / "healed").touch()
    outcome = outcome_of(instance, re_execute_from_failure(instance, job, first.run_id))
    assert outcome.status == dg.DagsterRunStatus.SUCCESS
    assert set(outcome.steps) - {None} == {"fails_once[1]", "total"}


def test_a_step_that_always_runs_also_ends_a_re_execution_from_failure(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    job = stored_jobs.ends_the_same_way
    with dg.execute_job(dg.reconstructable(job), instance) as first:
        assert not first.success
    (tmp_path / "at_the_end").unlink()
    (tmp_path / "healed").touch()
    outcome = outcome_of(instance, re_execute_from_failure(instance, job, first.run_id))
    assert outcome.status == dg.DagsterRunStatus.SUCCESS
    assert set(outcome.steps) - {None} == {"fails_once[1]", "at_the_end"}
    assert (tmp_path / "at_the_end").exists()


def test_re_execution_after_a_kill_ends_and_names_the_steps_that_can_never_run(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Steps that had not begun are in no plan, but the collector waits for their outputs."""
    worker = Worker(instance, tmp_path, stored_jobs.killed)
    assert worker.wait() == -signal.SIGKILL
    instance.report_run_failed(instance.get_run_by_id(worker.run_id))
    (tmp_path / "healed").touch()
    outcome = outcome_of(
        instance, re_execute_from_failure(instance, stored_jobs.killed, worker.run_id)
    )
    assert outcome.status == dg.DagsterRunStatus.FAILURE
    assert "StepsCanNeverRunError" in outcome.failure
    assert "total needs the output of dies_once[2], dies_once[3]" in outcome.failure


def test_standard_output_is_captured_once_for_the_run(instance: dg.DagsterInstance) -> None:
    job = stored_jobs.healed_by_re_execution
    with dg.execute_job(dg.reconstructable(job), instance) as result:
        captures = [
            event for event in result.all_events if event.event_type_value == "LOGS_CAPTURED"
        ]
    assert len(captures) == 1
