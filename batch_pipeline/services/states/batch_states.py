"""Transitions that people ask for: cancel, retry, redo, and a recount on demand."""

import uuid
from collections.abc import Sequence

from sqlalchemy import case, exists, func, select, update

from batch_pipeline.database.failures import each_repeated
from batch_pipeline.database.models import (
    OPEN_BATCH,
    BatchStatus,
    Stage,
    Upload,
    UploadBatch,
    UploadStatus,
)
from batch_pipeline.database.readings import one_of
from batch_pipeline.services.progress.publishing import BatchProgress, ProgressPublisher
from batch_pipeline.services.states.transitions import (
    make_pending,
    recount_batch,
    retry_failed,
    updated_batch_or_none,
)

#: Batches whose completed uploads may be redone; `retry` reopens a cancelled one.
REDOABLE_BATCH = (*OPEN_BATCH, BatchStatus.COMPLETED)


@each_repeated
class BatchStates:
    """Every transition that a person asks for."""

    def __init__(self, publisher: ProgressPublisher) -> None:
        self._publisher = publisher

    def recount_batch(self, batch_id: uuid.UUID) -> BatchProgress | None:
        """Recount a batch from its uploads, and end it if nothing is open; None if it is gone."""
        with self._publisher.transaction() as transaction:
            progress = recount_batch(transaction.connection, batch_id)
            if progress:
                transaction.announce(progress, progress.user_id)
        return progress

    def cancel_batch(
        self, batch_id: uuid.UUID, *, reason: str | None = None
    ) -> BatchProgress | None:
        """Cancel a batch; returns None if it is unknown or has already ended.

        The reason is stored as its ``error_message``.
        """
        with self._publisher.transaction() as transaction:
            progress = updated_batch_or_none(
                transaction.connection,
                update(UploadBatch)
                .where(UploadBatch.id == batch_id, UploadBatch.status.in_(OPEN_BATCH))
                .values(status=BatchStatus.CANCELLED, error_message=reason, updated_at=func.now()),
            )
            if progress:
                transaction.announce(progress, progress.user_id)
        return progress

    def retry_batch(
        self, batch_id: uuid.UUID, upload_ids: Sequence[uuid.UUID] = ()
    ) -> tuple[int, BatchProgress] | None:
        """Make failed uploads pending again, all or the named ones; reopens a stopped batch.

        A stopped batch was cancelled or given up. If it has no uploads, it stays as it is: nothing
        would ever end it.

        Returns how many, and the batch; None if there is no such batch.
        """
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            count = retry_failed(connection, batch_id, upload_ids)
            has_uploads = exists().where(
                Upload.batch_id == batch_id, Upload.processing_status.in_(list(UploadStatus))
            )
            connection.execute(
                update(UploadBatch)
                .where(UploadBatch.id == batch_id, has_uploads)
                .values(
                    status=case(
                        (
                            UploadBatch.status.in_([BatchStatus.CANCELLED, BatchStatus.FAILED]),
                            BatchStatus.PENDING,
                        ),
                        else_=UploadBatch.status,
                    ),
                    error_message=None,
                    died_runs=0,
                )
            )
            progress = recount_batch(connection, batch_id)
            if progress is None:
                return None
            transaction.announce(progress, progress.user_id)
        return count, progress

    def retry_lone(self, upload_ids: Sequence[uuid.UUID]) -> int:
        """Make failed uploads without a batch pending again; returns how many.

        The sweep puts them into a new batch.
        """
        with self._publisher.transaction() as transaction:
            return retry_failed(transaction.connection, None, upload_ids)

    def redo(
        self, batch_id: uuid.UUID, stage: Stage, upload_ids: Sequence[uuid.UUID]
    ) -> tuple[int, BatchProgress] | None:
        """Make completed uploads of a batch pending again to redo one stage; stored results stay.

        Returns how many, and the batch; None if it was deleted, cancelled or given up meanwhile.
        """
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            locked = list(
                connection.scalars(
                    select(Upload.id)
                    .where(
                        one_of(Upload.id, upload_ids),
                        Upload.batch_id == batch_id,
                        Upload.processing_status == UploadStatus.COMPLETED,
                    )
                    .order_by(Upload.id)
                    .with_for_update()
                )
            )
            status = connection.scalar(
                select(UploadBatch.status)
                .where(UploadBatch.id == batch_id)
                .with_for_update(key_share=True)
            )
            if status not in REDOABLE_BATCH:
                return None
            count = make_pending(
                connection,
                one_of(Upload.id, locked),
                redo=[stage],
                attempts=0,
                retries=0,
                not_before=None,
                error_kind=None,
                error_message=None,
                dispatch_reason="reprocess",
            )
            progress = recount_batch(connection, batch_id)
            if progress is None:
                return None
            transaction.announce(progress, progress.user_id)
        return count, progress
