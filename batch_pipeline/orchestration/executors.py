"""How the steps of a run are run: in threads, unless the run's config chooses otherwise.

::

    execution:
      config:
        threaded: {max_concurrent: 8}     # or: multiprocess: {…}, or: in_process: {…}
"""

from typing import Any

import dagster as dg
from dagster._core.definitions.executor_definition import (
    IN_PROC_CONFIG,
    MULTI_PROC_CONFIG,
    check_cross_process_constraints,
)
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext

from batch_pipeline.executor import threaded_executor
from batch_pipeline.executor.threaded import THREADED_CONFIG


def build_executor(max_concurrent: int) -> dg.ExecutorDefinition:
    """Offer three executors; without a choice, threads, as many as `max_concurrent` says."""
    offered = {
        "threaded": (threaded_executor, THREADED_CONFIG),
        "multiprocess": (dg.multiprocess_executor, MULTI_PROC_CONFIG),
        "in_process": (dg.in_process_executor, IN_PROC_CONFIG),
    }
    threads: dict[str, Any] = {"threaded": {"max_concurrent": max_concurrent}}

    @dg.executor(
        name="threaded_unless_chosen",
        config_schema=dg.Field(
            dg.Selector({name: schema for name, (_, schema) in offered.items()}),  # type: ignore[no-untyped-call]
            default_value=threads,
            description="How the steps of a run are run; threads share one process.",
        ),
    )
    def choose(context: InitExecutorContext) -> Executor:
        [(name, config)] = dict[str, Any](context.executor_config).items()
        if name == "multiprocess":
            check_cross_process_constraints(context)
        create = offered[name][0].executor_creation_fn
        if create is None:
            raise dg.DagsterInvariantViolationError(f"the executor {name} cannot be created")
        return create(context._replace(executor_config=config))

    return choose
