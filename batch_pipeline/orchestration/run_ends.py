"""Clean-up after runs that end early.

The run-status sensors call these functions soon after a run has ended, and the sweep calls them for
runs that the sensors missed. Each may be repeated. ``services/states/backlog.py`` changes uploads
and batches.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import dagster as dg
import psutil

from batch_pipeline.dagster_internals import (
    GRPC_INFO_TAG,
    CodeLocationOrigin,
    GrpcServerCodeLocationOrigin,
)
from batch_pipeline.database.names import RUNS_IN_FLIGHT
from batch_pipeline.orchestration.assets import run_cleanups, text_metadata
from batch_pipeline.orchestration.tags import (
    BATCH_TAG,
    CANCELLED_TAG,
    NAME_TAG,
    OURS,
    RUN_KEY_TAG,
    SLICE_TAG,
    USER_TAG,
)
from batch_pipeline.services.one_by_one import LeftOut, one_by_one
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.short_ids import batch_label
from batch_pipeline.services.upload_processing import OUTAGE_PAUSE_SECONDS

ENDED_RUN = (
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
)
#: Runs that have not ended.
IN_FLIGHT = tuple(dg.DagsterRunStatus(status) for status in RUNS_IN_FLIGHT)
#: Those of them that have, or should have, a process of their own. The others wait in the queue.
_UNDER_WAY = tuple(status for status in IN_FLIGHT if status is not dg.DagsterRunStatus.QUEUED)
#: Runs that a person has terminated, whether or not their worker has stopped.
_TERMINATED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
#: A run that holds no upload is dead after this many leases without an event.
_SILENT_LEASES = 2
#: A run that was recorded but not launched is dead after this time at the earliest (seconds). A
#: restarted daemon still launches the runs that its predecessor had recorded.
_UNLAUNCHED_SECONDS = 240.0
#: A run that looks dead is checked again after this time (seconds). A live worker writes its events
#: sooner (`group_writer.GATHER_SECONDS`).
_SECOND_LOOK_SECONDS = 1.0
_GONE = "Its worker is gone."
#: Greatest difference between the time of an event and the start time of a process (seconds).
_CLOCK_SECONDS = 1.0
#: Time of the clock when the monotonic clock was at zero. If the clock is set later, this value and
#: a new reading differ.
_CLOCK_AT_START = time.time() - time.monotonic()


class RunOutcome(StrEnum):
    """How an unsuccessful run ended: by bad files or by a breakdown. It is a tag of the run."""

    FILES_FAILED = "files_failed"
    """All its uploads have ended, some of them without a result."""
    STOPPED = "stopped"
    """A person ended it, its worker was stopped, or a service was down."""
    DIED = "died"
    """It ended without reporting why."""


def outcome_of(step_failures: Iterable[dg.DagsterEvent], *, is_stop: bool) -> RunOutcome:
    """Return how a failed run ended.

    `step_failures`: the failures that ended it (`failures.step_failures_that_ended_it`).
    `is_stop`: an outage or a stop ended it (`failures.Why`).
    """
    # None for a step that did not report its failure itself: an error that nobody expected.
    said = [event.step_failure_data.user_failure_data for event in step_failures]
    if any(failure and "upload_id" not in failure.metadata for failure in said):
        return RunOutcome.STOPPED
    if said and all(said):
        return RunOutcome.FILES_FAILED
    return RunOutcome.STOPPED if is_stop else RunOutcome.DIED


@dataclass(frozen=True)
class RunCleanup:
    """The result of the clean-up after one run."""

    returned: int = 0
    """Uploads that the run held; pending again."""
    quarantined: int = 0
    """Uploads that are failed now, because their worker died every time."""
    released: int = 0
    """Uploads of the run's slice that it never took."""
    batch_ended_as: str = ""
    """``failed`` or ``cancelled`` if the batch ended with this run; else empty."""

    def __str__(self) -> str:
        """Return one line for the log."""
        parts = {
            f"uploads that it held and that are pending again: {self.returned}": self.returned,
            f"uploads that it never took and that another run gets: {self.released}": self.released,
            f"uploads that failed because they killed each worker: {self.quarantined}": (
                self.quarantined
            ),
            f"the batch is {self.batch_ended_as}": self.batch_ended_as,
        }
        done = "; ".join(text for text, said in parts.items() if said)
        return done or "nothing to clean up; it held no upload any more"


def clean_up_failed_run(
    pipeline: Pipeline, run: dg.DagsterRun, *, died: bool, reason: str
) -> RunCleanup:
    """Return the uploads of a failed run to pending.

    Args:
        pipeline: the pipeline of the uploads.
        run: a run of ``process_batch`` that has ended.
        died: the run did not say why it ended; many such runs in a row end the batch.
        reason: stored unchanged in the batch's ``error_message``.
    """
    rescue = pipeline.backlog.rescue_run(run.run_id)
    released = _release_slice(pipeline, run)
    batch_id = batch_of(run)
    given_up = pipeline.backlog.note_died_run(batch_id, reason) if died and batch_id else None
    return RunCleanup(
        rescue.returned, rescue.quarantined, released, given_up.status if given_up else ""
    )


