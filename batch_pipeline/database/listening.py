"""A connection that receives PostgreSQL's notifications on a channel."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from batch_pipeline.database.connection_setup import is_pooled, lift_time_limits
from batch_pipeline.database.failures import failures_named
from batch_pipeline.database.libpq import libpq_url
from batch_pipeline.database.session import Database


@contextmanager
def listening(database: Database, channel: str) -> Iterator[psycopg.Connection]:
    """Open a connection that listens; its ``notifies(timeout=…)`` yields messages from now on.

    Behind a pooler, messages would go to the client that has the connection next. So the connection
    does not listen there, and the caller notices changes only at its time-outs.

    Raises:
        ServiceDownError: the database cannot be reached, or stops while the connection is open.
    """
    url = libpq_url(database.url.render_as_string(hide_password=False))
    with (
        failures_named(),
        psycopg.connect(url, autocommit=True, connect_timeout=10) as listener,
    ):
        if not is_pooled(listener):
            lift_time_limits(listener)
            listener.execute(f"LISTEN {channel}")
        yield listener
