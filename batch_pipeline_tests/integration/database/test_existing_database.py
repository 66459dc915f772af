"""A database that an upload API already owns: `db upgrade` adds tables, the pipeline uses it."""

import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from batch_pipeline.database.existing_tables import require_usable_tables
from batch_pipeline.database.revisions import VERSION_TABLE
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.errors import ConfigurationError, ServiceDownError
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import UploadProcessor
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import batch_row, open_all_slices, upload_rows

MEDIA = Path(__file__).parents[2] / "cases" / "small"
USER = uuid.uuid4()

TABLES = """
-- The extension uuid-ossp is not part of every PostgreSQL; its name is what matters here.
CREATE FUNCTION uuid_generate_v4() RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()';
CREATE EXTENSION vector;
CREATE TABLE users (id uuid PRIMARY KEY DEFAULT uuid_generate_v4(), email varchar(255));
CREATE TABLE upload_batches (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    status varchar(20) NOT NULL DEFAULT 'pending',
    total_uploads integer NOT NULL DEFAULT 0,
    processed_uploads integer NOT NULL DEFAULT 0,
    successful_uploads integer NOT NULL DEFAULT 0,
    failed_uploads integer NOT NULL DEFAULT 0,
    error_message text,
    created_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    updated_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    started_at timestamp,
    completed_at timestamp
);
CREATE TABLE uploads (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    batch_id uuid REFERENCES upload_batches (id) ON DELETE SET NULL,
    filename varchar(255) NOT NULL,
    file_path varchar(500) NOT NULL,
    file_type varchar(20) NOT NULL,
    file_size bigint NOT NULL,
    mime_type varchar(100),
    processing_status varchar(20) NOT NULL DEFAULT 'pending',
    description text,
    description_audit_score integer,
    embedding_local vector(1024),
    thumbnail_path varchar(500),
    video_codec varchar(50),
    error_message text,
    metadata jsonb,
    hidden boolean DEFAULT false,
    regeneration_count integer DEFAULT 0,
    last_regenerated_at timestamp,
    created_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    updated_at timestamp DEFAULT (now() AT TIME ZONE 'utc')
);
"""

INSERT_UPLOAD = """
INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size,
                     processing_status, updated_at)
VALUES (%s, %s, 'fog.webp', %s, 'image', 1, %s, (now() AT TIME ZONE 'utc') - %s::interval)
RETURNING id
"""


