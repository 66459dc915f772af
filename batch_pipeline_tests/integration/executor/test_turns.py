"""How many steps work at a time, while others wait for something outside."""

import threading
import time
from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from batch_pipeline.executor import others_may_work, threaded_executor, turns
from batch_pipeline_tests.integration.executor.running import DEADLINE, run_job

STEPS = 6


def job_of(work: Callable[[int], None], **config: int) -> dg.JobDefinition:
    """Six steps that may all be in flight at a time."""

    @dg.op(out=dg.DynamicOut(int))
    def fan_out() -> Iterator[dg.DynamicOutput[int]]:
        for number in range(STEPS):
            yield dg.DynamicOutput(number, mapping_key=str(number))

    @dg.op
    def step(number: int) -> None:
        work(number)

    executor = threaded_executor.configured({"max_concurrent": STEPS, **config})

    @dg.job(executor_def=executor)
    def job() -> None:
        fan_out().map(step)

    return job


class Work:
    """Records how many steps work at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


def test_no_more_steps_work_at_a_time_than_have_a_turn() -> None:
    work, two_are_in = Work(), threading.Barrier(2)

    def step(_: int) -> None:
        with work:
            two_are_in.wait(DEADLINE)

    assert run_job(job_of(step, max_working=2)).status == dg.DagsterRunStatus.SUCCESS
    assert work.most == 2


def test_all_steps_may_wait_at_the_same_time_although_few_work() -> None:
    work, all_wait = Work(), threading.Barrier(STEPS)

    def step(_: int) -> None:
        with work:
            pass
        with others_may_work():
            all_wait.wait(DEADLINE)
        with work:
            time.sleep(0.01)

    assert run_job(job_of(step, max_working=1)).status == dg.DagsterRunStatus.SUCCESS
    assert work.most == 1


def test_a_step_that_fails_while_it_waits_leaves_its_turn_to_others() -> None:
    done: list[int] = []

    def step(number: int) -> None:
        if number < STEPS - 1:
            with others_may_work():
                raise ValueError("the server is gone")
        done.append(number)

    assert run_job(job_of(step, max_working=1)).status == dg.DagsterRunStatus.FAILURE
    assert done == [STEPS - 1]


def test_a_step_that_is_stuck_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.05)
    all_there = threading.Barrier(STEPS)

    def step(_: int) -> None:
        all_there.wait(DEADLINE)  # without `others_may_work`: no other step could begin

    assert run_job(job_of(step, max_working=1)).status == dg.DagsterRunStatus.SUCCESS


def test_a_step_that_went_on_without_a_turn_releases_none(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = turns.Turns(1)

    def work() -> None:
        with limited.taken():
            pass

    with limited.taken():
        monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.01)
        impatient = threading.Thread(target=work, daemon=True)
        impatient.start()
        impatient.join(DEADLINE)
        monkeypatch.setattr(turns, "PATIENCE_SECONDS", 2 * DEADLINE)
        patient = threading.Thread(target=work, daemon=True)
        patient.start()
        patient.join(0.1)
        assert patient.is_alive(), "it waits for the turn that is taken"
    patient.join(DEADLINE)
    assert not patient.is_alive()


def test_a_wait_inside_of_a_wait_takes_one_turn_and_releases_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 2 * DEADLINE)
    limited = turns.Turns(2)

    with limited.taken(), others_may_work(), others_may_work():
        pass

    all_there = threading.Barrier(2)

    def work() -> None:
        with limited.taken():
            all_there.wait(DEADLINE)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    assert not all_there.broken, "a turn was lost"


def test_steps_are_not_limited_by_default_or_outside_the_executor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 2 * DEADLINE)
    all_there = threading.Barrier(STEPS)

    def step(_: int) -> None:
        all_there.wait(DEADLINE)

    assert run_job(job_of(step)).status == dg.DagsterRunStatus.SUCCESS
    with others_may_work():
        pass


def test_a_number_of_turns_below_zero_is_refused() -> None:
    outcome = run_job(job_of(lambda _: None, max_working=-1))
    assert "max_working is -1; expected 1 or more, or 0 for all" in outcome.failure
