"""The same jobs through the threaded and the in-process executor: each step has the same events."""

from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from batch_pipeline.executor import threaded_executor
from batch_pipeline_tests.integration.executor.running import run_job

CASES: dict[str, Callable[[dg.ExecutorDefinition], dg.JobDefinition]] = {}


def case(graph: dg.GraphDefinition) -> dg.GraphDefinition:
    """Add a graph to the matrix under its name."""
    CASES[graph.name] = lambda executor: graph.to_job(executor_def=executor)
    return graph


@dg.op
def one() -> int:
    return 1


@dg.op
def add_one(value: int) -> int:
    return value + 1


@dg.op
def total(values: list[int]) -> int:
    return sum(values)


@dg.op
def fails(value: int) -> int:
    raise ValueError(f"cannot use {value}")


@case
@dg.graph
def success() -> None:
    add_one(add_one(one()))


@case
@dg.graph
def failure_and_what_depends_on_it() -> None:
    total([add_one(fails(one())), add_one.alias("unharmed")(one.alias("other")())])


@dg.op
def asks_for_retries(context: dg.OpExecutionContext) -> int:
    if context.retry_number < 2:
        raise dg.RetryRequested(max_retries=2, seconds_to_wait=0.05)
    return context.retry_number


@case
@dg.graph
def retry_requested() -> None:
    add_one(asks_for_retries())


@dg.op(retry_policy=dg.RetryPolicy(max_retries=2, delay=0.02, backoff=dg.Backoff.EXPONENTIAL))
def always_fails() -> int:
    raise ValueError("again")


@case
@dg.graph
def retry_policy_with_backoff_used_up() -> None:
    add_one(always_fails())


@dg.op(retry_policy=dg.RetryPolicy(max_retries=3))
def retries_at_once(context: dg.OpExecutionContext) -> int:
    if context.retry_number < 3:
        raise ValueError("not yet")
    return 1


@case
@dg.graph
def retries_without_delay() -> None:
    add_one(retries_at_once())


@dg.op(retry_policy=dg.RetryPolicy(max_retries=2))
def fails_for_good() -> int:
    raise dg.Failure("the file is bad", metadata={"kind": "truncated"}, allow_retries=False)


@case
@dg.graph
def failure_that_forbids_retries() -> None:
    add_one(fails_for_good())


@dg.op(out=dg.DynamicOut(int))
def fan_out() -> Iterator[dg.DynamicOutput[int]]:
    for number in range(6):
        yield dg.DynamicOutput(number, mapping_key=f"n{number}")


@dg.op(out=dg.DynamicOut(int, is_required=False))
def fan_out_to_nothing() -> Iterator[dg.DynamicOutput[int]]:
    yield from ()


@dg.op(out=dg.Out(int, is_required=False))
def only_even(value: int) -> Iterator[dg.Output[int]]:
    if value % 2 == 0:
        yield dg.Output(value)


@dg.op
def fails_at_three(value: int) -> int:
    if value == 3:
        raise ValueError("three")
    return value


@case
@dg.graph
def mapped_and_collected() -> None:
    total(fan_out().map(lambda value: add_one(add_one(value))).collect())


@case
@dg.graph
def mapped_with_skips_and_collected() -> None:
    total(fan_out().map(lambda value: add_one(only_even(value))).collect())


@case
@dg.graph
def mapped_over_nothing() -> None:
    total(fan_out_to_nothing().map(add_one).collect())


@case
@dg.graph
def mapped_with_a_failure() -> None:
    total(fan_out().map(fails_at_three).collect())


@dg.op(
    out={
        "first": dg.Out(int),
        "second": dg.Out(int, is_required=False),
        "third": dg.Out(int, is_required=False),
    }
)
def some_outputs() -> Iterator[dg.Output[int]]:
    yield dg.Output(1, "first")
    yield dg.Output(3, "third", metadata={"why": "optional"})


@case
@dg.graph
def several_outputs_one_left_out() -> None:
    first, second, third = some_outputs()
    add_one.alias("after_first")(first)
    add_one.alias("after_second")(second)
    add_one.alias("after_third")(third)


@dg.graph
def inner(value: int) -> int:
    return add_one(add_one(value))


@case
@dg.graph
def nested_graphs() -> None:
    total([inner.alias("left")(one()), inner.alias("right")(one.alias("another")())])


