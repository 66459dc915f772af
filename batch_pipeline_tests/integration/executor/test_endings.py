"""Runs always end, whatever happens in a thread, and for every plan."""

import threading
from collections import Counter
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from batch_pipeline.executor import ALWAYS_TAG, interrupt_event, threaded_executor
from batch_pipeline_tests.integration.executor.running import (
    DEADLINE,
    QUIET,
    outcome_of,
    run_job,
    shared_instance,
)


@dg.op(out=dg.DynamicOut(int))
def fan_out() -> Iterator[dg.DynamicOutput[int]]:
    for number in range(4):
        yield dg.DynamicOutput(number, mapping_key=str(number))


@dg.op(out=dg.Out(int, is_required=False))
def only_even(value: int) -> Iterator[dg.Output[int]]:
    if value % 2 == 0:
        yield dg.Output(value)


@dg.op
def total(values: list[int]) -> int:
    return sum(values)


@pytest.mark.parametrize("error", [KeyboardInterrupt, dg.DagsterExecutionInterruptedError])
def test_an_interrupt_raised_by_a_step_reaches_the_others_and_ends_the_run(
    error: type[BaseException],
) -> None:
    told: list[bool] = []
    waiting = threading.Event()

    @dg.op
    def waits() -> None:
        waiting.set()
        told.append(interrupt_event().wait(DEADLINE))

    @dg.op
    def raises() -> None:
        assert waiting.wait(DEADLINE)
        raise error

    @dg.job(executor_def=threaded_executor)
    def job() -> None:
        waits()
        raises()

    outcome = run_job(job)
    assert told == [True]
    assert outcome.kinds("waits")[-1] == "STEP_SUCCESS"
    assert outcome.kinds("raises")[-1] == "STEP_FAILURE"
    assert outcome.status == dg.DagsterRunStatus.FAILURE


def test_no_step_is_started_once_the_run_should_end() -> None:
    begun: list[str] = []

    def step(name: str, priority: int) -> dg.OpDefinition:
        @dg.op(name=name, tags={"dagster/priority": str(priority)})
        def op() -> None:
            begun.append(name)
            raise KeyboardInterrupt

        return op

    @dg.job(executor_def=threaded_executor.configured({"max_concurrent": 1}))
    def job() -> None:
        step("raises", 2)()
        step("ready", 1)()

    assert run_job(job).status == dg.DagsterRunStatus.FAILURE
    assert begun == ["raises"]


