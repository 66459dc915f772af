"""Parts that all transitions share: counting, recounting, releasing and announcing.

`UploadStates`, `BatchStates` and `Backlog` call these functions with an open connection. No other
code changes a status or a counter. Rules for all three:

- A method is one transaction. The counters and the status of a batch change in the same
  transaction as the upload.
- Rows are locked in the order uploads (by id), then batch, so that no two transactions can wait for
  each other.
- A batch is locked with FOR NO KEY UPDATE (`key_share`), as by an UPDATE. An upload API holds a key
  lock of the batch while its INSERT of an upload is open. FOR UPDATE would wait for that, and the
  API's next change of the batch would be a deadlock.

``docs/state_machine.md`` shows all transitions.
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    Update,
    and_,
    func,
    select,
    update,
)

from batch_pipeline.database.models import (
    OPEN_BATCH,
    OPEN_UPLOAD,
    BatchStatus,
    Upload,
    UploadBatch,
    UploadStatus,
)
from batch_pipeline.database.readings import FILE_SIZE, FILENAME, count, one_of, owner
from batch_pipeline.database.session import AnyRow
from batch_pipeline.errors import KindedError, PipelineError
from batch_pipeline.services.progress.publishing import (
    PROGRESS,
    Announcer,
    BatchProgress,
    FileProgress,
    FileStatus,
)
from batch_pipeline.visible_text import visible

_RELEASABLE = (*OPEN_UPLOAD, UploadStatus.FAILED)
#: Percentage of each stage reached, in messages about one file.
BEGUN, THUMBNAIL_STORED, DESCRIPTION_STORED, ENDED_WELL = 0, 25, 75, 100


def count_ends(batch_id: Any, *, successful: int, failed: int) -> Update:
    """Add ended uploads to the counters of a batch.

    The statement returns `PROGRESS`, which `end_if_done` takes.
    """
    return (
        update(UploadBatch)
        .where(UploadBatch.id == batch_id)
        .values(
            processed_uploads=count(UploadBatch.processed_uploads) + successful + failed,
            successful_uploads=count(UploadBatch.successful_uploads) + successful,
            failed_uploads=count(UploadBatch.failed_uploads) + failed,
            died_runs=0 if successful + failed > 0 else UploadBatch.died_runs,
            updated_at=func.now(),
        )
        .returning(*PROGRESS)
    )


def count_failed(connection: Connection, batch_id: uuid.UUID, number: int) -> BatchProgress | None:
    """Add failed uploads to the counters (negative: reopened ones); may end or reopen the batch.

    Returns None if the batch is gone.
    """
    row = connection.execute(count_ends(batch_id, successful=0, failed=number)).one_or_none()
    return end_if_done(connection, BatchProgress(*row)) if row else None


def end_if_done(connection: Connection, progress: BatchProgress) -> BatchProgress:
    """End or reopen a batch if its changed counters require it."""
    # Counting all uploads takes time, so only the few transitions that may end or reopen the batch
    # do it.
    looks_ended = progress.processed >= progress.total
    if looks_ended == (progress.status == BatchStatus.COMPLETED):
        return progress
    return recount_batch(connection, progress.batch_id) or progress


def recount_batch(connection: Connection, batch_id: uuid.UUID) -> BatchProgress | None:
    """Recount a batch, and end or reopen it accordingly; returns None if it was deleted."""
    # The batch is locked before its uploads are counted. A transition that has changed its upload
    # but not yet the batch waits for this lock, and then adds its change to the new counters.
    batch = connection.execute(
        select(UploadBatch.status).where(UploadBatch.id == batch_id).with_for_update(key_share=True)
    ).one_or_none()
    if batch is None:
        return None
    status = batch.status
    counts = connection.execute(count_uploads(batch_id)).one()
    processed = counts.successful + counts.failed
    done = is_done(status, counts)
    values: dict[str, Any] = {}
    # A batch that was given up may still end; without uploads it has nothing to process.
    may_complete = status in OPEN_BATCH or (status == BatchStatus.FAILED and counts.total)
    if may_complete and done:
        values = {
            "status": BatchStatus.COMPLETED,
            "completed_at": func.now(),
            "error_message": None,
        }
    elif status == BatchStatus.COMPLETED and not done:
        values = {"status": BatchStatus.PROCESSING, "completed_at": None}
    return updated_batch(
        connection,
        update(UploadBatch)
        .where(UploadBatch.id == batch_id)
        .values(
            total_uploads=counts.total,
            processed_uploads=processed,
            successful_uploads=counts.successful,
            failed_uploads=counts.failed,
            updated_at=func.now(),
            **values,
        ),
    )


def is_done(status: Any, counts: Any) -> Any:
    """Return whether every upload of a batch has ended, by the counts of `count_uploads`.

    It takes values or columns: the operators ``&`` and ``|`` work on both.
    """
    processed = counts.successful + counts.failed
    # A pending batch without uploads is still being filled.
    return (processed == counts.total) & ((counts.total > 0) | (status != BatchStatus.PENDING))


def recount_batches(transaction: Announcer, batch_ids: Iterable[uuid.UUID]) -> None:
    """Recount batches in the order of their ids, and announce each that was not deleted."""
    for batch_id in sorted(batch_ids):
        if progress := recount_batch(transaction.connection, batch_id):
            transaction.announce(progress, progress.user_id)


def retry_failed(
    connection: Connection, batch_id: uuid.UUID | None, upload_ids: Sequence[uuid.UUID]
) -> int:
    """Make failed uploads of a batch (or of none) pending again; returns how many.

    `upload_ids` names them; if it is empty, all of the batch are meant.
    """
    failed: Select[uuid.UUID] = select(Upload.id).where(
        Upload.batch_id == batch_id, Upload.processing_status == UploadStatus.FAILED
    )
    if upload_ids:
        failed = failed.where(one_of(Upload.id, upload_ids))
    locked = list(connection.scalars(failed.order_by(Upload.id).with_for_update()))
    return release_rows(
        connection,
        one_of(Upload.id, locked),
        dispatch_reason="retry",
        attempts=0,
        deaths=0,
        server_deaths=0,
        retries=0,
    )


def reopen_batch(connection: Connection, batch_id: uuid.UUID) -> None:
    """Reopen a batch that was given up, because a person has asked for one of its uploads.

    The count of died runs stays, so the batch is given up again after the next death.
    """
    connection.execute(
        update(UploadBatch)
        .where(UploadBatch.id == batch_id, UploadBatch.status == BatchStatus.FAILED)
        .values(status=BatchStatus.PROCESSING, error_message=None, updated_at=func.now())
    )


def count_uploads(batch_id: Any) -> Select[int, int, int]:
    """Count the uploads of a batch: ``total``, ``successful`` and ``failed``.

    The pipeline does not process an upload whose status is NULL or a word of the upload API. Such
    an upload does not count and does not keep the batch open.
    """
    status = Upload.processing_status
    return select(
        func.count().label("total"),
        func.count().filter(status == UploadStatus.COMPLETED).label("successful"),
        func.count().filter(status == UploadStatus.FAILED).label("failed"),
    ).where(Upload.batch_id == batch_id, status.in_(list(UploadStatus)))


def release_rows(connection: Connection, condition: Any, **values: Any) -> int:
    """Release open and failed uploads; a status that only the upload API uses stays as it is."""
    return make_pending(
        connection, and_(condition, Upload.processing_status.in_(_RELEASABLE)), **values
    )


def disown(connection: Connection, condition: Any) -> None:
    """Clear owner and slice of uploads that an upload API has ended; their status stays."""
    connection.execute(
        update(Upload).where(condition).values(owner_run_id=None, slice=None, heartbeat_at=None)
    )


def make_pending(connection: Connection, condition: Any, **values: Any) -> int:
    """Make uploads pending, without slice and owner; returns how many."""
    result = connection.execute(
        update(Upload)
        .where(condition)
        .values(
            processing_status=UploadStatus.PENDING,
            owner_run_id=None,
            slice=None,
            heartbeat_at=None,
            retry_at=None,
            updated_at=func.now(),
            **values,
        )
    )
    return int(result.rowcount)


def announce_file(transaction: Announcer, row: AnyRow, percentage: int, status: FileStatus) -> None:
    """Send the progress message of an upload."""
    transaction.announce(file_progress(row, percentage, status), row.user_id)


def file_progress(row: AnyRow, percentage: int, status: FileStatus) -> FileProgress:
    """Build the progress message of an upload; `row` has the columns `ANNOUNCED`."""
    return FileProgress(row.batch_id, row.id, row.filename, row.file_size, percentage, status)


def percentage_reached(row: AnyRow) -> int:
    """Return the percentage of the last stage whose result is stored."""
    if row.description:
        return DESCRIPTION_STORED
    return THUMBNAIL_STORED if row.thumbnail_path else BEGUN


def updated_batch_or_none(connection: Connection, statement: Any) -> BatchProgress | None:
    """Execute an update of at most one batch, and return its new state."""
    row = connection.execute(statement.returning(*PROGRESS)).one_or_none()
    return BatchProgress(*row) if row else None


def updated_batch(connection: Connection, statement: Any) -> BatchProgress:
    """Execute an update of an existing batch, and return its new state."""
    return BatchProgress(*connection.execute(statement.returning(*PROGRESS)).one())


def noted(error: PipelineError | None) -> dict[str, str]:
    """Return the columns that store the reason of an error; empty without an error."""
    if error is None:
        return {}
    kind = error.kind if isinstance(error, KindedError) else "configuration"
    return {"error_kind": kind, "error_message": visible(error)}


#: Columns of an upload that `announce_file` and `percentage_reached` read.
ANNOUNCED = (
    Upload.id,
    owner(Upload.user_id),
    Upload.batch_id,
    FILENAME,
    FILE_SIZE,
    Upload.thumbnail_path,
    Upload.description,
)
