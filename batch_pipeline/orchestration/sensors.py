"""The sensors: launch runs for pending uploads, clean up after runs, report ended batches.

``services/dispatch/turns.py`` decides whose turn it is. One row or one run never makes a tick fail:
it is left out (``services/one_by_one.py``), and the tick says so.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import dagster as dg
from structlog.contextvars import bound_contextvars

from batch_pipeline.errors import NotFoundError, PipelineError, ServiceDownError
from batch_pipeline.orchestration.assets import BATCHES
from batch_pipeline.orchestration.batch_checks import evaluations_of
from batch_pipeline.orchestration.batch_reports import (
    REPORTED,
    no_report_of,
    outcome_line,
    report_of,
)
from batch_pipeline.orchestration.dagster_storage.grouped_event_log import GroupedEventLogStorage
from batch_pipeline.orchestration.failures import step_failures_that_ended_it, why_it_failed
from batch_pipeline.orchestration.run_ends import (
    IN_FLIGHT,
    RunCleanup,
    RunOutcome,
    batch_of,
    clean_up_failed_run,
    clean_up_terminated_run,
    label_of_batch,
    our_runs,
    outcome_of,
    report_run_cleanup,
    user_of,
)
from batch_pipeline.orchestration.run_logs import naming
from batch_pipeline.orchestration.sweep import launched_keys, rescue_from_ended_runs
from batch_pipeline.orchestration.tags import (
    BATCH_TAG,
    OUTCOME_TAG,
    REASON_TAG,
    SLICE_TAG,
    tags_of_batch,
)
from batch_pipeline.services.dispatch.asked_slices import AskedSlices, one_sensor_at_a_time
from batch_pipeline.services.dispatch.signals import work_signals
from batch_pipeline.services.dispatch.slices import (
    numbered_slices,
    open_slice,
    unnumbered_slices,
    uploads_in_flight,
)
from batch_pipeline.services.dispatch.turns import (
    InFlight,
    Turns,
    UploadLimit,
    WaitingSlice,
    Why,
    choose_slices,
)
from batch_pipeline.services.one_by_one import LeftOut, one_by_one
from batch_pipeline.services.pauses import active_pauses
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.waiting import NOTHING_PENDING
from batch_pipeline.services.reports.batch_summary import batch_summary
from batch_pipeline.services.reports.ended_batches import (
    MAX_TRIES,
    EndedBatch,
    EndsSeen,
    newly_ended,
)
from batch_pipeline.services.states.backlog import Rescue
from batch_pipeline.services.upload_processing import outage_pause
from batch_pipeline.settings import Settings
from batch_pipeline.wording import counted, listed

#: Shortest time between two ticks of `pending_batches`, which itself waits for work (seconds).
INTERVAL_SECONDS = 1
#: How long a tick that finds nothing waits for a signal of work; without a signal it then looks
#: again. A daemon that is stopped waits for this time at most (seconds).
LOOK_SECONDS = 4.0
#: How soon a waiting slice gets the place of a run that has ended (seconds).
SLOT_SECONDS = 1.0
#: How soon the end of a run is handled; `pending_batches` returns its uploads earlier (seconds).
#: Each tick of a sensor costs about 40 ms of processor time.
RUN_END_INTERVAL_SECONDS = 15
#: How soon the end of a batch is reported (seconds), and how many ends one tick reports, because
#: each report reads thumbnails.
REPORT_INTERVAL_SECONDS, REPORTS_PER_TICK = 10, 10
#: After this time a tick begins no other report (seconds). Dagster ends a tick after 60 s, and the
#: next tick would then make the same reports again, for ever.
REPORTS_SECONDS = 20.0


def build_pending_batches(job: dg.JobDefinition) -> dg.SensorDefinition:
    """Build the sensor that launches the job for pending uploads."""

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
        # Signals are heard before the first look, so that nothing is missed.
        with work_signals(pipeline.database) as wait:
            while True:
                with one_sensor_at_a_time(pipeline.database) as asked:
                    found = _look(context, pipeline, asked, job.name)
                left = deadline - time.monotonic()
                if found.tick.run_requests or left <= 0:
                    return found.tick
                may_be_work = wait(min(left, SLOT_SECONDS) if found.needs_a_run_to_end else left)
                if not may_be_work and not found.needs_a_run_to_end:
                    return found.tick

    return pending_batches


class _Look(NamedTuple):
    tick: dg.SensorResult
    needs_a_run_to_end: bool
    """Whether only a place for a run is missing."""


def _look(
    context: dg.SensorEvaluationContext, pipeline: Pipeline, asked: AskedSlices, job_name: str
) -> _Look:
    """Look once at the waiting slices, and ask for a run for each whose turn it is."""
    settings, database = pipeline.settings, pipeline.database
    left_out = LeftOut()
    # This costs little. Without it, an upload of a dead worker would wait for the next sweep.
    rescued = _say_rescued(rescue_from_ended_runs(context.instance, pipeline, left_out))
    result = partial(_result, context, rescued, left_out)
    limit = settings.max_runs_in_flight
    numbered = numbered_slices(database)
    waiting = numbered + unnumbered_slices(database, settings.uploads_per_run, at_most=limit)
    if not waiting:
        return result(NOTHING_PENDING)
    launched, in_flight = _runs_so_far(context.instance, job_name, numbered, asked, left_out)
    now = time.time()
    turns = Turns.parse(context.cursor).until(now)
    choice = choose_slices(
        waiting,
        launched=launched,
        in_flight=in_flight,
        max_in_flight=limit,
        max_per_user=settings.max_runs_per_user or limit,
        turns=turns,
        now=now,
        upload_limit=_upload_limit(pipeline, numbered),
    )
    if not choice.chosen:
        return result(
            choice,
            *(active_pauses(database) if choice.waiting[Why.PAUSED] else ()),
            f"{in_flight.total} of {limit} runs in flight",
            needs_a_run_to_end=choice.needs_a_run_to_end,
        )
    if paused := pipeline.why_paused():
        return result(_all_wait(waiting, paused))
    slices = _open(pipeline, choice.chosen, left_out)
    # A run that starts while the analyzer is down would end at once.
    if outage := pipeline.analyzer_outage() or _broker_outage(settings):
        one_by_one(slices, partial(_release, pipeline, outage), left_out, named=_batch)
        return result(_all_wait(waiting, outage))
    requests = _ask_for_runs(context, asked, slices)
    # A slice that cannot be opened has had its turn, so others go first next time.
    return result(choice, requests=requests, turns=turns.and_(choice.chosen, waiting, now))


def _result(
    context: dg.SensorEvaluationContext,
    rescued: str,
    left_out: LeftOut,
    *said: object,
    requests: Sequence[dg.RunRequest] = (),
    turns: Turns | None = None,
    needs_a_run_to_end: bool = False,
) -> _Look:
    """Build the result of a look; if nothing is launched, all findings are the skip reason."""
    line = "; ".join(filter(None, map(str, (rescued, *said, left_out))))
    if requests and line:
        (context.log.warning if rescued or left_out else context.log.info)(line)
    tick = dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else line,
        cursor=str(turns) if turns else None,
    )
    return _Look(tick, needs_a_run_to_end)


def _runs_so_far(
    instance: dg.DagsterInstance,
    job_name: str,
    numbered: Sequence[WaitingSlice],
    asked: AskedSlices,
    left_out: LeftOut,
) -> tuple[Collection[str], InFlight]:
    """Return the keys of slices for which runs were launched, and the runs in flight."""
    launched = launched_keys(instance, [slice_.key for slice_ in numbered])
    # Dagster has not yet recorded runs that were asked for a moment ago.
    recent = asked.recent() - launched.keys()
    in_flight = runs_in_flight(instance, job_name, left_out).and_(
        slice_ for slice_ in numbered if slice_.key in recent
    )
    return launched.keys() | recent, in_flight


def _open(
    pipeline: Pipeline, chosen: Sequence[WaitingSlice], left_out: LeftOut
) -> Sequence[WaitingSlice]:
    """Open slices; returns those that could be opened and still have uploads."""
    opened = one_by_one(
        chosen,
        lambda slice_: open_slice(pipeline.database, slice_, pipeline.settings.uploads_per_run),
        left_out,
        named=_batch,
    )
    return [slice_ for slice_ in opened if slice_]


def _ask_for_runs(
    context: dg.SensorEvaluationContext, asked: AskedSlices, slices: Sequence[WaitingSlice]
) -> Sequence[dg.RunRequest]:
    for slice_ in slices:
        with bound_contextvars(batch_id=str(slice_.batch_id)):
            context.log.info(
                "asked for a run: batch %s, slice %s, %s",
                *(slice_.label, slice_.number, slice_.reason),
            )
    asked.note(slice_.key for slice_ in slices)
    return [run_request(slice_) for slice_ in slices]


def build_run_end_sensors(job: dg.JobDefinition) -> list[dg.SensorDefinition]:
    """Build the sensors that clean up after runs that failed or were terminated."""

    def release_uploads_of_failed_runs(
        context: dg.RunStatusSensorContext, batch_pipeline: dg.ResourceParam[Pipeline]
    ) -> None:
        failure = context.for_run_failure()
        run, end = failure.dagster_run, failure.failure_event
        steps = step_failures_that_ended_it(end, failure.get_step_failure_events())
        reason, is_stop = why_it_failed(context.instance, run.run_id, end, steps)
        outcome = outcome_of(steps, is_stop=is_stop)
        died = outcome is RunOutcome.DIED
        cleanup = clean_up_failed_run(batch_pipeline, run, died=died, reason=reason)
        clean_up(context, cleanup, outcome, reason)

    def cancel_batches_of_terminated_runs(
        context: dg.RunStatusSensorContext, batch_pipeline: dg.ResourceParam[Pipeline]
    ) -> None:
        cleanup = clean_up_terminated_run(batch_pipeline, context.dagster_run)
        clean_up(context, cleanup, RunOutcome.STOPPED, "a person terminated the run")

    def clean_up(
        context: dg.RunStatusSensorContext, cleanup: RunCleanup, outcome: RunOutcome, reason: str
    ) -> None:
        run = context.dagster_run
        with naming(run):
            context.log.info("run %s of batch %s: %s", run.run_id, label_of_batch(run), cleanup)
        context.instance.add_run_tags(run.run_id, {OUTCOME_TAG: outcome.value})
        report_run_cleanup(context.instance, run, cleanup, reason)

    return [
        dg.RunStatusSensorDefinition(
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
                "Returns the uploads of a failed run; gives up a batch whose runs die every time.",
            ),
            (
                cancel_batches_of_terminated_runs,
                dg.DagsterRunStatus.CANCELED,
                "Cancels the batch of a run that a person terminated; `retry` reopens it.",
            ),
        )
    ]


@dg.sensor(
    # So that the pages of these assets name this sensor as their source.
    asset_selection=dg.AssetSelection.assets(*(spec.key for spec in REPORTED)),
    minimum_interval_seconds=REPORT_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"batch_pipeline"},
    description="When a batch has ended, reports it in the asset batch_report, however its runs "
    "ended; reports it again if it was processed again.",
)
def report_ended_batches(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Report each end once, or twice if the daemon dies between the report and its cursor.

    A batch that cannot be reported is tried again in later ticks, after newer ones. After the last
    try an observation says that it has no report. All reports wait during an outage of the storage
    or the database.
    """
    pipeline: Pipeline = context.resources.batch_pipeline
    seen, left_out = EndsSeen.parse(context.cursor), LeftOut()
    # Dagster's own storage refuses a second check of the same partition by a sensor.
    may_be_said_again = isinstance(context.instance.event_log_storage, GroupedEventLogStorage)

    begun: list[EndedBatch] = []

    def report(batch: EndedBatch) -> _Report:
        begun.append(batch)
        try:
            summary = batch_summary(pipeline.database, pipeline.storage, batch.batch_id)
        except NotFoundError:
            return _Report(batch, None, ())
        # A batch that was reopened meanwhile will end again.
        if not summary.has_ended:
            return _Report(batch, None, ())
        checks = evaluations_of(batch.batch_id, summary.verdict, by_partition=may_be_said_again)
        events = (*report_of(summary), *checks)
        return _Report(batch, outcome_line(summary), events)

    try:
        ended = newly_ended(pipeline.database, seen, limit=REPORTS_PER_TICK)
        due = [*ended, *seen.due_again(ended, limit=REPORTS_PER_TICK)]
        made = one_by_one(_in_time(due), report, left_out, named=_batch)
    except ServiceDownError as error:
        return dg.SensorResult(skip_reason=f"reports wait, because {error}")
    reported = [done for done in made if done.outcome]
    failed = [batch for batch in begun if batch not in [done.batch for done in made]]
    given_up = [batch for batch in failed if batch.tries + 1 == MAX_TRIES]
    named = [done.batch.batch_id for done in reported] + [batch.batch_id for batch in given_up]
    said = "; ".join(f"{_batch(done.batch)} {done.outcome}" for done in reported)
    if left_out:
        context.log.warning(str(left_out))
    return dg.SensorResult(
        asset_events=[
            *(event for done in reported for event in done.events),
            *(no_report_of(b.batch_id, left_out.reasons[_batch(b)]) for b in given_up),
        ],
        dynamic_partitions_requests=[BATCHES.build_add_request([str(id_) for id_ in named])]
        if named
        else [],
        cursor=str(seen.and_(begun, failed=failed)) if begun else None,
        skip_reason="; ".join(
            filter(
                None, [f"reported: {said}" if said else "no batch has ended since", str(left_out)]
            )
        ),
    )


