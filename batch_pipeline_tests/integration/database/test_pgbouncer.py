"""The pipeline behind a real PgBouncer: in session and in transaction mode it works."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from batch_pipeline.database.session import Database, open_database, with_driver
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.services.progress.batch_watch import watch_batch
from batch_pipeline.services.search import search
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.states.upload_states import StartedUpload
from batch_pipeline.services.upload_processing import CompletedUpload, UploadProcessor
from batch_pipeline.testing.pgbouncer import pgbouncer
from batch_pipeline.testing.records import add_batch, batch_row, upload_rows
from batch_pipeline_tests.integration.conftest import program

VECTOR = [1.0] * 1024
WEBP = (Path(__file__).parents[3] / "examples" / "media" / "fog.webp").read_bytes()


@pytest.fixture(params=["session", "transaction"])
def mode(request):
    return request.param


@pytest.fixture
def pooled_url(mode, database_url, tmp_path):
    folder = tmp_path / "pgbouncer"
    folder.mkdir()
    with pgbouncer(program("pgbouncer"), database_url, mode, folder) as url:
        yield url


@pytest.fixture
def pooled(pooled_url, change, open_pipeline):
    return open_pipeline(change(database_url=pooled_url))


def test_many_threads_work_a_batch_over_few_server_connections(pooled, database):
    batch_id = add_batch(database, 60)
    pooled.states.load_batch(batch_id, "run", limit=60)
    uploads = upload_rows(database, batch_id)

    def work(upload):
        started = pooled.states.start(upload.id, "run")
        assert isinstance(started, StartedUpload)
        pooled.states.store_thumbnail(started.claim, "t.jpg", {"thumbnail": 0.1})
        pooled.states.complete(started.claim, embedding=VECTOR, model="m", seconds={})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, uploads))
    row = batch_row(database, batch_id)
    assert (row.status, row.successful_uploads) == ("completed", 60)
    assert list(watch_batch(pooled.database, batch_id))[-1].has_ended
    assert pooled.backlog.overdue() == dict.fromkeys(pooled.backlog.overdue(), 0)


def test_moments_are_those_of_the_session_whichever_connection_answers(
    pooled, database_url, server_url
):
    name = make_url(database_url).database
    with psycopg.connect(server_url, autocommit=True) as owner:
        owner.execute(f"ALTER DATABASE {name} SET TimeZone = 'Asia/Tokyo'")
        owner.execute(f"ALTER DATABASE {name} SET DateStyle = 'German'")
    shown = text("SELECT current_setting('TimeZone') || ' ' || current_setting('DateStyle')")
    pooled.database.close()
    together = threading.Barrier(3, timeout=60)

    def ask(_):
        with pooled.database.transaction() as connection:
            together.wait()  # three server connections at a time
            return connection.scalar(shown)

    with ThreadPoolExecutor(3) as threads:
        for _ in range(5):
            assert set(threads.map(ask, range(3))) == {"UTC ISO, MDY"}


def test_a_database_is_migrated_and_a_picture_is_worked_and_found(
    mode, server, tmp_path, change, open_pipeline
):
    folder = tmp_path / "empty"
    folder.mkdir()
    with (
        server.new_database(migrated=False) as url,
        pgbouncer(program("pgbouncer"), url, mode, folder) as through,
    ):
        database = Database(with_driver(through, "psycopg", variable="X"))
        upgrades = [threading.Thread(target=database.upgrade) for _ in range(2)]
        for thread in upgrades:
            thread.start()
        for thread in upgrades:
            thread.join(60)
        database.close()
        pipeline = open_pipeline(change(database_url=through))
        batch_id = add_batch(pipeline.database, [{"file_path": "source/one.webp"}])
        pipeline.storage.write("source/one.webp", WEBP)
        [upload] = upload_rows(pipeline.database, batch_id)
        with ClaimKeeper(pipeline.states, "run", lease_seconds=120) as keeper:
            outcome = UploadProcessor(pipeline, keeper).process(upload.id, "run", retries_left=0)
        assert isinstance(outcome, CompletedUpload)
        assert search(pipeline.database, pipeline.analyzer.embedding, "colours")
        pipeline.close()


def test_slots_of_model_calls_are_agreed_on(pooled):
    slots = pooled.call_slots.of("vision", 2)
    for _ in range(3):
        with slots.taken(lambda: ["http://model"], lambda: False) as server:
            assert server == "http://model"


@pytest.mark.parametrize("mode", ["statement"], indirect=True)
def test_statement_mode_is_refused_by_name(pooled_url, change):
    with pytest.raises(ConfigurationError, match="pool_mode = statement"):
        open_database(change(database_url=pooled_url))


def test_options_in_the_url_are_refused_by_name(pooled_url, change):
    with pytest.raises(ConfigurationError, match="remove it from the URL"):
        open_database(change(database_url=f"{pooled_url}?options=-csearch_path%3Dpublic"))


def test_nothing_of_ours_stays_in_connections_that_others_get_next(mode, pooled, pooled_url):
    """In transaction mode, a lock or a LISTEN of a session would be somebody else's."""
    pooled.database.upgrade()
    with psycopg.connect(pooled_url, autocommit=True) as other:
        locks = other.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert locks.fetchone() == (0,)
        prepared = other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        assert prepared == (0,)
        assert other.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)
