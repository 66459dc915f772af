"""Undocumented names of Dagster that this project uses, each with the reason.

Such names can change with every patch version of Dagster. So only modules called
``dagster_internals`` import them, and before an upgrade only these have to be read:

- this one
- ``executor/dagster_internals.py``: the executor can be used by itself
- ``orchestration/celery/dagster_internals.py``: dagster-celery is an extra and imports slowly

`batch_pipeline_tests/unit/test_dagster_internals.py` shows which name is missing or takes other
arguments than before. The lowest version that has all names is the lower bound in
``pyproject.toml``.
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

# A failure that is written without running the step, and the context of that step.
from dagster._core.definitions.metadata import normalize_metadata
from dagster._core.execution.context.system import IStepContext
from dagster._core.execution.plan.objects import StepFailureData, UserFailureData
from dagster_shared.error import SerializableErrorInfo

# Which events belong to assets, checks and runs.
from dagster._core.events import (
    ASSET_CHECK_EVENTS,
    ASSET_EVENTS,
    EVENT_TYPE_TO_PIPELINE_RUN_STATUS,
)

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
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.event_log.event_log import CHANNEL_NAME
from dagster_postgres.utils import create_pg_engine, set_pg_statement_timeout
# isort: on

#: Attributes of these classes that we use although Dagster may change them, each with the reason.
USED_ATTRIBUTES: Mapping[type, Mapping[str, str]] = {
    ConfigurableResource: {"_initialize_and_run": "replaced, as it costs 25 ms for each tick"},
    DagsterApiServer: {
        "_mp_ctx": "starts run workers; replaced by one that forks them",
        "_check_for_orphaned_runs": "reports ended run workers; an error would end its thread",
    },
    DagsterPostgresStorage: {
        "_run_storage": "replaced by ours, which shares a pool of connections",
        "_event_log_storage": "replaced by ours, which writes events in groups",
        "_schedule_storage": "replaced by ours, which shares a pool of connections",
    },
    PostgresEventLogStorage: {
        "_connect": "every read and write calls it; waiting events are written first",
        "_engine": "replaced by a pool of connections",
        "_event_to_row": "makes the same row as Dagster",
        "_store_asset_event": "the latest event of an asset, once per group",
        "_store_asset_event_tags": "tags of materializations",
        "_token_provider": "passwords that expire, such as those of a cloud",
        "index_connection": "a connection to the tables of assets and checks",
        "optimize_for_webserver": "replaced by a pool that tests its connections",
        "store_asset_check_event": "extended: a check replaces the last one of its partition",
    },
    PostgresRunStorage: {
        "_engine": "replaced by a pool of connections",
        "_token_provider": "passwords that expire, such as those of a cloud",
        "has_run_stats_index_cols": "the answer is remembered",
        "optimize_for_webserver": "replaced, so that it opens no second pool",
    },
    PostgresScheduleStorage: {
        "_engine": "replaced by a pool of connections",
        "_has_instigators_table": "the answer is remembered",
        "has_built_index": "the answer is remembered",
        "has_instigators_table": "the answer is remembered",
        "optimize_for_webserver": "replaced, so that it opens no second pool",
    },
}

__all__ = [
    "ASSET_CHECK_EVENTS",
    "ASSET_EVENTS",
    "CHANNEL_NAME",
    "EVENT_TYPE_TO_PIPELINE_RUN_STATUS",
    "GRPC_INFO_TAG",
    "IN_PROC_CONFIG",
    "MULTI_PROC_CONFIG",
    "CodeLocationOrigin",
    "ConfigurableClassData",
    "DagsterApiServer",
    "GrpcServerCodeLocationOrigin",
    "IStepContext",
    "InstigatorState",
    "InstigatorStatus",
    "InstigatorTick",
    "PostgresRunStorage",
    "PostgresScheduleStorage",
    "SerializableErrorInfo",
    "SqlEventLogStorageTable",
    "StepFailureData",
    "TickStatus",
    "UserConfigSchema",
    "UserFailureData",
    "check_cross_process_constraints",
    "context_creation_job",
    "create_pg_engine",
    "daemon_loop",
    "instigation_logger",
    "normalize_metadata",
    "set_pg_statement_timeout",
]