class UploadApi:
    """Writes rows like an upload API that knows none of our columns."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute("SET TIME ZONE 'Asia/Tokyo'")

    def add_batch(self, status: str, total: int, *, processed: int = 0) -> uuid.UUID:
        return self.connection.execute(
            "INSERT INTO upload_batches (user_id, status, total_uploads, processed_uploads, "
            "successful_uploads) VALUES (%s, %s, %s, %s, %s) RETURNING id",
            [USER, status, total, processed, processed],
        ).fetchone()[0]

    def add_upload(
        self, batch_id: uuid.UUID | None, status: str = "pending", idle: str = "0 s"
    ) -> uuid.UUID:
        return self.connection.execute(
            INSERT_UPLOAD, [USER, batch_id, "source/fog.webp", status, idle]
        ).fetchone()[0]


@pytest.fixture
def api(server: DatabaseServer) -> Iterator[UploadApi]:
    with server.new_database(migrated=False) as url:
        api = UploadApi(url)
        api.connection.execute(TABLES)
        api.connection.execute("INSERT INTO users (id, email) VALUES (%s, 'a@b.c')", [USER])
        yield api
        api.connection.close()


def upgrade(url: str) -> None:
    database = Database(with_driver(url, "psycopg", variable="DATABASE_URL"))
    try:
        database.upgrade()
    finally:
        database.close()


def finish(pipeline: Pipeline) -> None:
    """Process each slice like a run."""
    with ClaimKeeper(pipeline.states, "run", lease_seconds=120) as keeper:
        processor = UploadProcessor(pipeline, keeper)
        for slice_ in open_all_slices(pipeline.database, 250):
            loaded = pipeline.states.load_batch(
                slice_.batch_id, "run", slice_number=slice_.number, limit=250
            )
            for upload in loaded.reserved:
                processor.process(upload.id, "run", retries_left=0)


@pytest.mark.slow
def test_open_batches_are_finished_with_right_counters_and_the_api_goes_on(
    api, change, open_pipeline
):
    abandoned = api.add_batch("processing", 5, processed=9)
    for status in ("completed", "failed", "analyzing", "embedding", "pending"):
        api.add_upload(abandoned, status, "1 hour")
    done = api.add_batch("completed", 1, processed=1)
    api.add_upload(done, "completed")
    upgrade(api.url)

    pipeline = open_pipeline(change(database_url=api.url))
    pipeline.storage.put(MEDIA / "fog.webp", "source/fog.webp")
    assert pipeline.backlog.rescue().returned == 2
    fresh = api.add_batch("pending", 1)
    api.add_upload(fresh)
    finish(pipeline)

    row = batch_row(pipeline.database, abandoned)
    assert (row.status, row.total_uploads, row.processed_uploads) == ("completed", 5, 5)
    assert (row.successful_uploads, row.failed_uploads) == (4, 1)
    assert batch_row(pipeline.database, fresh).successful_uploads == 1
    assert batch_row(pipeline.database, done).processed_uploads == 1
    assert {u.processing_status for u in upload_rows(pipeline.database, fresh)} == {"completed"}


def test_moments_without_a_time_zone_are_kept_as_utc(api, change, open_pipeline):
    upgrade(api.url)
    pipeline = open_pipeline(change(database_url=api.url))
    batch_id = api.add_batch("pending", 1)
    in_work = api.add_upload(batch_id, "analyzing", "1 minute")
    assert pipeline.backlog.rescue().returned == 0, "a minute is not a lease"
    pipeline.states.load_batch(batch_id, "run", limit=1)
    assert in_work
    off = api.connection.execute(
        "SELECT abs(extract(epoch FROM (now() AT TIME ZONE 'utc') - started_at)) "
        "FROM upload_batches WHERE id = %s",
        [batch_id],
    ).fetchone()[0]
    assert off < 60


def test_an_upload_without_a_batch_is_adopted(api, change, open_pipeline):
    upgrade(api.url)
    pipeline = open_pipeline(change(database_url=api.url))
    api.add_upload(None)
    assert pipeline.backlog.adopt() == 0, "the API may be about to name its batch"
    api.connection.execute("UPDATE uploads SET created_at = created_at - interval '10 minutes'")
    assert pipeline.backlog.adopt() == 1


@pytest.mark.slow
@pytest.mark.parametrize("default", [None, "'draft'"])
def test_batches_of_ours_are_processed_whatever_defaults_the_columns_have(
    default, api, change, open_pipeline
):
    upgrade(api.url)
    pipeline = open_pipeline(change(database_url=api.url))
    pipeline.storage.put(MEDIA / "fog.webp", "source/fog.webp")
    api.add_upload(None)
    api.connection.execute("UPDATE uploads SET created_at = created_at - interval '10 minutes'")
    change_defaults(api, default)

    submission = submit(
        [MEDIA / "sea.jpg"],
        user_id=USER,
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    )
    assert pipeline.backlog.adopt() == 1
    finish(pipeline)

    batches = api.connection.execute("SELECT id, status FROM upload_batches").fetchall()
    assert submission.batch_id in dict(batches)
    assert [status for _, status in batches] == ["completed", "completed"]
    uploads = api.connection.execute("SELECT processing_status FROM uploads").fetchall()
    assert uploads == [("completed",), ("completed",)]


def change_defaults(api: UploadApi, default: str | None) -> None:
    """Give both statuses a default, or remove every default of both tables."""
    if default:
        columns = [("upload_batches", "status"), ("uploads", "processing_status")]
        change = f"SET DEFAULT {default}"
    else:
        columns = api.connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_name IN ('uploads', 'upload_batches') AND column_default IS NOT NULL"
        ).fetchall()
        change = "DROP DEFAULT"
    for table, column in columns:
        api.connection.execute(f'ALTER TABLE {table} ALTER COLUMN "{column}" {change}'.encode())


def test_nothing_is_rewritten_and_writers_go_on_while_indexes_are_built(api):
    batch_id = api.add_batch("pending", 1)
    api.add_upload(batch_id)
    before = api.connection.execute("SELECT pg_relation_filenode('uploads')").fetchone()
    stop, written = threading.Event(), []

    def write() -> None:
        writer = UploadApi(api.url)
        while not stop.is_set():
            written.append(writer.add_upload(batch_id))
        writer.connection.close()

    thread = threading.Thread(target=write)
    thread.start()
    upgrade(api.url)
    stop.set()
    thread.join(10)
    assert written
    assert api.connection.execute("SELECT pg_relation_filenode('uploads')").fetchone() == before
    broken = api.connection.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone()
    assert broken == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["upload_batches", "uploads"])
@pytest.mark.parametrize("interrupted", ["at_the_beginning", "after_the_columns"])
def test_an_upgrade_that_cannot_have_its_lock_soon_gives_up_and_can_be_run_again(
    api, table, interrupted, monkeypatch
):
    monkeypatch.setattr("batch_pipeline.database.session._LOCK_TIMEOUT", "500ms")
    if interrupted == "after_the_columns":
        upgrade(api.url)
        api.connection.execute(f"DROP TABLE {VERSION_TABLE}")
    with psycopg.connect(api.url) as reader:
        reader.execute("SET idle_in_transaction_session_timeout = '20s'")
        reader.execute(f"SELECT count(*) FROM {table}")  # in a transaction left open
        with pytest.raises(ServiceDownError, match="db upgrade` again"):
            upgrade(api.url)
    upgrade(api.url)


@pytest.mark.parametrize("revision", ["ae1027a6acf7", "0007"])
def test_an_api_that_uses_alembic_keeps_its_revision(api, revision):
    api.connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    api.connection.execute("INSERT INTO alembic_version VALUES (%s)", [revision])
    upgrade(api.url)
    found = api.connection.execute("SELECT version_num FROM alembic_version").fetchall()
    assert found == [(revision,)]
    database = Database(with_driver(api.url, "psycopg", variable="DATABASE_URL"))
    current, newest = database.revisions()
    database.close()
    assert current == newest


def test_a_table_of_ours_that_lacks_a_column_of_a_later_version_is_not_taken_for_another(api):
    api.connection.execute("CREATE TABLE notifications (id bigint PRIMARY KEY, type text)")
    database = Database(with_driver(api.url, "psycopg", variable="URL"))
    with database.transaction() as connection:
        require_usable_tables(connection)
    database.close()


def test_tables_of_an_api_with_names_of_ours_are_refused_and_ours_may_be_in_a_schema_of_their_own(
    api, change, open_pipeline
):
    for table in ("notifications", "outages"):
        api.connection.execute(f"CREATE TABLE {table} (id uuid PRIMARY KEY, user_id uuid)")
    with pytest.raises(ConfigurationError, match="nothing was changed") as raised:
        upgrade(api.url)
    assert "notifications, outages are tables of another program" in str(raised.value)

    api.connection.execute("CREATE SCHEMA batch_pipeline")
    url = f"{api.url}{'&' if '?' in api.url else '?'}options=-csearch_path%3Dbatch_pipeline,public"
    upgrade(url)
    pipeline = open_pipeline(change(database_url=url))
    pipeline.storage.put(MEDIA / "fog.webp", "source/fog.webp")
    batch_id = api.add_batch("pending", 2)
    uploads = [api.add_upload(batch_id) for _ in range(2)]
    finish(pipeline)
    row = batch_row(pipeline.database, batch_id)
    assert (row.status, row.successful_uploads) == ("completed", 2)

    # The API does not have our schema in its path.
    api.connection.execute("UPDATE uploads SET description = 'a ship'")
    api.connection.execute("DELETE FROM uploads WHERE id = %s", uploads[:1])
    pipeline.backlog.reconcile_batches()
    assert batch_row(pipeline.database, batch_id).successful_uploads == 1
    new_user = api.connection.execute("INSERT INTO users DEFAULT VALUES RETURNING id").fetchone()
    api.connection.execute("UPDATE uploads SET user_id = %s", new_user)
    api.connection.execute("UPDATE uploads SET processing_status = 'pending'")
    assert pipeline.backlog.reopen_ended() == 1
    finish(pipeline)
    assert batch_row(pipeline.database, batch_id).status == "completed"
    left = api.connection.execute(
        "SELECT (SELECT count(*) FROM public.notifications), "
        "(SELECT count(*) > 0 FROM batch_pipeline.notifications)"
    ).fetchone()
    assert left == (0, True)
    pipeline.close()


def test_an_api_without_columns_that_we_fill_keeps_its_rows_and_writes_more(
    server, change, open_pipeline
):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        connection.execute("CREATE TABLE upload_batches (id uuid PRIMARY KEY, status text)")
        connection.execute(
            "CREATE TABLE uploads (id uuid PRIMARY KEY, "
            "batch_id uuid REFERENCES upload_batches, processing_status text)"
        )

        def add() -> uuid.UUID:
            batch_id = uuid.uuid4()
            connection.execute("INSERT INTO upload_batches VALUES (%s, 'pending')", [batch_id])
            connection.execute(
                "INSERT INTO uploads VALUES (gen_random_uuid(), %s, 'pending')", [batch_id]
            )
            return batch_id

        before = add()
        upgrade(url)
        after = add()
        pipeline = open_pipeline(change(database_url=url))
        finish(pipeline)
        for batch_id in (before, after):
            [upload] = upload_rows(pipeline.database, batch_id)
            assert (upload.processing_status, upload.error_kind) == ("failed", "source_missing")
            assert batch_row(pipeline.database, batch_id).failed_uploads == 1


def test_two_upgrades_at_the_same_time_both_succeed(api):
    errors = []

    def run() -> None:
        try:
            upgrade(api.url)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


def test_the_rows_that_the_docs_tell_an_api_to_write_are_processed(pipeline):
    page = (Path(__file__).parents[3] / "docs/existing_database.md").read_text()
    [example] = re.findall(r"```sql\n(BEGIN;.*?)```", page, re.DOTALL)
    batch_id = uuid.UUID(re.findall(r"'(b2f7a8c4-.*?)'", example)[0])
    pipeline.storage.put(MEDIA / "sea.jpg", "inbox/2041.jpg")
    with pipeline.database.transaction() as connection:
        connection.exec_driver_sql(re.sub("BEGIN;|COMMIT;", "", example))

    finish(pipeline)

    [upload] = upload_rows(pipeline.database, batch_id)
    assert (upload.processing_status, upload.mime_type) == ("completed", "image/jpeg")
    assert batch_row(pipeline.database, batch_id).total_uploads == 1
