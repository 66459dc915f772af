"""Starts the sweep of the backlog: once a minute, and when the stack starts.

Both first check whether there is work, because each run needs a process.
"""

from collections.abc import Mapping
from uuid import uuid4

import dagster as dg

from batch_pipeline.orchestration.jobs import sweep_backlog
from batch_pipeline.orchestration.run_ends import close_runs_of_ended_workers
from batch_pipeline.orchestration.sweep import JOBS, sweep_in_flight, work_for_a_sweep
from batch_pipeline.orchestration.tags import FOUND_TAG
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.pipeline import Pipeline

#: Identifies this start of the code server.
START = uuid4().hex
#: How soon a start is noticed (seconds).
START_INTERVAL_SECONDS = 15

_NOTHING = "nothing to put right"


@dg.schedule(
    name="backlog_sweep",
    job=sweep_backlog,
    cron_schedule="* * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    required_resource_keys={"batch_pipeline"},
    description="Checks once a minute whether there is something to put right, and sweeps if so; "
    "tidies files and partitions once an hour.",
)
def backlog_sweep(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Sweep if there is work and no other sweep is in flight, and once an hour in any case."""
    pipeline: Pipeline = context.resources.batch_pipeline
    is_hour = context.scheduled_execution_time.minute == 0
    left_out = LeftOut()
    # Slow sweeps must not fill the places for runs. The hourly tidy is requested anyway: if every
    # sweep is slow, it would otherwise never run.
    if not is_hour and (sweep := sweep_in_flight(context.instance, pipeline, left_out)):
        said = f"the last sweep has not ended: run {sweep.run_id} ({sweep.status.value.lower()})"
        return dg.SkipReason(_and(said, left_out))
    found = work_for_a_sweep(context.instance, pipeline, left_out)
    if not found and not is_hour:
        return dg.SkipReason(_and(_NOTHING, left_out))
    said = _say(found) or "files and partitions, once an hour"
    context.log.info("asked for a sweep: %s", _and(said, left_out))
    key = context.scheduled_execution_time.isoformat()
    return _request(key, found, tidy=is_hour)


@dg.sensor(
    name="sweep_on_start",
    job=sweep_backlog,
    minimum_interval_seconds=START_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"batch_pipeline"},
    description="Ends the runs whose worker died with its code server; sweeps what the previous "
    "stack left, without waiting for the next minute.",
)
def sweep_on_start(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Sweep once for each start of the code server; the cursor names the last start."""
    pipeline: Pipeline = context.resources.batch_pipeline
    left_out = LeftOut()
    # This is not left to a sweep, because its run could wait in a queue full of these dead runs.
    closed = close_runs_of_ended_workers(
        context.instance, pipeline, JOBS, context.code_location_origin, left_out
    )
    if closed:
        context.log.warning("ended runs whose worker was gone: %s", closed)
    if context.cursor == START:
        return dg.SensorResult(skip_reason=_and("checked when the code server started", left_out))
    found = work_for_a_sweep(context.instance, pipeline, left_out)
    if not found:
        said = _and(f"the stack has started: {_NOTHING}", left_out)
        return dg.SensorResult(skip_reason=said, cursor=START)
    context.log.info("the stack has started; asked for a sweep: %s", _and(_say(found), left_out))
    request = _request(START, found, tidy=True)
    return dg.SensorResult(run_requests=[request], cursor=START)


def _request(key: str, found: Mapping[str, int], *, tidy: bool) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=key,
        run_config={"ops": {"sweep": {"config": {"tidy": tidy}}}},
        tags={FOUND_TAG: _say(found)} if found else {},
    )


def _say(found: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in found.items())


def _and(said: str, left_out: LeftOut) -> str:
    return f"{said}; {left_out}" if left_out else said
