"""Which batches have ended since somebody last looked; each end once, in the order of the ends.

A moment is the beginning of the transaction that ended a batch, and transactions commit in any
order: so what has ended shortly before the newest known end is looked at again, and what was seen
there is remembered by its id.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from sqlalchemy import func, select

from batch_pipeline.database.models import OPEN_BATCH, UploadBatch
from batch_pipeline.database.readings import BATCH_ENDED, interval
from batch_pipeline.database.session import Database

#: Longest that a transaction which ends a batch may wait for a lock, and its end be noticed.
OVERLAP = timedelta(minutes=5)
#: Who has never looked sees what has ended within this time (seconds).
FIRST_LOOK_SECONDS = 86_400


@dataclass(frozen=True)
class EndedBatch:
    """The end of a batch; one that was worked again has another."""

    batch_id: uuid.UUID
    ended_at: datetime


@dataclass(frozen=True)
class EndsSeen:
    """What was seen so far; kept as text between two looks."""

    newest: datetime | None = None
    """Newest end that was seen."""
    recent: Mapping[uuid.UUID, datetime] = field(default_factory=dict)
    """Ends within the overlap before it."""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read what `__str__` wrote; whatever else is there means that nothing was seen."""
        try:
            kept = json.loads(text or "")
            recent = {
                uuid.UUID(key): datetime.fromisoformat(value)
                for key, value in kept["recent"].items()
            }
            return cls(datetime.fromisoformat(kept["newest"]), recent)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def __str__(self) -> str:
        """Write it as text."""
        recent = {str(key): moment.isoformat() for key, moment in self.recent.items()}
        return json.dumps(
            {"newest": self.newest.isoformat() if self.newest else None, "recent": recent}
        )

    def and_(self, ended: Sequence[EndedBatch]) -> Self:
        """The same with more ends seen; forgets those that no look can find again."""
        recent = dict(self.recent) | {batch.batch_id: batch.ended_at for batch in ended}
        newest = max([*([self.newest] if self.newest else []), *recent.values()], default=None)
        if newest is None:
            return type(self)()
        kept = {key: moment for key, moment in recent.items() if moment > newest - OVERLAP}
        return type(self)(newest, kept)


def newly_ended(database: Database, seen: EndsSeen, *, limit: int) -> list[EndedBatch]:
    """List batches that have ended and were not seen yet, oldest end first."""
    since = seen.newest - OVERLAP if seen.newest else func.now() - interval(FIRST_LOOK_SECONDS)
    with database.transaction() as connection:
        rows = connection.execute(
            select(UploadBatch.id, BATCH_ENDED)
            .where(UploadBatch.status.not_in(OPEN_BATCH), since < BATCH_ENDED)
            .order_by(BATCH_ENDED, UploadBatch.id)
            .limit(len(seen.recent) + limit)
        ).all()
    ended = (EndedBatch(batch_id, ended_at) for batch_id, ended_at in rows)
    return [batch for batch in ended if seen.recent.get(batch.batch_id) != batch.ended_at][:limit]
