"""What steps in different threads must not do to each other."""

import asyncio
import contextvars
import threading
import warnings
from collections.abc import Iterator

import dagster as dg

from batch_pipeline.executor import threaded_executor
from batch_pipeline_tests.integration.executor.running import DEADLINE, run_job

OF_THE_CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("of_the_caller")


def two_steps(op: dg.OpDefinition, **job_settings: object) -> dg.JobDefinition:
    @dg.job(executor_def=threaded_executor, **job_settings)  # type: ignore[call-overload]
    def job() -> None:
        op.alias("a")()
        op.alias("b")()

    return job


def test_lines_of_python_loggers_belong_to_the_step_that_wrote_them() -> None:
    barrier = threading.Barrier(2)

    @dg.op
    def logs(context: dg.OpExecutionContext) -> None:
        barrier.wait(DEADLINE)
        dg.get_dagster_logger().info("written by %s", context.op_handle.name)
        barrier.wait(DEADLINE)

    outcome = run_job(two_steps(logs))
    lines = {
        (entry.step_key, entry.user_message)
        for entry in outcome.entries
        if entry.user_message.startswith("written by")
    }
    assert lines == {("a", "written by a"), ("b", "written by b")}


def test_lines_of_a_thread_without_a_step_are_logged_for_the_run() -> None:
    @dg.op
    def logs_elsewhere() -> None:
        thread = threading.Thread(target=lambda: dg.get_dagster_logger().info("from elsewhere"))
        thread.start()
        thread.join()

    outcome = run_job(two_steps(logs_elsewhere))
    lines = [entry for entry in outcome.entries if entry.user_message == "from elsewhere"]
    assert [entry.step_key for entry in lines] == [None, None]


def test_nothing_listens_to_python_loggers_after_the_run() -> None:
    @dg.op
    def logs() -> None:
        dg.get_dagster_logger().info("a line")

    before = list(dg.get_dagster_logger().handlers)
    run_job(two_steps(logs))
    assert dg.get_dagster_logger().handlers == before


def test_async_steps_run_at_the_same_time() -> None:
    barrier = threading.Barrier(2)

    @dg.op
    async def waits() -> int:
        await asyncio.to_thread(barrier.wait, DEADLINE)
        return 1

    assert run_job(two_steps(waits)).status == dg.DagsterRunStatus.SUCCESS


def test_filters_of_warnings_are_restored_after_steps_overlap() -> None:
    first_entered, second_entered, first_left = (threading.Event() for _ in range(3))

    @dg.op
    def enters_first_leaves_first() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first_entered.set()
            assert second_entered.wait(DEADLINE)
        first_left.set()

    @dg.op
    def enters_second_leaves_last() -> None:
        assert first_entered.wait(DEADLINE)
        with warnings.catch_warnings():
            second_entered.set()
            assert first_left.wait(DEADLINE)

    @dg.job(executor_def=threaded_executor)
    def job() -> None:
        enters_first_leaves_first()
        enters_second_leaves_last()

    before = list(warnings.filters)
    run_job(job)
    assert list(warnings.filters) == before


def test_threads_have_the_name_of_their_step_and_the_context_of_the_caller() -> None:
    seen: dict[str, str] = {}

    @dg.op
    def looks(context: dg.OpExecutionContext) -> None:
        seen[threading.current_thread().name] = OF_THE_CALLER.get()

    OF_THE_CALLER.set("caller")
    run_job(two_steps(looks))
    assert seen == {"a": "caller", "b": "caller"}


def test_a_resource_is_made_once_per_run_and_shared_by_all_steps() -> None:
    made: list[object] = []
    ended: list[object] = []
    used: list[object] = []

    @dg.resource
    def shared(_: dg.InitResourceContext) -> Iterator[object]:
        made.append(object())
        yield made[-1]
        ended.append(made[-1])

    @dg.op(required_resource_keys={"shared"})
    def uses(context: dg.OpExecutionContext) -> None:
        used.append(context.resources.shared)

    run_job(two_steps(uses, resource_defs={"shared": shared}))
    assert len(made) == 1
    assert used == made * 2
    assert ended == made


def test_outputs_in_memory_are_seen_by_steps_in_other_threads() -> None:
    @dg.op
    def makes() -> list[int]:
        return [1]

    @dg.op
    def takes(values: list[list[int]]) -> list[int]:
        assert values == [[1], [1]]
        return []

    @dg.job(executor_def=threaded_executor, resource_defs={"io_manager": dg.mem_io_manager})
    def job() -> None:
        takes([makes.alias("a")(), makes.alias("b")()])

    assert run_job(job).status == dg.DagsterRunStatus.SUCCESS
