"""Databases for tests: each test gets an empty, migrated one in a few hundredths of a second.

PostgreSQL copies a template that was migrated once. Tests share only the server.
"""

import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.engine import URL, make_url

from batch_pipeline.database.session import Database, create_database_if_missing, with_driver

_TEMPLATE = "batch_pipeline_template"
_LOCK = 911_402_233
#: How long a connection may take to close (seconds), and how often we look meanwhile.
_CLOSING_SECONDS, _CLOSING_TRIES = 0.05, 10
#: Version of PostgreSQL that takes a strategy for a copy of a database.
_HAS_STRATEGIES = 150_000


class DatabaseServer:
    """A PostgreSQL server on which tests may create and drop databases."""

    def __init__(self, url: str, *, template: str = _TEMPLATE) -> None:
        self._server = with_driver(url, "psycopg", variable="TEST_DATABASE_URL")
        self._template = template
        self._prepare_template()
        # Stays open: two new connections for each database would add half of its cost.
        self._connection = self._connect()
        weakref.finalize(self, self._connection.close)

    @contextmanager
    def new_database(self, *, migrated: bool = True) -> Iterator[str]:
        """Create a database, yield its ``postgresql://`` URL, and drop it at the end."""
        name = f"test_{uuid.uuid4().hex}"
        template = self._template if migrated else "template1"
        connection = self._connection
        # This strategy takes two thirds of the processor time of the default.
        how = "STRATEGY file_copy" if connection.info.server_version >= _HAS_STRATEGIES else ""
        # A template that is in use cannot be copied, so this waits while another process checks its
        # migrations.
        connection.execute("SELECT pg_advisory_lock_shared(%s)", [_LOCK])
        try:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} {how}".encode())
        finally:
            connection.execute("SELECT pg_advisory_unlock_shared(%s)", [_LOCK])
        try:
            yield self._url(name).set(drivername="postgresql").render_as_string(False)
        finally:
            self._wait_until_unused(name)
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def _prepare_template(self) -> None:
        with self._connect() as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
            create_database_if_missing(self._server, self._template)
            template = Database(self._url(self._template))
            template.upgrade()
            template.close()

    def _wait_until_unused(self, name: str) -> None:
        """Wait for connections that are closing: DROP DATABASE would wait 0.1 s for them."""
        in_use = "SELECT FROM pg_stat_activity WHERE datname = %s"
        for _ in range(_CLOSING_TRIES):
            if not self._connection.execute(in_use, [name]).fetchone():
                return
            time.sleep(_CLOSING_SECONDS / _CLOSING_TRIES)

    def _connect(self) -> psycopg.Connection:
        url = self._server.set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(url, autocommit=True)

    def _url(self, name: str) -> URL:
        return make_url(self._server).set(database=name)
