"""What starts by itself: runs for pending uploads, the settling of lost runs, reports of batches.

The choice itself is a pure function in ``services/dispatch.py``.
"""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import dagster as dg

from batch_pipeline.orchestration.assets import BATCHES
from batch_pipeline.orchestration.batch_reports import headline, report_of
from batch_pipeline.orchestration.run_ends import (
    batch_of,
    observe,
    settle_failed_run,
    settle_terminated_run,
)
from batch_pipeline.orchestration.sweep import launched_keys, rescue_from_ended_runs
from batch_pipeline.orchestration.tags import BATCH_TAG, REASON_TAG, SLICE_TAG, USER_TAG
from batch_pipeline.services.batch_summary import batch_summary
from batch_pipeline.services.dispatch import (
    WaitingSlice,
    choose_slices,
    open_slices,
    waiting_slices,
)
from batch_pipeline.services.ended_batches import EndsSeen, newly_ended
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.upload_processing import OUTAGE_PAUSE_SECONDS

#: How soon a submitted batch is noticed (seconds).
INTERVAL_SECONDS = 2
#: How soon the end of a run is noticed (seconds).
RUN_END_INTERVAL_SECONDS = 5
#: How soon the end of a batch is reported (seconds), and how many at once: each reads thumbnails.
REPORT_INTERVAL_SECONDS, REPORTS_PER_TICK = 5, 5

_IN_FLIGHT = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def build_pending_batches(job: dg.JobDefinition) -> dg.SensorDefinition:
    """Launch the job for whatever is pending."""

    @dg.sensor(
        name="pending_batches",
        job=job,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={"pipeline"},
        description="Launches a run for every slice of pending uploads; batches take turns.",
    )
    def pending_batches(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        pipeline: Pipeline = context.resources.pipeline
        # Cheap, and what makes an upload whose worker died wait for its lease only.
        rescue_from_ended_runs(context.instance, pipeline)
        open_slices(pipeline.database, pipeline.settings.uploads_per_run)
        waiting = waiting_slices(pipeline.database)
        if not waiting:
            return dg.SensorResult(skip_reason=dg.SkipReason("no upload is pending"))
        in_flight = runs_in_flight(context.instance, job.name)
        launched = launched_keys(context.instance, [slice_.key for slice_ in waiting])
        limit = pipeline.settings.max_runs_in_flight
        chosen = choose_slices(waiting, launched=launched, in_flight=in_flight, max_in_flight=limit)
        if not chosen:
            return dg.SensorResult(
                skip_reason=dg.SkipReason(
                    f"{len(waiting)} slices wait; {sum(in_flight.values())} of {limit} runs are "
                    "in flight"
                )
            )
        # A run that is launched while the analyzer is down would only end at its start.
        if outage := pipeline.analyzer_outage():
            for slice_ in chosen:
                pipeline.states.postpone(
                    slice_.batch_id,
                    outage,
                    slice_number=slice_.number,
                    resume_after_seconds=OUTAGE_PAUSE_SECONDS,
                )
            return dg.SensorResult(
                skip_reason=dg.SkipReason(f"{len(waiting)} slices wait: {outage}")
            )
        for slice_ in chosen:
            context.log.info(
                "asked for a run: batch %s, slice %s, %s",
                *(slice_.batch_id, slice_.number, slice_.reason),
            )
        return dg.SensorResult(run_requests=[run_request(slice_) for slice_ in chosen])

    return pending_batches


def build_run_end_sensors(job: dg.JobDefinition) -> list[dg.SensorDefinition]:
    """Settle at once what runs of the job leave behind."""

    @dg.run_failure_sensor(
        name="release_uploads_of_failed_runs",
        monitored_jobs=[job],
        minimum_interval_seconds=RUN_END_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Returns what a failed run held; gives a batch up whose runs die every time. "
        "An empty result means that no run has failed since.",
    )
    def release_uploads_of_failed_runs(
        context: dg.RunFailureSensorContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> None:
        run, reason = context.dagster_run, context.failure_event.message or "no reason was given"
        settlement = settle_failed_run(
            pipeline, run, died=not _explained(context.get_step_failure_events()), reason=reason
        )
        context.log.warning("run %s of batch %s: %s", run.run_id, batch_of(run), settlement)
        observe(context.instance, run, settlement, reason)

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.CANCELED,
        name="cancel_batches_of_terminated_runs",
        monitored_jobs=[job],
        minimum_interval_seconds=RUN_END_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Cancels the batch of a run that a person terminated; `retry` reopens it. An "
        "empty result means that no run was terminated since.",
    )
    def cancel_batches_of_terminated_runs(
        context: dg.RunStatusSensorContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> None:
        run = context.dagster_run
        settlement = settle_terminated_run(pipeline, run)
        context.log.info("run %s of batch %s: %s", run.run_id, batch_of(run), settlement)
        observe(context.instance, run, settlement, "a person terminated the run")

    return [release_uploads_of_failed_runs, cancel_batches_of_terminated_runs]


@dg.sensor(
    minimum_interval_seconds=REPORT_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"pipeline"},
    description="Reports every batch that has ended, however its runs did, in the asset "
    "batch_report; again when it was worked again.",
)
def report_ended_batches(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Report each end once; twice if the daemon dies between the report and its cursor."""
    pipeline: Pipeline = context.resources.pipeline
    seen = EndsSeen.parse(context.cursor)
    ended = newly_ended(pipeline.database, seen, limit=REPORTS_PER_TICK)
    summaries = [
        batch_summary(pipeline.database, pipeline.storage, batch.batch_id) for batch in ended
    ]
    # One that somebody has reopened meanwhile will end again.
    reported = [summary for summary in summaries if summary.has_ended]
    said = [f"batch {summary.head['batch_id']} {headline(summary)}" for summary in reported]
    return dg.SensorResult(
        asset_events=[event for summary in reported for event in report_of(summary)],
        dynamic_partitions_requests=[
            BATCHES.build_add_request([str(summary.head["batch_id"]) for summary in reported])
        ]
        if reported
        else [],
        cursor=str(seen.and_(ended)) if ended else None,
        skip_reason=f"reported: {'; '.join(said)}" if said else "no batch has ended since",
    )


def _explained(step_failures: Sequence[dg.DagsterEvent]) -> bool:
    """Tell whether a step said itself why it ended: a file was bad, or a service was down."""
    return any(event.step_failure_data.user_failure_data for event in step_failures)


def runs_in_flight(instance: dg.DagsterInstance, job_name: str) -> Counter[UUID]:
    """Count runs that are queued or running, by batch."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job_name, statuses=list(_IN_FLIGHT)))
    # A run that somebody launched by hand gets its tag when it has begun.
    return Counter(UUID(run.tags.get(BATCH_TAG, str(UUID(int=0)))) for run in runs)


def run_request(slice_: WaitingSlice) -> dg.RunRequest:
    """Ask for the run of a slice; the same slice always by the same key."""
    return dg.RunRequest(
        run_key=slice_.key,
        run_config={
            "ops": {
                "load_batch": {"config": {"batch_id": str(slice_.batch_id), "slice": slice_.number}}
            }
        },
        tags={
            BATCH_TAG: str(slice_.batch_id),
            USER_TAG: str(slice_.user_id),
            SLICE_TAG: str(slice_.number),
            REASON_TAG: slice_.reason,
        },
    )
