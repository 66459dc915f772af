"""Slices for which a sensor has just requested a run, shared by the sensors of all code locations.

Until Dagster has recorded a requested run, other sensors cannot see it. So a sensor records its
request here, and only one sensor looks for work at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from batch_pipeline.database.models import AskedSlice
from batch_pipeline.database.readings import interval
from batch_pipeline.database.session import Database

#: After this time Dagster has recorded the run, or its daemon has died (seconds).
ASKED_SECONDS = 10.0
#: A sensor that hangs for this time loses the lock (seconds). It is longer than a tick may take.
#: Without this limit, a host that lost its network would hold the lock until the server notices
#: that, after hours.
STANDSTILL_SECONDS = 90
#: Key of the advisory lock; any unused constant.
_LOCK = 7_305_100_622


class AskedSlices:
    """The list of requested slices, locked against other sensors."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def recent(self) -> set[str]:
        """Return the keys of slices for which a sensor has just requested a run."""
        recent = AskedSlice.asked_at > func.clock_timestamp() - interval(ASKED_SECONDS)
        return set(self._connection.scalars(select(AskedSlice.key).where(recent)))

    def note(self, keys: Iterable[str]) -> None:
        """Record requests for the next sensor."""
        # Not `now()`, which is the beginning of the transaction: the sensor may have looked for
        # work for longer than `ASKED_SECONDS` since then.
        now = func.clock_timestamp()
        old = AskedSlice.asked_at < now - interval(ASKED_SECONDS)
        self._connection.execute(delete(AskedSlice).where(old))
        if rows := [{"key": key} for key in keys]:
            asked = insert(AskedSlice).values(asked_at=now).on_conflict_do_nothing()
            self._connection.execute(asked, rows)


@contextmanager
def one_sensor_at_a_time(database: Database) -> Iterator[AskedSlices]:
    """Wait until no other sensor looks for work; requests are stored when the block ends."""
    with database.transaction() as connection:
        limit = f"SET LOCAL idle_in_transaction_session_timeout = '{STANDSTILL_SECONDS}s'"
        connection.execute(text(limit))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield AskedSlices(connection)
