"""Dagster's event log on PostgreSQL; a run worker writes it in groups.

By default, dagster-postgres writes each event as a separate row, with a notification and up to
three more statements about assets. That is more than half of the cost of a step.

This process groups the events of its own runs, from the start of a run to its end. The web server,
the daemon and the code server write few events, and something waits for each of them. Their events
are written in Dagster's way. So are events that change the status of a run, because sensors find
them by the order of their ids. Waiting events are written at once after a failure. They are also
written before this process reads or writes anything else in the log, so that it always finds its
own events. When a worker is killed, the last moments of its log are lost
(`group_writer.GATHER_SECONDS`), but no work.
"""

import logging
import random
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dagster import DagsterEventType, EventLogEntry
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import Connection, Engine, create_engine, exc, text
from sqlalchemy.event import listen

from batch_pipeline.dagster_internals import (
    ASSET_CHECK_EVENTS,
    ASSET_EVENTS,
    CHANNEL_NAME,
    EVENT_TYPE_TO_PIPELINE_RUN_STATUS,
    SqlEventLogStorageTable,
    set_pg_statement_timeout,
)
from batch_pipeline.database.connection_budget import WEB_SERVER_POOL
from batch_pipeline.orchestration.dagster_storage.group_writer import PATIENCE_SECONDS, GroupWriter

_BEGIN = {DagsterEventType.RUN_START, DagsterEventType.RUN_RESUMED}
_END = {
    DagsterEventType.RUN_SUCCESS,
    DagsterEventType.RUN_FAILURE,
    DagsterEventType.RUN_CANCELED,
}
_AT_ONCE = {
    DagsterEventType.STEP_WORKER_STARTING,  # another process continues the log of this step
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.STEP_UP_FOR_RETRY,
    DagsterEventType.RESOURCE_INIT_FAILURE,
    DagsterEventType.HOOK_ERRORED,
}

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_FIND = text("SELECT true FROM event_logs WHERE id = :id")
_LOCK_ASSETS = text(
    "SELECT FROM asset_keys WHERE asset_key = ANY(:keys) ORDER BY asset_key FOR UPDATE"
)
_IDS = text(
    "SELECT nextval(pg_get_serial_sequence('event_logs', 'id')) FROM generate_series(1, :count)"
)
_FORGET_CHECK = text(
    "DELETE FROM asset_check_executions WHERE run_id = '' AND asset_key = :asset_key "
    "AND check_name = :check_name AND partition = :partition"
)
_NOTIFY = text("SELECT pg_notify(:channel, :payload)")

#: An event and its row. The row is made at once, because objects of the event may change later.
_Row = tuple[EventLogEntry, dict[str, Any]]


