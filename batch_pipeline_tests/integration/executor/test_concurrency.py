"""As many steps run at a time as allowed, never more."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.plan.active import ActiveExecution

from batch_pipeline.executor import threaded_executor
from batch_pipeline_tests.integration.executor.running import DEADLINE, run_job

STEPS = 6


class Meter:
    """Counts the steps that are inside at a time, and can hold them until there are enough."""

    def __init__(self, together: int) -> None:
        self._barrier = threading.Barrier(together)
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def pass_through(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        try:
            self._barrier.wait(DEADLINE)
        finally:
            with self._lock:
                self._inside -= 1


@dg.op(out=dg.DynamicOut(int))
def fan_out() -> Iterator[dg.DynamicOutput[int]]:
    for number in range(STEPS):
        yield dg.DynamicOutput(number, mapping_key=str(number))


def metered_job(meter: Meter, executor: dg.ExecutorDefinition, **op: Any) -> dg.JobDefinition:
    @dg.op(**op)
    def metered(number: int) -> int:
        meter.pass_through()
        return number

    @dg.job(executor_def=executor)
    def job() -> None:
        fan_out().map(metered)

    return job


@pytest.mark.parametrize("max_concurrent", [1, 3, STEPS])
def test_as_many_steps_run_together_as_allowed_and_never_more(max_concurrent: int) -> None:
    meter = Meter(together=max_concurrent)
    executor = threaded_executor.configured({"max_concurrent": max_concurrent})
    outcome = run_job(metered_job(meter, executor))
    assert outcome.status == dg.DagsterRunStatus.SUCCESS
    assert meter.most == max_concurrent


def test_a_tag_limits_the_steps_that_have_it() -> None:
    meter = Meter(together=2)
    executor = threaded_executor.configured(
        {
            "max_concurrent": STEPS,
            "tag_concurrency_limits": [{"key": "device", "value": "gpu", "limit": 2}],
        }
    )
    outcome = run_job(metered_job(meter, executor, tags={"device": "gpu"}))
    assert outcome.status == dg.DagsterRunStatus.SUCCESS
    assert meter.most == 2


def test_a_pool_limits_steps_and_its_slots_are_given_back() -> None:
    meter = Meter(together=3)
    executor = threaded_executor.configured({"max_concurrent": 4})
    with dg.DagsterInstance.local_temp() as instance:
        instance.event_log_storage.set_concurrency_slots("model", 3)
        outcome = run_job(metered_job(meter, executor, pool="model"), instance=instance)
        info = instance.event_log_storage.get_concurrency_info("model")
        assert outcome.status == dg.DagsterRunStatus.SUCCESS
        assert meter.most == 3
        assert info.active_slot_count == 0
        assert info.pending_step_count == 0


def test_a_number_of_threads_below_one_is_refused() -> None:
    executor = threaded_executor.configured({"max_concurrent": 0})
    outcome = run_job(metered_job(Meter(together=1), executor))
    assert outcome.status == dg.DagsterRunStatus.FAILURE
    assert "max_concurrent is 0; expected 1 or more" in outcome.failure


def test_a_higher_priority_starts_first() -> None:
    order: list[str] = []

    def noting(name: str, priority: int) -> dg.OpDefinition:
        @dg.op(name=name, tags={"dagster/priority": str(priority)})
        def note() -> None:
            order.append(name)

        return note

    @dg.job(executor_def=threaded_executor.configured({"max_concurrent": 1}))
    def job() -> None:
        for number in (1, 3, 2):
            noting(f"p{number}", number)()

    run_job(job)
    assert order == ["p3", "p2", "p1"]


def test_the_state_machine_is_asked_for_many_steps_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each round looks at all steps, so one round per step would take quadratic time."""
    asked: list[int] = []
    ask = ActiveExecution.get_steps_to_execute

    def count(active: ActiveExecution, limit: int) -> Sequence[Any]:
        steps = ask(active, limit)
        asked.append(len(steps))
        return steps

    monkeypatch.setattr(ActiveExecution, "get_steps_to_execute", count)

    @dg.op(out=dg.DynamicOut(int))
    def many() -> Iterator[dg.DynamicOutput[int]]:
        for number in range(80):
            yield dg.DynamicOutput(number, mapping_key=str(number))

    @dg.op
    def step(number: int) -> None:
        pass

    @dg.job(executor_def=threaded_executor.configured({"max_concurrent": 8}))
    def job() -> None:
        many().map(step)

    assert run_job(job).status == dg.DagsterRunStatus.SUCCESS
    assert sum(asked) == 81
    assert len([steps for steps in asked if steps]) <= 1 + 80 / 8


def test_a_step_of_higher_priority_overtakes_steps_that_were_ready_before() -> None:
    order: list[str] = []

    def noting(name: str, priority: int, **op: Any) -> dg.OpDefinition:
        @dg.op(name=name, tags={"dagster/priority": str(priority)}, **op)
        def note() -> None:
            order.append(name)

        return note

    @dg.job(executor_def=threaded_executor.configured({"max_concurrent": 1}))
    def job() -> None:
        noting("urgent", 9, ins={"before": dg.In(dg.Nothing)})(noting("first", 5)())
        for number in range(3):
            noting(f"idle_{number}", 1)()

    run_job(job)
    assert order[:2] == ["first", "urgent"]


def test_a_step_takes_its_place_in_a_pool_when_it_starts_and_not_before() -> None:
    taken: list[int] = []

    @dg.op(pool="model")
    def look(context: dg.OpExecutionContext) -> None:
        storage = context.instance.event_log_storage
        taken.append(storage.get_concurrency_info("model").active_slot_count)

    @dg.job(executor_def=threaded_executor.configured({"max_concurrent": 1}))
    def job() -> None:
        look()
        look.alias("another")()

    with dg.DagsterInstance.local_temp() as instance:
        instance.event_log_storage.set_concurrency_slots("model", 2)
        run_job(job, instance=instance)
    assert taken == [1, 1], "other runs wait for what this one does not use"
