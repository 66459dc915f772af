"""Follows a batch until it ends: a snapshot after every change, at least once a second.

Progress messages only wake the watcher. Each snapshot is read from the tables, so a missed message
does no harm.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from sqlalchemy import ColumnElement, and_, func, or_, select

from batch_pipeline.database.listening import listening
from batch_pipeline.database.models import ENDED, IN_WORK, OPEN_BATCH, Upload, UploadStatus
from batch_pipeline.database.readings import FILENAME, interval
from batch_pipeline.database.session import Database
from batch_pipeline.services.pauses import Pause, pauses_of_batches
from batch_pipeline.services.progress.publishing import CHANNEL, BatchProgress
from batch_pipeline.services.reports.batch_status import progress_of
from batch_pipeline.services.short_ids import Named, no_such

#: Longest time between two snapshots (if no message comes) and shortest time (seconds).
LONGEST_PAUSE, SHORTEST_PAUSE = 1.0, 0.2
#: A snapshot also reads uploads that ended up to this long before the last snapshot (seconds),
#: because the date of a change is the beginning of its transaction.
_OVERLAP_SECONDS = 60.0


@dataclass(frozen=True)
class UploadSnapshot:
    """An upload that is being processed or has ended."""

    upload_id: uuid.UUID
    filename: str
    status: str
    error_kind: str | None
    error_message: str | None
    thumbnail_path: str | None

    @property
    def stage(self) -> str:
        """The stage that the upload is in, or the status with which it ended."""
        if self.status == UploadStatus.ANALYZING:
            return "describing" if self.thumbnail_path else "reading"
        return self.status


@dataclass(frozen=True)
class BatchSnapshot:
    """A batch at one moment."""

    progress: BatchProgress
    in_work: list[UploadSnapshot]
    newly_ended: list[UploadSnapshot]
    """Uploads that ended since the last snapshot; each one once, unless it was processed again."""
    paused: Sequence[Pause] = ()
    """Pauses that hold the batch; calls in flight still end."""

    @property
    def has_ended(self) -> bool:
        """Whether the batch has ended."""
        return self.progress.status not in OPEN_BATCH


class Standstill:
    """Measures how long a batch stands still: no upload ends, and none is being processed.

    An attempt that an outage ends does not reset the time. A long call to a slow model does not add
    to it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_at = clock()
        self._seconds = 0.0

    def seconds(self, snapshot: BatchSnapshot) -> float:
        """Add the next snapshot; return the length of the standstill (seconds)."""
        now = self._clock()
        if snapshot.newly_ended:
            self._seconds = 0.0
        elif not snapshot.in_work:
            self._seconds += now - self._looked_at
        self._looked_at = now
        return self._seconds


def watch_batch(database: Database, batch_id: uuid.UUID) -> Iterator[BatchSnapshot]:
    """Yield snapshots until the batch has ended; the last one has `has_ended`.

    Raises:
        NotFoundError: there is no such batch.
        ServiceDownError: the database cannot be reached.
    """
    shown: set[uuid.UUID] = set()
    read_at: float | None = None
    with listening(database, CHANNEL) as listener:
        while True:
            since = None if read_at is None else time.monotonic() - read_at + _OVERLAP_SECONDS
            read_at = time.monotonic()
            snapshot = _read(database, batch_id, shown, since)
            yield snapshot
            if snapshot.has_ended:
                return
            _wait(listener, batch_id)


def _wait(listener: psycopg.Connection, batch_id: uuid.UUID) -> None:
    begin = time.monotonic()
    for message in listener.notifies(timeout=LONGEST_PAUSE):
        if str(batch_id) in message.payload:
            break
    # Messages of a fast batch come faster than anybody can read. They can be skipped, because the
    # next snapshot is read from the tables.
    early = SHORTEST_PAUSE - (time.monotonic() - begin)
    if early > 0:
        for _ in listener.notifies(timeout=early):
            pass


def _read(
    database: Database, batch_id: uuid.UUID, shown: set[uuid.UUID], since_seconds: float | None
) -> BatchSnapshot:
    """Read a snapshot.

    Args:
        database: the database with the batch.
        batch_id: the batch.
        shown: uploads whose end earlier snapshots have shown; this snapshot updates it.
        since_seconds: read only uploads that have ended within this time; None: all. The last
            snapshot reads all, since an upload API may end an upload without a date.
    """
    progress = progress_of(database, batch_id)
    if progress is None:
        raise no_such(Named.BATCH, batch_id)
    has_ended: ColumnElement[bool] = Upload.processing_status.in_(ENDED)
    if since_seconds is not None and progress.status in OPEN_BATCH:
        has_ended = and_(has_ended, Upload.updated_at > func.now() - interval(since_seconds))
    with database.transaction() as connection:
        rows = connection.execute(
            select(
                Upload.id,
                FILENAME,
                Upload.processing_status,
                Upload.error_kind,
                Upload.error_message,
                Upload.thumbnail_path,
            )
            .where(
                Upload.batch_id == batch_id,
                or_(Upload.processing_status.in_(IN_WORK), has_ended),
            )
            .order_by(Upload.updated_at, Upload.id)
        ).all()
        pauses = pauses_of_batches(connection, [batch_id]).get(batch_id, ())
    uploads = [UploadSnapshot(*row) for row in rows]
    in_work = [upload for upload in uploads if upload.status not in ENDED]
    shown.difference_update(upload.upload_id for upload in in_work)
    newly_ended = [
        upload for upload in uploads if upload.status in ENDED and upload.upload_id not in shown
    ]
    shown.update(upload.upload_id for upload in newly_ended)
    return BatchSnapshot(progress, in_work, newly_ended, pauses)