def _in_time(due: Sequence[EndedBatch]) -> Iterator[EndedBatch]:
    """Yield batches, at least one, until a tick has taken `REPORTS_SECONDS`."""
    end = time.monotonic() + REPORTS_SECONDS
    for number, batch in enumerate(due):
        if number and time.monotonic() > end:
            return
        yield batch


class _Report(NamedTuple):
    batch: EndedBatch
    outcome: str | None
    """None: there is nothing to report."""
    events: Sequence[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation]


def _upload_limit(pipeline: Pipeline, numbered: Sequence[WaitingSlice]) -> UploadLimit | None:
    settings = pipeline.settings
    if not settings.max_uploads_per_user:
        return None
    in_flight = uploads_in_flight(pipeline.database, numbered)
    return UploadLimit(settings.max_uploads_per_user, settings.uploads_per_run, in_flight)


def _all_wait(waiting: Sequence[WaitingSlice], reason: PipelineError) -> str:
    labels = list({slice_.batch_id: slice_.label for slice_ in waiting}.values())
    wait = counted(len(labels), "batch waits", "batches wait")
    return f"{wait} [{listed(labels)}], because {reason}"


def _batch(of: WaitingSlice | EndedBatch) -> str:
    """Name a batch in a tick."""
    return f"batch {of.label}"


