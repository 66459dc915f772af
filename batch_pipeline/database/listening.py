"""A connection that hears what PostgreSQL's NOTIFY says on a channel."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from batch_pipeline.database.session import Database
from batch_pipeline.errors import ServiceDownError


@contextmanager
def listening(database: Database, channel: str) -> Iterator[psycopg.Connection]:
    """Open a connection that listens; ``notifies(timeout=…)`` of it gives what is said from now on.

    Behind PgBouncer in transaction mode it hears nothing, and no error says so.

    Raises:
        ServiceDownError: the database cannot be reached, or goes away meanwhile.
    """
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as listener:
            listener.execute(f"LISTEN {channel}")
            yield listener
    except psycopg.OperationalError as error:
        raise ServiceDownError("database_down", f"the database does not answer: {error}") from error
