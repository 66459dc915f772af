"""Triggers: what they note when an API truncates tables, and when one is missing or disabled."""

import re
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from batch_pipeline.database.triggers import FUNCTIONS, create
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.testing.records import add_batch, batch_row

DOCUMENT = (Path(__file__).parents[3] / "docs" / "existing_database.md").read_text()
TRIGGERS = sorted(trigger for function in FUNCTIONS.values() for trigger in function.triggers)
EMBEDDED = {"processing_status": "completed", "embedding_model": "m"}


def count(pipeline, table):
    with pipeline.database.transaction() as connection:
        return connection.scalar(text(f"SELECT count(*) FROM {table}"))


@pytest.fixture
def api(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def ended(pipeline):
    """An ended batch with two vectors, in two spaces. The batch ended hours ago."""
    batch_id = add_batch(
        pipeline.database,
        [
            {**EMBEDDED, "embedding_local": [1.0] * 1024},
            {**EMBEDDED, "embedding_model": "n", "embedding_local": [1.0] * 1024},
        ],
        status="completed",
        processed_uploads=2,
        successful_uploads=2,
    )
    with pipeline.database.transaction() as connection:
        connection.execute(
            text("UPDATE upload_batches SET updated_at = now() - interval '5 hours'")
        )
        connection.execute(text("DELETE FROM batches_to_recount"))
    assert count(pipeline, "upload_vectors") == 2
    return batch_id


def test_truncated_uploads_leave_no_vectors_and_their_batches_are_recounted(pipeline, api, ended):
    api.execute("TRUNCATE uploads")
    assert count(pipeline, "upload_vectors") == 0
    pipeline.backlog.reconcile_batches()
    batch = batch_row(pipeline.database, ended)
    assert (batch.total_uploads, batch.processed_uploads) == (0, 0)


@pytest.mark.usefixtures("ended")
def test_uploads_that_are_truncated_with_their_batches_leave_nothing(pipeline, api):
    api.execute("TRUNCATE upload_batches CASCADE")
    assert count(pipeline, "uploads") == 0
    assert count(pipeline, "upload_vectors") == 0
    assert count(pipeline, "batches_to_recount") == 0


@pytest.mark.usefixtures("ended")
def test_uploads_that_the_truncating_transaction_adds_keep_their_vectors(pipeline, api):
    api.execute("CREATE TABLE saved AS SELECT * FROM uploads WHERE embedding_model = 'n'")
    api.execute(
        "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO uploads SELECT * FROM saved; RETURN NULL; END'; "
        # PostgreSQL fires triggers in the order of their names.
        "CREATE TRIGGER a_back AFTER TRUNCATE ON uploads EXECUTE FUNCTION back()"
    )
    api.execute("TRUNCATE uploads")
    assert count(pipeline, "upload_vectors") == 1


@pytest.mark.slow
def test_every_missing_trigger_is_named_by_doctor_and_made_by_an_upgrade(pipeline, api):
    def tables():
        return {check.name: check for check in check_health(pipeline.settings)}["tables"]

    assert tables().ok, tables().detail
    for name, function in FUNCTIONS.items():
        api.execute(f"DROP FUNCTION {name} CASCADE".encode())
        assert not tables().ok
        for trigger in function.triggers:
            assert trigger in tables().detail
        assert "run `batch-pipeline db upgrade`" in tables().detail

        assert pipeline.database.upgrade() == sorted(function.triggers)

        assert tables().ok, tables().detail
    assert pipeline.database.upgrade() == []


def test_doctor_names_a_disabled_trigger_and_the_statement_that_enables_it(pipeline, api):
    def tables():
        return {check.name: check for check in check_health(pipeline.settings)}["tables"]

    for mode in ("DISABLE", "ENABLE REPLICA"):
        api.execute(f"ALTER TABLE uploads {mode} TRIGGER batch_pipeline_uploads_gone".encode())
        assert "batch_pipeline_uploads_gone of uploads is disabled" in tables().detail
        [statement] = re.findall("ALTER TABLE [^;]*;", tables().detail)
        api.execute(statement.encode())
        assert tables().ok, tables().detail


@pytest.mark.usefixtures("ended")
def test_an_api_can_change_the_type_of_its_columns_as_the_documentation_says(pipeline, api):
    changes = ["processing_status TYPE varchar(30)", "user_id SET DATA TYPE uuid"]
    for change in changes:
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="used in a trigger"):
            api.execute(f"ALTER TABLE uploads ALTER COLUMN {change}".encode())
    [listing] = re.findall(r"```sql\n(SELECT format\('DROP TRIGGER.+?)\\gexec", DOCUMENT, re.DOTALL)
    for (statement,) in api.execute(listing.encode()).fetchall():
        api.execute(statement.encode())
    for change in changes:
        api.execute(f"ALTER TABLE uploads ALTER COLUMN {change}".encode())
    api.execute("DELETE FROM uploads WHERE embedding_model = 'm'")
    assert count(pipeline, "upload_vectors") == 2

    made = pipeline.database.upgrade()

    assert set(made) == {name for name in TRIGGERS if name not in OF_OUTAGES}
    assert count(pipeline, "upload_vectors") == 1  # of the upload that is still there
    api.execute("TRUNCATE uploads")
    assert count(pipeline, "upload_vectors") == 0


@pytest.mark.usefixtures("ended")
def test_vectors_of_deleted_uploads_go_even_if_the_upgrade_is_interrupted_at_any_trigger(
    pipeline, api
):
    for name in FUNCTIONS:
        api.execute(f"DROP FUNCTION {name} CASCADE".encode())
    api.execute("DELETE FROM uploads WHERE embedding_model = 'm'")

    def upgrade_that_is_interrupted(connection):
        commits = 0

        def commit():
            nonlocal commits
            connection.commit()
            commits += 1
            if commits == 2:  # the functions, and one trigger
                raise KeyboardInterrupt

        create(connection, commit)

    for _ in TRIGGERS:
        with pipeline.database.engine.connect() as connection, pytest.raises(KeyboardInterrupt):
            upgrade_that_is_interrupted(connection)

    assert pipeline.database.upgrade() == []
    assert count(pipeline, "upload_vectors") == 1


OF_OUTAGES = {"batch_pipeline_tell_outage", "batch_pipeline_tell_end"}


def test_the_upgrade_makes_functions_private_that_a_restore_made_public(pipeline, api):
    """`services/backups/backup.py` restores without privileges, and then upgrades."""
    api.execute("GRANT EXECUTE ON FUNCTION batch_pipeline_tell_batch TO PUBLIC")
    pipeline.database.upgrade()
    assert not api.execute(
        "SELECT has_function_privilege('pg_monitor', 'batch_pipeline_tell_batch()', 'EXECUTE')"
    ).fetchone()[0]


def test_triggers_follow_a_schema_that_was_renamed(pipeline, api, database_url):
    api.execute("ALTER SCHEMA public RENAME TO api")
    api.execute("SET search_path = api")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="drop the trigger"):
        api.execute("INSERT INTO outages (kind, reason) VALUES ('x', 'x')")
    name = api.info.dbname
    api.execute(f"ALTER DATABASE {name} SET search_path = api".encode())
    pipeline.database.close()
    pipeline.database.upgrade()
    api.execute("INSERT INTO outages (kind, reason) VALUES ('x', 'x')")
    assert count(pipeline, "notifications") == 1
