"""The state machine of uploads and batches: the only code that changes a status or a counter.

Each method is one transaction. An upload changes by a conditional update that names the owner and
the fencing token of the claim; the counters and the status of its batch change in the same
transaction. Rows are always locked in the order uploads (by id), then batch, so that no two
transactions can wait for each other. Drawn in ``docs/state_machine.md``.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, case, func, insert, or_, select, true, update

from batch_pipeline.database.models import (
    ENDED,
    IN_WORK,
    OPEN_BATCH,
    BatchStatus,
    Stage,
    Upload,
    UploadBatch,
    UploadStatus,
)
from batch_pipeline.database.session import AnyRow
from batch_pipeline.errors import ClaimLostError, KindedError, PipelineError, TransientError
from batch_pipeline.services.batch_progress import (
    Announcer,
    BatchProgress,
    FileProgress,
    FileStatus,
    ProgressPublisher,
)

#: Percentage of each stage reached, in messages about one file.
STARTED, THUMBNAIL_STORED, DESCRIPTION_STORED, ENDED_WELL = 0, 25, 75, 100
#: Batches whose completed uploads may be worked again; a cancelled one is reopened by `retry`.
REDOABLE_BATCH = (*OPEN_BATCH, BatchStatus.COMPLETED)


#: When the sweep opens an upload again that failed for a reason that may pass (seconds after each
#: failure); once all have passed, only a person does.
RETRY_DELAYS = (15 * 60, 60 * 60, 6 * 60 * 60)
#: An upload that was in work when so many workers died is taken for the cause.
MAX_DEATHS = 3
#: So many runs of a batch that died, one after the other, without an upload ending: it is given up.
MAX_DIED_RUNS = 10
#: Age at which an upload without a batch is taken for forgotten (seconds).
ADOPTION_AGE_SECONDS = 5 * 60
#: Batches that ended longer ago are not recounted (days).
RECOUNT_DAYS = 1


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
    row: AnyRow


@dataclass(frozen=True)
class SkippedUpload:
    """An upload that there is nothing to do for, with the reason."""

    upload_id: uuid.UUID
    reason: str
    filename: str = ""


@dataclass(frozen=True)
class Rescue:
    """What became of the uploads that dead owners held."""

    returned: int = 0
    """Pending again."""
    quarantined: int = 0
    """Failed, because their worker died every time."""


@dataclass(frozen=True)
class LoadedBatch:
    """What a run found when it took its share of a batch."""

    progress: BatchProgress
    expected_total: int
    """``total_uploads`` as it was before it was put right."""
    reserved: Sequence[AnyRow]
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
                    not_before=None,
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
            expired = Upload.heartbeat_at < func.now() - self._lease()
            row = connection.execute(
                select(
                    *Upload.__table__.columns,
                    UploadBatch.status.label("batch_status"),
                    or_(Upload.heartbeat_at.is_(None), expired).label("expired"),
                )
                .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
                .where(Upload.id == upload_id)
                .with_for_update(of=Upload.__table__)
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
                    not_before=None,
                    attempts=1 if reopened else Upload.attempts + 1,
                    retry_at=None,
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
            redo=_without(Upload.redo, "thumbnail"),
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
        regenerated: bool,
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
            # The old vector says something else: whoever takes over from here makes a new one.
            redo=func.array_append(_without(Upload.redo, "description", "embedding"), "embedding"),
            regeneration_count=Upload.regeneration_count + int(regenerated),
            last_regenerated_at=func.now() if regenerated else Upload.last_regenerated_at,
            facts=Upload.facts.concat(dict(facts)),
            video_codec=video_codec,
            stage_seconds=Upload.stage_seconds.concat(dict(seconds)),
        )

    def complete(
        self,
        claim: Claim,
        *,
        embedding: Sequence[float] | None = None,
        model: str | None = None,
        seconds: Mapping[str, float],
    ) -> BatchProgress | None:
        """Keep the vector, end the upload and count it; ends the batch if it was the last one.

        Without a vector, the one that is stored stays.
        """
        vector: dict[str, Any] = {}
        if embedding is not None:
            vector = {"embedding_local": list(embedding), "embedding_model": model}
        return self._end(
            claim,
            "completed",
            ENDED_WELL,
            processing_status=UploadStatus.COMPLETED,
            **vector,
            redo=[],
            error_kind=None,
            error_message=None,
            retries=0,
            stage_seconds=Upload.stage_seconds.concat(dict(seconds)),
        )

    def fail(self, claim: Claim, error: KindedError) -> BatchProgress | None:
        """Give the upload up for a reason, and count it."""
        return self._end(
            claim,
            "failed",
            None,
            processing_status=UploadStatus.FAILED,
            retry_at=_next_retry() if isinstance(error, TransientError) else None,
            **_noted(error),
        )

    def note_error(self, claim: Claim, error: KindedError) -> None:
        """Keep the reason of an attempt that will be followed by another of the same run.

        Until then the upload is reserved as it was before, so that its heartbeat is renewed.
        """
        waiting = {"processing_status": UploadStatus.PENDING, "deaths": 0}
        self._advance(claim, None, **waiting, **_noted(error))

    def release(
        self,
        claim: Claim,
        reason: PipelineError | None = None,
        *,
        resume_after_seconds: float = 0,
    ) -> None:
        """Hand an upload in work back; the attempt does not count. The row keeps the reason."""
        with self._publisher.transaction() as transaction:
            _release(
                transaction.connection,
                _held(claim),
                **_noted(reason),
                attempts=Upload.attempts - 1,
                deaths=0,
                not_before=func.now() + _seconds(resume_after_seconds),
            )

    def release_run(
        self,
        run_id: str,
        reason: PipelineError | None = None,
        *,
        resume_after_seconds: float = 0,
    ) -> int:
        """Hand back what a run has reserved but not begun, to be dispatched again later.

        Returns how many uploads.
        """
        with self._publisher.transaction() as transaction:
            return _release(
                transaction.connection,
                and_(
                    Upload.owner_run_id == run_id,
                    Upload.processing_status == UploadStatus.PENDING,
                ),
                **_noted(reason),
                not_before=func.now() + _seconds(resume_after_seconds),
            )

    def postpone(
        self,
        batch_id: uuid.UUID,
        reason: PipelineError,
        *,
        slice_number: int | None = None,
        upload_ids: Sequence[uuid.UUID] = (),
        resume_after_seconds: float,
    ) -> int:
        """Let waiting uploads rest that a run came for and cannot work now; returns how many.

        They leave their slice, whose run this was, so that the next one is asked for by itself.
        """
        share = and_(
            Upload.batch_id == batch_id,
            Upload.processing_status == UploadStatus.PENDING,
            Upload.owner_run_id.is_(None),
        )
        if slice_number is not None:
            share = and_(share, Upload.slice == slice_number)
        if upload_ids:
            share = and_(share, Upload.id.in_(upload_ids))
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            locked = list(
                connection.scalars(
                    select(Upload.id)
                    .where(share)
                    .order_by(Upload.id)
                    .with_for_update(skip_locked=True)
                )
            )
            return _release(
                connection,
                Upload.id.in_(locked),
                **_noted(reason),
                not_before=func.now() + _seconds(resume_after_seconds),
            )

    def heartbeat(self, run_id: str, in_work: Sequence[Claim]) -> None:
        """Show that the run lives: renews its reservations and the claims that are in work.

        A row that somebody has locked is left out, so that the others do not wait for it; nobody
        rescues it meanwhile either.
        """
        alive = (
            select(Upload.id)
            .where(
                Upload.owner_run_id == run_id,
                or_(
                    Upload.processing_status == UploadStatus.PENDING,
                    Upload.id.in_([claim.upload_id for claim in in_work]),
                ),
            )
            .order_by(Upload.id)
            .with_for_update(skip_locked=True)
        )
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            locked = connection.scalars(alive).all()
            connection.execute(
                update(Upload).where(Upload.id.in_(locked)).values(heartbeat_at=func.now())
            )

    def wanted(self, claims: Sequence[Claim]) -> set[Claim]:
        """Tell which claims are still held and belong to a batch that nobody cancelled."""
        with self._publisher.transaction() as transaction:
            rows = transaction.connection.execute(
                select(Upload.id, Upload.owner_run_id, Upload.claim)
                .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
                .where(
                    Upload.id.in_([claim.upload_id for claim in claims]),
                    func.coalesce(UploadBatch.status, "") != BatchStatus.CANCELLED,
                )
            ).all()
        return set(claims) & {Claim(row.id, row.owner_run_id or "", row.claim) for row in rows}

    def exists(self, upload_id: uuid.UUID) -> bool:
        """Tell whether an upload has not been deleted."""
        with self._publisher.transaction() as transaction:
            found = transaction.connection.scalar(select(Upload.id).where(Upload.id == upload_id))
        return found is not None

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
                    died_runs=0,
                )
            ).rowcount
            if not exists:
                return None
            progress = self._settle(connection, batch_id)
            transaction.announce(progress, progress.user_id)
        return count, progress

    def redo(
        self, batch_id: uuid.UUID, stage: Stage, upload_ids: Sequence[uuid.UUID]
    ) -> tuple[int, BatchProgress] | None:
        """Open completed uploads of a batch again, to redo one stage; what is stored stays.

        Returns how many, and the batch; None if it is gone, cancelled or failed meanwhile.
        """
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            locked = list(
                connection.scalars(
                    select(Upload.id)
                    .where(
                        Upload.id.in_(upload_ids),
                        Upload.batch_id == batch_id,
                        Upload.processing_status == UploadStatus.COMPLETED,
                    )
                    .order_by(Upload.id)
                    .with_for_update()
                )
            )
            status = connection.scalar(
                select(UploadBatch.status).where(UploadBatch.id == batch_id).with_for_update()
            )
            if status not in REDOABLE_BATCH:
                return None
            count = _reset(
                connection,
                Upload.id.in_(locked),
                redo=[stage],
                attempts=0,
                retries=0,
                not_before=None,
                error_kind=None,
                error_message=None,
                dispatch_reason="reprocess",
            )
            progress = self._settle(connection, batch_id)
            transaction.announce(progress, progress.user_id)
        return count, progress

    def owners(self) -> list[str]:
        """Runs that hold uploads."""
        with self._publisher.transaction() as transaction:
            return list(
                transaction.connection.scalars(
                    select(Upload.owner_run_id).where(Upload.owner_run_id.is_not(None)).distinct()
                )
            )

    def run_is_silent(self, run_id: str) -> bool:
        """Tell whether a run holds no upload with a heartbeat younger than the lease."""
        with self._publisher.transaction() as transaction:
            alive = transaction.connection.scalar(
                select(Upload.id)
                .where(
                    Upload.owner_run_id == run_id,
                    Upload.heartbeat_at >= func.now() - self._lease(),
                )
                .limit(1)
            )
        return alive is None

    def left_behind(self, batch_id: uuid.UUID, run_id: str, slice_number: int | None) -> int:
        """Count what a run has not done: uploads that it holds, and those of its slice."""
        meant_for_it = and_(
            Upload.batch_id == batch_id,
            Upload.slice == slice_number,
            Upload.processing_status == UploadStatus.PENDING,
            Upload.owner_run_id.is_(None),
        )
        with self._publisher.transaction() as transaction:
            count = transaction.connection.scalar(
                select(func.count()).where(or_(Upload.owner_run_id == run_id, meant_for_it))
            )
        return count or 0

    def rescue(self, ended_run_ids: Sequence[str] = ()) -> Rescue:
        """Return to ``pending`` what dead owners hold.

        An owner is dead when its run has ended, or when its heartbeat is older than the lease on
        the database's clock. Uploads left in work by a worker that knew no claims are as dead as
        their ``updated_at`` is old. An upload whose workers died `MAX_DEATHS` times while it was in
        work is failed instead.
        """
        expired = func.coalesce(Upload.heartbeat_at, Upload.updated_at) < func.now() - self._lease()
        dead = and_(
            or_(Upload.owner_run_id.is_not(None), Upload.processing_status.in_(IN_WORK)),
            Upload.processing_status.not_in(ENDED),
            or_(Upload.owner_run_id.in_(ended_run_ids), expired),
        )
        died_in_work = and_(
            Upload.owner_run_id.is_not(None), Upload.processing_status.in_(IN_WORK)
        ).label("died_in_work")
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            rows = connection.execute(
                select(Upload.id, Upload.deaths, died_in_work)
                .where(dead)
                .order_by(Upload.id)
                .with_for_update(skip_locked=True)
            ).all()
            suspects = [row.id for row in rows if row.died_in_work]
            killers = [row.id for row in rows if row.died_in_work and row.deaths + 1 >= MAX_DEATHS]
            connection.execute(
                update(Upload).where(Upload.id.in_(suspects)).values(deaths=Upload.deaths + 1)
            )
            self._quarantine(transaction, killers)
            others = [row.id for row in rows if row.id not in killers]
            returned = _release(connection, Upload.id.in_(others), reason="rescue")
        return Rescue(returned, len(killers))

    def open_slices_anew(
        self, slices: Sequence[tuple[uuid.UUID, int]], *, resume_after_seconds: float = 0
    ) -> int:
        """Take uploads out of slices whose run ended without taking them; returns how many.

        They rest for a while, so that what ends every run at its start does not start them in a
        hurry.
        """
        not_before = func.now() + _seconds(resume_after_seconds)
        with self._publisher.transaction() as transaction:
            return sum(
                _release(
                    transaction.connection,
                    and_(
                        Upload.batch_id == batch_id,
                        Upload.slice == number,
                        Upload.processing_status == UploadStatus.PENDING,
                        Upload.owner_run_id.is_(None),
                    ),
                    reason="rescue",
                    not_before=not_before,
                )
                for batch_id, number in slices
            )

    def note_died_run(self, batch_id: uuid.UUID, reason: str) -> BatchProgress | None:
        """Count a run that died; fails the batch when so many did without an upload ending.

        Returns the batch if that failed it.
        """
        given_up = (UploadBatch.died_runs + 1) >= MAX_DIED_RUNS
        message = f"{MAX_DIED_RUNS} runs died one after the other; the last one: {reason}"
        with self._publisher.transaction() as transaction:
            progress = _batch_or_none(
                transaction.connection,
                update(UploadBatch)
                .where(UploadBatch.id == batch_id, UploadBatch.status.in_(OPEN_BATCH))
                .values(
                    died_runs=UploadBatch.died_runs + 1,
                    status=case((given_up, BatchStatus.FAILED), else_=UploadBatch.status),
                    error_message=case((given_up, message.replace("\0", "�")), else_=None),
                    updated_at=func.now(),
                ),
            )
            if progress is None or progress.status != BatchStatus.FAILED:
                return None
            transaction.announce(progress, progress.user_id)
        return progress

    def retry_due(self) -> int:
        """Open uploads again whose failure may have passed by now; returns how many."""
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            rows = connection.execute(
                select(Upload.id, Upload.batch_id)
                .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
                .where(_due())
                .order_by(Upload.id)
                .with_for_update(of=Upload.__table__, skip_locked=True)
            ).all()
            count = _release(
                connection,
                Upload.id.in_([row.id for row in rows]),
                reason="retry",
                attempts=0,
                retries=Upload.retries + 1,
            )
            self._settle_all(transaction, {row.batch_id for row in rows if row.batch_id})
        return count

    def adopt(self) -> int:
        """Put waiting uploads that have no batch into one per user; returns how many uploads."""
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            rows = connection.execute(
                select(Upload.id, Upload.user_id)
                .where(_forgotten())
                .order_by(Upload.id)
                .with_for_update(skip_locked=True)
            ).all()
            batches: dict[uuid.UUID, uuid.UUID] = {}
            for user_id in {row.user_id for row in rows}:
                batches[user_id] = uuid.uuid4()
                connection.execute(insert(UploadBatch).values(id=batches[user_id], user_id=user_id))
                connection.execute(
                    update(Upload)
                    .where(Upload.id.in_([row.id for row in rows if row.user_id == user_id]))
                    .values(batch_id=batches[user_id], slice=None, updated_at=func.now())
                )
            self._settle_all(transaction, batches.values())
        return len(rows)

    def reconcile_batches(self) -> list[BatchProgress]:
        """Recount batches whose counters are not those of their uploads, and end what is done."""
        with self._publisher.transaction() as transaction:
            drifted = transaction.connection.scalars(_drifted()).all()
        # A transition under way looks like a difference too; the recount waits for it.
        return [progress for batch_id in drifted if (progress := self.settle_batch(batch_id))]

    def overdue(self) -> dict[str, int]:
        """Count what the transitions above would put right now, by what it is."""
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            due = (
                select(func.count())
                .select_from(Upload)
                .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
                .where(_due())
            )
            forgotten = select(func.count()).select_from(Upload).where(_forgotten())
            return {
                "uploads to retry": connection.scalar(due) or 0,
                "uploads without a batch": connection.scalar(forgotten) or 0,
                "batches to recount": len(connection.scalars(_drifted()).all()),
            }

    def _lease(self) -> Any:
        return _seconds(self._lease_seconds)

    def _quarantine(self, transaction: Announcer, upload_ids: Sequence[uuid.UUID]) -> None:
        rows = transaction.connection.execute(
            update(Upload)
            .where(Upload.id.in_(upload_ids))
            .values(
                processing_status=UploadStatus.FAILED,
                owner_run_id=None,
                slice=None,
                error_kind="killed_worker",
                error_message=(
                    f"the worker died {MAX_DEATHS} times while it worked on this file, which is "
                    "not tried again by itself; `batch-pipeline retry` does"
                ),
                updated_at=func.now(),
            )
            .returning(
                Upload.id,
                Upload.user_id,
                Upload.batch_id,
                Upload.filename,
                Upload.file_size,
                Upload.thumbnail_path,
                Upload.description,
            )
        ).all()
        for row in rows:
            _announce_file(transaction, row, _percentage_reached(row), "failed")
        for batch_id, failed in sorted(
            Counter(row.batch_id for row in rows if row.batch_id).items()
        ):
            if progress := self._count(transaction.connection, batch_id, failed=failed):
                transaction.announce(progress, progress.user_id)

    def _settle_all(self, transaction: Announcer, batch_ids: Iterable[uuid.UUID]) -> None:
        for batch_id in sorted(batch_ids):
            progress = self._settle(transaction.connection, batch_id)
            transaction.announce(progress, progress.user_id)

    def _advance(self, claim: Claim, percentage: int | None, **values: Any) -> None:
        with self._publisher.transaction() as transaction:
            row = self._write(transaction.connection, claim, **values)
            if percentage is not None:
                _announce_file(transaction, row, percentage, "processing")

    def _end(
        self, claim: Claim, status: FileStatus, percentage: int | None, **values: Any
    ) -> BatchProgress | None:
        with self._publisher.transaction() as transaction:
            row = self._write(transaction.connection, claim, owner_run_id=None, deaths=0, **values)
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
    def _write(connection: Connection, claim: Claim, **values: Any) -> AnyRow:
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

    @classmethod
    def _count(
        cls, connection: Connection, batch_id: uuid.UUID, *, successful: int = 0, failed: int = 0
    ) -> BatchProgress | None:
        progress = _batch_or_none(
            connection,
            update(UploadBatch)
            .where(UploadBatch.id == batch_id)
            .values(
                processed_uploads=UploadBatch.processed_uploads + successful + failed,
                successful_uploads=UploadBatch.successful_uploads + successful,
                failed_uploads=UploadBatch.failed_uploads + failed,
                died_runs=0 if successful + failed > 0 else UploadBatch.died_runs,
                updated_at=func.now(),
            ),
        )
        if progress is None:
            return None
        # Counting all uploads is left to the few transitions that may end or reopen the batch.
        looks_ended = progress.processed >= progress.total
        if looks_ended == (progress.status == BatchStatus.COMPLETED):
            return progress
        return cls._settle(connection, batch_id)

    @staticmethod
    def _settle(connection: Connection, batch_id: uuid.UUID) -> BatchProgress:
        # The batch is locked before its uploads are counted: a transition that has changed its
        # upload but not yet the batch waits here, and adds itself to the recount.
        status = connection.execute(
            select(UploadBatch.status).where(UploadBatch.id == batch_id).with_for_update()
        ).scalar_one()
        counts = _counts(connection, batch_id)
        processed = counts.successful + counts.failed
        # A pending batch without uploads is one that somebody is still filling.
        has_ended = processed == counts.total and (counts.total or status != BatchStatus.PENDING)
        values: dict[str, Any] = {}
        if status in OPEN_BATCH and has_ended:
            values = {"status": BatchStatus.COMPLETED, "completed_at": func.now()}
        elif status == BatchStatus.COMPLETED and not has_ended:
            values = {"status": BatchStatus.PROCESSING, "completed_at": None}
        return _batch(
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

    @staticmethod
    def _reopen(
        connection: Connection,
        batch_id: uuid.UUID,
        *,
        upload_ids: Sequence[uuid.UUID],
        reason: str,
    ) -> int:
        failed: Select[uuid.UUID] = select(Upload.id).where(
            Upload.batch_id == batch_id, Upload.processing_status == UploadStatus.FAILED
        )
        if upload_ids:
            failed = failed.where(Upload.id.in_(upload_ids))
        locked = list(connection.scalars(failed.order_by(Upload.id).with_for_update()))
        return _release(
            connection, Upload.id.in_(locked), reason=reason, attempts=0, deaths=0, retries=0
        )


def _counts(connection: Connection, batch_id: uuid.UUID) -> AnyRow:
    status = Upload.processing_status
    return connection.execute(
        select(
            func.count().label("total"),
            func.count().filter(status == UploadStatus.COMPLETED).label("successful"),
            func.count().filter(status == UploadStatus.FAILED).label("failed"),
        ).where(Upload.batch_id == batch_id)
    ).one()


def _due() -> Any:
    """Failed uploads to be opened again now; to be joined with their batches."""
    return and_(
        Upload.retry_at <= func.now(),
        Upload.processing_status == UploadStatus.FAILED,
        func.coalesce(UploadBatch.status, "").in_(REDOABLE_BATCH),
    )


def _forgotten() -> Any:
    """Uploads that wait without a batch, and are not just being submitted."""
    return and_(
        Upload.batch_id.is_(None),
        Upload.processing_status == UploadStatus.PENDING,
        Upload.owner_run_id.is_(None),
        Upload.created_at < func.now() - _seconds(ADOPTION_AGE_SECONDS),
    )


def _drifted() -> Select[uuid.UUID]:
    """Batches whose counters differ from a recount, and open ones in which nothing is open."""
    status = Upload.processing_status
    recount = (
        select(
            func.count().label("total"),
            func.count().filter(status == UploadStatus.COMPLETED).label("successful"),
            func.count().filter(status == UploadStatus.FAILED).label("failed"),
        )
        .where(Upload.batch_id == UploadBatch.id)
        .lateral("recount")
    )
    counted = recount.c.successful + recount.c.failed
    is_open = UploadBatch.status.in_(OPEN_BATCH)
    return (
        select(UploadBatch.id)
        .join(recount, true())
        .where(
            or_(is_open, UploadBatch.updated_at > func.now() - _seconds(RECOUNT_DAYS * 86400)),
            or_(
                UploadBatch.total_uploads != recount.c.total,
                UploadBatch.successful_uploads != recount.c.successful,
                UploadBatch.failed_uploads != recount.c.failed,
                UploadBatch.processed_uploads != counted,
                # One that is pending without uploads is still being filled.
                and_(is_open, counted == recount.c.total, recount.c.total > 0),
                and_(UploadBatch.status == BatchStatus.PROCESSING, recount.c.total == 0),
                and_(UploadBatch.status == BatchStatus.COMPLETED, counted != recount.c.total),
            ),
        )
        .order_by(UploadBatch.id)
    )


def _next_retry() -> Any:
    return case(
        *(
            (Upload.retries == number, func.now() + _seconds(delay))
            for number, delay in enumerate(RETRY_DELAYS)
        ),
        else_=None,
    )


def _reason_to_skip(row: AnyRow | None, run_id: str) -> str | None:
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
    return _reset(
        connection, and_(condition, Upload.processing_status != UploadStatus.COMPLETED), **values
    )


def _reset(connection: Connection, condition: Any, **values: Any) -> int:
    """Make uploads pending, in no slice and held by nobody; returns how many."""
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


def _announce_file(
    transaction: Announcer, row: AnyRow, percentage: int, status: FileStatus
) -> None:
    message = FileProgress(row.batch_id, row.id, row.filename, row.file_size, percentage, status)
    transaction.announce(message, row.user_id)


def _percentage_reached(row: AnyRow) -> int:
    if row.description:
        return DESCRIPTION_STORED
    return THUMBNAIL_STORED if row.thumbnail_path else STARTED


def _batch_or_none(connection: Connection, statement: Any) -> BatchProgress | None:
    row = connection.execute(statement.returning(*_PROGRESS)).one_or_none()
    return BatchProgress(*row) if row else None


def _batch(connection: Connection, statement: Any) -> BatchProgress:
    return BatchProgress(*connection.execute(statement.returning(*_PROGRESS)).one())


def _seconds(number: float) -> Any:
    return func.make_interval(0, 0, 0, 0, 0, 0, number)


def _without(array: Any, *words: str) -> Any:
    for word in words:
        array = func.array_remove(array, word)
    return array


def _noted(error: PipelineError | None) -> dict[str, str]:
    if error is None:
        return {}
    kind = error.kind if isinstance(error, KindedError) else "configuration"
    # PostgreSQL text cannot hold NUL.
    return {"error_kind": kind, "error_message": str(error).replace("\0", "�")}


#: In the order of the fields of `BatchProgress`.
_PROGRESS = (
    UploadBatch.id,
    UploadBatch.user_id,
    UploadBatch.status,
    UploadBatch.total_uploads,
    UploadBatch.processed_uploads,
    UploadBatch.successful_uploads,
    UploadBatch.failed_uploads,
)