@dg.op(ins={"before": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
def nothing_to_nothing() -> None:
    return


@case
@dg.graph
def nothing_dependencies() -> None:
    nothing_to_nothing.alias("last")(before=[nothing_to_nothing(before=one()), one.alias("two")()])


@dg.op
def reports(context: dg.OpExecutionContext) -> Iterator[object]:
    context.log.info("a line")
    context.log_event(dg.AssetMaterialization("logged"))
    yield dg.AssetMaterialization("yielded", partition="p")
    yield dg.AssetObservation("observed")
    yield dg.ExpectationResult(success=True, label="fine")
    yield dg.Output(1)


@case
@dg.graph
def events_of_ops() -> None:
    reports()


@dg.op
def wrong_type() -> int:
    return "text"  # type: ignore[return-value]


@case
@dg.graph
def output_of_the_wrong_type() -> None:
    add_one(wrong_type())


@dg.op
def exits() -> int:
    raise SystemExit(3)


@case
@dg.graph
def system_exit_in_a_step() -> None:
    total([add_one(exits()), add_one.alias("unharmed")(one())])


@dg.success_hook
def on_success(context: dg.HookContext) -> None:
    assert set(context.op_output_values) == {"result"}


@dg.failure_hook
def on_failure(context: dg.HookContext) -> None:
    raise RuntimeError(f"hook saw {context.op_exception!r}")


CASES["hooks"] = lambda executor: failure_and_what_depends_on_it.to_job(
    executor_def=executor, hooks={on_success, on_failure}
)
CASES["hooks_and_retries"] = lambda executor: retries_without_delay.to_job(
    executor_def=executor, hooks={on_success}
)


class Add(dg.Config):
    number: int


@dg.op
def add_configured(value: int, config: Add) -> int:
    return value + config.number


@dg.graph
def configured() -> None:
    add_configured(one())


CASES["op_config"] = lambda executor: configured.to_job(
    executor_def=executor, config={"ops": {"add_configured": {"config": {"number": 4}}}}
)


@dg.asset
def numbers() -> list[int]:
    return [1, 2, 3]


@dg.asset(check_specs=[dg.AssetCheckSpec("positive", asset="largest")])
def largest(numbers: list[int]):
    return dg.MaterializeResult(
        value=max(numbers),
        metadata={"of": len(numbers)},
        check_results=[dg.AssetCheckResult(passed=True, check_name="positive")],
    )


@dg.asset_check(asset=numbers, blocking=True)
def not_empty(numbers: list[int]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=bool(numbers))


@dg.asset_check(asset=largest)
def small(largest: int) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=largest < 2, severity=dg.AssetCheckSeverity.WARN)


def assets_and_checks(executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    definitions = dg.Definitions(
        assets=[numbers, largest],
        asset_checks=[not_empty, small],
        jobs=[dg.define_asset_job("assets_and_checks", executor_def=executor)],
        resources={"io_manager": dg.mem_io_manager},
    )
    return definitions.resolve_job_def("assets_and_checks")


CASES["assets_and_checks"] = assets_and_checks


def _without_waiting_for_success(executor: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    return executor.configured({"step_dependency_config": {"require_upstream_step_success": False}})


@pytest.mark.parametrize("name", CASES)
def test_each_step_has_the_events_of_the_in_process_executor(name: str) -> None:
    expected = run_job(CASES[name](dg.in_process_executor))
    actual = run_job(CASES[name](threaded_executor))
    assert actual.steps == expected.steps
    assert actual.status == expected.status


#: Not `mapped_with_skips_and_collected`, for which the in-process executor waits for ever.
OUTPUTS_ALONE = [
    "failure_and_what_depends_on_it",
    "hooks",
    "mapped_and_collected",
    "mapped_with_a_failure",
    "nothing_dependencies",
    "several_outputs_one_left_out",
]


@pytest.mark.parametrize("name", OUTPUTS_ALONE)
def test_steps_may_start_on_outputs_alone_as_with_the_in_process_executor(name: str) -> None:
    expected = run_job(CASES[name](_without_waiting_for_success(dg.in_process_executor)))
    actual = run_job(CASES[name](_without_waiting_for_success(threaded_executor)))
    assert actual.steps == expected.steps
    assert actual.status == expected.status


@pytest.mark.parametrize("name", [name for name in CASES if "retr" in name])
def test_retries_can_be_switched_off_as_with_the_in_process_executor(name: str) -> None:
    without = {"retries": {"disabled": {}}}
    expected = run_job(CASES[name](dg.in_process_executor.configured(without)))
    actual = run_job(CASES[name](threaded_executor.configured(without)))
    assert actual.steps == expected.steps
    assert actual.status == expected.status
