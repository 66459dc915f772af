import re
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from batch_pipeline.database import revisions
from batch_pipeline.database.models import Base
from batch_pipeline.database.revisions import VERSION_TABLE
from batch_pipeline.database.session import connect, open_database
from batch_pipeline.errors import ConfigurationError, ServiceDownError
from batch_pipeline.testing.records import add_batch, batch_row

#: Makes the tables of the oldest version that was in use.
REVISION_0004 = (Path(__file__).parent / "revision_0004.sql").read_text()
#: Makes those of the version before triggers refused other tables.
REVISION_0027 = (Path(__file__).parent / "revision_0027.sql").read_text()
#: An ended and a pending upload of version 0004.
ROWS = """
WITH batch AS (
    INSERT INTO upload_batches (user_id, total_uploads) VALUES (gen_random_uuid(), 2)
    RETURNING id, user_id
), files (name, status, claim, model, vector) AS (
    VALUES ('old.jpg', 'completed', 7, 'm', array_fill(0.5, ARRAY[1024])::vector),
        ('new.jpg', 'pending', 0, NULL, NULL)
)
INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size,
    processing_status, description, claim, embedding_model, embedding_local)
SELECT user_id, id, name, name, 'image', 1, status, name, claim, model, vector FROM batch, files
"""


def differences_from_the_models(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table": VERSION_TABLE,
                # The table of a space is made when the space is.
                "include_name": lambda name, *_: not re.match("upload_vectors_[0-9]", name or ""),
            },
        )
        return compare_metadata(context, Base.metadata)


def test_migrations_build_exactly_the_tables_of_the_models(database):
    assert differences_from_the_models(database) == []


@pytest.mark.parametrize("version_table", ["alembic_version", VERSION_TABLE])
def test_tables_of_a_development_version_are_upgraded_with_their_rows(
    server, change, version_table
):
    with server.new_database(migrated=False) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"{REVISION_0004}; {ROWS}".encode())
            if version_table != "alembic_version":
                connection.execute(f"ALTER TABLE alembic_version RENAME TO {version_table}")
        with pytest.raises(ConfigurationError, match="at revision 0004, this version needs"):
            open_database(change(database_url=url))
        database = connect(change(database_url=url))
        database.upgrade()
        current, newest = database.revisions()
        assert current == newest
        assert differences_from_the_models(database) == []
        with database.transaction() as connection:
            tokens = connection.execute(
                text("SELECT filename, claim_token FROM uploads ORDER BY 1")
            ).all()
            spaces = connection.execute(
                text(
                    "SELECT model, width FROM upload_vectors JOIN embedding_spaces ON id = space_id"
                )
            ).all()
            words, statistics = connection.execute(
                text(
                    "SELECT pg_get_indexdef('ix_uploads_words'::regclass),"
                    " (SELECT count(*) FROM pg_statistic_ext)"
                )
            ).one()
            left = connection.scalar(text("SELECT to_regclass('alembic_version')"))
        database.close()
    assert tokens == [("new.jpg", 0), ("old.jpg", 7)]
    assert spaces == [("m", 1024)]
    assert "upload_facts" in words
    assert statistics == 3
    assert left is None


@pytest.mark.parametrize("revision", ["0025", "0026"])
def test_tables_of_the_last_development_versions_are_upgraded(server, change, revision):
    with server.new_database(migrated=False) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(REVISION_0027.encode())
            connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = %s", [revision])
        database = connect(change(database_url=url))

        database.upgrade()

        current, newest = database.revisions()
        database.close()
    assert current == newest


