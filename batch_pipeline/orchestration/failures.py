"""How an upload that got no result looks in Dagster: a red step that says file, kind and reason.

The errors behind it are not named as its cause: their tracebacks would fill the step's panel, in
the words of a library or of a server, and say no more to who has to act. Where an
``internal_error`` came from stands in the run's log.
"""

import dagster as dg

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.orchestration.assets import cost_metadata, preview, text_metadata
from batch_pipeline.services.reports.batch_status import cost_shape
from batch_pipeline.services.upload_processing import FailedUpload
from batch_pipeline.visible_text import visible_line


def upload_failure(failed: FailedUpload) -> dg.Failure:
    """Fail the step; Dagster's retry policy applies only if the upload waits for another attempt.

    What an operator reads first is the file's name, then the kind, then the reason word for word.
    A run's page cuts its rows off after some nine lines: what may be long comes behind the picture.
    """
    report, error = failed.report, failed.error
    return dg.Failure(
        description=f"{visible_line(report.filename)}: {error.kind}: {error}",
        metadata={
            "file": text_metadata(report.filename),
            **preview(report.thumbnail),
            "kind": error.kind,
            "attempt": report.attempt,
            "reason": text_metadata(error),
            "upload_id": str(report.upload_id),
            **cost_metadata(cost_shape(report.account.total)),
        },
        allow_retries=failed.will_retry,
    )


def late_failure(run: dg.DagsterRun) -> dg.Failure:
    """Fail a step whose run is over: what it is about is with another run by now."""
    return dg.Failure(
        description=f"the run has ended as {run.status.value}; a step that comes so late is not "
        "worked, its upload goes to another run",
        allow_retries=False,
    )


def outage_failure(error: ServiceDownError, *, released: int) -> dg.Failure:
    """Fail the step that found a service down; nothing was marked failed in the database.

    `released` counts the uploads that wait because of it, those still in work not among them.
    """
    return dg.Failure(
        description=f"{error.kind}: {error}",
        metadata={
            "kind": error.kind,
            "reason": text_metadata(error),
            "uploads_handed_back": released,
            "next": "nothing is lost: the uploads are pending and are worked when it answers",
        },
        allow_retries=False,
    )


def stopped_failure(error: ServiceDownError) -> dg.Failure:
    """Fail a step that was stopped, or not begun, because another one found a service down."""
    return dg.Failure(
        description=f"stopped, the upload is pending: {error.kind}: {error}",
        allow_retries=False,
    )
