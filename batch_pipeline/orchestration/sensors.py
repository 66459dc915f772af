"""What starts by itself: runs for pending uploads, the settling of lost runs, reports of batches.

The choice itself is a pure function in ``services/dispatch/slices.py``.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import dagster as dg

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.orchestration.assets import BATCHES
from batch_pipeline.orchestration.batch_reports import headline, report_of
from batch_pipeline.orchestration.run_ends import (
    RunCleanup,
    batch_of,
    clean_up_failed_run,
    clean_up_terminated_run,
    report_run_cleanup,
)
from batch_pipeline.orchestration.run_logs import logger_config
from batch_pipeline.orchestration.sweep import launched_keys, rescue_from_ended_runs
from batch_pipeline.orchestration.tags import BATCH_TAG, REASON_TAG, SLICE_TAG, USER_TAG
from batch_pipeline.services.dispatch.signals import work_signals
from batch_pipeline.services.dispatch.slices import (
    WaitingSlice,
    choose_slices,
    open_slices,
    waiting_slices,
)
from batch_pipeline.services.dispatch.turns import Turn, turn_to_look
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_summary import batch_summary
from batch_pipeline.services.reports.ended_batches import EndsSeen, newly_ended
from batch_pipeline.services.states.backlog import Rescue
from batch_pipeline.services.upload_processing import OUTAGE_PAUSE_SECONDS
from batch_pipeline.settings import Settings

#: The least between two ticks of `pending_batches`, which wait for work themselves (seconds).
INTERVAL_SECONDS = 1
#: How long a tick that finds nothing waits for a signal of work, and so how often everything is
#: looked at without one. The daemon waits as long for its sensors when it is stopped (seconds).
LOOK_SECONDS = 4.0
#: How soon the end of a run gives its place to a slice that waits for one (seconds).
SLOT_SECONDS = 1.0
#: How soon the end of a run is settled; its uploads are returned by `pending_batches` before that
#: (seconds). Each tick of a sensor costs some 70 ms of processor time, whatever it finds.
RUN_END_INTERVAL_SECONDS = 10
#: How soon the end of a batch is reported (seconds), and how many at once: each reads thumbnails.
REPORT_INTERVAL_SECONDS, REPORTS_PER_TICK = 10, 10

_IN_FLIGHT = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def build_pending_batches(job: dg.JobDefinition) -> dg.SensorDefinition:
    """Launch the job for whatever is pending."""

    def look(
        context: dg.SensorEvaluationContext, pipeline: Pipeline, turn: Turn
    ) -> tuple[dg.SensorResult, bool]:
        """Look once; also tells whether what waits needs only the end of another run."""
        # Cheap, and what makes an upload whose worker died wait for its lease only.
        rescued = _say_rescued(rescue_from_ended_runs(context.instance, pipeline))
        if rescued:
            context.log.warning(rescued)

        def skip(reason: str, *, wants_a_slot: bool = False) -> tuple[dg.SensorResult, bool]:
            said = f"{rescued}; {reason}" if rescued else reason
            return dg.SensorResult(skip_reason=said), wants_a_slot

        open_slices(pipeline.database, pipeline.settings.uploads_per_run)
        waiting = waiting_slices(pipeline.database)
        if not waiting:
            return skip("no upload is pending")
        in_flight = runs_in_flight(context.instance, job.name)
        launched = launched_keys(context.instance, [slice_.key for slice_ in waiting])
        asked = turn.asked()
        for slice_ in waiting:
            if slice_.key in asked and slice_.key not in launched:
                launched[slice_.key] = True
                in_flight[slice_.batch_id] += 1
        limit = pipeline.settings.max_runs_in_flight
        chosen = choose_slices(waiting, launched=launched, in_flight=in_flight, max_in_flight=limit)
        if not chosen:
            behind = sum(slice_.has_head_start for slice_ in waiting if slice_.key not in launched)
            return skip(
                f"slices that wait: {len(waiting)}, {len(launched)} of them for a run that was "
                f"launched, {behind} for the first run of their batch to begin; "
                f"runs in flight: {sum(in_flight.values())} of {limit}",
                wants_a_slot=len(launched) < len(waiting),
            )
        # A run that is launched while the analyzer is down would only end at its start.
        if outage := pipeline.analyzer_outage() or _broker_outage(pipeline.settings):
            for slice_ in chosen:
                pipeline.states.release_waiting(
                    slice_.batch_id,
                    outage,
                    slice_number=slice_.number,
                    resume_after_seconds=OUTAGE_PAUSE_SECONDS,
                )
            return skip(f"slices that wait: {len(waiting)}, because {outage}")
        for slice_ in chosen:
            context.log.info(
                "asked for a run: batch %s, slice %s, %s",
                *(slice_.batch_id, slice_.number, slice_.reason),
            )
        turn.ask(slice_.key for slice_ in chosen)
        requests = [run_request(slice_, pipeline.settings) for slice_ in chosen]
        return dg.SensorResult(run_requests=requests), False

    @dg.sensor(
        name="pending_batches",
        job=job,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={"batch_pipeline"},
        description="Launches a run for every slice of pending uploads; batches take turns.",
    )
    def pending_batches(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        pipeline: Pipeline = context.resources.batch_pipeline
        patience = LOOK_SECONDS if context.log_key else 0.0  # a test evaluates without a log
        deadline = time.monotonic() + patience
        with work_signals(pipeline.database) as wait:  # before the first look: nothing is missed
            while True:
                with turn_to_look(pipeline.database) as turn:
                    found, wants_a_slot = look(context, pipeline, turn)
                left = deadline - time.monotonic()
                if found.run_requests or left <= 0:
                    return found
                may_be_work = wait(min(left, SLOT_SECONDS) if wants_a_slot else left)
                if not may_be_work and not wants_a_slot:
                    return found

    return pending_batches


class _RunEndSensor(dg.RunStatusSensorDefinition):
    """A run-status sensor that says when no run has ended; Dagster would say *an empty result*."""

    def __init__(self, *, nothing: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._nothing = dg.SensorDefinition(
            name=self.name, evaluation_fn=lambda _: dg.SkipReason(nothing)
        )

    def evaluate_tick(self, context: dg.SensorEvaluationContext) -> Any:
        is_first = context.cursor is None  # it looks for nothing, and says so
        tick = super().evaluate_tick(context)
        return (
            tick if is_first or tick.dagster_run_reactions else self._nothing.evaluate_tick(context)
        )


def build_run_end_sensors(job: dg.JobDefinition) -> list[dg.SensorDefinition]:
    """Settle at once what runs of the job leave behind."""

    def release_uploads_of_failed_runs(
        context: dg.RunStatusSensorContext, batch_pipeline: dg.ResourceParam[Pipeline]
    ) -> None:
        failure = context.for_run_failure()
        run, reason = failure.dagster_run, failure.failure_event.message or "no reason was given"
        died = not _explained(failure.get_step_failure_events())
        clean_up(
            context, clean_up_failed_run(batch_pipeline, run, died=died, reason=reason), reason
        )

    def cancel_batches_of_terminated_runs(
        context: dg.RunStatusSensorContext, batch_pipeline: dg.ResourceParam[Pipeline]
    ) -> None:
        cleanup = clean_up_terminated_run(batch_pipeline, context.dagster_run)
        clean_up(context, cleanup, "a person terminated the run")

    def clean_up(context: dg.RunStatusSensorContext, cleanup: RunCleanup, reason: str) -> None:
        run = context.dagster_run
        context.log.info("run %s of batch %s: %s", run.run_id, batch_of(run), cleanup)
        report_run_cleanup(context.instance, run, cleanup, reason)

    return [
        _RunEndSensor(
            nothing=f"no run has ended as {status.value.lower()} since",
            name=clean_up_run.__name__,
            run_status=status,
            run_status_sensor_fn=clean_up_run,
            monitored_jobs=[job],
            minimum_interval_seconds=RUN_END_INTERVAL_SECONDS,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description=description,
        )
        for clean_up_run, status, description in (
            (
                release_uploads_of_failed_runs,
                dg.DagsterRunStatus.FAILURE,
                "Returns what a failed run held; gives a batch up whose runs die every time.",
            ),
            (
                cancel_batches_of_terminated_runs,
                dg.DagsterRunStatus.CANCELED,
                "Cancels the batch of a run that a person terminated; `retry` reopens it.",
            ),
        )
    ]


@dg.sensor(
    minimum_interval_seconds=REPORT_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"batch_pipeline"},
    description="Reports every batch that has ended, however its runs did, in the asset "
    "batch_report; again when it was worked again.",
)
def report_ended_batches(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Report each end once; twice if the daemon dies between the report and its cursor."""
    pipeline: Pipeline = context.resources.batch_pipeline
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