class GroupedEventLogStorage(PostgresEventLogStorage):
    """Dagster's event log, written in groups while this process executes a run.

    Args:
        url: URL of the database.
        engine: connects to it, in autocommit.
        grouped: false: every event is written in Dagster's way.
        patience: how long an outage of the database may hold up a step (seconds).
    """

    def __init__(
        self,
        url: str,
        engine: Engine,
        *,
        grouped: bool = True,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._grouped = grouped
        self._writer = GroupWriter(self._write_group, _is_outage, patience=patience)
        self._runs_at_work: set[str] = set()
        self._of_thread = threading.local()
        #: Key of the lock that a transaction holds while it writes a group, see `_write_group`.
        self._lock_key = random.getrandbits(62)
        #: Id of the first row in the last attempt to write a group; 0: it has none yet.
        self._first_id = 0
        super().__init__(url, should_autocreate_tables=False)
        self._engine = engine

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event now, or hand it to the background thread that stores it soon.

        Raises:
            Exception: the event cannot be stored. For a grouped event, a later call that stores or
                reads raises the error.
        """
        kind = event.dagster_event_type if event.is_dagster_event else None
        if kind in EVENT_TYPE_TO_PIPELINE_RUN_STATUS:
            super().store_event(event)
            self._note_status(event.run_id, kind)
        elif event.run_id not in self._runs_at_work:
            super().store_event(event)
        else:
            self._writer.put((event, self._event_to_row(event)))
            if kind in _AT_ONCE or int(event.level) >= logging.ERROR:
                self._writer.flush()

    def store_asset_check_event(self, event: EventLogEntry, event_id: int | None) -> None:
        """Store a check in Dagster's way, but a sensor's check replaces the last of its partition.

        Dagster would insert a second row for the partition, which its own unique index refuses.
        """
        said: Any = event.get_dagster_event().event_specific_data
        if event.run_id or getattr(said, "partition", None) is None:
            return super().store_asset_check_event(event, event_id)
        names = {
            "asset_key": said.asset_key.to_string(),
            "check_name": said.check_name,
            "partition": said.partition,
        }
        for is_last in (False, True):
            with self.index_connection() as connection:
                connection.execute(_FORGET_CHECK, names)
            try:
                return super().store_asset_check_event(event, event_id)
            except exc.IntegrityError:  # another code location stores one at the same moment
                if is_last:
                    raise
        return None

    def optimize_for_webserver(
        self, statement_timeout: int, pool_recycle: int, max_overflow: int
    ) -> None:
        """Use a separate pool, with a time limit on statements. Dagster's web server calls this.

        Dagster's own pool would show an error for each connection that a restart of PostgreSQL cut.
        """
        self._engine = create_engine(
            self.postgres_url,
            isolation_level="AUTOCOMMIT",
            use_native_hstore=False,
            pool_size=1,
            max_overflow=min(max_overflow, WEB_SERVER_POOL - 1),
            pool_recycle=pool_recycle,
            pool_pre_ping=True,
        )
        listen(
            self._engine,
            "connect",
            lambda connection, _: _limit_statements(connection, statement_timeout),
        )

    def dispose(self) -> None:
        """Write the remaining events, end the thread and close the connections."""
        self._writer.stop()
        super().dispose()
        self._engine.dispose()

    def _note_status(self, run_id: str, kind: DagsterEventType | None) -> None:
        if kind in _BEGIN and self._grouped:
            self._runs_at_work.add(run_id)
        elif kind in _END:
            self._runs_at_work.discard(run_id)
            if not self._runs_at_work:
                self._writer.stop()

    def _connect(self) -> AbstractContextManager[Connection]:
        """Connect to read or write anything but a group, after all waiting groups are written."""
        own = getattr(self._of_thread, "connection", None)
        if own is not None:  # called by Dagster's code inside `_write_group`
            return nullcontext(own)
        self._writer.flush()
        connection: AbstractContextManager[Connection] = super()._connect()
        return connection

    def _write_group(self, group: Sequence[_Row], tried: bool) -> None:
        """Write a group in one transaction. Only the writer's thread calls this."""
        events = [event for event, _ in group]
        if not tried:
            self._first_id = 0  # forgets the last group
        with (
            self._engine.connect().execution_options(
                isolation_level="READ COMMITTED"
            ) as connection,
            connection.begin(),
        ):
            # This waits for the previous attempt, if the server still commits or rolls it back.
            connection.execute(_LOCK, {"key": self._lock_key})
            if tried and connection.scalar(_FIND, {"id": self._first_id}):
                return
            # Rows that other runs also write are locked before ids are taken, always in the same
            # order. Each attempt takes new ids, because readers may already be past the old ones.
            keys = {key for event in events if (key := _asset_key(event))}
            connection.execute(_LOCK_ASSETS, {"keys": list(keys)})
            ids = connection.scalars(_IDS, {"count": len(group)}).all()
            self._first_id = ids[0]
            connection.execute(
                SqlEventLogStorageTable.insert(),
                [{"id": id_, **row} for id_, (_, row) in zip(ids, group, strict=True)],
            )
            stored = list(zip(events, ids, strict=True))
            self._of_thread.connection = connection
            try:
                self._store_what_assets_show(connection, stored)
            finally:
                self._of_thread.connection = None
            # Dagster notifies listeners, so we do the same. The UI does not listen, it polls.
            for run_id, id_ in {event.run_id: id_ for event, id_ in stored}.items():
                connection.execute(_NOTIFY, {"channel": CHANNEL_NAME, "payload": f"{run_id}_{id_}"})

    def _store_what_assets_show(
        self, connection: Connection, stored: Sequence[tuple[EventLogEntry, int]]
    ) -> None:
        """Update the tables of assets and checks as the events would have done one by one."""
        of_assets = [(event, id_) for event, id_ in stored if _asset_key(event)]
        events, ids = [event for event, _ in of_assets], [id_ for _, id_ in of_assets]
        self._store_asset_event_tags(connection, events, ids)
        last = {_part_it_overwrites(event, id_): (event, id_) for event, id_ in stored}
        last.pop((), None)
        # Sorted by asset, so that two workers that insert the same new assets lock in one order.
        for event, id_ in sorted(last.values(), key=lambda one: (_asset_key(one[0]) or "", one[1])):
            if event.dagster_event_type in ASSET_CHECK_EVENTS:
                self.store_asset_check_event(event, id_)
            else:
                self._store_asset_event(connection, event, id_)


def _limit_statements(connection: Any, milliseconds: int) -> None:
    """Limit the time of statements, unless a pooler would pass this setting on to other clients."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [backend] = cursor.fetchone()
    if backend == connection.get_backend_pid():
        set_pg_statement_timeout(connection, milliseconds)


def _part_it_overwrites(event: EventLogEntry, id_: int) -> tuple[Any, ...]:
    """Return a key for what an event writes in these tables. The last event with a key counts.

    The key is empty if the event writes nothing there.
    """
    kind = event.dagster_event_type if event.is_dagster_event else None
    if kind is DagsterEventType.ASSET_CHECK_EVALUATION:
        check: Any = event.get_dagster_event().event_specific_data
        return kind, check.asset_check_key, check.partition, event.run_id
    if kind in ASSET_CHECK_EVENTS:
        return kind, id_
    key = _asset_key(event)
    return (kind, key) if key else ()


def _asset_key(event: EventLogEntry) -> str | None:
    if not event.is_dagster_event or event.dagster_event_type not in ASSET_EVENTS:
        return None
    key = event.get_dagster_event().asset_key
    return key.to_string() if key else None


def _is_outage(error: Exception) -> bool:
    """Return whether the same statement may succeed later: no connection, no space, a deadlock."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError)
