"""Everything that Dagster loads: jobs, sensors, schedules, assets and resources.

Importing this module does nothing else. ``workspace.yaml`` names `batch_pipeline.definitions`, and
`batch_pipeline.component` adds the same definitions to another project.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from batch_pipeline.orchestration.assets import build_assets
from batch_pipeline.orchestration.batch_checks import CHECKS
from batch_pipeline.orchestration.jobs import build_process_batch, sweep_backlog
from batch_pipeline.orchestration.notifications import build_notifications
from batch_pipeline.orchestration.pausing import pause_job, resume_job
from batch_pipeline.orchestration.resources import PipelineResource, worker_resource
from batch_pipeline.orchestration.run_logs import use_format_in_runs
from batch_pipeline.orchestration.schedules import backlog_sweep, sweep_on_start
from batch_pipeline.orchestration.sensors import (
    build_pending_batches,
    build_run_end_sensors,
    report_ended_batches,
)
from batch_pipeline.settings import Settings, load_settings


def build_definitions(
    settings: Settings | None = None,
    resource_overrides: Mapping[str, Any] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """Build the code location.

    Args:
        settings: settings for the jobs; read from the environment unless given.
        resource_overrides: resources that replace ours, by name (``batch_pipeline``,
            ``batch_pipeline_worker``).
        overrides: settings by name that replace those of the environment, here and in run workers.

    Raises:
        ConfigurationError: a setting is not valid.
    """
    settings = settings or load_settings(**(overrides or {}))
    use_format_in_runs(settings)
    process_batch = build_process_batch(settings)
    return dg.Definitions(
        jobs=[process_batch, sweep_backlog, pause_job, resume_job],
        sensors=[
            build_pending_batches(process_batch),
            *build_run_end_sensors(process_batch),
            report_ended_batches,
            sweep_on_start,
            build_notifications(settings),
        ],
        schedules=[backlog_sweep],
        assets=build_assets(settings),
        asset_checks=CHECKS,
        resources={
            "batch_pipeline": PipelineResource(**(overrides or {})),
            "batch_pipeline_worker": worker_resource,
            **(resource_overrides or {}),
        },
    )
