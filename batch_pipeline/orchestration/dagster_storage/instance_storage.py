"""Dagster's own storage: dagster-postgres on the pipeline's server, in a separate database.

``dagster.yaml`` names this class, so ``dagster dev`` in a fresh clone needs no variables: the URL
comes from the settings, the embedded server is started on demand, and the database is created if it
is missing. Runs, events and schedules share one small pool of connections. By default,
dagster-postgres opens a new connection for every event, which more than doubles the cost of a step
(84 ms instead of 34 ms). `grouped_event_log` describes how events are written, `connection_budget`
how many connections there are in total.

Some instances use plain dagster-postgres (the Helm chart writes its own ``dagster.yaml``). There,
run workers at least keep their connections open: `pool_connections`.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from batch_pipeline.dagster_internals import (
    ConfigurableClassData,
    UserConfigSchema,
    create_pg_engine,
)
from batch_pipeline.database.connection_budget import DAGSTER_POOL
from batch_pipeline.database.names import DAGSTER_DATABASE
from batch_pipeline.database.session import (
    create_database_if_missing,
    pipeline_url,
    with_driver,
)
from batch_pipeline.logs import say_each_line_once
from batch_pipeline.orchestration.dagster_storage.grouped_event_log import GroupedEventLogStorage
from batch_pipeline.orchestration.sensor_rounds import shorten_rounds
from batch_pipeline.settings import Settings, load_settings


class PipelineInstanceStorage(DagsterPostgresStorage):
    """Runs, events and schedules in one database.

    Args:
        url: URL of the database, for psycopg2.
        grouped: whether run workers write events in groups.
        inst_data: what Dagster needs to make the same storage in another process.
    """

    def __init__(
        self, url: str, *, grouped: bool, inst_data: ConfigurableClassData | None = None
    ) -> None:
        _create_tables(url, os.getpid())
        super().__init__(url, should_autocreate_tables=False, inst_data=inst_data)
        engine = _engine(url, os.getpid())
        self._run_storage = _PooledRunStorage(url, engine)
        self._event_log_storage = GroupedEventLogStorage(url, engine, grouped=grouped)
        self._schedule_storage = _PooledScheduleStorage(url, engine)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Return an empty schema: the settings configure the storage."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "PipelineInstanceStorage":
        """Open the storage that the settings name. Dagster calls this."""
        del config_value
        _heed_signals()
        shorten_rounds()  # called here because the daemon creates no other class of ours
        settings = load_settings()
        say_each_line_once(settings)
        url = dagster_storage_url(settings).render_as_string(hide_password=False)
        return cls(url, grouped=settings.group_event_writes, inst_data=inst_data)


def _heed_signals() -> None:
    """Let SIGINT and SIGTERM end the process, if it was started with SIGINT ignored.

    A shell ignores SIGINT for commands that a script runs in the background. Dagster then also
    ignores SIGTERM (`setup_interrupt_handlers`). `dagster dev` stops its child processes by SIGINT,
    but they would inherit that it is ignored, so it would never end. Dagster opens its storage
    after it sets its handlers and before it starts its child processes: this is the right moment.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler)


#: Start of the application name of a daemon's connections. It shows whether two daemons use one
#: database, where they disturb each other.
DAEMON_NAME = "dagster-daemon "


def _application_name() -> str:
    """Return the name that PostgreSQL shows for our connections: part of Dagster, host, process."""
    name = DAEMON_NAME if _is_daemon() else "dagster "
    return f"{name}{socket.gethostname()[:32]} {os.getpid()}"


def _is_daemon() -> bool:
    program = Path(sys.argv[0])
    return program.parent.name == "_daemon" or program.name == DAEMON_NAME.strip()


@cache
def _create_database(server: URL) -> None:
    create_database_if_missing(server, DAGSTER_DATABASE)


#: The tables that Dagster looks for before it creates all of them.
_HAS_TABLES = text("""
    SELECT count(to_regclass(name)) = 4
    FROM unnest(ARRAY['runs', 'instance_info', 'event_logs', 'jobs']) AS name
""")