def _release(pipeline: Pipeline, outage: ServiceDownError, slice_: WaitingSlice) -> None:
    pipeline.states.release_waiting(
        slice_.batch_id,
        outage,
        slice_number=slice_.number,
        resume_after_seconds=outage_pause(outage),
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


def runs_in_flight(instance: dg.DagsterInstance, job_name: str, left_out: LeftOut) -> InFlight:
    """Count runs that are queued or running, also those whose batch is unknown."""
    runs = instance.get_runs(our_runs(job_name, IN_FLIGHT))
    for run in runs:
        # A run that was launched by hand gets its tag when it starts.
        if batch_of(run) is None and (tag := run.tags.get(BATCH_TAG)):
            left_out.note(f"the tag of run {run.run_id}", f"{tag!r} is not the id of a batch")
    return InFlight(
        len(runs),
        of_user=Counter(filter(None, map(user_of, runs))),
        of_batch=Counter(filter(None, map(batch_of, runs))),
    )


def run_request(slice_: WaitingSlice) -> dg.RunRequest:
    """Build the request for the run of a slice; a slice always has the same key."""
    return dg.RunRequest(
        run_key=slice_.key,
        run_config={
            "ops": {
                "load_batch": {"config": {"batch_id": str(slice_.batch_id), "slice": slice_.number}}
            },
        },
        tags={
            **tags_of_batch(slice_.batch_id, slice_.user_id, slice_.batch_name),
            SLICE_TAG: str(slice_.number),
            REASON_TAG: slice_.reason,
        },
    )
