"""Jobs that run in a separate process, from a persistent instance: `python -m … FOLDER NAME`.

They signal the test through files in the run's folder: `<name>` is touched at that step.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from batch_pipeline.executor import ALWAYS_TAG, interrupt_event, threaded_executor
from batch_pipeline_tests.integration.executor.running import DEADLINE

FOLDER = "EXECUTOR_TEST_FOLDER"


def _mark(name: str) -> Path:
    return Path(os.environ[FOLDER]) / name


@dg.op
def until_told() -> None:
    """Wait for the interrupt, then end as the config says."""
    _mark("started").touch()
    assert interrupt_event().wait(DEADLINE)
    raise dg.DagsterExecutionInterruptedError


@dg.op
def deaf() -> None:
    """Never check for an interrupt; end only with the process."""
    interrupt = interrupt_event()
    _mark("started").touch()
    assert interrupt.wait(DEADLINE)
    _mark("told").touch()
    signal.sigtimedwait([], 6 * DEADLINE)


@dg.op(ins={"before": dg.In(dg.Nothing)})
def never_begins() -> None:
    _mark("began").touch()


@dg.job(executor_def=threaded_executor)
def stops_when_told() -> None:
    never_begins(before=[until_told(), until_told.alias("another")()])


@dg.job(executor_def=threaded_executor)
def does_not_stop() -> None:
    deaf()


@dg.op(out=dg.DynamicOut(int))
def fan_out() -> Iterator[dg.DynamicOutput[int]]:
    for number in range(4):
        yield dg.DynamicOutput(number, mapping_key=str(number))


@dg.op
def dies_once(value: int) -> int:
    if value == 1 and not _mark("healed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@dg.op
def fails_once(value: int) -> int:
    if value == 1 and not _mark("healed").exists():
        raise ValueError("not healed yet")
    return value


@dg.op
def total(values: list[int]) -> int:
    return sum(values)


_one_at_a_time_on_outputs = threaded_executor.configured(
    {"max_concurrent": 1, "step_dependency_config": {"require_upstream_step_success": False}}
)


@dg.job(executor_def=_one_at_a_time_on_outputs)
def killed() -> None:
    total(fan_out().map(dies_once).collect())


@dg.job(executor_def=threaded_executor)
def healed_by_re_execution() -> None:
    total(fan_out().map(fails_once).collect())


@dg.op(ins={"before": dg.In(dg.Nothing)}, tags={ALWAYS_TAG: "true"})
def at_the_end() -> None:
    _mark("at_the_end").touch()


@dg.job(executor_def=threaded_executor)
def ends_the_same_way() -> None:
    at_the_end(before=fan_out().map(fails_once).collect())


if __name__ == "__main__":
    folder, name, run_id = sys.argv[1:]
    os.environ[FOLDER] = folder
    with dg.DagsterInstance.local_temp(folder) as instance:
        from dagster._core.execution.api import execute_run

        run = instance.get_run_by_id(run_id)
        assert run is not None
        execute_run(dg.reconstructable(globals()[name]), run, instance)
