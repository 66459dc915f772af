"""All undocumented names of Dagster that this project uses, each with the reason.

Such names can change with every patch version of Dagster. They are imported only here, so that only
this file has to be read before an upgrade. `batch_pipeline_tests/unit/test_dagster_internals.py`
shows which of them is missing or takes other arguments than before. The lowest version that has
them all is the lower bound in ``pyproject.toml``.

Names of dagster-celery are in ``orchestration/celery/executor.py``, because importing it takes
0.3 s and it is an extra.
"""

# isort: off
from collections.abc import Mapping

from dagster import ConfigurableResource

# The console logger of sensors and schedules. Dagster has no setting for its format.
from dagster._core.definitions import instigation_logger

# The loggers of a run whose config names none. Dagster has no setting for them.
from dagster._core.execution import context_creation_job

# The configuration of a storage class that ``dagster.yaml`` names.
from dagster._config import UserConfigSchema
from dagster._serdes import ConfigurableClassData

# Choosing an executor by run config: the schemas, and the check of the multiprocess executor.
from dagster._core.definitions.executor_definition import (
    IN_PROC_CONFIG,
    MULTI_PROC_CONFIG,
    check_cross_process_constraints,
)
from dagster._core.execution.retries import RetryMode, get_retries_config

# A failure that is written without running the step.
from dagster._core.definitions.metadata import normalize_metadata
from dagster._core.execution.plan.objects import StepFailureData, UserFailureData
from dagster_shared.error import SerializableErrorInfo

# The resources of a run, shared by steps in threads.
from dagster._core.definitions.scoped_resources_builder import Resources, ScopedResourcesBuilder

# Events of an executor besides those of steps, and which events belong to assets, checks and runs.
from dagster._core.events import (
    ASSET_CHECK_EVENTS,
    ASSET_EVENTS,
    EVENT_TYPE_TO_PIPELINE_RUN_STATUS,
    EngineEventData,
)
from dagster._utils.error import serializable_error_info_from_exc_info

# Running a plan like Dagster's in-process executor: resources, contexts, the state machine of
# steps, a step's events, its hooks, pools, the capture of standard output.
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.compute_logs import create_compute_log_file_key
from dagster._core.execution.context.system import (
    IStepContext,
    PlanExecutionContext,
    PlanOrchestrationContext,
)
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

# Forking run workers from the code server, and finding its runs by the address in a tag. How often
# the daemon checks which sensors are due.
from dagster._core.remote_origin import CodeLocationOrigin, GrpcServerCodeLocationOrigin
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._daemon import sensor as daemon_loop
from dagster._grpc.server import DagsterApiServer

# For `doctor`: whether sensors and schedules are on, and how their last ticks ended.
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    TickStatus,
)

# The event log's table and channel, for rows that are written in groups. Connections in a pool.
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from dagster_postgres.event_log.event_log import CHANNEL_NAME
from dagster_postgres.utils import create_pg_engine, set_pg_statement_timeout
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
    ExecutionPlan: {"start": "replaced for Celery, so that tagged steps run anyway"},
    DagsterLogManager: {
        "_dagster_handler": "writes the log lines of a step",
        "_managed_loggers": "Python loggers whose lines Dagster captures",
    },
    ConfigurableResource: {"_initialize_and_run": "replaced, as it costs 25 ms for each tick"},
    DagsterApiServer: {
        "_mp_ctx": "starts run workers; replaced by one that forks them",
        "_check_for_orphaned_runs": "reports ended run workers; an error would end its thread",
    },
    PlanExecutionContext: {
        "_execution_data": "the resources of a run, for our own builder",
    },
    PostgresEventLogStorage: {
        "_connect": "every read and write calls it; waiting events are written first",
        "_engine": "replaced by a pool of connections",
        "_event_to_row": "makes the same row as Dagster",
        "_store_asset_event": "the latest event of an asset, once per group",
        "_store_asset_event_tags": "tags of materializations",
        "_token_provider": "passwords that expire, such as those of a cloud",
    },
    PostgresRunStorage: {
        "_engine": "replaced by a pool of connections",
        "_token_provider": "passwords that expire, such as those of a cloud",
    },
    PostgresScheduleStorage: {
        "_engine": "replaced by a pool of connections",
        "_has_instigators_table": "the answer is remembered",
    },
}

__all__ = [
    "ASSET_CHECK_EVENTS",
    "ASSET_EVENTS",
    "CHANNEL_NAME",
    "EVENT_TYPE_TO_PIPELINE_RUN_STATUS",
    "GLOBAL_CONCURRENCY_TAG",
    "GRPC_INFO_TAG",
    "IN_PROC_CONFIG",
    "MULTI_PROC_CONFIG",
    "PRIORITY_TAG",
    "ActiveExecution",
    "CodeLocationOrigin",
    "ConfigurableClassData",
    "DagsterApiServer",
    "DagsterLogHandler",
    "DagsterLogManager",
    "EngineEventData",
    "ExecuteRunWithPlanIterable",
    "ExecutionPlan",
    "ExecutionStep",
    "GrpcServerCodeLocationOrigin",
    "IStepContext",
    "InstanceConcurrencyContext",
    "InstigatorState",
    "InstigatorStatus",
    "InstigatorTick",
    "KnownExecutionState",
    "PlanExecutionContext",
    "PlanExecutionContextManager",
    "PlanOrchestrationContext",
    "PostgresRunStorage",
    "PostgresScheduleStorage",
    "Resources",
    "RetryMode",
    "ScopedResourcesBuilder",
    "SerializableErrorInfo",
    "SqlEventLogStorageTable",
    "StepDependencyConfig",
    "StepFailureData",
    "StepOutputHandle",
    "TickStatus",
    "UserConfigSchema",
    "UserFailureData",
    "check_cross_process_constraints",
    "context_creation_job",
    "create_compute_log_file_key",
    "create_pg_engine",
    "daemon_loop",
    "dagster_event_sequence_for_step",
    "get_retries_config",
    "get_step_dependency_config_field",
    "get_tag_concurrency_limits_config",
    "instigation_logger",
    "normalize_metadata",
    "pop_captured_interrupt",
    "serializable_error_info_from_exc_info",
    "set_pg_statement_timeout",
    "trigger_hooks",
]
