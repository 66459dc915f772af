"""Undocumented parts of Dagster that we use exist, and have the expected parameters.

If a new version has moved or changed one of them, these tests fail first and name it.
"""

import inspect

import pytest
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

from batch_pipeline import dagster_internals
from batch_pipeline.database.names import DAGSTER_TABLES
from batch_pipeline.executor import dagster_internals as of_executor
from batch_pipeline.orchestration.celery import dagster_internals as of_celery

#: The modules that import undocumented names.
MODULES = (dagster_internals, of_executor, of_celery)

#: Parameters of a method that we replace, and that Dagster calls.
FOR_WEBSERVER = "statement_timeout pool_recycle max_overflow"
#: How each callable is called by this project: positional arguments, and keywords.
CALLED = {
    "ActiveExecution": (
        1,
        "retry_mode tag_concurrency_limits instance_concurrency_context step_dependency_config",
    ),
    "CeleryExecutor": (0, "retries broker backend include config_source"),
    "DagsterLogManager": (2, ""),
    "ExecuteRunWithPlanIterable": (0, "execution_plan iterator execution_context_manager"),
    "InstanceConcurrencyContext": (2, ""),
    "PlanExecutionContext": (
        0,
        "plan_data execution_data log_manager output_capture event_loop",
    ),
    "PlanExecutionContextManager": (
        0,
        "job retry_mode execution_plan run_config dagster_run instance raise_on_error "
        "output_capture step_dependency_config",
    ),
    "PostgresRunStorage": (1, "should_autocreate_tables"),
    "PostgresScheduleStorage": (1, "should_autocreate_tables"),
    "ScopedResourcesBuilder": (2, ""),
    "SerializableErrorInfo": (3, ""),
    "StepFailureData": (0, "error user_failure_data"),
    "UserFailureData": (3, ""),
    "check_cross_process_constraints": (1, ""),
    "core_celery_execution_loop": (2, "step_execution_fn"),
    "create_compute_log_file_key": (0, ""),
    "create_pg_engine": (2, "isolation_level pool_size max_overflow pool_pre_ping"),
    "create_task": (1, ""),
    "dagster_event_sequence_for_step": (1, ""),
    "get_retries_config": (0, ""),
    "get_step_dependency_config_field": (0, ""),
    "get_tag_concurrency_limits_config": (0, ""),
    "make_app": (1, ""),
    "normalize_metadata": (1, ""),
    "pop_captured_interrupt": (0, ""),
    "serializable_error_info_from_exc_info": (1, ""),
    "set_pg_statement_timeout": (2, ""),
    "submit_task": (6, ""),
    "trigger_hooks": (2, ""),
    "ActiveExecution.check_for_interrupts": (1, ""),
    "ActiveExecution.concurrency_event_iterator": (2, ""),
    "ActiveExecution.get_known_state": (1, ""),
    "ActiveExecution.get_step_by_key": (2, ""),
    "ActiveExecution.get_steps_to_execute": (1, "limit"),
    "ActiveExecution.handle_event": (2, ""),
    "ActiveExecution.plan_events_iterator": (2, ""),
    "ActiveExecution.sleep_interval": (1, ""),
    "ActiveExecution.verify_complete": (3, ""),
    "ActiveExecution._has_produced_output": (2, ""),
    "ActiveExecution._update": (1, ""),
    "ActiveExecution.get_steps_to_abandon": (1, ""),
    "CeleryExecutor.app_args": (1, ""),
    "EngineEventData.in_process": (1, "step_keys_to_execute"),
    "EngineEventData.interrupted": (1, ""),
    "InstanceConcurrencyContext.has_pending_claims": (1, ""),
    "PlanExecutionContext.for_step": (3, ""),
    "PlanOrchestrationContext.for_step": (2, ""),
    "RetryMode.from_config": (1, ""),
    "ExecutionPlan.start": (1, "retry_mode sort_key_fn instance_concurrency_context"),
    "ExecutionPlan.get_steps_to_execute_in_topo_order": (1, ""),
    "ExecutionStep.get_mapping_key": (1, ""),
    "ScopedResourcesBuilder.build": (2, ""),
    "StepDependencyConfig.default": (0, ""),
    "StepDependencyConfig.from_config": (1, ""),
    "DagsterLogHandler.with_tags": (1, "step_key"),
    "ConfigurableResource._initialize_and_run": (2, ""),
    "PostgresEventLogStorage._connect": (1, ""),
    "PostgresEventLogStorage._event_to_row": (2, ""),
    "PostgresEventLogStorage._store_asset_event": (4, ""),
    "PostgresEventLogStorage._store_asset_event_tags": (4, ""),
    "PostgresEventLogStorage.index_connection": (1, ""),
    "PostgresEventLogStorage.optimize_for_webserver": (1, FOR_WEBSERVER),
    "PostgresEventLogStorage.store_asset_check_event": (3, ""),
    "PostgresRunStorage.has_run_stats_index_cols": (1, ""),
    "PostgresRunStorage.optimize_for_webserver": (1, FOR_WEBSERVER),
    "PostgresScheduleStorage._has_instigators_table": (2, ""),
    "PostgresScheduleStorage.has_built_index": (2, ""),
    "PostgresScheduleStorage.has_instigators_table": (1, ""),
    "PostgresScheduleStorage.optimize_for_webserver": (1, FOR_WEBSERVER),
}
#: Values and types that are only read or passed on.
NOT_CALLED = {
    "ASSET_CHECK_EVENTS",
    "ASSET_EVENTS",
    "CHANNEL_NAME",
    "EVENT_TYPE_TO_PIPELINE_RUN_STATUS",
    "GLOBAL_CONCURRENCY_TAG",
    "GRPC_INFO_TAG",
    "IN_PROC_CONFIG",
    "MULTI_PROC_CONFIG",
    "PRIORITY_TAG",
    "CodeLocationOrigin",
    "ConfigurableClassData",
    "DagsterApiServer",
    "DagsterLogHandler",
    "EngineEventData",
    "GrpcServerCodeLocationOrigin",
    "InstigatorState",
    "InstigatorTick",
    "InstigatorStatus",
    "TickStatus",
    "context_creation_job",
    "daemon_loop",
    "instigation_logger",
    "ExecutionPlan",
    "ExecutionStep",
    "IStepContext",
    "KnownExecutionState",
    "PlanOrchestrationContext",
    "Resources",
    "RetryMode",
    "SqlEventLogStorageTable",
    "StepDependencyConfig",
    "StepOutputHandle",
    "UserConfigSchema",
}


