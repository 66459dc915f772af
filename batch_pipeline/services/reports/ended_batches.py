"""Which batches have ended since somebody last looked; each end once, in the order of the ends.

A moment is the beginning of the transaction that ended a batch, and transactions commit in any
order: so what has ended shortly before the newest known end is looked at again, and what was seen
there is remembered by its id. One that could not be reported is put off, and tried again behind
what is new, a few times.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Self

from sqlalchemy import Select, func, select

from batch_pipeline.database.models import OPEN_BATCH, UploadBatch
from batch_pipeline.database.readings import BATCH_ENDED, NAME, interval
from batch_pipeline.database.session import Database
from batch_pipeline.services.short_ids import batch_label

#: Longest that a transaction which ends a batch may wait for a lock, and its end be noticed.
OVERLAP = timedelta(minutes=5)
#: Who has never looked sees what has ended within this time (seconds).
FIRST_LOOK_SECONDS = 86_400

#: Times that a report is tried.
MAX_TRIES = 3


@dataclass(frozen=True)
class EndedBatch:
    """The end of a batch; one that was processed again has another."""

    batch_id: uuid.UUID
    ended_at: datetime
    seen_at: datetime
    """When it was found, on the database's clock."""
    tries: int = 0
    """Times that its report could not be made."""
    name: str | None = None

    @property
    def label(self) -> str:
        """What it is called in a message."""
        return batch_label(self.batch_id, self.name)


@dataclass(frozen=True)
class EndsSeen:
    """What was seen so far; kept as text between two looks."""

    newest: datetime | None = None
    """Newest end that was seen."""
    recent: Mapping[uuid.UUID, datetime] = field(default_factory=dict)
    """Ends within the overlap before it, and those still to come."""
    put_off: Sequence[EndedBatch] = ()
    """Those whose report could not be made, in the order in which they are tried again."""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read what `__str__` wrote; whatever else is there means that nothing was seen."""
        try:
            kept = json.loads(text or "")
            recent = {
                uuid.UUID(key): datetime.fromisoformat(value)
                for key, value in kept["recent"].items()
            }
            newest = datetime.fromisoformat(kept["newest"])
            put_off = [
                EndedBatch(
                    uuid.UUID(key), datetime.fromisoformat(ended_at), newest, int(tries), *name
                )
                for key, ended_at, tries, *name in kept.get("put_off", [])
            ]
            return cls(newest, recent, put_off)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def __str__(self) -> str:
        """Write it as text."""
        recent = {str(key): moment.isoformat() for key, moment in self.recent.items()}
        put_off = [(str(b.batch_id), b.ended_at.isoformat(), b.tries, b.name) for b in self.put_off]
        newest = self.newest.isoformat() if self.newest else None
        return json.dumps(
            {"newest": newest, "recent": recent} | ({"put_off": put_off} if put_off else {})
        )

    def due_again(self, ended: Sequence[EndedBatch], *, limit: int) -> list[EndedBatch]:
        """Those put off that are to be tried now, less those that have just ended once more."""
        anew = {batch.batch_id for batch in ended}
        return [batch for batch in self.put_off if batch.batch_id not in anew][:limit]

    def and_(self, ended: Sequence[EndedBatch], *, failed: Sequence[EndedBatch] = ()) -> Self:
        """The same with more ends seen, some of which could not be reported and are put off.

        Forgets those that no look can find again, and those that were tried often enough.
        """
        recent = dict(self.recent) | {batch.batch_id: batch.ended_at for batch in ended}
        # An end still to come, by the clock of whoever wrote it, hides none that comes before it.
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


def newly_ended(database: Database, seen: EndsSeen, *, limit: int) -> list[EndedBatch]:
    """List batches that have ended and were not seen yet, oldest end first."""
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
