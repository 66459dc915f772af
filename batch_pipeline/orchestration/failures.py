"""How a failed upload looks in Dagster: a red step with file, kind and reason.

The original exceptions are not chained as a cause: their tracebacks would fill the panel of the
step and would not help an operator. The log of the run has the traceback of an ``internal_error``.
"""

import dagster as dg

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.orchestration.assets import cost_metadata, preview, text_metadata
from batch_pipeline.services.reports.batch_status import cost_shape
from batch_pipeline.services.upload_processing import FailedUpload
from batch_pipeline.visible_text import visible_line


def upload_failure(failed: FailedUpload) -> dg.Failure:
    """Fail the step; Dagster's retry policy applies only if the upload waits for another attempt.

    An operator reads the file's name first, then the kind, then the reason. The page of a run cuts
    rows off after about nine lines, so long texts come after the picture.
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
    """Fail a step whose run has ended; another run has its upload by now."""
    return dg.Failure(
        description=f"the run has ended as {run.status.value}; a step that comes so late is not "
        "processed, its upload goes to another run",
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
            "next": "nothing is lost: the uploads are pending and are processed when it answers",
        },
        allow_retries=False,
    )


def stopped_failure(error: ServiceDownError) -> dg.Failure:
    """Fail a step that was stopped or not started because another step found a service down."""
    return dg.Failure(
        description=f"stopped, the upload is pending: {error.kind}: {error}",
        allow_retries=False,
    )
