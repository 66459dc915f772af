"""Sets up all our connections, so that defaults of a server, a role or a pooler do not matter.

No setting is a startup parameter, because PgBouncer refuses those that it does not know. Time zone,
DateStyle and client encoding are set by statements; PgBouncer keeps them when it changes the server
connection. Behind a pooler (`is_pooled`), nothing else that belongs to a session is used: no
prepared statements, no ``LISTEN``, no session advisory locks, no other settings.
"""

from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.types.datetime import TimestampLoader, TimestamptzLoader

from batch_pipeline.errors import ConfigurationError

#: Values for moments before the year 1 and after 9999, including ``infinity``.
EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

_SET = """
    SELECT pg_backend_pid(), set_config('TimeZone', 'UTC', false),
        set_config('DateStyle', 'ISO, MDY', false), set_config('client_encoding', 'UTF8', false)
"""
#: Limits that role, database or server may set. They would end our long statements: building an
#: index of millions of rows, waiting for a lock of an upload API.
_LIMITS = (
    "statement_timeout",
    "lock_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
)
_TIME_LIMITS = f"name IN {_LIMITS} AND setting <> '0'"  # Python writes the names like SQL
#: Whether there is such a limit. Reading ``pg_settings`` would take 5 ms for each connection.
_LIMITED = " OR ".join(f"current_setting('{name}', true) <> '0'" for name in _LIMITS)
_SET_UNPOOLED = f"""
    SELECT {_LIMITED}, set_config('IntervalStyle', 'postgres', false),
        set_config('default_transaction_isolation', 'read committed', false)
"""


def set_up(connection: psycopg.Connection[Any]) -> None:
    """Set up a new connection, which is in no transaction before and after this.

    Raises:
        ConfigurationError: the database cannot hold every character.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        name = connection.info.dbname
        connection.close()
        raise ConfigurationError(
            f"the encoding of the database {name!r} is {encoding}; descriptions and file names "
            f"need UTF8. Make a new database, CREATE DATABASE {name}_utf8 ENCODING 'UTF8' TEMPLATE "
            f"template0, copy what is in this one (pg_dump, pg_restore), and name the new one in "
            "BATCH_PIPELINE_DATABASE_URL"
        )
    autocommit, connection.autocommit = connection.autocommit, True
    if is_pooled(connection, _execute(connection, _SET)[0]):
        connection.prepare_threshold = None
    else:
        [is_limited, *_] = _execute(connection, _SET_UNPOOLED)
        if is_limited:
            lift_time_limits(connection)
    connection.adapters.register_loader("timestamptz", _MomentLoader)
    connection.adapters.register_loader("timestamp", _UtcMomentLoader)
    connection.autocommit = autocommit


def is_pooled(connection: psycopg.Connection[Any], backend: int | None = None) -> bool:
    """Return whether a pooler is between us and the server, so that other clients share sessions.

    A pooler reports its own process id at connect, which differs from that of the server's process.
    The mode of the pooler is unknown: another client may get our server process after any
    transaction.
    """
    if backend is None:
        [backend] = _execute(connection, "SELECT pg_backend_pid()")
    return backend != connection.info.backend_pid


def lift_time_limits(connection: psycopg.Connection[Any]) -> None:
    """Let statements and transactions of a connection take any time; not behind a pooler.

    Limits that the URL or PGOPTIONS names stay: a person has chosen them for the pipeline.
    """
    limits = f"FROM pg_settings WHERE {_TIME_LIMITS} AND source <> 'client'"
    _execute(connection, f"SELECT set_config(name, '0', false) {limits}")


def time_limits(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the limits that may end statements of a connection, each as ``name = value``."""
    limits = f"SELECT name || ' = ' || setting || unit FROM pg_settings WHERE {_TIME_LIMITS}"  # noqa: S608
    return [limit for (limit,) in connection.execute(limits.encode())]


def _execute(connection: psycopg.Connection[Any], statement: str) -> Any:
    return connection.execute(statement.encode()).fetchone()


class _MomentLoader(TimestamptzLoader):
    def load(self, data: Any) -> datetime:
        return _bounded(super().load, data)


class _UtcMomentLoader(TimestampLoader):
    """Reads moments without a time zone as UTC; some upload APIs store such moments."""

    def load(self, data: Any) -> datetime:
        return _bounded(super().load, data).replace(tzinfo=UTC)


def _bounded(load: Any, data: Any) -> datetime:
    try:
        moment: datetime = load(data)
    except psycopg.DataError:
        text = bytes(data)
        return EARLIEST if text == b"-infinity" or text.endswith(b"BC") else LATEST
    return moment
