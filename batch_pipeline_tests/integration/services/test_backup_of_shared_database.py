"""Backup and restore of a database that other programs use, too, under other roles."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from batch_pipeline.database.relations import PIPELINE
from batch_pipeline.database.session import connect, with_driver
from batch_pipeline.errors import ConfigurationError, RefusedError, ServiceDownError
from batch_pipeline.services.backups import database_dumps
from batch_pipeline.services.backups.backup import back_up, restore
from batch_pipeline.services.backups.database_dumps import DumpedDatabase, ReadyDump
from batch_pipeline.settings import Settings

pytestmark = pytest.mark.slow

#: Tables of an API: ours refer to one of them, and one of them refers to ours.
API = """
CREATE TABLE users (id uuid PRIMARY KEY, email text);
CREATE TABLE albums (id serial PRIMARY KEY, upload_id uuid REFERENCES uploads ON DELETE CASCADE);
CREATE VIEW "E-mails" AS SELECT email FROM users;
ALTER TABLE uploads ADD CONSTRAINT of_user FOREIGN KEY (user_id) REFERENCES users;
INSERT INTO users VALUES ('5a0f3c7e-0000-4000-8000-000000000002', 'monday@example.org');
INSERT INTO uploads (user_id, filename, file_path, file_type, file_size)
VALUES ('5a0f3c7e-0000-4000-8000-000000000002', 'a', 'a', 'image', 1);
INSERT INTO albums (upload_id) SELECT id FROM uploads;
"""
TUESDAY = """
DELETE FROM uploads;
UPDATE users SET email = 'tuesday@example.org';
"""


def run(url: str, statements: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        done = connection.execute(statements.encode())
        while done.nextset():
            pass
        return done.fetchall() if done.description else []


def contents(url: str) -> list[tuple[object, ...]]:
    return run(
        url,
        "SELECT (SELECT count(*) FROM uploads), (SELECT count(*) FROM albums), "
        '(SELECT min(email) FROM "E-mails")',
    )


@pytest.fixture
def at(change, tmp_path) -> Callable[[str], Settings]:
    """Settings for a database that Dagster has never used."""

    def settings(url: str) -> Settings:
        never = make_url(url).set(database=f"never_{uuid.uuid4().hex}")
        return change(
            database_url=url,
            dagster_database_url=never.render_as_string(hide_password=False),
            storage_url=str(tmp_path / "storage"),
        )

    return settings


@pytest.fixture
def role(server_url) -> Iterator[str]:
    """A role that may log in, nothing else."""
    name = f"app_{uuid.uuid4().hex[:8]}"
    run(server_url, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    yield name
    run(server_url, f"DROP ROLE {name}")


@pytest.fixture
def owned(server, role) -> Iterator[tuple[str, str]]:
    """An empty database of a role, but with the extension of a superuser: two URLs, of each."""
    with server.new_database(migrated=False) as url:
        run(
            url, f"CREATE EXTENSION vector; ALTER DATABASE {make_url(url).database} OWNER TO {role}"
        )
        yield as_role(url, role), url
        run(url, f"ALTER DATABASE {make_url(url).database} OWNER TO CURRENT_USER")
        run(url, f"DROP OWNED BY {role} CASCADE")


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role, password="x").render_as_string(hide_password=False)


def upgrade(settings: Settings) -> None:
    database = connect(settings)
    database.upgrade()
    database.close()


def test_tables_of_other_programs_are_replaced_only_if_that_is_asked_for(
    server, database_url, at, tmp_path
):
    run(database_url, API)
    file = tmp_path / "monday.tar"
    backup = back_up(at(database_url), file, with_files=False)
    assert backup.left_out == []
    monday = contents(database_url)
    run(database_url, TUESDAY)
    tuesday = contents(database_url)
    assert tuesday != monday

    for replace in (False, True):
        with pytest.raises(RefusedError, match="--replace-others") as refused:
            restore(at(database_url), file, replace=replace)
        for name in ("public.users", "public.albums", 'public."E-mails"'):
            assert name in str(refused.value)
        assert "uploads" not in str(refused.value)
        assert "albums_id_seq" not in str(refused.value)
        assert contents(database_url) == tuesday
    assert not (tmp_path / "storage").exists() or not any((tmp_path / "storage").iterdir())

    restore(at(database_url), file, replace_others=True)
    assert contents(database_url) == monday
    with server.new_database(migrated=False) as empty:
        restore(at(empty), file)
        assert contents(empty) == monday


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        ("CREATE TABLE albums (upload_id uuid REFERENCES uploads)", "table albums"),
        ("CREATE VIEW newest AS SELECT * FROM uploads", "view newest"),
    ],
)
def test_objects_that_need_our_tables_and_are_not_in_the_backup_are_named_before_any_change(
    database_url, at, tmp_path, statements, named
):
    file = tmp_path / "monday.tar"
    back_up(at(database_url), file, with_files=False)
    run(database_url, statements)
    for replace_others in (False, True):
        with pytest.raises(RefusedError, match=f"drop first what needs them: .*{named}"):
            restore(at(database_url), file, replace_others=replace_others)
    assert not (tmp_path / "storage").exists()


def test_a_table_of_another_program_with_the_name_of_one_of_ours_is_kept(
    server, database_url, at, tmp_path
):
    file = tmp_path / "monday.tar"
    back_up(at(database_url), file, with_files=False)
    with server.new_database(migrated=False) as url:
        run(url, "CREATE TABLE notifications (id int); INSERT INTO notifications VALUES (1)")
        with pytest.raises(RefusedError, match=r"other programs .*: public\.notifications\."):
            restore(at(url), file)
        assert run(url, "SELECT * FROM notifications") == [(1,)]

    # With a schema of our own, both tables are in one database.
    with server.new_database(migrated=False) as url:
        run(url, "CREATE TABLE notifications (id int); INSERT INTO notifications VALUES (1)")
        run(url, "CREATE EXTENSION vector; CREATE SCHEMA batch_pipeline")
        options = {"options": "-csearch_path=batch_pipeline,public"}
        apart = make_url(url).update_query_dict(options).render_as_string(hide_password=False)
        upgrade(at(apart))
        back_up(at(apart), file, with_files=False)
        with pytest.raises(RefusedError, match=r"other programs .*: public\.notifications\."):
            restore(at(apart), file)
        run(url, "ALTER TABLE notifications RENAME TO notices")
        restore(at(apart), file)
        assert run(url, "SELECT * FROM notices") == [(1,)]


def test_the_owner_of_the_tables_restores_although_the_extension_is_of_a_superuser(
    owned, at, tmp_path
):
    url, superuser = owned
    file = tmp_path / "monday.tar"
    upgrade(at(url))
    run(url, "INSERT INTO upload_batches (user_id) VALUES (gen_random_uuid())")
    back_up(at(url), file, with_files=False)
    restore(at(url), file, replace=True)
    run(url, "DROP OWNED BY CURRENT_USER CASCADE")
    run(superuser, "CREATE EXTENSION IF NOT EXISTS vector")
    restore(at(url), file)
    assert run(url, "SELECT count(*) FROM upload_batches") == [(1,)]


def test_an_extension_in_another_schema_is_named_before_anything_is_changed(server, at, tmp_path):
    file, path = tmp_path / "monday.tar", "ALTER DATABASE {} SET search_path = public, extensions"
    with (
        server.new_database(migrated=False) as source,
        server.new_database(migrated=False) as target,
    ):
        run(source, "CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
        run(target, "CREATE EXTENSION vector")
        for url in (source, target):
            run(url, path.format(make_url(url).database))
        upgrade(at(source))
        run(source, API)
        back_up(at(source), file, with_files=False)

        with pytest.raises(RefusedError, match="in the schema public of this") as refused:
            restore(at(target), file)

        assert run(target, "SELECT to_regclass('uploads')") == [(None,)]
        run(target, str(refused.value).partition("run: ")[2])
        restore(at(target), file)
        assert contents(target) == contents(source)


def test_a_role_that_does_not_own_the_tables_is_told_so_before_anything_is_changed(
    database_url, role, at, tmp_path
):
    file = tmp_path / "monday.tar"
    back_up(at(database_url), file, with_files=False)
    run(database_url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    with pytest.raises(ConfigurationError, match="must be owner of table"):
        restore(at(as_role(database_url, role)), file)
    assert not (tmp_path / "storage").exists()
    run(database_url, f"DROP OWNED BY {role}")


def test_a_backup_names_tables_of_other_programs_that_it_leaves_out(
    server, owned, at, role, tmp_path
):
    url, superuser = owned
    file = tmp_path / "monday.tar"
    upgrade(at(url))
    run(superuser, "CREATE SCHEMA api; CREATE TABLE api.users (id serial PRIMARY KEY)")
    run(superuser, 'CREATE TABLE "Odd name" (a int GENERATED ALWAYS AS IDENTITY, b int)')
    run(superuser, f'GRANT SELECT ON "Odd name" TO {role}')  # but not on its sequence
    run(superuser, f"CREATE TABLE shared (a int); GRANT SELECT ON shared TO {role}")
    run(superuser, "INSERT INTO shared VALUES (1)")
    run(superuser, "CREATE SEQUENCE numbers")
    backup = back_up(at(url), file, with_files=False)
    assert backup.left_out == ["api.users", 'public."Odd name"', "public.numbers"]
    with server.new_database(migrated=False) as empty:
        restore(at(empty), file)
        assert run(empty, "SELECT * FROM shared") == [(1,)]
        assert run(empty, "SELECT to_regclass('api.users')") == [(None,)]


@pytest.mark.parametrize(
    ("statements", "needing"),
    [
        (
            "GRANT REFERENCES ON users TO {role}; "
            "ALTER TABLE uploads ADD FOREIGN KEY (user_id) REFERENCES users",
            "uploads",
        ),
        ("CREATE VIEW names AS SELECT id FROM users", "names"),
        (
            "CREATE TABLE albums (user_id uuid REFERENCES users); GRANT SELECT ON albums TO {role}",
            "albums",
        ),
    ],
    ids=["key", "view", "table"],
)
def test_a_backup_that_could_not_be_restored_is_refused_with_the_right_that_is_missing(  # noqa: PLR0917
    owned, at, role, tmp_path, statements, needing
):
    url, superuser = owned
    file = tmp_path / "monday.tar"
    upgrade(at(url))
    run(superuser, "CREATE TABLE users (id uuid PRIMARY KEY)")
    run(superuser, statements.format(role=role))
    with pytest.raises(RefusedError, match=rf"all of users \(needed by {needing}\).*GRANT SELECT"):
        back_up(at(url), file, with_files=False)
    assert not list(tmp_path.glob("monday.tar*"))
    run(superuser, f"GRANT SELECT ON users TO {role}")
    assert back_up(at(url), file, with_files=False).left_out == []


def test_a_backup_under_row_level_security_is_refused_with_what_to_do(owned, at, role, tmp_path):
    url, superuser = owned
    file = tmp_path / "monday.tar"
    upgrade(at(url))
    run(url, "CREATE POLICY all_rows ON uploads USING (true)")
    run(url, "ALTER TABLE uploads ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    with pytest.raises(RefusedError, match=r"rows of public\.uploads from the role .*BYPASSRLS"):
        back_up(at(url), file, with_files=False)
    run(superuser, f'ALTER ROLE "{role}" BYPASSRLS')
    back_up(at(url), file, with_files=False)

    # Of another program: the table is left out.
    run(superuser, f"CREATE TABLE notes (a int); GRANT SELECT ON notes TO {role}")
    run(superuser, "ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
    run(superuser, f'ALTER ROLE "{role}" NOBYPASSRLS')
    run(url, "ALTER TABLE uploads NO FORCE ROW LEVEL SECURITY")
    assert back_up(at(url), file, with_files=False).left_out == ["public.notes"]


def test_a_role_that_may_not_read_our_tables_gets_no_backup_without_them(
    database_url, role, at, tmp_path
):
    run(database_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")  # no sequences
    with pytest.raises(RefusedError, match=r"may not read public\..* BATCH_PIPELINE_DATABASE_URL"):
        back_up(at(as_role(database_url, role)), tmp_path / "monday.tar", with_files=False)
    assert not list(tmp_path.glob("monday.tar*"))
    run(database_url, f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}")
    back_up(at(as_role(database_url, role)), tmp_path / "monday.tar", with_files=False)
    run(database_url, f"DROP OWNED BY {role}")


def test_a_restore_does_not_wait_for_ever_behind_another_transaction(
    database_url, at, tmp_path, monkeypatch
):
    file = tmp_path / "monday.tar"
    back_up(at(database_url), file, with_files=False)
    monkeypatch.setattr(database_dumps, "_LOCK_SECONDS", 1)
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM uploads")  # in a transaction left open
        with pytest.raises(ServiceDownError, match="stop Dagster"):
            restore(at(database_url), file)
    restore(at(database_url), file)


def test_the_limit_of_waits_for_locks_also_holds_in_the_script_of_a_restore(database_url, tmp_path):
    url = with_driver(database_url, "psycopg", variable="DATABASE_URL")
    database, dump = DumpedDatabase(url, "DATABASE_URL", (PIPELINE,)), tmp_path / "ours.dump"
    database.dump(dump)
    ready = ReadyDump.make(dump, database)
    with Path(ready.script).open("a", encoding="utf-8") as script:
        script.write("CREATE TABLE public.seen AS SELECT current_setting('lock_timeout');\n")
    ready.restore()
    assert run(database_url, "SELECT * FROM seen") == [("15s",)]