def clean_up_terminated_run(pipeline: Pipeline, run: dg.DagsterRun) -> RunCleanup:
    """Cancel the batch of a run that a person terminated, unless its worker has done so itself.

    A person who terminates a run wants its uploads to stop; otherwise another run would take them.
    """
    batch_id = batch_of(run)
    cancelled = None
    if batch_id and pipeline.backlog.left_behind(batch_id, run.run_id, _slice_of(run)):
        cancelled = pipeline.batches.cancel_batch(batch_id, reason=terminated(run.run_id))
    rescue = pipeline.backlog.rescue_run(run.run_id)
    released = _release_slice(pipeline, run)
    return RunCleanup(
        rescue.returned, rescue.quarantined, released, cancelled.status if cancelled else ""
    )


def terminated(run_id: str) -> str:
    """Return the reason that is stored when a batch is cancelled because its run was terminated."""
    return f"run {run_id} was terminated; `batch-pipeline retry` reopens the batch"


def cancel_batch_of_terminated_run(
    instance: dg.DagsterInstance, pipeline: Pipeline, run_id: str
) -> None:
    """Cancel the batch of an interrupted run if a person has terminated the run.

    With *Force termination*, the UI marks the run as canceled before its worker has stopped.

    Each step that stops calls this, and only the first call cancels the batch: before the last step
    has stopped, a person may have reopened the batch.
    """
    run = instance.get_run_by_id(run_id)
    if not run or run.status not in _TERMINATED or run.tags.get(CANCELLED_TAG) == run_id:
        return
    if batch_id := batch_of(run):
        pipeline.batches.cancel_batch(batch_id, reason=terminated(run_id))
        instance.add_run_tags(run_id, {CANCELLED_TAG: run_id})


def close_dead_runs(
    instance: dg.DagsterInstance, pipeline: Pipeline, jobs: Iterable[str], left_out: LeftOut
) -> int:
    """End the runs whose worker died without reporting it; returns how many.

    A worker that lost its code server looks dead, so only silence counts: no upload of the run has
    a fresh heartbeat, and nothing was logged for two leases. If the worker is alive after all, the
    claim token refuses its writes.
    """
    jobs = list(jobs)
    return _close(
        instance, pipeline, lambda: dead_runs(instance, pipeline, jobs, left_out), left_out
    )


def close_runs_of_ended_workers(
    instance: dg.DagsterInstance,
    pipeline: Pipeline,
    jobs: Iterable[str],
    code_server: CodeLocationOrigin | None,
    left_out: LeftOut,
) -> int:
    """End the runs of this code server's address whose worker no longer exists.

    A code server reports the ends of its own workers. After a code server was killed, the next one
    finds the lost workers here by their process ids. So this must be called in the code server, on
    the same host and in the same container. A worker that outlived its code server is left alone.

    Args:
        instance: the Dagster instance that has the runs.
        pipeline: the pipeline whose uploads these runs process.
        jobs: names of our jobs.
        code_server: the address of this process, as the daemon knows it.
        left_out: records the runs that could not be examined or ended.
    """
    jobs = list(jobs)

    def without_worker() -> list[dg.DagsterRun]:
        under_way = [run for job in jobs for run in instance.get_runs(our_runs(job, _UNDER_WAY))]

        def without(run: dg.DagsterRun) -> dg.DagsterRun | None:
            is_ours = _is_started_by(code_server, run)
            return run if is_ours and not _has_a_process(instance, run.run_id) else None

        looked_at = one_by_one(under_way, without, left_out, named=name_of_run)
        return [run for run in looked_at if run]

    return _close(instance, pipeline, without_worker, left_out)


def _close(
    instance: dg.DagsterInstance,
    pipeline: Pipeline,
    look: Callable[[], list[dg.DagsterRun]],
    left_out: LeftOut,
) -> int:
    dead = look()
    if dead:
        # A run that has just finished a long call may hold no upload any more without having logged
        # it yet. If a worker has just ended, its code server is about to report it.
        time.sleep(_SECOND_LOOK_SECONDS)
        still = {run.run_id for run in look()}
        dead = [run for run in dead if run.run_id in still]

    def close(run: dg.DagsterRun) -> None:
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, _GONE)
            clean_up_terminated_run(pipeline, run)
        else:
            instance.report_run_failed(run, _GONE)

    return len(one_by_one(dead, close, left_out, named=name_of_run))


