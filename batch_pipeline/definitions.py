"""All that Dagster loads: jobs, sensors, schedules and assets, put together in one place."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from batch_pipeline.logs import use_format
from batch_pipeline.orchestration.assets import SPECS, description_quality
from batch_pipeline.orchestration.jobs import build_process_batch, sweep_backlog
from batch_pipeline.orchestration.resources import pipeline_resource, worker_resource
from batch_pipeline.orchestration.run_logs import build_loggers
from batch_pipeline.orchestration.schedules import backlog_sweep, sweep_on_start
from batch_pipeline.orchestration.sensors import (
    build_pending_batches,
    build_run_end_sensors,
    report_ended_batches,
)
from batch_pipeline.orchestration.warm_workers import start_run_workers_warm
from batch_pipeline.settings import Settings, load_settings


def build_definitions(
    settings: Settings | None = None, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Put the code location together.

    Args:
        settings: read from the environment unless given.
        resource_overrides: resources to use in place of ours, by name (``pipeline``, ``worker``).

    Raises:
        ConfigurationError: a setting is not valid.
    """
    settings = settings or load_settings()
    process_batch = build_process_batch(settings)
    return dg.Definitions(
        jobs=[process_batch, sweep_backlog],
        sensors=[
            build_pending_batches(process_batch),
            *build_run_end_sensors(process_batch),
            report_ended_batches,
            sweep_on_start,
        ],
        schedules=[backlog_sweep],
        assets=SPECS,
        asset_checks=[description_quality],
        loggers=build_loggers(settings),
        resources={
            "pipeline": pipeline_resource,
            "worker": worker_resource,
            **(resource_overrides or {}),
        },
    )


use_format(load_settings())
start_run_workers_warm(load_settings())
defs = build_definitions()
