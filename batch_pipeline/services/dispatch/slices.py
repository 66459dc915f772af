"""Decides which uploads go to which run: finds waiting uploads and opens slices of batches.

A slice is a part of a batch that one run processes, at most ``UPLOADS_PER_RUN`` uploads. Its number
is written to these uploads and is part of the key of the run.

- The number is stored before the run is requested. So all daemons request the same run, even if
  they restart in between.
- The number is written only when it is the slice's turn. A tick reads one upload of each batch and
  writes only the slices that it launches, however many uploads wait.
- An upload that was in progress when its worker or its model server died gets a slice of its own.
  If it is the cause, it harms no other upload.

``turns.py`` decides whose turn it is. This module does not use Dagster: the sensor counts the runs
in flight and launches the chosen slices.
"""

import time
import uuid
from collections import Counter
from collections.abc import Iterable

from sqlalchemy import text

from batch_pipeline.database.failures import repeated
from batch_pipeline.database.lock_waits import short_lock_waits
from batch_pipeline.database.models import Priority, UploadBatch
from batch_pipeline.database.readings import (
    HELD_SQL,
    NAME,
    OPEN_BATCH_SQL,
    PAUSED_SQL,
    PRIORITY,
    WAITING_SINCE,
    WAITING_SQL,
    as_text,
    owner,
)
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.services.dispatch.turns import WaitingSlice

#: Condition: an upload waits without a slice, and is not delayed.
_WITHOUT_SLICE = f"""
    {WAITING_SQL} AND uploads.slice IS NULL
    AND (uploads.not_before IS NULL OR uploads.not_before <= now())"""
#: Condition: a worker or a model server died while it processed the upload.
_SUSPECT = "uploads.deaths + uploads.server_deaths > 0"
_WAITED = f"(extract(epoch FROM now() - {as_text(WAITING_SINCE)}))::double precision"
#: Batches without a user take turns as if one user owned them.
_USER = as_text(owner(UploadBatch.user_id).element)
_PRIORITY = as_text(PRIORITY.element)
_NAME = as_text(NAME.element)

_NUMBERED = text(f"""
    SELECT upload_batches.id AS batch_id, {_USER} AS user_id, {PAUSED_SQL} AS is_paused,
        {_PRIORITY} AS priority, {_NAME} AS name,
        uploads.slice AS number,
        min(uploads.dispatch_reason) AS reason, count(*) AS uploads, max({_WAITED}) AS waited
    FROM uploads JOIN upload_batches ON upload_batches.id = uploads.batch_id
    WHERE {OPEN_BATCH_SQL}
        AND {WAITING_SQL} AND uploads.slice IS NOT NULL
    GROUP BY upload_batches.id, uploads.slice
    ORDER BY upload_batches.id, uploads.slice
""")  # noqa: S608 - of constants

#: The oldest upload of each batch, found by an index. The number of the others is an estimate.
_WITHOUT_NUMBER = text(f"""
    SELECT upload_batches.id AS batch_id, {_USER} AS user_id, {PAUSED_SQL} AS is_paused,
        {_PRIORITY} AS priority, {_NAME} AS name,
        oldest.reason, oldest.waited,
        coalesce(upload_batches.total_uploads - upload_batches.processed_uploads, 0) AS at_most
    FROM upload_batches, LATERAL (
        SELECT uploads.dispatch_reason AS reason, {_WAITED} AS waited
        FROM uploads
        WHERE uploads.batch_id = upload_batches.id AND {_WITHOUT_SLICE}
        ORDER BY uploads.slice, uploads.created_at, uploads.id
        LIMIT 1
    ) oldest
    WHERE {OPEN_BATCH_SQL}
    ORDER BY upload_batches.id
""")  # noqa: S608

_HELD = text(f"""
    SELECT {_USER} AS user_id, count(*) AS uploads
    FROM uploads JOIN upload_batches ON upload_batches.id = uploads.batch_id
    WHERE {HELD_SQL}
    GROUP BY 1
""")  # noqa: S608

_LOCK_BATCH = text("SELECT slices FROM upload_batches WHERE id = :batch_id FOR NO KEY UPDATE")

