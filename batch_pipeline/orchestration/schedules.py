"""What starts by the clock: the sweep of the backlog."""

import dagster as dg

from batch_pipeline.orchestration.jobs import sweep_backlog

backlog_sweep = dg.ScheduleDefinition(
    name="backlog_sweep",
    job=sweep_backlog,
    cron_schedule="* * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Sweeps the backlog once a minute.",
)
