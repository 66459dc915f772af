from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from batch_pipeline.database import revisions
from batch_pipeline.database.models import Base
from batch_pipeline.database.revisions import VERSION_TABLE
from batch_pipeline.database.session import connect, open_database
from batch_pipeline.errors import ConfigurationError, ServiceDownError
from batch_pipeline.testing.records import add_batch, batch_row


def test_migrations_build_exactly_the_tables_of_the_models(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table": VERSION_TABLE,
            },
        )
        differences = compare_metadata(context, Base.metadata)
    assert differences == []


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
