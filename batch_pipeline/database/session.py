"""Connections to the pipeline's database, and what their errors mean.

`open_database` opens it for all ordinary work. It starts the embedded server if no URL is set, and
updates the tables of an embedded server by itself. Tables of an external server are updated only by
``batch-pipeline db upgrade``.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, cast

import psycopg
from sqlalchemy import Connection, Row, create_engine, event, func, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    InvalidatePoolError,
    OperationalError,
    ProgrammingError,
)

from batch_pipeline.database import connection_budget
from batch_pipeline.database.connection_setup import set_up
from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.database.existing_tables import (
    letter_problems,
    require_all_columns,
    require_usable_tables,
)
from batch_pipeline.database.failures import (
    LOCK_NOT_AVAILABLE,
    READ_ONLY,
    failures_named,
    repeated,
    sqlstate,
)
from batch_pipeline.database.lock_waits import LOCK_MILLISECONDS, lock_waits_are_short
from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.database.revisions import apply_migrations, current_revision, newest_revision
from batch_pipeline.database.triggers import create as create_triggers
from batch_pipeline.errors import ConfigurationError, ServiceDownError
from batch_pipeline.settings import Settings

#: Key of the lock that lets one process at a time migrate; any constant without another use.
MIGRATION_LOCK = 7_305_100_621

#: A connection that was used within this time (seconds) is not checked before it is used again.
_FRESH_SECONDS = 1.0

#: Longest wait of a migration for a lock on a table that others use.
_LOCK_TIMEOUT = "5s"

#: Another process has created the same database: some time ago, or at the same moment.
_IS_THERE = ("42P04", "23505")

log = logging.getLogger(__name__)

#: A row whose columns the type checker does not know.
AnyRow = Row[*tuple[Any, ...]]


class Database:
    """A pool of connections to the pipeline's tables; thread-safe."""

    def __init__(self, url: URL, *, pool_size: int = 5) -> None:
        self.url = url
        self.engine = create_engine(
            url,
            pool_size=pool_size,
            use_native_hstore=False,  # else it looks for a type that nothing uses: 5 ms
            max_overflow=0,  # counted in `connection_budget`
            isolation_level="READ COMMITTED",  # role or database may have another default
            connect_args={
                "application_name": "batch_pipeline",
                "connect_timeout": 10,
                "client_encoding": "UTF8",
            },
        )
        self._lost_one_at = 0.0
        self._set_up_connections()
        self._ping_after_a_rest()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction. It is committed at the end, and rolled back by an exception.

        Raises:
            ServiceDownError: the server cannot be reached or serves nobody now. It is a
                `ConflictError` if the same transaction may succeed at once.
            LockedError: in `short_lock_waits`, another transaction has locked a row.
        """
        with failures_named(), self.engine.begin() as connection:
            if lock_waits_are_short():
                connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}"))
            yield connection

    @repeated
    def execute(self, statement: LoneStatement, parameters: Mapping[str, Any]) -> AnyRow | None:
        """Execute a statement as one transaction, in one round trip.

        Raises:
            ServiceDownError: the server cannot be reached or serves nobody now.
        """
        with failures_named():
            pooled = self.engine.raw_connection()
            try:
                connection = cast("psycopg.Connection[Any]", pooled.driver_connection)
                connection.autocommit = True
                row: AnyRow | None = statement.execute(connection, parameters)
                connection.autocommit = False
            except BaseException:
                self._lost_one_at = time.monotonic()
                pooled.invalidate()
                raise
            pooled.close()
        return row

    def now(self) -> datetime:
        """Return the time of the database's clock, which all hosts share.

        Raises:
            ServiceDownError: the server cannot be reached or serves nobody now.
        """
        with self.transaction() as connection:
            moment: datetime = connection.execute(select(func.now())).scalar_one()
        return moment

    def upgrade(self) -> list[str]:
        """Apply migrations to the tables. Several processes may do this at the same time.

        Returns:
            The triggers that were missing although all migrations were applied, by name. They were
            created again.

        Raises:
            ConfigurationError: the server or the existing tables cannot be used as they are. Then
                nothing was changed, and the message has the statements that fix this. Or the
                migrations were applied to tables of another schema.
            ServiceDownError: other transactions use the tables. The next upgrade continues.
        """
        with self.transaction() as connection:
            require_usable_tables(connection)
        # Not in a transaction: each migration opens its own, and may end it to build an index.
        with failures_named(), self._migration_lock(), self.engine.connect() as connection:
            event.listen(connection, "begin", _limit_waits)
            try:
                apply_migrations(connection)
                require_all_columns(connection)
                created = create_triggers(connection, connection.commit)
            except OperationalError as error:
                if sqlstate(error) != LOCK_NOT_AVAILABLE:
                    raise
                raise ServiceDownError(
                    "database_down",
                    "the tables cannot be changed while other transactions use them: wait for "
                    "those, or end them (pg_stat_activity lists them), then run `batch-pipeline "
                    f"db upgrade` again; it continues where it stopped ({error.orig})",
                ) from error
        with self.transaction() as connection:
            for problem in letter_problems(connection):
                log.warning("%s", problem)
        return created

    def revisions(self) -> tuple[str | None, str | None]:
        """Return the current migration of the tables, and the newest migration."""
        with self.transaction() as connection:
            return current_revision(connection), newest_revision()

    def close(self) -> None:
        """Close all idle connections."""
        self.engine.dispose()

    def _set_up_connections(self) -> None:
        @event.listens_for(self.engine, "connect")
        def prepare(connection: Any, _: Any) -> None:
            set_up(connection)

        @event.listens_for(self.engine, "handle_error")
        def let_go(context: Any) -> None:
            # After a failover the host name leads to another server, but only for new connections.
            if sqlstate(context.original_exception) == READ_ONLY:
                context.is_disconnect = True

    def _ping_after_a_rest(self) -> None:
        """Check idle connections before use, so that a restart of the server is not an outage.

        SQLAlchemy's own ``pool_pre_ping`` checks every time, one more round trip per transaction.
        """
        dialect = self.engine.dialect

        @event.listens_for(self.engine, "checkin")
        def note_use(_: Any, record: Any) -> None:
            record.info["used_at"] = time.monotonic()

        @event.listens_for(self.engine, "checkout")
        def ping(connection: Any, record: Any, _: Any) -> None:
            used_at = record.info.get("used_at")
            if used_at is None or used_at > max(
                time.monotonic() - _FRESH_SECONDS, self._lost_one_at
            ):
                return
            try:
                dialect.do_ping(connection)
            except dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error  # the pool makes new connections

    @contextmanager
    def _migration_lock(self) -> Iterator[None]:
        # The lock is polled, because CREATE INDEX CONCURRENTLY waits for every statement that began
        # before it, and for one that waits for this lock. The lock belongs to a transaction, not a
        # session, because behind a pooler the session may belong to another client a moment later.
        # The statement has no parameters: with parameters it would keep its snapshot, and CREATE
        # INDEX CONCURRENTLY would wait for that, too.
        lock = text(f"SELECT pg_try_advisory_xact_lock({MIGRATION_LOCK})")
        with self.engine.connect() as holder:
            while not holder.scalar(lock):
                holder.rollback()
                time.sleep(0.1)
            yield


def _limit_waits(connection: Connection) -> None:
    """Let a migration give up soon if it gets no lock: other programs wait behind it.

    Indexes are built outside a transaction, where this has no effect: they may wait.
    """
    connection.exec_driver_sql(f"SELECT set_config('lock_timeout', '{_LOCK_TIMEOUT}', true)")


def open_database(settings: Settings) -> Database:
    """Connect to the database in the settings, and check its tables.

    Raises:
        ConfigurationError: the URL is not a PostgreSQL URL, the tables are missing or old, or the
            server accepts too few connections.
        ServiceDownError: the server cannot be reached.
    """
    url = pipeline_url(settings)
    limit = connection_budget.connection_limit(url)
    database = Database(url, pool_size=connection_budget.pool_size(settings, limit))
    try:
        current, newest = database.revisions()
        if current != newest and settings.database_url:
            raise ConfigurationError(
                f"the tables at {database.url.render_as_string()} are at revision "
                f"{current or 'none'}, this version needs {newest}: run `batch-pipeline db upgrade`"
            )
        if current != newest:
            database.upgrade()
    except BaseException:
        database.close()
        raise
    return database


def connect(settings: Settings) -> Database:
    """Connect without checking the tables; for ``db upgrade``, ``doctor`` and backups."""
    return Database(pipeline_url(settings))


def pipeline_url(settings: Settings) -> URL:
    """Return the URL of the pipeline's tables for psycopg 3; start an embedded server if needed."""
    if settings.database_url:
        return with_driver(settings.database_url, "psycopg", variable="DATABASE_URL")
    return with_driver(embedded_server_url(settings.home), "psycopg", variable="HOME")


