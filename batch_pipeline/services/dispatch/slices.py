"""Which uploads go to which run: finds what waits, and opens slices of batches.

A slice is a number written to the uploads of a batch, at most ``UPLOADS_PER_RUN`` of them, and the
key of the run that will take them. The number is in the database before the run is asked for, so
that any number of daemons, restarted at any moment, ask for the same run. It is written when the
slice's turn has come, not before: however much waits, a tick reads one upload of each batch, and
writes what it launches. An upload that was in work when its worker died gets a slice of its own: if
it is the cause, it takes no other along.

Whose turn it is says ``turns.py``. Knows nothing of Dagster: the sensor tells what is in flight and
launches what is chosen.
"""

import time
import uuid

from sqlalchemy import text

from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.services.dispatch.turns import WaitingSlice

#: Until a new batch has begun, it gets one run, but only so long after it was made (seconds).
#: Run workers that start together share the cores: with four on two cores, the first result of a
#: large batch came after twice the time of a small one (``benchmarks/scale.py``).
HEAD_START_SECONDS = 10.0
#: Whoever holds the row of a batch for longer makes it lose its turn (milliseconds).
_LOCK_MILLISECONDS = 200

_WAITS = "u.processing_status = 'pending' AND u.owner_run_id IS NULL"
#: In no slice yet, and not to rest for a while.
_WITHOUT_SLICE = f"{_WAITS} AND u.slice IS NULL AND (u.not_before IS NULL OR u.not_before <= now())"
#: What was lost with its run is as old as before; what was opened again has waited since then.
_WAITED = """
    (extract(epoch FROM now()) - extract(epoch FROM CASE
        WHEN u.dispatch_reason IN ('retry', 'reprocess') THEN u.updated_at
        ELSE u.created_at END))::double precision"""
#: Batches of nobody take their turns as if they were of one user.
_USER = f"coalesce(b.user_id, '{uuid.UUID(int=0)}')"
_HEAD_START = f"""
    b.status = 'pending' AND b.created_at > now() - make_interval(secs => {HEAD_START_SECONDS})"""

_NUMBERED = text(f"""
    SELECT b.id AS batch_id, {_USER} AS user_id, {_HEAD_START} AS has_head_start,
        u.slice AS number, min(u.dispatch_reason) AS reason, count(*) AS uploads,
        max({_WAITED}) AS waited
    FROM uploads u JOIN upload_batches b ON b.id = u.batch_id
    WHERE b.status IN ('pending', 'processing') AND {_WAITS} AND u.slice IS NOT NULL
    GROUP BY b.id, b.user_id, b.status, b.created_at, u.slice
    ORDER BY b.id, u.slice
""")  # noqa: S608 - of constants

#: The oldest upload of each batch, found by an index; how many more there may be is only estimated.
_WITHOUT_NUMBER = text(f"""
    SELECT b.id AS batch_id, {_USER} AS user_id, {_HEAD_START} AS has_head_start,
        oldest.reason, oldest.waited,
        coalesce(b.total_uploads - b.processed_uploads, 0) AS at_most
    FROM upload_batches b, LATERAL (
        SELECT u.dispatch_reason AS reason, {_WAITED} AS waited
        FROM uploads u
        WHERE u.batch_id = b.id AND {_WITHOUT_SLICE}
        ORDER BY u.slice, u.created_at, u.id
        LIMIT 1
    ) oldest
    WHERE b.status IN ('pending', 'processing')
    ORDER BY b.id
""")  # noqa: S608

_LOCK_BATCH = text("SELECT slices FROM upload_batches WHERE id = :batch_id FOR UPDATE")

#: With the oldest upload go others that wait for the same reason; with a suspect nobody goes.
_OPEN_SLICE = text(f"""
    WITH oldest AS MATERIALIZED (
        SELECT u.dispatch_reason AS reason, u.deaths > 0 AS suspect
        FROM uploads u
        WHERE u.batch_id = :batch_id AND {_WITHOUT_SLICE}
        ORDER BY u.slice, u.created_at, u.id
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ), share AS MATERIALIZED (
        SELECT u.id
        FROM uploads u
        WHERE u.batch_id = :batch_id AND {_WITHOUT_SLICE}
            AND (u.dispatch_reason, u.deaths > 0) = (SELECT reason, suspect FROM oldest)
        ORDER BY u.slice, u.created_at, u.id
        LIMIT (SELECT CASE WHEN suspect THEN 1 ELSE :size END FROM oldest)
        FOR UPDATE SKIP LOCKED
    ), opened AS (
        UPDATE uploads SET slice = :number FROM share WHERE uploads.id = share.id
        RETURNING uploads.dispatch_reason
    )
    SELECT min(dispatch_reason) AS reason, count(*) AS uploads FROM opened
""")  # noqa: S608

_COUNT_SLICE = text("UPDATE upload_batches SET slices = :number WHERE id = :batch_id")


def numbered_slices(database: Database) -> list[WaitingSlice]:
    """List the slices that have uploads nobody has taken: runs were asked for, or will be next."""
    with database.transaction() as connection:
        return [
            _slice(row, number=row.number, uploads=row.uploads)
            for row in connection.execute(_NUMBERED)
        ]


def unnumbered_slices(
    database: Database, uploads_per_run: int, *, at_most: int
) -> list[WaitingSlice]:
    """List what is in no slice yet: for each batch as many as it may fill, up to a limit."""
    with database.transaction() as connection:
        rows = connection.execute(_WITHOUT_NUMBER).all()
    return [
        slice_
        for row in rows
        for slice_ in [_slice(row)] * min(at_most, max(1, -(-row.at_most // uploads_per_run)))
    ]


def open_slice(
    database: Database, slice_: WaitingSlice, uploads_per_run: int
) -> WaitingSlice | None:
    """Give a slice its number and its uploads; None if there is nothing left to take.

    One that has a number is returned as it is.

    Raises:
        sqlalchemy.exc.OperationalError: somebody holds the row of the batch.
    """
    if slice_.number is not None:
        return slice_
    with database.transaction() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}"))
        batch = connection.execute(_LOCK_BATCH, {"batch_id": slice_.batch_id}).one_or_none()
        if batch is None:
            return None
        names = {"batch_id": slice_.batch_id, "number": batch.slices + 1}
        opened = connection.execute(_OPEN_SLICE, names | {"size": uploads_per_run}).one()
        if not opened.uploads:
            return None
        connection.execute(_COUNT_SLICE, names)
    return slice_._replace(number=names["number"], reason=opened.reason, uploads=opened.uploads)


def _slice(row: AnyRow, **values: int) -> WaitingSlice:
    # A moment that is missing or still to come says nothing: it must not keep the upload waiting.
    is_known = row.waited is not None and row.waited >= 0
    return WaitingSlice(
        row.batch_id,
        row.user_id,
        time.time() - float(row.waited) if is_known else 0.0,
        reason=row.reason,
        has_head_start=row.has_head_start,
        **values,
    )