def test_tables_of_revision_0027_get_the_triggers_of_today(server, change):
    with server.new_database(migrated=False) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(REVISION_0027.encode())
            connection.execute("INSERT INTO embedding_spaces (model, width) VALUES ('m', 1)")
            connection.execute("SELECT batch_pipeline_make_vectors(1)")
        database = connect(change(database_url=url))
        batch_id = add_batch(database, 2)
        with database.transaction() as connection:
            fill = "INSERT INTO upload_vectors SELECT id, 1, '[1]' FROM uploads"
            connection.execute(text(fill))
            connection.execute(text("TRUNCATE uploads"))  # the triggers of 0027 do not notice
        kept = add_batch(database, 1)
        with database.transaction() as connection:
            connection.execute(text(fill))
        with pytest.raises(ConfigurationError, match="at revision 0027, this version needs"):
            open_database(change(database_url=url))

        database.upgrade()

        with database.transaction() as connection:
            functions = triggers_and_functions(connection)
            left = connection.scalars(
                text(
                    "SELECT u.batch_id FROM upload_vectors LEFT JOIN uploads u ON u.id = upload_id"
                )
            ).all()
        current, newest = database.revisions()
        database.close()
    with server.new_database() as url:
        fresh = connect(change(database_url=url))
        with fresh.transaction() as connection:
            assert functions == triggers_and_functions(connection)
        fresh.close()
    assert current == newest
    assert left == [kept]
    assert batch_id != kept


def triggers_and_functions(connection):
    return connection.execute(
        text("""
            SELECT pg_get_triggerdef(oid), tgenabled::text FROM pg_trigger WHERE NOT tgisinternal
            UNION SELECT pg_get_functiondef(oid), proacl::text FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND prosecdef ORDER BY 1
        """)
    ).all()


def test_every_index_that_was_left_incomplete_is_built_again(database):
    with database.transaction() as connection:
        indexes = connection.scalars(
            text(
                "SELECT indexname FROM pg_indexes WHERE tablename IN ('uploads', 'upload_batches')"
            )
        ).all()
        connection.execute(
            text(
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid IN "
                "(SELECT oid FROM pg_class WHERE relname ~ '^ix_uploads?_')"
            )
        )
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    database.upgrade()
    with database.transaction() as connection:
        valid = connection.scalars(
            text(
                "SELECT relname FROM pg_class JOIN pg_index ON oid = indexrelid "
                "WHERE indisvalid AND relname = ANY (:indexes)"
            ),
            {"indexes": indexes},
        ).all()
    assert sorted(valid) == sorted(indexes)


def test_the_revisions_are_those_that_alembic_sees(database):
    with database.engine.connect() as connection:
        applied = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE}
        ).get_current_revision()
    newest = ScriptDirectory(Path(revisions.__file__).parent / "migrations").get_current_head()
    assert database.revisions() == (applied, newest)


def test_tables_without_any_migration_have_no_revision(server, change):
    with server.new_database(migrated=False) as url:
        database = connect(change(database_url=url))
        assert database.revisions()[0] is None
        database.close()


def test_upgrading_twice_changes_nothing(database):
    batch_id = add_batch(database, 2)
    database.upgrade()
    assert batch_row(database, batch_id).total_uploads == 2


def test_an_external_database_without_tables_is_refused_with_the_command_to_run(server, change):
    with (
        server.new_database(migrated=False) as url,
        pytest.raises(ConfigurationError, match="batch-pipeline db upgrade"),
    ):
        open_database(change(database_url=url))


@pytest.mark.slow
def test_an_embedded_database_is_migrated_when_it_is_first_opened(tmp_path, change):
    database = open_database(change(database_url="", home=tmp_path / "fresh"))
    current, newest = database.revisions()
    database.close()
    assert current == newest


def test_a_url_of_another_engine_is_refused(change):
    with pytest.raises(ConfigurationError, match="names 'mysql'"):
        open_database(change(database_url="mysql://localhost/x"))


def test_a_server_that_does_not_answer_is_down_and_not_misconfigured(change):
    with pytest.raises(ServiceDownError, match="does not answer") as raised:
        open_database(change(database_url="postgresql://127.0.0.1:1/x"))
    assert raised.value.kind == "database_down"


@pytest.mark.parametrize("form", ["postgresql://", "postgres://", "postgresql+psycopg2://"])
def test_every_usual_form_of_the_url_is_read(form, database_url, change):
    url = database_url.replace("postgresql://", form)
    open_database(change(database_url=url)).close()
