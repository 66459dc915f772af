"""Sensors of several code locations take turns: none asks for a slice that another has asked for.

Between the moment in which a sensor asks for a run and that in which Dagster has recorded it,
nobody else would know of it. So who asks leaves a note, and only one looks at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from batch_pipeline.database.models import AskedSlice
from batch_pipeline.database.session import Database
from batch_pipeline.services.states.transitions import interval

#: Dagster has recorded a run by then, or its daemon has died before (seconds).
ASKED_SECONDS = 10.0
#: Any constant that nobody else uses.
_LOCK = 7_305_100_622


class Turn:
    """A look at what waits, while nobody else looks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def asked(self) -> set[str]:
        """Keys of the slices that somebody has asked for a moment ago."""
        recent = AskedSlice.asked_at > func.now() - interval(ASKED_SECONDS)
        return set(self._connection.scalars(select(AskedSlice.key).where(recent)))

    def ask(self, keys: Iterable[str]) -> None:
        """Leave a note for whoever looks next."""
        old = AskedSlice.asked_at < func.now() - interval(ASKED_SECONDS)
        self._connection.execute(delete(AskedSlice).where(old))
        rows = [{"key": key} for key in keys]
        self._connection.execute(insert(AskedSlice).on_conflict_do_nothing(), rows)


@contextmanager
def turn_to_look(database: Database) -> Iterator[Turn]:
    """Wait until nobody else looks; what was noted counts when this ends."""
    with database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield Turn(connection)
