"""Slices that a sensor has just asked a run for; sensors of several code locations share the list.

Between the moment in which a sensor asks for a run and that in which Dagster has recorded it,
nobody else would know of it. So a sensor that asks leaves a note, and only one looks at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from batch_pipeline.database.models import AskedSlice
from batch_pipeline.database.readings import interval
from batch_pipeline.database.session import Database

#: Dagster has recorded a run by then, or its daemon has died before (seconds).
ASKED_SECONDS = 10.0
#: Any constant that nobody else uses.
_LOCK = 7_305_100_622


class AskedSlices:
    """The list, while no other sensor looks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def recent(self) -> set[str]:
        """Keys of the slices that a sensor has asked for a moment ago."""
        recent = AskedSlice.asked_at > func.now() - interval(ASKED_SECONDS)
        return set(self._connection.scalars(select(AskedSlice.key).where(recent)))

    def note(self, keys: Iterable[str]) -> None:
        """Leave a note for the sensor that looks next."""
        old = AskedSlice.asked_at < func.now() - interval(ASKED_SECONDS)
        self._connection.execute(delete(AskedSlice).where(old))
        if rows := [{"key": key} for key in keys]:
            self._connection.execute(insert(AskedSlice).on_conflict_do_nothing(), rows)


@contextmanager
def one_sensor_at_a_time(database: Database) -> Iterator[AskedSlices]:
    """Wait until no other sensor looks; what was noted counts when this ends."""
    with database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield AskedSlices(connection)
