"""How a failed upload looks in Dagster: a red step with file, kind and reason; why a run failed.

The original exceptions are not chained as a cause: their tracebacks would fill the panel of the
step and would not help an operator. The log of the run has the traceback of an ``internal_error``.
"""

import re
from collections.abc import Sequence
from itertools import dropwhile
from typing import NamedTuple

import dagster as dg
from sqlalchemy.exc import OperationalError

from batch_pipeline.dagster_internals import SerializableErrorInfo
from batch_pipeline.database.failures import ConflictError
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.masking import masked
from batch_pipeline.orchestration.assets import cost_metadata, preview, text_metadata
from batch_pipeline.services.reports.batch_status import cost_shape
from batch_pipeline.services.upload_processing import FailedUpload
from batch_pipeline.visible_text import shown_filename, visible_line

#: Characters that are kept of each error.
_MAX_REASON = 500
#: Dagster's message for a run that another process ended. An earlier event says why.
_ENDED_FROM_OUTSIDE = "This run has been marked as failed from outside the execution context."

#: Dagster's reasons for runs that ended through no fault of their uploads, and what they mean.
#: Either the worker did not start in time, for example a pod without a node, or SIGTERM or SIGINT
#: told it to end.
_START_TIMEOUT, _TOLD_TO_END = "START_TIMEOUT", "UNEXPECTED_TERMINATION"
#: Dagster's reason for a run that did all it could and failed only because steps failed.
_STEPS_FAILED = "STEP_FAILURE"
#: Classes of errors of a database that does not answer. Dagster stores only the names.
_OUTAGES = (ServiceDownError.__name__, ConflictError.__name__, OperationalError.__name__)


class Why(NamedTuple):
    """Why a run failed."""

    reason: str
    """One line."""
    is_stop: bool = False
    """An outage or a stop ended it: our or Dagster's database did not answer, there was no room for
    the worker, or its host or container was stopped."""


def step_failures_that_ended_it(
    failure: dg.DagsterEvent, step_failures: Sequence[dg.DagsterEvent]
) -> Sequence[dg.DagsterEvent]:
    """Return the failures of steps if they are why a run failed, else none.

    A worker that is killed or stopped after one file has failed did not fail because of that file.
    """
    return step_failures if _ended_by(failure) == _STEPS_FAILED else ()


def why_it_failed(
    instance: dg.DagsterInstance,
    run_id: str,
    failure: dg.DagsterEvent,
    step_failures: Sequence[dg.DagsterEvent],
) -> Why:
    """Return why a run failed.

    The event that ends a run usually says only that it has ended. Its launcher, its worker or its
    steps have reported the error before.

    `step_failures`: the failures that ended it (`step_failures_that_ended_it`).
    """
    broken = [event for event in step_failures if not event.step_failure_data.user_failure_data]
    if step_failures and not broken:
        return Why(failure.message or "")  # its steps say why
    errors = [getattr(failure.event_specific_data, "error", None)]
    errors += [event.step_failure_data.error for event in broken]
    error, said = next(filter(None, errors), None), failure.message or "no reason was given"
    if not error and said == _ENDED_FROM_OUTSIDE:
        before = _reported_before_the_end(instance, run_id)
        error = before and before.engine_event_data.error
        said = (before and before.message) or said
    reason = _said_by(error) if error else _line(said)
    record = instance.get_run_record_by_id(run_id)
    could_start = record is None or record.start_time is not None
    ended_by = _ended_by(failure)
    if ended_by == _TOLD_TO_END:
        return Why("its worker was stopped by a signal", is_stop=True)
    had_no_room = ended_by == _START_TIMEOUT
    return Why(
        reason if could_start else f"it could not start: {reason}",
        is_stop=had_no_room or (error is not None and _is_outage(error)),
    )


def _ended_by(failure: dg.DagsterEvent) -> str:
    """Return Dagster's reason for the end of a run; empty if there is none."""
    reason = getattr(failure.event_specific_data, "failure_reason", None)
    return str(reason.value) if reason else ""


def _is_outage(error: SerializableErrorInfo) -> bool:
    """Return whether an error, or one of those that led to it, means an outage."""
    if error.cls_name in _OUTAGES:
        return True
    return any(_is_outage(earlier) for earlier in (error.cause, error.context) if earlier)


def _reported_before_the_end(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterEvent | None:
    """Return what was reported just before a run was ended; None if nothing was."""
    kinds = {dg.DagsterEventType.ENGINE_EVENT, dg.DagsterEventType.RUN_FAILURE}
    newest = instance.get_records_for_run(run_id, of_type=kinds, ascending=False).records
    events = (record.event_log_entry.dagster_event for record in newest)
    before = dropwhile(lambda event: not (event and event.is_run_failure), events)
    for event in before:
        if event and event.is_engine_event:
            return event
    return None


def _said_by(error: SerializableErrorInfo) -> str:
    """Return an error and its cause on one line."""
    said = [_line(error.message)] + ([_line(error.cause.message)] if error.cause else [])
    return ": ".join(said)


def _line(message: str) -> str:
    # Dagster writes the class of an error with its module path, which is removed here.
    said = " ".join(masked(message).split())[:_MAX_REASON]
    return visible_line(re.sub(r"^(?:\w+\.)+(?=\w+(?::|$))", "", said))


def upload_failure(failed: FailedUpload, thumbnail: bytes | None) -> dg.Failure:
    """Fail the step; Dagster's retry policy applies only if the upload waits for another attempt.

    An operator reads the file's name first, then the kind, then the reason. The page of a run cuts
    rows off after about nine lines, so long texts come after the picture.
    """
    report, error = failed.report, failed.error
    return dg.Failure(
        description=f"{shown_filename(report.filename)}: {error.kind}: {error}",
        metadata={
            "file": text_metadata(report.filename),
            **preview(thumbnail),
            "kind": error.kind,
            "attempt": report.attempt,
            "reason": text_metadata(error),
            "upload_id": str(report.upload_id),
            **cost_metadata(cost_shape(report.account.total)),
        },
        allow_retries=failed.will_retry,
    )


def late_failure(run: dg.DagsterRun) -> dg.Failure:
    """Fail a step whose run has ended or was terminated; its upload waits for another run."""
    ended = f"has ended as {run.status.value}" if run.is_finished else "was terminated"
    return dg.Failure(
        description=f"the run {ended}; a step that starts so late does nothing, and another run "
        "processes its upload",
        allow_retries=False,
    )


def outage_failure(error: ServiceDownError, *, released: int) -> dg.Failure:
    """Fail the step that found a service down; no upload becomes failed.

    `released` counts the uploads that wait because of it, without those still in progress.
    """
    return dg.Failure(
        description=f"{error.kind}: {error}",
        metadata={
            "kind": error.kind,
            "reason": text_metadata(error),
            "uploads_handed_back": released,
            "next": "nothing is lost: the uploads are pending and are processed after the outage",
        },
        allow_retries=False,
    )


def stopped_failure(error: ServiceDownError) -> dg.Failure:
    """Fail a step that was stopped or not started because another step found a service down."""
    return dg.Failure(
        description=f"stopped, the upload is pending: {error.kind}: {error}",
        allow_retries=False,
    )
