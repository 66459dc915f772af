"""Dagster's event log on PostgreSQL, which a run worker writes in groups.

As it comes, dagster-postgres writes each event as a row of its own, with a message and up to three
more statements for what is said of assets: more than half of a step's cost is spent there.

Grouped are the events of the runs that this process works, from a run's start to its end. The web
server, the daemon and the code server write few events, each of which somebody waits for: theirs
are written as Dagster does it, and so are those that change a run's status, which sensors find by
the order of their ids. After a failure the log is written at once; and before this process reads
(or writes) anything else of the log, so that it always finds what it has said. Who kills a worker
takes the last moments of its log away (`group_writer.GATHER_SECONDS`), never work.
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
    DagsterEventType.STEP_WORKER_STARTING,  # another process goes on with the log of this step
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

#: An event and its row, made when it is stored: what it refers to may change afterwards.
_Row = tuple[EventLogEntry, dict[str, Any]]


class GroupedEventLogStorage(PostgresEventLogStorage):
    """Dagster's event log, written in groups while this process works a run.

    Args:
        url: the database.
        engine: connects to it, in autocommit.
        grouped: false writes every event as Dagster does.
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
        #: Held by a transaction that writes a group, see `_write_group`.
        self._lock_key = random.getrandbits(62)
        self._first_id = 0
        super().__init__(url, should_autocreate_tables=False)
        self._engine = engine

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event, or have it stored soon.

        Raises:
            Exception: it cannot be stored. Of a grouped event that is noticed later: by the one
                who stores or reads next.
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
        """As Dagster does; what a sensor says of a partition replaces what one said before.

        Dagster inserts that beside it, which its own index refuses: one of a kind per partition.
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
            except exc.IntegrityError:  # another code location says it at the same moment
                if is_last:
                    raise
        return None

    def optimize_for_webserver(
        self, statement_timeout: int, pool_recycle: int, max_overflow: int
    ) -> None:
        """Use a pool of its own, with limited statements; called by Dagster's web server.

        Dagster's would show an error for each connection that a restart of PostgreSQL has cut.
        """
        self._engine = create_engine(
            self.postgres_url,
            isolation_level="AUTOCOMMIT",
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
        """Write what is left, and let go of threads and connections."""
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
        """Connect to read or write anything but a group: all groups are written before."""
        own = getattr(self._of_thread, "connection", None)
        if own is not None:  # Dagster's own code, called below
            return nullcontext(own)
        self._writer.flush()
        connection: AbstractContextManager[Connection] = super()._connect()
        return connection

    def _write_group(self, group: Sequence[_Row], tried: bool) -> None:
        """Write a group in one transaction; called by the writer's thread alone."""
        events = [event for event, _ in group]
        with (
            self._engine.connect().execution_options(
                isolation_level="READ COMMITTED"
            ) as connection,
            connection.begin(),
        ):
            # Waits for the attempt before, if that is still being committed or rolled back.
            connection.execute(_LOCK, {"key": self._lock_key})
            if tried and connection.scalar(_FIND, {"id": self._first_id}):
                return
            # Rows that other runs write, too, are waited for before ids are taken, by all in the
            # same order. Ids are new with each attempt: a reader has gone on from higher ones.
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
            # Kept for whoever listens, as Dagster keeps it; the UI polls.
            for run_id, id_ in {event.run_id: id_ for event, id_ in stored}.items():
                connection.execute(_NOTIFY, {"channel": CHANNEL_NAME, "payload": f"{run_id}_{id_}"})

    def _store_what_assets_show(
        self, connection: Connection, stored: Sequence[tuple[EventLogEntry, int]]
    ) -> None:
        """Bring the tables of assets and checks to where the events would have, one by one."""
        of_assets = [(event, id_) for event, id_ in stored if _asset_key(event)]
        events, ids = [event for event, _ in of_assets], [id_ for _, id_ in of_assets]
        self._store_asset_event_tags(connection, events, ids)
        last = {_part_it_overwrites(event, id_): (event, id_) for event, id_ in stored}
        last.pop((), None)
        # By asset: two workers that make the same ones for the first time wait in the same order.
        for event, id_ in sorted(last.values(), key=lambda one: (_asset_key(one[0]) or "", one[1])):
            if event.dagster_event_type in ASSET_CHECK_EVENTS:
                self.store_asset_check_event(event, id_)
            else:
                self._store_asset_event(connection, event, id_)


def _limit_statements(connection: Any, milliseconds: int) -> None:
    """Set the longest time of a statement, unless a pooler would hand that on to other clients."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [backend] = cursor.fetchone()
    if backend == connection.get_backend_pid():
        set_pg_statement_timeout(connection, milliseconds)


def _part_it_overwrites(event: EventLogEntry, id_: int) -> tuple[Any, ...]:
    """Name what an event writes of those tables; of two with the same name the second one counts.

    Empty if it writes nothing there.
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
    """Tell whether the same statement may succeed later: no connection, no room, a deadlock."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError)
