"""Dagster's own storage: dagster-postgres on the pipeline's server, in a database of its own.

Named by ``dagster.yaml``, so that ``dagster dev`` in a fresh clone needs no variable set: the URL
comes from the settings, the embedded server is started on demand, the database is created when it
is missing. Connections are pooled; as it comes, dagster-postgres opens a new one for every event,
which more than doubles the cost of a step (84 against 34 ms).
"""

from typing import Any

from dagster._config import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import create_engine
from sqlalchemy.engine import URL

from batch_pipeline.database.session import (
    create_database_if_missing,
    pipeline_url,
    with_driver,
)
from batch_pipeline.settings import Settings, load_settings

#: Database of Dagster's tables, beside the pipeline's on the same server.
DAGSTER_DATABASE = "dagster"
#: Connections that a process keeps open, and how many more it opens when threads ask for them.
POOL_SIZE, POOL_OVERFLOW = 2, 18


class PipelineInstanceStorage(DagsterPostgresStorage):
    """Runs, events and schedules on the server that the settings name."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure here: the settings say it."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "PipelineInstanceStorage":
        """Open the storage as the settings say; called by Dagster."""
        del config_value
        url = dagster_storage_url(load_settings()).render_as_string(hide_password=False)
        storage = cls(url, inst_data=inst_data)
        storage.pool_connections()
        return storage

    def pool_connections(self) -> None:
        """Let runs, events and schedules share one pool."""
        engine = create_engine(
            self.postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            pool_pre_ping=True,  # a restart of the server is not an error of the next event
        )
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine


def dagster_storage_url(settings: Settings) -> URL:
    """URL of Dagster's database for its driver psycopg2; the database exists afterwards.

    Raises:
        ConfigurationError: a URL in the settings is not one of PostgreSQL.
        ServiceDownError: the embedded server did not start.
    """
    if settings.dagster_database_url:
        return with_driver(
            settings.dagster_database_url, "psycopg2", variable="DAGSTER_DATABASE_URL"
        )
    server = pipeline_url(settings)
    create_database_if_missing(server, DAGSTER_DATABASE)
    return server.set(drivername="postgresql+psycopg2", database=DAGSTER_DATABASE)
