"""The pipeline works behind a real PgBouncer, in session and in transaction mode."""

import shutil
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from sqlalchemy import make_url, text

from batch_pipeline.database.session import Database, open_database, with_driver
from batch_pipeline.errors import ConfigurationError, RefusedError
from batch_pipeline.services.backups.backup import back_up, restore
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.batch_watch import watch_batch
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.states.upload_states import StartedUpload
from batch_pipeline.services.upload_processing import CompletedUpload, UploadProcessor
from batch_pipeline.settings import Settings
from batch_pipeline.testing.pgbouncer import pgbouncer
from batch_pipeline.testing.records import add_batch, batch_row, embedded, upload_rows
from batch_pipeline.testing.stack import Part, StackProcesses
from batch_pipeline_tests.acceptance.conftest import GraphQl
from batch_pipeline_tests.integration.conftest import program
from batch_pipeline_tests.patience import DEADLINE, wait_until

ROOT = Path(__file__).parents[3]
MEDIA = ROOT / "examples" / "media"
WEBP = (MEDIA / "fog.webp").read_bytes()


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


def test_many_threads_process_a_batch_over_few_server_connections(pooled, database):
    batch_id = add_batch(database, 60)
    pooled.states.load_batch(batch_id, "run", limit=60)
    uploads = upload_rows(database, batch_id)

    def work(upload):
        started = pooled.states.start(upload.id, "run")
        assert isinstance(started, StartedUpload)
        pooled.states.store_thumbnail(started.claim, "t.jpg", {"thumbnail": 0.1})
        pooled.states.complete(started.claim, embedded=embedded(pooled.database), seconds={})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, uploads))
    row = batch_row(database, batch_id)
    assert (row.status, row.successful_uploads) == ("completed", 60)
    assert list(watch_batch(pooled.database, batch_id))[-1].has_ended
    assert pooled.backlog.overdue() == dict.fromkeys(pooled.backlog.overdue(), 0)


def test_every_server_connection_has_our_time_zone_and_date_style(pooled, database_url, server_url):
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


@pytest.mark.slow
def test_a_database_is_migrated_and_a_picture_is_processed_and_found(
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
        assert search(pipeline.database, pipeline.spaces.model_of, "colours")
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
    with pytest.raises(ConfigurationError, match="such as `options`: remove it there"):
        open_database(change(database_url=f"{pooled_url}?options=-csearch_path%3Dpublic"))


def test_doctor_names_time_limits_that_we_cannot_remove(
    mode, database, database_url, change, tmp_path
):
    with database.transaction() as connection:
        limit = f"ALTER DATABASE {database.url.database} SET statement_timeout = '60s'"
        connection.execute(text(limit))
    with pgbouncer(program("pgbouncer"), database_url, mode, tmp_path) as through:
        found = check_health(change(database_url=through), quick=True)
        [limits] = [check for check in found if check.name == "time limits"]
    assert "statement_timeout = 60000ms" in limits.detail


def test_a_backup_and_a_restore_need_the_server_itself(pooled, tmp_path, change, database_url):
    file = tmp_path / "backup.tar"
    with pytest.raises(RefusedError, match="need the server itself"):
        back_up(pooled.settings, file, with_files=False)
    assert not file.exists()
    back_up(change(database_url=database_url), file, with_files=False)
    with pytest.raises(RefusedError, match="need the server itself"):
        restore(pooled.settings, file, replace=True)


def test_no_session_state_of_ours_stays_in_connections_of_others(mode, pooled, pooled_url):
    """In transaction mode, a lock or a LISTEN of a session would belong to another client."""
    pooled.database.upgrade()
    with psycopg.connect(pooled_url, autocommit=True) as other:
        # Only locks in this database: other tests hold locks on the same server.
        locks = other.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database "
            "WHERE locktype = 'advisory' AND datname = current_database()"
        )
        assert locks.fetchone() == (0,)
        prepared = other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        assert prepared == (0,)
        assert other.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)


@pytest.fixture
def dagster_url(mode, server, tmp_path):
    """An empty database for Dagster's own storage, behind PgBouncer."""
    folder = tmp_path / "pgbouncer_of_dagster"
    folder.mkdir()
    with (
        server.new_database(migrated=False) as url,
        pgbouncer(program("pgbouncer"), url, mode, folder) as through,
    ):
        yield through


@pytest.fixture
def pooled_instance(dagster_url, tmp_path, monkeypatch):
    home = tmp_path / "dagster_home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    monkeypatch.setenv("BATCH_PIPELINE_DAGSTER_DATABASE_URL", dagster_url)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@dg.op
def shout(context):
    for number in range(50):
        context.log.info("line %s", number)


@dg.job
def shouting_job():
    shout()


def test_dagsters_event_log_is_written_in_groups_and_watched(pooled_instance):
    with dg.DagsterInstance.from_ref(pooled_instance.get_ref()) as watching:
        watching.optimize_for_webserver(15_000, 3600, 4)
        log, heard = watching.event_log_storage, threading.Event()
        run_id = str(uuid.uuid4())

        def hear(event, _):
            if event.user_message == "line 49":
                heard.set()

        log.watch(run_id, None, hear)
        result = shouting_job.execute_in_process(instance=pooled_instance, run_id=run_id)
        assert result.success
        assert heard.wait(DEADLINE)
        log.end_watch(run_id, hear)
        lines = [event.user_message for event in watching.all_logs(run_id)]
        assert [line for line in lines if line.startswith("line ")] == [
            f"line {number}" for number in range(50)
        ]


def test_the_limit_of_the_web_server_does_not_reach_other_clients(pooled_instance, dagster_url):
    pooled_instance.optimize_for_webserver(15_000, 3600, 4)
    assert pooled_instance.get_runs() == []
    assert pooled_instance.all_logs("none") == []
    with psycopg.connect(dagster_url, autocommit=True) as other:
        assert other.execute("SHOW statement_timeout").fetchone() == ("0",)


@pytest.mark.slow
@pytest.mark.lengthy
@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    "mode", [pytest.param("session", marks=pytest.mark.proof), "transaction"], indirect=True
)
def test_a_whole_stack_processes_a_batch_to_its_end(
    mode, pooled_url, dagster_url, database, tmp_path
):
    home = tmp_path / "stack"
    home.mkdir()
    changed = {
        "DATABASE_URL": pooled_url,
        "DAGSTER_DATABASE_URL": dagster_url,
        "UPLOADS_PER_RUN": "2",
    }
    settings = Settings(
        _env_file=None, home=home, **{name.lower(): value for name, value in changed.items()}
    )
    pipeline = Pipeline(settings)
    variables = {f"BATCH_PIPELINE_{name}": value for name, value in changed.items()}
    with StackProcesses(home, variables) as stack:
        submission = submit(
            [MEDIA / name for name in ("fog.webp", "lighthouse.gif", "forest.webp")],
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=settings,
        )
        batch_id = submission.batch_id
        wait_until(
            lambda: batch_row(database, batch_id).status == "completed", "the batch is completed"
        )
        graphql = GraphQl(stack.url)
        run = graphql.ended_run_of(str(batch_id))
        assert run["status"] == "SUCCESS"
        kinds = {event["__typename"] for event in graphql.events_of(run["runId"])}
        assert {"RunSuccessEvent", "ExecutionStepSuccessEvent", "MaterializationEvent"} <= kinds
        assert {row.processing_status for row in upload_rows(database, batch_id)} == {"completed"}
        assert stack.revive() == []
    pipeline.close()
    for part in Part:
        said = stack.log_file(part).read_text()
        assert "Traceback" not in said, said[-3000:]