def dead_runs(
    instance: dg.DagsterInstance, pipeline: Pipeline, jobs: Iterable[str], left_out: LeftOut
) -> list[dg.DagsterRun]:
    """List the runs that `close_dead_runs` would end."""
    patience = _SILENT_LEASES * pipeline.settings.lease_seconds

    def dead(record: dg.RunRecord) -> dg.DagsterRun | None:
        run = record.dagster_run
        longest = patience
        if run.status is dg.DagsterRunStatus.NOT_STARTED:
            longest = max(patience, _UNLAUNCHED_SECONDS)
        elif run.status is dg.DagsterRunStatus.STARTING and instance.run_monitoring_enabled:
            # Dagster's monitoring ends the run and says that its worker did not start in time.
            longest = max(patience, 2 * instance.run_monitoring_start_timeout_seconds)
        is_silent = time.time() - _last_sign(instance, record) > longest
        return run if is_silent and pipeline.backlog.run_is_silent(run.run_id) else None

    under_way = [
        record for job in jobs for record in instance.get_run_records(our_runs(job, _UNDER_WAY))
    ]
    looked_at = one_by_one(
        under_way, dead, left_out, named=lambda record: name_of_run(record.dagster_run)
    )
    return [run for run in looked_at if run]


def name_of_run(run: dg.DagsterRun) -> str:
    """Return the name of a run in the message that it was left out."""
    return f"run {run.run_id}"


def our_runs(
    job: str, statuses: Iterable[dg.DagsterRunStatus], *, updated_before: datetime | None = None
) -> dg.RunsFilter:
    """Select the runs of a job of ours, without those of another project's job of this name."""
    return dg.RunsFilter(
        job_name=job, statuses=list(statuses), tags=OURS, updated_before=updated_before
    )


def runs_of_keys(instance: dg.DagsterInstance, keys: Collection[str]) -> Sequence[dg.DagsterRun]:
    """List the runs that were launched for slices with these keys."""
    return instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: list(keys)})) if keys else []


def batch_of(run: dg.DagsterRun) -> UUID | None:
    """Return the batch of a run; None if the run ended before it had one, or has a foreign tag."""
    return _id_or_none(run.tags.get(BATCH_TAG))


def user_of(run: dg.DagsterRun) -> UUID | None:
    """Return the user of a run's batch; None as for `batch_of`."""
    return _id_or_none(run.tags.get(USER_TAG))


def label_of_batch(run: dg.DagsterRun) -> str:
    """Return what the batch of a run is called in a message."""
    batch_id = batch_of(run)
    return batch_label(batch_id, run.tags.get(NAME_TAG)) if batch_id else "unknown"


def report_run_cleanup(
    instance: dg.DagsterInstance, run: dg.DagsterRun, cleanup: RunCleanup, reason: str
) -> None:
    """Report in the catalog why a run ended early, and what happened to its uploads."""
    batch_id = batch_of(run)
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            run_cleanups.key,
            description=f"a run ended as {run.status.value.lower()}: {cleanup}",
            partition=str(batch_id) if batch_id else None,
            metadata={
                "run": dg.MetadataValue.dagster_run(run.run_id),
                "reason": text_metadata(reason),
                "uploads_returned": cleanup.returned,
                "uploads_quarantined": cleanup.quarantined,
                "uploads_released": cleanup.released,
            },
        )
    )


def _release_slice(pipeline: Pipeline, run: dg.DagsterRun) -> int:
    batch_id, slice_number = batch_of(run), _slice_of(run)
    if batch_id is None or slice_number is None:
        return 0
    return pipeline.backlog.release_slices(
        [(batch_id, slice_number)], resume_after_seconds=OUTAGE_PAUSE_SECONDS
    )


def _slice_of(run: dg.DagsterRun) -> int | None:
    tag = run.tags.get(SLICE_TAG, "")
    return int(tag) if tag.isdecimal() else None


def _id_or_none(tag: str | None) -> UUID | None:
    """Read an id from a tag. None if it is not one: other programs may write tags."""
    try:
        return UUID(tag or "")
    except ValueError:
        return None


def _last_sign(instance: dg.DagsterInstance, record: dg.RunRecord) -> float:
    run_id = record.dagster_run.run_id
    newest = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    return max([record.update_timestamp.timestamp(), *(entry.timestamp for entry in newest)])


def _is_started_by(code_server: CodeLocationOrigin | None, run: dg.DagsterRun) -> bool:
    """Return whether a code server at this address started the worker of a run."""
    tag = run.tags.get(GRPC_INFO_TAG)
    if not tag or code_server is None:
        return False
    place = json.loads(tag)
    if isinstance(code_server, GrpcServerCodeLocationOrigin) and not code_server.socket:
        return (place["host"], place.get("port")) == (code_server.host, code_server.port)
    # `dagster dev` starts code servers on its own host, each at a new address.
    return bool(place["host"] == "localhost")


def _has_a_process(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether the process of a run lives; True if its process id is not known yet."""
    events = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records
    for record in events:
        event = record.event_log_entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event else None
        if pid is None:
            continue
        try:
            process = psutil.Process(int(str(pid.value)))
            # A process that started later is another one with the same id. If the clock was set
            # forward since, the right process appears to have started later by that time.
            set_forward = max(0.0, time.time() - time.monotonic() - _CLOCK_AT_START)
            is_it = process.create_time() <= record.timestamp + _CLOCK_SECONDS + set_forward
            return bool(is_it and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
    return True
