"""Finds the batches that have ended since the last look; each end once, in the order of the ends.

The time of an end is the beginning of the transaction that ended the batch. Transactions commit in
any order, so an older end can become visible later. So each look starts a little before the newest
known end, and the ids of the ends in that period are remembered. A batch that could not be reported
is put off and retried a few times, after new ones.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from sqlalchemy import Select, func, select

from batch_pipeline.database.models import OPEN_BATCH, UploadBatch
from batch_pipeline.database.readings import BATCH_ENDED, NAME, interval
from batch_pipeline.database.session import Database
from batch_pipeline.services.short_ids import batch_label

#: How far each look goes back before the newest known end. An end is missed if its transaction
#: waits longer than this for a lock.
OVERLAP = timedelta(minutes=5)
#: The first look finds batches that ended within this time (seconds).
FIRST_LOOK_SECONDS = 86_400

#: Maximum number of tries for a report.
MAX_TRIES = 3


@dataclass(frozen=True)
class EndedBatch:
    """The end of a batch; a batch that was processed again has a new end."""

    batch_id: uuid.UUID
    ended_at: datetime
    seen_at: datetime
    """When it was found, by the database's clock."""
    tries: int = 0
    """Number of failed tries of its report."""
    name: str | None = None

    @property
    def label(self) -> str:
        """Its name in a message."""
        return batch_label(self.batch_id, self.name)


@dataclass(frozen=True)
class EndsSeen:
    """The ends that were seen so far; stored as text between two looks."""

    newest: datetime | None = None
    """Newest end that was seen."""
    recent: Mapping[uuid.UUID, datetime] = field(default_factory=dict)
    """Ends within the overlap before the newest one, and ends with a time in the future."""
    put_off: Sequence[EndedBatch] = ()
    """Batches whose report could not be made, in the order of their retries."""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read what `__str__` wrote; any other text means that nothing was seen."""
        try:
            kept = json.loads(text or "")
            recent = {uuid.UUID(key): _moment(value) for key, value in kept["recent"].items()}
            newest = _moment(kept["newest"])
            put_off = [
                EndedBatch(uuid.UUID(key), _moment(ended_at), newest, int(tries), *name)
                for key, ended_at, tries, *name in kept.get("put_off", [])
            ]
            return cls(newest, recent, put_off)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def __str__(self) -> str:
        """Return the ends as JSON text."""
        recent = {str(key): moment.isoformat() for key, moment in self.recent.items()}
        put_off = [(str(b.batch_id), b.ended_at.isoformat(), b.tries, b.name) for b in self.put_off]
        newest = self.newest.isoformat() if self.newest else None
        return json.dumps(
            {"newest": newest, "recent": recent} | ({"put_off": put_off} if put_off else {})
        )

    def due_again(self, ended: Sequence[EndedBatch], *, limit: int) -> list[EndedBatch]:
        """Return the batches to retry now, without those that have just ended again."""
        anew = {batch.batch_id for batch in ended}
        return [batch for batch in self.put_off if batch.batch_id not in anew][:limit]

    def and_(self, ended: Sequence[EndedBatch], *, failed: Sequence[EndedBatch] = ()) -> Self:
        """Return a copy with more ends; `failed` are those whose report failed, and are put off.

        Ends that no look can find again are removed, and so are batches that were tried
        `MAX_TRIES` times.
        """
        recent = dict(self.recent) | {batch.batch_id: batch.ended_at for batch in ended}
        # The clock of the writer may be ahead. An end in the future must not hide earlier ones.
        looked = [min(batch.ended_at, batch.seen_at) for batch in ended]
        newest = max([*([self.newest] if self.newest else []), *looked], default=None)
        if newest is None:
            return type(self)()
        kept = {key: moment for key, moment in recent.items() if moment > newest - OVERLAP}
        tried = {batch.batch_id for batch in ended}
        untried = [batch for batch in self.put_off if batch.batch_id not in tried]
        again = [replace(batch, tries=batch.tries + 1) for batch in failed]
        put_off = [*untried, *(batch for batch in again if batch.tries < MAX_TRIES)]
        return type(self)(newest, kept, put_off)


def _moment(text: str) -> datetime:
    """Read a moment; a person who edits the cursor may leave out the time zone."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def newly_ended(database: Database, seen: EndsSeen, *, limit: int) -> list[EndedBatch]:
    """List ended batches that were not seen yet, oldest end first."""
    since = seen.newest - OVERLAP if seen.newest else func.now() - interval(FIRST_LOOK_SECONDS)
    ended: Select[uuid.UUID, datetime, datetime, str | None] = (
        select(UploadBatch.id, BATCH_ENDED, func.now(), NAME)
        .where(UploadBatch.status.not_in(OPEN_BATCH), since < BATCH_ENDED)
        .order_by(BATCH_ENDED, UploadBatch.id)
        .limit(len(seen.recent) + limit)
    )
    with database.transaction() as connection:
        found = [
            EndedBatch(batch_id, ended_at, seen_at, name=name)
            for batch_id, ended_at, seen_at, name in connection.execute(ended)
        ]
    return [batch for batch in found if seen.recent.get(batch.batch_id) != batch.ended_at][:limit]