@cache
def _create_tables(url: str, process_id: int) -> None:
    """Create missing tables, once per process: Dagster opens a storage for each tick of a sensor.

    Dagster takes six connections to look for them, so it looks only if one is missing.
    """
    with suppress(OperationalError), _engine(url, process_id).connect() as connection:
        if connection.scalar(_HAS_TABLES):
            return
    DagsterPostgresStorage(url)  # tries to connect several times


@cache
def _engine(url: str, process_id: int) -> Engine:
    """Return one engine for all instances of a process: a Celery worker opens one for each step.

    Celery workers never close these instances.
    """
    del process_id  # part of the cache key: a forked process must not use its parent's connections
    return create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        use_native_hstore=False,  # else each connection looks for a type that nothing uses
        connect_args={"application_name": _application_name()},
        # The daemon's threads look every second, so it keeps its connections open. Other processes
        # keep one, and close any others after use.
        pool_size=DAGSTER_POOL if _is_daemon() else 1,
        max_overflow=0 if _is_daemon() else DAGSTER_POOL - 1,
        pool_pre_ping=True,  # so that a restart of the server does not make the next event fail
    )


@cache
def _found(url: str) -> set[str]:
    """Return what was found in a database: tables, columns and migrations. These stay."""
    return set()


def _is_there(url: str, name: str, look: Callable[[], bool]) -> bool:
    """Return whether something is in a database; once found, it is not looked for again.

    Dagster would look again for every list of runs, and 13 times a second in a stack that has
    nothing to do.
    """
    found = _found(url)
    if name not in found and look():
        found.add(name)
    return name in found


class _PooledRunStorage(PostgresRunStorage):
    def __init__(self, url: str, engine: Engine) -> None:
        super().__init__(url, should_autocreate_tables=False)
        self._engine = engine

    def has_run_stats_index_cols(self) -> bool:
        return _is_there(self.postgres_url, "runs.start_time", super().has_run_stats_index_cols)

    def optimize_for_webserver(self, *_: int, **__: int) -> None:
        """Keep the pool: Dagster would open another pool of 21 connections."""


class _PooledScheduleStorage(PostgresScheduleStorage):
    def __init__(self, url: str, engine: Engine) -> None:
        super().__init__(url, should_autocreate_tables=False)
        self._engine = engine

    def has_instigators_table(self) -> bool:
        return _is_there(self.postgres_url, "instigators", super().has_instigators_table)

    def _has_instigators_table(self, conn: Connection) -> bool:
        look = partial(super()._has_instigators_table, conn)
        return _is_there(self.postgres_url, "instigators", look)

    def has_built_index(self, migration_name: str) -> bool:
        look = partial(super().has_built_index, migration_name)
        return _is_there(self.postgres_url, f"of schedules: {migration_name}", look)

    def optimize_for_webserver(self, *_: int, **__: int) -> None:
        """Keep the pool: Dagster would open another pool of 21 connections."""


def pool_connections(instance: dg.DagsterInstance) -> None:
    """Keep connections to Dagster's storage open, if it would open one for every event."""
    for storage in (instance.event_log_storage, instance.run_storage):
        if isinstance(storage, PostgresEventLogStorage | PostgresRunStorage) and isinstance(
            storage._engine.pool, NullPool
        ):
            storage._engine = create_pg_engine(
                storage.postgres_url,
                storage._token_provider,
                isolation_level="AUTOCOMMIT",
                pool_size=1,
                max_overflow=DAGSTER_POOL - 1,
                pool_pre_ping=True,
            )


def dagster_storage_url(settings: Settings) -> URL:
    """Return the URL of Dagster's database for its driver psycopg2; create a missing database.

    Raises:
        ConfigurationError: a URL in the settings is not a PostgreSQL URL.
        ServiceDownError: the embedded server did not start.
    """
    if settings.dagster_database_url:
        return with_driver(
            settings.dagster_database_url, "psycopg2", variable="DAGSTER_DATABASE_URL"
        )
    server = pipeline_url(settings)
    _create_database(server)
    return server.set(drivername="postgresql+psycopg2", database=DAGSTER_DATABASE)