def test_an_error_inside_dagster_in_a_thread_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event log refuses a row, in the thread of a step: the step has no end in the log."""
    storage = shared_instance().event_log_storage
    store_event = storage.store_event

    def refuse_success(entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event and event.is_step_success:
            raise OSError("disk full")
        store_event(entry)

    monkeypatch.setattr(storage, "store_event", refuse_success)

    @dg.op
    def fine() -> None:
        pass

    @dg.job(executor_def=threaded_executor)
    def job() -> None:
        fine()

    outcome = run_job(job)
    assert outcome.status == dg.DagsterRunStatus.FAILURE
    assert "disk full" in outcome.failure


def test_the_first_error_is_raised_if_the_caller_wants_errors() -> None:
    @dg.op
    def fails() -> None:
        raise ValueError("mine")

    @dg.job(executor_def=threaded_executor)
    def job() -> None:
        fails()

    with pytest.raises(ValueError, match="mine"):
        run_job(job, raise_on_error=True)


@pytest.mark.parametrize("return_events", [True, False])
def test_events_of_steps_are_logged_whether_or_not_they_are_returned(return_events: bool) -> None:
    @dg.op
    def fails() -> None:
        raise ValueError("mine")

    @dg.job(executor_def=threaded_executor.configured({"return_events": return_events}))
    def job() -> None:
        fan_out().map(only_even)
        fails()

    instance = shared_instance()
    run = instance.create_run_for_job(job, run_config=QUIET)
    returned = execute_run(InMemoryJob(job), run, instance)
    kinds = Counter(event.event_type_value for event in returned.all_events if event.step_key)
    outcome = outcome_of(instance, run.run_id)
    logged = Counter(kind for key in outcome.steps for kind in outcome.kinds(key))
    assert logged["STEP_SUCCESS"] == 5
    assert kinds == (logged if return_events else {"STEP_FAILURE": 1})
    assert "Steps failed: ['fails']" in outcome.failure


def test_no_thread_is_left_when_a_run_has_ended() -> None:
    @dg.job(executor_def=threaded_executor)
    def job() -> None:
        fan_out().map(only_even)

    before = set(threading.enumerate())
    run_job(job)
    assert set(threading.enumerate()) <= before


def test_a_collecting_step_whose_inputs_never_come_is_named() -> None:
    """If a run waited only for outputs, the output of a skipped step would never come."""
    executor = threaded_executor.configured(
        {"step_dependency_config": {"require_upstream_step_success": False}}
    )

    @dg.job(executor_def=executor)
    def job() -> None:
        total(fan_out().map(only_even).collect())

    outcome = run_job(job)
    assert outcome.status == dg.DagsterRunStatus.FAILURE
    assert "total needs the output of only_even[1], only_even[3]" in outcome.failure


def test_a_step_that_a_tag_limit_of_zero_holds_back_is_named() -> None:
    executor = threaded_executor.configured(
        {"tag_concurrency_limits": [{"key": "device", "limit": 0}]}
    )

    @dg.op(tags={"device": "gpu"})
    def never() -> None:
        pass

    @dg.job(executor_def=executor)
    def job() -> None:
        never()

    outcome = run_job(job)
    assert outcome.status == dg.DagsterRunStatus.FAILURE
    assert "never is held back by a tag concurrency limit" in outcome.failure


def test_outside_the_executor_no_interrupt_is_requested() -> None:
    assert not interrupt_event().is_set()


@dg.op
def fails_at_two(value: int) -> int:
    if value == 2:
        raise dg.Failure("two", allow_retries=False)
    return value


@dg.op(ins={"before": dg.In(dg.Nothing)}, tags={ALWAYS_TAG: "true"})
def at_the_end() -> None:
    pass


@dg.job(executor_def=threaded_executor)
def behind_a_failed_step() -> None:
    at_the_end(before=fan_out().map(fails_at_two).collect())


@dg.job(executor_def=threaded_executor)
def behind_a_step_that_was_given_up() -> None:
    at_the_end(before=fan_out().map(fails_at_two).map(only_even).collect())


@pytest.mark.parametrize("job", [behind_a_failed_step, behind_a_step_that_was_given_up])
def test_a_tagged_step_runs_last_although_a_step_before_it_failed(job: dg.JobDefinition) -> None:
    outcome = run_job(job)
    assert outcome.status == dg.DagsterRunStatus.FAILURE
    assert "Steps failed: ['fails_at_two[2]']" in outcome.failure
    assert outcome.kinds("at_the_end")[-1] == "STEP_SUCCESS"
    keys = [entry.dagster_event.step_key for entry in outcome.entries if entry.dagster_event]
    begun = keys.index("at_the_end")
    assert {key for key in keys[begun:] if key} == {"at_the_end"}
    assert not [
        entry
        for entry in outcome.entries
        if "Dependencies for step at_the_end" in entry.user_message
    ]


def test_a_tagged_step_after_a_failed_fan_out_ends_with_the_run() -> None:
    @dg.op(out=dg.DynamicOut(int))
    def fails() -> Iterator[dg.DynamicOutput[int]]:
        raise dg.Failure("none")
        yield

    @dg.job(executor_def=threaded_executor)
    def job() -> None:
        at_the_end(before=fails().map(only_even).collect())

    outcome = run_job(job)
    assert outcome.status == dg.DagsterRunStatus.FAILURE
    assert "at_the_end" not in outcome.steps