def with_driver(url: str, driver: str, *, variable: str) -> URL:
    """Read any form of a ``postgresql://`` URL and replace its driver.

    Raises:
        ConfigurationError: the URL is not a PostgreSQL URL.
    """
    expected = "expected postgresql://user:password@host:port/database"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        raise ConfigurationError(f"BATCH_PIPELINE_{variable} is not a URL: {expected}") from error
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise ConfigurationError(
            f"BATCH_PIPELINE_{variable} names {parsed.get_backend_name()!r}: {expected}"
        )
    return parsed.set(drivername=f"postgresql+{driver}")


def create_database_if_missing(server: URL, name: str) -> None:
    """Create a database on a server, unless it exists. Several processes may do so at once.

    Raises:
        ConfigurationError: the role may not create one.
        ServiceDownError: the server cannot be reached.
    """
    engine = create_engine(server.set(drivername="postgresql+psycopg"))
    # Not template1: its encoding may not have every character.
    create = text(f"CREATE DATABASE \"{name}\" ENCODING 'UTF8' TEMPLATE template0")
    try:
        with (
            failures_named(),
            engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            found = text("SELECT 1 FROM pg_database WHERE datname = :name")
            if not connection.scalar(found, {"name": name}):
                connection.execute(create)
    except (ProgrammingError, IntegrityError) as error:
        if sqlstate(error) not in _IS_THERE:
            raise
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; or create the database {name!r} for it") from error
    finally:
        engine.dispose()
