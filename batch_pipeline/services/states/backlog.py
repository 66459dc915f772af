"""The sweep's side of the state machine: what dead workers, outages and outsiders left behind.

Who asks Dagster which runs have ended is ``orchestration/sweep.py``. Every method is safe to
repeat, and two at the same time have the effect of one.
"""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, case, func, insert, or_, select, true, update

from batch_pipeline.database.models import (
    ENDED,
    IN_WORK,
    OPEN_BATCH,
    BatchStatus,
    Upload,
    UploadBatch,
    UploadStatus,
)
from batch_pipeline.services.progress.publishing import (
    Announcer,
    BatchProgress,
    ProgressPublisher,
)
from batch_pipeline.services.states.batch_states import REDOABLE_BATCH, BatchStates
from batch_pipeline.services.states.transitions import (
    ANNOUNCED,
    announce_file,
    count_failed,
    interval,
    percentage_reached,
    recount_batches,
    release_rows,
    updated_batch_or_none,
)

#: An upload that was in work when so many workers died is taken for the cause.
MAX_DEATHS = 3
#: So many runs of a batch that died, one after the other, without an upload ending: it is given up.
MAX_DIED_RUNS = 10
#: Age at which an upload without a batch is taken for forgotten (seconds).
ADOPTION_AGE_SECONDS = 5 * 60
#: Batches that ended longer ago are not recounted (days).
RECOUNT_DAYS = 1


@dataclass(frozen=True)
class Rescue:
    """What became of the uploads that dead owners held."""

    returned: int = 0
    """Pending again."""
    quarantined: int = 0
    """Failed, because their worker died every time."""


class Backlog:
    """Every transition that puts something right."""

    def __init__(self, publisher: ProgressPublisher, *, lease_seconds: float) -> None:
        self._publisher = publisher
        self._lease_seconds = lease_seconds
        self._batches = BatchStates(publisher)

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
                    Upload.heartbeat_at >= func.now() - interval(self._lease_seconds),
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
        last_sign = func.coalesce(Upload.heartbeat_at, Upload.updated_at)
        expired = last_sign < func.now() - interval(self._lease_seconds)
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
            returned = release_rows(connection, Upload.id.in_(others), reason="rescue")
        return Rescue(returned, len(killers))

    def release_slices(
        self, slices: Sequence[tuple[uuid.UUID, int]], *, resume_after_seconds: float = 0
    ) -> int:
        """Take uploads out of slices whose run ended without taking them; returns how many.

        They rest for a while, so that what ends every run at its start does not start them in a
        hurry.
        """
        not_before = func.now() + interval(resume_after_seconds)
        with self._publisher.transaction() as transaction:
            return sum(
                release_rows(
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

        The batch says why, until it ends otherwise. Returns the batch if that failed it.
        """
        given_up = (UploadBatch.died_runs + 1) >= MAX_DIED_RUNS
        last = f"{MAX_DIED_RUNS} runs died one after the other; the last one: {reason}"
        message = f"a run died, what it left goes to another: {reason}"
        with self._publisher.transaction() as transaction:
            progress = updated_batch_or_none(
                transaction.connection,
                update(UploadBatch)
                .where(UploadBatch.id == batch_id, UploadBatch.status.in_(OPEN_BATCH))
                .values(
                    died_runs=UploadBatch.died_runs + 1,
                    status=case((given_up, BatchStatus.FAILED), else_=UploadBatch.status),
                    error_message=case((given_up, _storable(last)), else_=_storable(message)),
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
            count = release_rows(
                connection,
                Upload.id.in_([row.id for row in rows]),
                reason="retry",
                attempts=0,
                retries=Upload.retries + 1,
            )
            recount_batches(transaction, {row.batch_id for row in rows if row.batch_id})
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
            recount_batches(transaction, batches.values())
        return len(rows)

    def reconcile_batches(self) -> list[BatchProgress]:
        """Recount batches whose counters are not those of their uploads, and end what is done."""
        with self._publisher.transaction() as transaction:
            drifted = transaction.connection.scalars(_drifted()).all()
        # A transition under way looks like a difference too; the recount waits for it.
        recounted = (self._batches.recount_batch(batch_id) for batch_id in drifted)
        return [progress for progress in recounted if progress]

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
            .returning(*ANNOUNCED)
        ).all()
        for row in rows:
            announce_file(transaction, row, percentage_reached(row), "failed")
        for batch_id, failed in sorted(
            Counter(row.batch_id for row in rows if row.batch_id).items()
        ):
            if progress := count_failed(transaction.connection, batch_id, failed):
                transaction.announce(progress, progress.user_id)


def _storable(text_: str) -> str:
    """PostgreSQL text cannot hold NUL."""
    return text_.replace("\0", "�")


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
        Upload.created_at < func.now() - interval(ADOPTION_AGE_SECONDS),
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
            or_(is_open, UploadBatch.updated_at > func.now() - interval(RECOUNT_DAYS * 86400)),
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
