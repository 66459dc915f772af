"""The state machine of uploads and batches: the only code that changes a status or a counter.

Each method is one transaction. An upload changes by a conditional update that names the owner and
the fencing token of the claim; the counters and the status of its batch change in the same
transaction. Rows are always locked in the order uploads (by id), then batch, so that no two
transactions can wait for each other. Drawn in ``docs/state_machine.md``.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, case, func, or_, select, text, update

from batch_pipeline.database.models import (
    IN_WORK,
    OPEN_BATCH,
    BatchStatus,
    Upload,
    UploadBatch,
    UploadStatus,
)
from batch_pipeline.errors import ClaimLostError, KindedError
from batch_pipeline.services.batch_progress import (
    Announcer,
    BatchProgress,
    FileProgress,
    FileStatus,
    ProgressPublisher,
)

#: Percentage of each stage reached, in messages about one file.
STARTED, THUMBNAIL_STORED, DESCRIPTION_STORED, ENDED_WELL = 0, 25, 75, 100


@dataclass(frozen=True)
class Claim:
    """The right to work on an upload: who holds it, and the fencing token."""

    upload_id: uuid.UUID
    run_id: str
    token: int


@dataclass(frozen=True)
class StartedUpload:
    """An upload whose attempt has begun; all of its columns as they are now."""

    claim: Claim
    row: Row[Any]


@dataclass(frozen=True)
class SkippedUpload:
    """An upload that there is nothing to do for, with the reason."""

    upload_id: uuid.UUID
    reason: str
    filename: str = ""


@dataclass(frozen=True)
class LoadedBatch:
    """What a run found when it took its share of a batch."""

    progress: BatchProgress
    expected_total: int
    """``total_uploads`` as it was before it was put right."""
    reserved: Sequence[Row[Any]]
    """``id`` and ``filename``, oldest first."""


class UploadStates:
    """Every transition of uploads and batches."""

    def __init__(self, publisher: ProgressPublisher, *, lease_seconds: float) -> None:
        self._publisher = publisher
        self._lease_seconds = lease_seconds

    def load_batch(
        self,
        batch_id: uuid.UUID,
        run_id: str,
        *,
        slice_number: int | None = None,
        upload_ids: Sequence[uuid.UUID] = (),
        limit: int,
    ) -> LoadedBatch | None:
        """Mark a batch processing and reserve this run's share of it.

        With ``upload_ids``, failed ones among them are opened again first. Nothing is reserved of a
        batch that is completed or cancelled. Returns None if there is no such batch.
        """
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            batch = connection.execute(
                select(UploadBatch.status, UploadBatch.total_uploads).where(
                    UploadBatch.id == batch_id
                )
            ).one_or_none()
            if batch is None:
                return None
            if upload_ids and batch.status != BatchStatus.CANCELLED:
                self._reopen(connection, batch_id, upload_ids=upload_ids, reason="retry")
            settled = self._settle(connection, batch_id)
            if settled.status not in OPEN_BATCH:
                return LoadedBatch(settled, batch.total_uploads, [])
            waiting = (
                select(Upload.id)
                .where(
                    Upload.batch_id == batch_id,
                    Upload.processing_status == UploadStatus.PENDING,
                    Upload.owner_run_id.is_(None),
                )
                .order_by(Upload.created_at, Upload.id)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            if slice_number is not None:
                waiting = waiting.where(Upload.slice == slice_number)
            if upload_ids:
                waiting = waiting.where(Upload.id.in_(upload_ids))
            reserved = connection.execute(
                update(Upload)
                .where(Upload.id.in_(waiting.scalar_subquery()))
                .values(
                    owner_run_id=run_id,
                    claim=Upload.claim + 1,
                    heartbeat_at=func.now(),
                )
                .returning(Upload.id, Upload.filename, Upload.created_at)
            ).all()
            progress = _batch(
                connection,
                update(UploadBatch)
                .where(UploadBatch.id == batch_id)
                .values(
                    status=case(
                        (UploadBatch.status == BatchStatus.PENDING, BatchStatus.PROCESSING),
                        else_=UploadBatch.status,
                    ),
                    started_at=func.coalesce(UploadBatch.started_at, func.now()),
                    updated_at=func.now(),
                ),
            )
            transaction.announce(progress, progress.user_id)
        return LoadedBatch(
            progress, batch.total_uploads, sorted(reserved, key=lambda r: (r.created_at, r.id))
        )

    def start(self, upload_id: uuid.UUID, run_id: str) -> StartedUpload | SkippedUpload:
        """Begin an attempt, if the upload is there to be worked by this run.

        A failed upload is opened again (that is what re-executing its step asks for), and a claim
        whose heartbeat is older than the lease is taken over.
        """
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            expired = Upload.heartbeat_at < func.now() - text("make_interval(secs => :lease)")
            row = connection.execute(
                select(
                    *Upload.__table__.columns,
                    UploadBatch.status.label("batch_status"),
                    or_(Upload.heartbeat_at.is_(None), expired).label("expired"),
                )
                .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
                .where(Upload.id == upload_id)
                .with_for_update(of=Upload.__table__),
                {"lease": self._lease_seconds},
            ).one_or_none()
            skipped = _reason_to_skip(row, run_id)
            if row is None or skipped:
                name = row.filename if row else ""
                if row is not None and row.owner_run_id == run_id:
                    _release(connection, Upload.id == upload_id)
                return SkippedUpload(upload_id, skipped or "it was deleted", name)
            reopened = row.processing_status == UploadStatus.FAILED
            token = row.claim + 1
            connection.execute(
                update(Upload)
                .where(Upload.id == upload_id)
                .values(
                    processing_status=UploadStatus.ANALYZING,
                    owner_run_id=run_id,
                    claim=token,
                    heartbeat_at=func.now(),
                    attempts=1 if reopened else Upload.attempts + 1,
                    updated_at=func.now(),
                )
            )
            if reopened and row.batch_id:
                progress = self._count(connection, row.batch_id, failed=-1)
                if progress:
                    transaction.announce(progress, progress.user_id)
            _announce_file(transaction, row, STARTED, "processing")
            current = connection.execute(
                select(*Upload.__table__.columns).where(Upload.id == upload_id)
            ).one()
        return StartedUpload(Claim(upload_id, run_id, token), current)

    def store_thumbnail(self, claim: Claim, path: str, seconds: Mapping[str, float]) -> None:
        """Keep the preview; a later attempt does not make it again."""
        self._advance(
            claim,
            THUMBNAIL_STORED,
            thumbnail_path=path,
            stage_seconds=Upload.stage_seconds.concat(dict(seconds)),
        )

    def store_description(
        self,
        claim: Claim,
        *,
        description: str,
        score: int,
        model: str,
        facts: Mapping[str, Any],
        video_codec: str | None,
        seconds: Mapping[str, float],
    ) -> None:
        """Keep a description that passed the audit; a later attempt does not ask for it again."""
        self._advance(
            claim,
            DESCRIPTION_STORED,
            processing_status=UploadStatus.EMBEDDING,
            description=description,
            description_audit_score=score,
            vision_model=model,
            facts=Upload.facts.concat(dict(facts)),
            video_codec=video_codec,
            stage_seconds=Upload.stage_seconds.concat(dict(seconds)),
        )

    def complete(
        self,
        claim: Claim,
        *,
        embedding: Sequence[float],
        model: str,
        seconds: Mapping[str, float],
    ) -> BatchProgress | None:
        """Keep the vector, end the upload and count it; ends the batch if it was the last one."""
        return self._end(
            claim,
            "completed",
            ENDED_WELL,
            processing_status=UploadStatus.COMPLETED,
            embedding_local=list(embedding),
            embedding_model=model,
            error_kind=None,
            error_message=None,
            stage_seconds=Upload.stage_seconds.concat(dict(seconds)),
        )

    def fail(self, claim: Claim, error: KindedError) -> BatchProgress | None:
        """Give the upload up for a reason, and count it."""
        return self._end(
            claim,
            "failed",
            None,
            processing_status=UploadStatus.FAILED,
            error_kind=error.kind,
            error_message=_storable(str(error)),
        )

    def note_error(self, claim: Claim, error: KindedError) -> None:
        """Keep the reason of an attempt that will be followed by another."""
        self._advance(
            claim, None, error_kind=error.kind, error_message=_storable(str(error))
        )

    def release(self, claim: Claim) -> None:
        """Hand an upload in work back; the attempt does not count."""
        with self._publisher.transaction() as transaction:
            _release(transaction.connection, _held(claim), attempts=Upload.attempts - 1)

    def release_run(self, run_id: str) -> int:
        """Hand back everything that a run holds, reserved or in work; returns how many."""
        with self._publisher.transaction() as transaction:
            return _release(transaction.connection, Upload.owner_run_id == run_id)

    def heartbeat(self, run_id: str, in_work: Sequence[Claim]) -> None:
        """Show that the run lives: renews its reservations and the claims that are in work."""
        with self._publisher.transaction() as transaction:
            transaction.connection.execute(
                update(Upload)
                .where(
                    Upload.owner_run_id == run_id,
                    or_(
                        Upload.processing_status == UploadStatus.PENDING,
                        Upload.id.in_([claim.upload_id for claim in in_work]),
                    ),
                )
                .values(heartbeat_at=func.now())
            )

    def still_held(self, claim: Claim) -> bool:
        """Tell whether the work is still wanted: the claim is ours, the batch not cancelled."""
        with self._publisher.transaction() as transaction:
            status = transaction.connection.execute(
                select(UploadBatch.status)
                .select_from(Upload)
                .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
                .where(_held(claim))
            ).one_or_none()
        return status is not None and status[0] != BatchStatus.CANCELLED

    def settle_batch(self, batch_id: uuid.UUID) -> BatchProgress | None:
        """Recount a batch from its uploads, and end it if nothing is open."""
        with self._publisher.transaction() as transaction:
            if not transaction.connection.scalar(
                select(UploadBatch.id).where(UploadBatch.id == batch_id)
            ):
                return None
            progress = self._settle(transaction.connection, batch_id)
            transaction.announce(progress, progress.user_id)
        return progress

    def cancel_batch(self, batch_id: uuid.UUID) -> BatchProgress | None:
        """Stop a batch; returns None if it is unknown or has ended already."""
        with self._publisher.transaction() as transaction:
            progress = _batch_or_none(
                transaction.connection,
                update(UploadBatch)
                .where(UploadBatch.id == batch_id, UploadBatch.status.in_(OPEN_BATCH))
                .values(status=BatchStatus.CANCELLED, updated_at=func.now()),
            )
            if progress:
                transaction.announce(progress, progress.user_id)
        return progress

    def retry_batch(
        self, batch_id: uuid.UUID, upload_ids: Sequence[uuid.UUID] = ()
    ) -> tuple[int, BatchProgress] | None:
        """Open failed uploads again, all or the named ones; reopens a cancelled batch.

        Returns how many, and the batch; None if there is no such batch.
        """
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            count = self._reopen(connection, batch_id, upload_ids=upload_ids, reason="retry")
            exists = connection.execute(
                update(UploadBatch)
                .where(UploadBatch.id == batch_id)
                .values(
                    status=case(
                        (
                            UploadBatch.status.in_([BatchStatus.CANCELLED, BatchStatus.FAILED]),
                            BatchStatus.PENDING,
                        ),
                        else_=UploadBatch.status,
                    ),
                    error_message=None,
                )
            ).rowcount
            if not exists:
                return None
            progress = self._settle(connection, batch_id)
            transaction.announce(progress, progress.user_id)
        return count, progress

    def rescue(self, live_run_ids: Sequence[str], finished_run_ids: Sequence[str]) -> int:
        """Return to ``pending`` what dead owners hold, and open slices anew that no run will take.

        An owner is dead when its run is over, or when its heartbeat is older than the lease on the
        database's clock. Returns how many uploads were rescued.
        """
        with self._publisher.transaction() as transaction:
            expired = Upload.heartbeat_at < func.now() - text("make_interval(secs => :lease)")
            dead = and_(
                Upload.owner_run_id.is_not(None),
                Upload.processing_status.in_([UploadStatus.PENDING, *IN_WORK]),
                or_(Upload.owner_run_id.in_(finished_run_ids), expired),
            )
            locked = transaction.connection.execute(
                select(Upload.id).where(dead).order_by(Upload.id).with_for_update(skip_locked=True),
                {"lease": self._lease_seconds},
            ).scalars()
            return _release(transaction.connection, Upload.id.in_(list(locked)), reason="rescue")

    def _advance(self, claim: Claim, percentage: int | None, **values: Any) -> None:
        with self._publisher.transaction() as transaction:
            row = self._write(transaction.connection, claim, **values)
            if percentage is not None:
                _announce_file(transaction, row, percentage, "processing")

    def _end(
        self, claim: Claim, status: FileStatus, percentage: int | None, **values: Any
    ) -> BatchProgress | None:
        with self._publisher.transaction() as transaction:
            row = self._write(transaction.connection, claim, owner_run_id=None, **values)
            if percentage is None:
                percentage = _percentage_reached(row)
            _announce_file(transaction, row, percentage, status)
            if row.batch_id is None:
                return None
            progress = self._count(
                transaction.connection,
                row.batch_id,
                successful=int(status == "completed"),
                failed=int(status == "failed"),
            )
            if progress:
                transaction.announce(progress, progress.user_id)
        return progress

    @staticmethod
    def _write(connection: Connection, claim: Claim, **values: Any) -> Row[Any]:
        row = connection.execute(
            update(Upload)
            .where(_held(claim))
            .values(heartbeat_at=func.now(), updated_at=func.now(), **values)
            .returning(
                Upload.id,
                Upload.user_id,
                Upload.batch_id,
                Upload.filename,
                Upload.file_size,
                Upload.thumbnail_path,
                Upload.description,
            )
        ).one_or_none()
        if row is None:
            raise ClaimLostError(f"upload {claim.upload_id} is no longer held by {claim.run_id}")
        return row

    @staticmethod
    def _count(
        connection: Connection, batch_id: uuid.UUID, *, successful: int = 0, failed: int = 0
    ) -> BatchProgress | None:
        processed = UploadBatch.processed_uploads + successful + failed
        ends = and_(UploadBatch.status.in_(OPEN_BATCH), processed >= UploadBatch.total_uploads)
        reopens = and_(
            UploadBatch.status == BatchStatus.COMPLETED, processed < UploadBatch.total_uploads
        )
        return _batch_or_none(
            connection,
            update(UploadBatch)
            .where(UploadBatch.id == batch_id)
            .values(
                processed_uploads=processed,
                successful_uploads=UploadBatch.successful_uploads + successful,
                failed_uploads=UploadBatch.failed_uploads + failed,
                status=case(
                    (ends, BatchStatus.COMPLETED),
                    (reopens, BatchStatus.PROCESSING),
                    else_=UploadBatch.status,
                ),
                completed_at=case(
                    (ends, func.now()), (reopens, None), else_=UploadBatch.completed_at
                ),
                updated_at=func.now(),
            ),
        )

    @staticmethod
    def _settle(connection: Connection, batch_id: uuid.UUID) -> BatchProgress:
        # The batch is locked before its uploads are counted: a transition that has changed its
        # upload but not yet the batch waits here and then adds itself to the recount.
        connection.execute(
            select(UploadBatch.id).where(UploadBatch.id == batch_id).with_for_update()
        )
        counts = _counts(connection, batch_id)
        all_ended = counts.total > 0 and counts.successful + counts.failed == counts.total
        ends = and_(UploadBatch.status.in_(OPEN_BATCH), text("true" if all_ended else "false"))
        reopens = and_(
            UploadBatch.status == BatchStatus.COMPLETED, text("false" if all_ended else "true")
        )
        return _batch(
            connection,
            update(UploadBatch)
            .where(UploadBatch.id == batch_id)
            .values(
                total_uploads=counts.total,
                processed_uploads=counts.successful + counts.failed,
                successful_uploads=counts.successful,
                failed_uploads=counts.failed,
                status=case(
                    (ends, BatchStatus.COMPLETED),
                    (reopens, BatchStatus.PROCESSING),
                    else_=UploadBatch.status,
                ),
                completed_at=case(
                    (ends, func.now()), (reopens, None), else_=UploadBatch.completed_at
                ),
                updated_at=func.now(),
            ),
        )

    @staticmethod
    def _reopen(
        connection: Connection,
        batch_id: uuid.UUID,
        *,
        upload_ids: Sequence[uuid.UUID],
        reason: str,
    ) -> int:
        failed: Select[tuple[uuid.UUID]] = select(Upload.id).where(
            Upload.batch_id == batch_id, Upload.processing_status == UploadStatus.FAILED
        )
        if upload_ids:
            failed = failed.where(Upload.id.in_(upload_ids))
        locked = list(connection.scalars(failed.order_by(Upload.id).with_for_update()))
        return _release(connection, Upload.id.in_(locked), reason=reason, attempts=0)


def _counts(connection: Connection, batch_id: uuid.UUID) -> Row[Any]:
    status = Upload.processing_status
    return connection.execute(
        select(
            func.count().label("total"),
            func.count().filter(status == UploadStatus.COMPLETED).label("successful"),
            func.count().filter(status == UploadStatus.FAILED).label("failed"),
        ).where(Upload.batch_id == batch_id)
    ).one()


def _reason_to_skip(row: Row[Any] | None, run_id: str) -> str | None:
    if row is None:
        return "it was deleted"
    if row.batch_status == BatchStatus.CANCELLED:
        return "the batch was cancelled"
    if row.processing_status == UploadStatus.COMPLETED:
        return "it is completed already"
    held_by_other = row.owner_run_id not in {None, run_id} and not row.expired
    if held_by_other:
        return f"run {row.owner_run_id} is working on it"
    return None


def _held(claim: Claim) -> Any:
    return and_(
        Upload.id == claim.upload_id,
        Upload.owner_run_id == claim.run_id,
        Upload.claim == claim.token,
    )


def _release(connection: Connection, condition: Any, **values: Any) -> int:
    reason = values.pop("reason", None)
    if reason:
        values["dispatch_reason"] = reason
    result = connection.execute(
        update(Upload)
        .where(condition, Upload.processing_status != UploadStatus.COMPLETED)
        .values(
            processing_status=UploadStatus.PENDING,
            owner_run_id=None,
            slice=None,
            heartbeat_at=None,
            updated_at=func.now(),
            **values,
        )
    )
    return int(result.rowcount)


def _announce_file(
    transaction: Announcer, row: Row[Any], percentage: int, status: FileStatus
) -> None:
    message = FileProgress(
        row.batch_id, row.id, row.filename, row.file_size, percentage, status
    )
    transaction.announce(message, row.user_id)


def _percentage_reached(row: Row[Any]) -> int:
    if row.description:
        return DESCRIPTION_STORED
    return THUMBNAIL_STORED if row.thumbnail_path else STARTED


def _batch_or_none(connection: Connection, statement: Any) -> BatchProgress | None:
    row = connection.execute(
        statement.returning(
            UploadBatch.id,
            UploadBatch.user_id,
            UploadBatch.status,
            UploadBatch.total_uploads,
            UploadBatch.processed_uploads,
            UploadBatch.successful_uploads,
            UploadBatch.failed_uploads,
        )
    ).one_or_none()
    return BatchProgress(*row) if row else None


def _batch(connection: Connection, statement: Any) -> BatchProgress:
    progress = _batch_or_none(connection, statement)
    assert progress is not None
    return progress


def _storable(message: str) -> str:
    """PostgreSQL text cannot hold NUL."""
    return message.replace("\0", "�")