#: The slice takes the oldest upload and others with the same reason; a suspect goes alone.
_OPEN_SLICE = text(f"""
    WITH oldest AS MATERIALIZED (
        SELECT uploads.dispatch_reason AS reason, {_SUSPECT} AS suspect
        FROM uploads
        WHERE uploads.batch_id = :batch_id AND {_WITHOUT_SLICE}
        ORDER BY uploads.slice, uploads.created_at, uploads.id
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ), chosen AS MATERIALIZED (
        SELECT uploads.id
        FROM uploads
        WHERE uploads.batch_id = :batch_id AND {_WITHOUT_SLICE}
            AND (uploads.dispatch_reason, {_SUSPECT}) = (SELECT reason, suspect FROM oldest)
        ORDER BY uploads.slice, uploads.created_at, uploads.id
        LIMIT (SELECT CASE WHEN suspect THEN 1 ELSE :size END FROM oldest)
        FOR UPDATE SKIP LOCKED
    ), opened AS (
        UPDATE uploads SET slice = :number FROM chosen WHERE uploads.id = chosen.id
        RETURNING uploads.dispatch_reason
    )
    SELECT min(dispatch_reason) AS reason, count(*) AS uploads FROM opened
""")  # noqa: S608

_COUNT_SLICE = text("UPDATE upload_batches SET slices = :number WHERE id = :batch_id")


def numbered_slices(database: Database) -> list[WaitingSlice]:
    """List numbered slices with uploads that no run has taken yet."""
    with database.transaction() as connection:
        return [
            _slice(row, number=row.number, uploads=row.uploads)
            for row in connection.execute(_NUMBERED)
        ]


def unnumbered_slices(
    database: Database, uploads_per_run: int, *, at_most: int
) -> list[WaitingSlice]:
    """List the slices that uploads without a slice would fill, at most `at_most` for each batch."""
    with database.transaction() as connection:
        rows = connection.execute(_WITHOUT_NUMBER).all()
    return [
        slice_
        for row in rows
        for slice_ in [_slice(row)] * min(at_most, max(1, -(-row.at_most // uploads_per_run)))
    ]


def uploads_in_flight(database: Database, numbered: Iterable[WaitingSlice]) -> Counter[uuid.UUID]:
    """Count, for each user, the uploads that runs hold or will take with these slices.

    The caller has read the slices earlier. An upload that a run has taken since then is counted
    twice, but no upload is left out.
    """
    counts: Counter[uuid.UUID] = Counter()
    for slice_ in numbered:
        counts[slice_.user_id] += 0 if slice_.is_paused else slice_.uploads
    with database.transaction() as connection:
        for row in connection.execute(_HELD):
            counts[row.user_id] += row.uploads
    return counts


@repeated
def open_slice(
    database: Database, slice_: WaitingSlice, uploads_per_run: int
) -> WaitingSlice | None:
    """Give a slice its number and its uploads; None if there is nothing left to take.

    It gets `slice_.uploads` uploads; if that is 0, as many as a run takes. A slice that has a
    number is returned unchanged.

    Raises:
        LockedError: another transaction has locked the row of the batch. The batch loses its turn.
    """
    if slice_.number is not None:
        return slice_
    with short_lock_waits(), database.transaction() as connection:
        batch = connection.execute(_LOCK_BATCH, {"batch_id": slice_.batch_id}).one_or_none()
        if batch is None:
            return None
        names = {"batch_id": slice_.batch_id, "number": batch.slices + 1}
        opened = connection.execute(
            _OPEN_SLICE, names | {"size": slice_.uploads or uploads_per_run}
        ).one()
        if not opened.uploads:
            return None
        connection.execute(_COUNT_SLICE, names)
    return slice_._replace(number=names["number"], reason=opened.reason, uploads=opened.uploads)


def _slice(row: AnyRow, **values: int) -> WaitingSlice:
    # A missing or future time counts as the oldest, so that the upload does not wait for ever.
    is_known = row.waited is not None and row.waited >= 0
    return WaitingSlice(
        row.batch_id,
        row.user_id,
        time.time() - float(row.waited) if is_known else 0.0,
        reason=row.reason,
        is_paused=row.is_paused,
        priority=row.priority or Priority.NORMAL,
        batch_name=row.name,
        **values,
    )