def _say_rescued(rescue: Rescue) -> str:
    parts = {
        f"uploads of dead workers that are pending again: {rescue.returned}": rescue.returned,
        f"uploads that killed every worker and are failed: {rescue.quarantined}": (
            rescue.quarantined
        ),
    }
    return "; ".join(text for text, count in parts.items() if count)


def _broker_outage(settings: Settings) -> ServiceDownError | None:
    if not settings.celery_broker_url:
        return None
    from batch_pipeline.orchestration.celery.broker import (  # noqa: PLC0415 - imports Celery
        broker_outage,
    )

    return broker_outage(settings.celery_broker_url)


def _explained(step_failures: Sequence[dg.DagsterEvent]) -> bool:
    """Tell whether a step said itself why it ended: a file was bad, or a service was down."""
    return any(event.step_failure_data.user_failure_data for event in step_failures)


def runs_in_flight(instance: dg.DagsterInstance, job_name: str) -> Counter[UUID]:
    """Count runs that are queued or running, by batch."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job_name, statuses=list(_IN_FLIGHT)))
    # A run that somebody launched by hand gets its tag when it has begun.
    return Counter(UUID(run.tags.get(BATCH_TAG, str(UUID(int=0)))) for run in runs)


def run_request(slice_: WaitingSlice, settings: Settings) -> dg.RunRequest:
    """Ask for the run of a slice; the same slice always by the same key."""
    return dg.RunRequest(
        run_key=slice_.key,
        run_config={
            "ops": {
                "load_batch": {"config": {"batch_id": str(slice_.batch_id), "slice": slice_.number}}
            },
            **logger_config(settings),
        },
        tags={
            BATCH_TAG: str(slice_.batch_id),
            USER_TAG: str(slice_.user_id),
            SLICE_TAG: str(slice_.number),
            REASON_TAG: slice_.reason,
        },
    )
