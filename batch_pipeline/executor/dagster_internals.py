"""Undocumented names of Dagster that the executor uses, each with the reason.

They are here and not in `batch_pipeline.dagster_internals`, so that the executor can be used by
itself. That module says what holds for these names too.
"""

# isort: off
from collections.abc import Mapping

# Choosing how steps are retried: the schema, and the mode.
from dagster._core.execution.retries import RetryMode, get_retries_config

# The resources of a run, shared by steps in threads.
from dagster._core.definitions.scoped_resources_builder import Resources, ScopedResourcesBuilder

# Events of an executor besides those of steps.
from dagster._core.events import EngineEventData
from dagster._utils.error import serializable_error_info_from_exc_info

# Running a plan like Dagster's in-process executor: resources, contexts, the state machine of
# steps, a step's events, its hooks, pools, the capture of standard output.
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.compute_logs import create_compute_log_file_key
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.execute_plan import (
    _trigger_hook as trigger_hooks,
    dagster_event_sequence_for_step,
)
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.step_dependency_config import (
    StepDependencyConfig,
    get_step_dependency_config_field,
)
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._utils.interrupts import pop_captured_interrupt

# Python log lines of a step that runs in a thread.
from dagster._core.log_manager import DagsterLogHandler, DagsterLogManager

# Tags that set the order in which steps are started.
from dagster._core.storage.tags import GLOBAL_CONCURRENCY_TAG, PRIORITY_TAG
# isort: on

#: Attributes of these classes that we use although Dagster may change them, each with the reason.
USED_ATTRIBUTES: Mapping[type, Mapping[str, str]] = {
    ActiveExecution: {
        "_pending": "steps whose inputs are missing: named when a plan can never be completed",
        "_executable": "steps that a limit holds back: named in the same message",
        "_pending_skip": "steps that will be skipped: the plan goes on",
        "_pending_abandon": "steps behind a failed one: the plan goes on, or they run anyway",
        "_update": "finds the steps behind a failed one",
        "get_steps_to_abandon": "replaced, so that tagged steps run anyway",
        "_waiting_to_retry": "steps that will be retried: the plan goes on",
        "_has_produced_output": "which input of a step is missing",
    },
    DagsterLogManager: {
        "_dagster_handler": "writes the log lines of a step",
        "_managed_loggers": "Python loggers whose lines Dagster captures",
    },
    PlanExecutionContext: {
        "_execution_data": "the resources of a run, for our own builder",
    },
    ScopedResourcesBuilder: {
        "build": "replaced, so that steps with the same resources share one object",
    },
}

__all__ = [
    "GLOBAL_CONCURRENCY_TAG",
    "PRIORITY_TAG",
    "ActiveExecution",
    "DagsterLogHandler",
    "DagsterLogManager",
    "EngineEventData",
    "ExecuteRunWithPlanIterable",
    "ExecutionPlan",
    "ExecutionStep",
    "InstanceConcurrencyContext",
    "KnownExecutionState",
    "PlanExecutionContext",
    "PlanExecutionContextManager",
    "PlanOrchestrationContext",
    "Resources",
    "RetryMode",
    "ScopedResourcesBuilder",
    "StepDependencyConfig",
    "StepOutputHandle",
    "create_compute_log_file_key",
    "dagster_event_sequence_for_step",
    "get_retries_config",
    "get_step_dependency_config_field",
    "get_tag_concurrency_limits_config",
    "pop_captured_interrupt",
    "serializable_error_info_from_exc_info",
    "trigger_hooks",
]
