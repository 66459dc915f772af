"""Which uploads go to which run: opens slices of batches, and chooses the next ones to launch.

A slice is a number written to the uploads of a batch, at most ``UPLOADS_PER_RUN`` of them, and the
key of the run that will take them. The number is in the database before the run is asked for, so
that any number of daemons, restarted at any moment, ask for the same run. An upload that was in
work when its worker died gets a slice of its own: if it is the cause, it takes no other along.
Knows nothing of Dagster: the sensor tells what is in flight and launches what is chosen.
"""

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select, text

from batch_pipeline.database.failures import repeated
from batch_pipeline.database.models import OPEN_BATCH, BatchStatus, Upload, UploadBatch
from batch_pipeline.database.readings import BATCH_CAME, WAITING, WAITING_SQL, interval, owner
from batch_pipeline.database.session import Database

NEW = "new"

#: Batches looked at in one tick; the rest wait for the next one.
MAX_BATCHES_PER_TICK = 500
#: Until a new batch has begun, it gets one run, but only so long after it was made (seconds).
#: Run workers that start together share the cores: with four on two cores, the first result of a
#: large batch came after twice the time of a small one (``benchmarks/scale.py``).
HEAD_START_SECONDS = 10.0

_OPEN_SLICES = text(f"""
    WITH unsliced AS MATERIALIZED (
        SELECT id, dispatch_reason, created_at, deaths > 0 AS suspect FROM uploads
        WHERE batch_id = :batch_id AND slice IS NULL
          AND {WAITING_SQL}
          AND (not_before IS NULL OR not_before <= now())
        FOR UPDATE SKIP LOCKED
    ), chunked AS (
        SELECT id, dispatch_reason, suspect, (row_number() OVER (
            PARTITION BY dispatch_reason, suspect ORDER BY created_at, id
        ) - 1) / CASE WHEN suspect THEN 1 ELSE :size END AS chunk
        FROM unsliced
    ), numbered AS (
        SELECT id, dense_rank() OVER (ORDER BY dispatch_reason, suspect, chunk) AS number
        FROM chunked
    ), opened AS (
        UPDATE uploads SET slice = :last + numbered.number
        FROM numbered WHERE uploads.id = numbered.id
        RETURNING uploads.slice
    )
    UPDATE upload_batches SET slices = coalesce((SELECT max(slice) FROM opened), slices)
    WHERE id = :batch_id
""")  # noqa: S608 - words of ours


@dataclass(frozen=True)
class WaitingSlice:
    """Uploads of one batch that one run will take."""

    batch_id: uuid.UUID
    user_id: uuid.UUID
    batch_created_at: datetime
    number: int
    reason: str
    """Why it was opened: new, retry, rescue or reprocess."""
    uploads: int
    has_head_start: bool = False
    """The first run of the batch is to begin before others start, see `HEAD_START_SECONDS`."""

    @property
    def key(self) -> str:
        """Names the slice over all batches and times."""
        return f"{self.batch_id}/{self.number}"


@repeated
def open_slices(database: Database, uploads_per_run: int) -> None:
    """Number the pending uploads of open batches that are in no slice yet."""
    with database.transaction() as connection:
        batches = connection.execute(
            select(UploadBatch.id, UploadBatch.slices)
            .where(
                UploadBatch.status.in_(OPEN_BATCH),
                select(Upload.id)
                .where(
                    Upload.batch_id == UploadBatch.id,
                    WAITING,
                    Upload.slice.is_(None),
                    or_(Upload.not_before.is_(None), Upload.not_before <= func.now()),
                )
                .exists(),
            )
            .order_by(UploadBatch.created_at, UploadBatch.id)
            .limit(MAX_BATCHES_PER_TICK)
            .with_for_update(skip_locked=True)
        ).all()
        for batch in batches:
            connection.execute(
                _OPEN_SLICES,
                {"batch_id": batch.id, "size": uploads_per_run, "last": batch.slices},
            )


def waiting_slices(database: Database) -> list[WaitingSlice]:
    """List every slice that still has uploads nobody has taken, oldest batch first."""
    with database.transaction() as connection:
        rows = connection.execute(
            select(
                UploadBatch.id,
                owner(UploadBatch.user_id),
                BATCH_CAME,
                Upload.slice,
                func.min(Upload.dispatch_reason),
                func.count(),
                (UploadBatch.status == BatchStatus.PENDING)
                & BATCH_CAME.between(func.now() - interval(HEAD_START_SECONDS), func.now()),
            )
            .join(Upload, Upload.batch_id == UploadBatch.id)
            .where(UploadBatch.status.in_(OPEN_BATCH), WAITING, Upload.slice.is_not(None))
            .group_by(UploadBatch.id, Upload.slice)
            .order_by(UploadBatch.created_at, UploadBatch.id, Upload.slice)
        ).all()
    return [
        WaitingSlice(batch_id, user_id, created_at, number or 0, reason, uploads, is_new)
        for batch_id, user_id, created_at, number, reason, uploads, is_new in rows
    ]


def choose_slices(
    waiting: Sequence[WaitingSlice],
    *,
    launched: Collection[str],
    in_flight: Mapping[uuid.UUID, int],
    max_in_flight: int,
) -> list[WaitingSlice]:
    """Choose what to launch now; a pure function.

    New work goes before retries and rescues. Within each, batches take turns, the one with the
    fewest runs in flight first and the older one on a tie, so that a batch of a thousand files does
    not keep one of three waiting. One that has a head start gets no second run.

    Args:
        waiting: every slice with uploads to take, oldest batch first.
        launched: keys that have had a run already, whatever became of it.
        in_flight: runs queued or running, by batch.
        max_in_flight: how many of them there may be over all batches.
    """
    free = max_in_flight - sum(in_flight.values())
    turns: Counter[uuid.UUID] = Counter(in_flight)
    ranked = []
    candidates = (slice_ for slice_ in waiting if slice_.key not in launched)
    for slice_ in sorted(candidates, key=lambda candidate: candidate.reason != NEW):
        turn = turns[slice_.batch_id]
        turns[slice_.batch_id] += 1
        if not (turn and slice_.has_head_start):
            ranked.append((slice_.reason != NEW, turn, slice_))
    # Sorting is stable: among equals the order of `waiting`, oldest batch first, remains.
    ranked.sort(key=lambda entry: entry[:2])
    return [slice_ for _, _, slice_ in ranked[: max(free, 0)]]
