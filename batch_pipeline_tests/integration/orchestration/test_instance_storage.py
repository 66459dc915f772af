"""Dagster's storage looks for its tables and columns no more often than necessary."""

import pytest
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import create_engine, text

from batch_pipeline.orchestration.dagster_storage import instance_storage
from batch_pipeline.orchestration.dagster_storage.instance_storage import PipelineInstanceStorage


@pytest.fixture
def empty(server):
    """The URL of an empty database, for psycopg2."""
    with server.new_database(migrated=False) as url:
        yield url.replace("postgresql://", "postgresql+psycopg2://")


@pytest.fixture
def opened(empty):
    """Opens the storage as another process would."""
    storages = []

    def open_():
        for remembered in (instance_storage._create_tables, instance_storage._found):
            remembered.cache_clear()
        storages.append(PipelineInstanceStorage(empty, grouped=False))
        return storages[-1]

    yield open_
    for storage in storages:
        storage.event_log_storage.dispose()


def execute(url, statement):
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_missing_tables_are_created(opened):
    storage = opened()
    assert storage.run_storage.get_runs() == []
    assert storage.event_log_storage.all_asset_keys() == []
    assert storage.schedule_storage.all_instigator_state() == []


@pytest.mark.parametrize("missing", ["event_logs", "jobs", "instance_info"])
def test_a_part_that_is_missing_is_created(opened, empty, missing):
    DagsterPostgresStorage(empty)
    execute(empty, f"DROP TABLE {missing} CASCADE; DROP TABLE IF EXISTS alembic_version")
    opened()
    execute(empty, f"SELECT 1 FROM {missing}")


def test_if_all_tables_are_there_dagster_does_not_look_for_them(opened, empty, monkeypatch):
    DagsterPostgresStorage(empty)

    def look(url):
        raise AssertionError("six connections")

    monkeypatch.setattr(instance_storage, "DagsterPostgresStorage", look)
    assert opened().run_storage.get_runs() == []


def test_columns_of_a_later_version_are_looked_for_until_they_are_there(opened, empty):
    storage = opened().run_storage
    execute(empty, "ALTER TABLE runs RENAME start_time TO later")
    assert not storage.has_run_stats_index_cols()
    execute(empty, "ALTER TABLE runs RENAME later TO start_time")
    assert storage.has_run_stats_index_cols()
    execute(empty, "ALTER TABLE runs RENAME start_time TO later")
    assert storage.has_run_stats_index_cols(), "it looked again"
