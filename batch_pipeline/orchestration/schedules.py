"""What starts by the clock: the sweep of the backlog."""

import dagster as dg

from batch_pipeline.orchestration.jobs import sweep_backlog
from batch_pipeline.orchestration.sweep import work_for_a_sweep
from batch_pipeline.orchestration.tags import FOUND_TAG
from batch_pipeline.services.pipeline import Pipeline


@dg.schedule(
    name="backlog_sweep",
    job=sweep_backlog,
    cron_schedule="* * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    required_resource_keys={"pipeline"},
    description="Sweeps when there is something to put right, looked for once a minute; tidies "
    "files and partitions once an hour.",
)
def backlog_sweep(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Look first: a run costs a process."""
    pipeline: Pipeline = context.resources.pipeline
    is_hour = context.scheduled_execution_time.minute == 0
    found = work_for_a_sweep(context.instance, pipeline)
    if not found and not is_hour:
        return dg.SkipReason("nothing to put right")
    said = ", ".join(f"{number} {name}" for name, number in found.items())
    context.log.info("asked for a sweep: %s", said or "files and partitions, once an hour")
    return dg.RunRequest(
        run_key=context.scheduled_execution_time.isoformat(),
        run_config={"ops": {"sweep": {"config": {"tidy": is_hour}}}},
        tags={FOUND_TAG: said} if said else {},
    )