@pytest.mark.parametrize("name", CALLED)
def test_a_callable_takes_the_arguments_that_it_is_called_with(name):
    first, *rest = name.split(".")
    called = next(getattr(module, first) for module in MODULES if hasattr(module, first))
    for part in rest:
        called = getattr(called, part)

    positional, keywords = CALLED[name]

    inspect.signature(called).bind(*range(positional), **dict.fromkeys(keywords.split()))


def test_the_daemon_has_an_interval_that_can_be_shortened():
    assert dagster_internals.daemon_loop.MIN_INTERVAL_LOOP_TIME in {5, 1}


def test_sensors_and_schedules_have_a_console_logger_that_can_be_replaced():
    made = inspect.getsource(dagster_internals.instigation_logger.InstigationLogger.__init__)
    assert 'create_console_logger("dagster", logging.INFO)' in made
    inspect.signature(dagster_internals.instigation_logger.create_console_logger).bind(1, 2)


def test_runs_whose_config_names_no_logger_have_loggers_that_can_be_replaced():
    creation = dagster_internals.context_creation_job
    made = inspect.getsource(creation.create_log_manager)
    assert "default_system_loggers(context_creation_data.instance)" in made
    assert "job_def=job_def" in made
    inspect.signature(creation.default_system_loggers).bind(None)


def test_every_undocumented_name_is_tested_and_is_in_one_module():
    tested = NOT_CALLED | {name for name in CALLED if "." not in name}
    assert sorted(tested) == sorted(name for module in MODULES for name in module.__all__)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, name)
        for module in MODULES
        for owner, names in module.USED_ATTRIBUTES.items()
        for name in names
    ],
)
def test_a_private_attribute_exists(owner, name):
    """Methods and properties are on the class; attributes set by `__init__` are in its code."""
    assert hasattr(owner, name) or is_set_by_its_code(owner, name)


def is_set_by_its_code(owner, name):
    made = "".join(
        inspect.getsource(base)
        for base in inspect.getmro(owner)
        if base.__module__.startswith("dagster")
    )
    return f"self.{name} " in made or f"self.{name}:" in made


def test_the_tables_that_count_as_those_of_dagster_are_all_of_them():
    storages = (
        RunStorageSqlMetadata,
        SqlEventLogStorageMetadata,
        ScheduleStorageSqlMetadata,
    )
    assert {name for storage in storages for name in storage.tables} == DAGSTER_TABLES
