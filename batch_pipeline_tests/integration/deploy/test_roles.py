"""The roles of `deploy/roles.sql`: what each may and may not do."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.rows import namedtuple_row
from sqlalchemy.engine import make_url

from batch_pipeline.database.session import connect
from batch_pipeline.database.spaces import Questions, SpaceKey, find_or_make_space
from batch_pipeline.database.triggers import FUNCTIONS
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.services.backups.backup import back_up, restore
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.search.embedding_spaces import drop, key_of_settings
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import UploadProcessor
from batch_pipeline.testing.records import add_batch, upload_rows

ROOT = Path(__file__).parents[3]
STATEMENTS = (ROOT / "deploy" / "roles.sql").read_text()


@pytest.fixture
def url_as(server) -> Iterator[Callable[[str], str]]:
    """The URL of an empty database with the roles, for each of them."""
    ours = f"test_{uuid.uuid4().hex[:12]}"
    with server.new_database(migrated=False) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(STATEMENTS.replace("batch_pipeline", ours).encode())
        try:
            yield (
                lambda role: (
                    make_url(url)
                    .set(username=f"{ours}_{role}")
                    .render_as_string(hide_password=False)
                )
            )
        finally:
            with psycopg.connect(url, autocommit=True) as connection:
                for role in ("reader", "worker", "owner"):
                    connection.execute(f"DROP OWNED BY {ours}_{role}".encode())
                    connection.execute(f"DROP ROLE {ours}_{role}".encode())


@pytest.mark.slow
def test_the_owner_makes_the_tables_the_worker_works_and_the_reader_reads(
    url_as, change, open_pipeline
):
    owner = connect(change(database_url=url_as("owner")))
    owner.upgrade()
    owner.close()
    worker = open_pipeline(change(database_url=url_as("worker")))
    submission = submit(
        [ROOT / "examples" / "media" / "fog.webp"],
        publisher=worker.publisher,
        storage=worker.storage,
        settings=worker.settings,
    )
    [upload] = worker.states.load_batch(submission.batch_id, "run", limit=1).reserved
    with ClaimKeeper(worker.states, "run", lease_seconds=60) as keeper:
        UploadProcessor(worker, keeper).process(upload.id, "run", retries_left=0)
    assert upload_rows(worker.database, submission.batch_id)[0].processing_status == "completed"

    reader = open_pipeline(change(database_url=url_as("reader")))
    assert [hit.upload_id for hit in search(reader.database, worker.spaces.model_of, "fog")] == [
        upload.id
    ]
    for role, statement in (
        ("reader", "UPDATE uploads SET hidden = true"),
        ("reader", "DELETE FROM upload_batches"),
        ("reader", "CREATE TABLE mine (a int)"),
        ("worker", "DROP TABLE uploads"),
        ("worker", "ALTER TABLE uploads ADD COLUMN mine int"),
        ("worker", "CREATE TABLE mine (a int)"),
    ):
        with (
            psycopg.connect(url_as(role)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement.encode())


#: Our functions that run with the rights of the tables' owner.
DEFINERS = """
    SELECT proname, prorettype = 'trigger'::regtype AS is_trigger, proconfig AS settings,
        EXISTS (
            SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner)))
            WHERE grantee = 0 AND privilege_type = 'EXECUTE'
        ) AS is_public
    FROM pg_proc WHERE prosecdef AND pronamespace::regnamespace::text = 'public' ORDER BY 1
"""
#: Makes a table of the caller with our columns. A cast to text runs code of the caller.
TRAP = """
    CREATE TYPE pg_temp.trap AS (word int);
    CREATE FUNCTION pg_temp.spring(pg_temp.trap) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE 'CREATE TABLE public.sprung AS SELECT current_user';
        RETURN 'completed';
    END $$;
    CREATE CAST (pg_temp.trap AS text) WITH FUNCTION pg_temp.spring(pg_temp.trap);
    CREATE TEMP TABLE {table} (id uuid, batch_id uuid, user_id uuid, filename text, name text,
        status pg_temp.trap, error_kind text, error_message text, total_uploads int,
        successful_uploads int, failed_uploads int, embedding_model text, kind text,
        reason text, began_at timestamptz)
"""
ROWS = (
    "INSERT INTO {table} (id, status, kind, reason, began_at) "
    "SELECT upload_id, row(1)::pg_temp.trap, 'x', 'x', now() FROM upload_vectors"
)
#: Each way to call a trigger function. The transition tables have the names that ours expect.
CALLS = (
    ("AFTER INSERT ON {table} FOR EACH ROW", ROWS),
    ("AFTER INSERT ON {table} REFERENCING NEW TABLE AS changed FOR EACH STATEMENT", ROWS),
    ("AFTER UPDATE ON {table} FOR EACH ROW", "UPDATE {table} SET kind = 'y'"),
    (
        "AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone FOR EACH STATEMENT",
        "DELETE FROM {table}",
    ),
    ("AFTER DELETE ON {table} FOR EACH ROW", "DELETE FROM {table}"),
    ("AFTER TRUNCATE ON {table} FOR EACH STATEMENT", "TRUNCATE {table}"),
)


@pytest.fixture
def with_vector(url_as, change) -> None:
    """The database with an upload that has a vector."""
    owner = connect(change(database_url=url_as("owner")))
    owner.upgrade()
    add_batch(owner, [{"embedding_model": "m", "embedding_local": [1.0] * 1024}])
    owner.close()


def definers(connection: psycopg.Connection) -> list[Any]:
    return connection.cursor(row_factory=namedtuple_row).execute(DEFINERS).fetchall()


@pytest.mark.parametrize("is_restored", [False, True])
@pytest.mark.usefixtures("with_vector")
def test_no_role_can_use_our_trigger_functions_on_its_own_tables(url_as, is_restored):
    tables = ("mine", "uploads", "upload_batches", "outages")
    with psycopg.connect(url_as("owner"), autocommit=True) as owner:
        functions = [found.proname for found in definers(owner) if found.is_trigger]
        if (
            is_restored
        ):  # without privileges (`services/backups/backup.py`): PUBLIC may execute them
            for function in functions:
                owner.execute(f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC".encode())
        counted = (
            "SELECT (SELECT count(*) FROM upload_vectors), (SELECT count(*) FROM notifications), "
            "(SELECT count(*) FROM batches_to_recount), to_regclass('public.sprung')"
        )
        before = owner.execute(counted).fetchone()
        assert before[0] == 1

        for role, table in itertools.product(("reader", "worker"), tables):
            with psycopg.connect(url_as(role), autocommit=True) as caller:
                caller.execute(TRAP.format(table=table).encode())
                for function, (call, use) in itertools.product(functions, CALLS):
                    trigger = f"CREATE TRIGGER t {call} EXECUTE FUNCTION {function}()"
                    statements = f"BEGIN; {ROWS}; {trigger}; {use}; COMMIT"
                    try:
                        caller.execute(statements.format(table=f"pg_temp.{table}").encode())
                    except psycopg.errors.InsufficientPrivilege:
                        caller.execute("ROLLBACK")
                    else:
                        pytest.fail(f"{role} can execute {function} on {table}: {call}")

            assert owner.execute(counted).fetchone() == before, (role, table)


@pytest.mark.usefixtures("with_vector")
def test_functions_with_the_rights_of_the_owner_are_safe_from_their_callers(url_as):
    with psycopg.connect(url_as("owner"), autocommit=True) as owner:
        found = definers(owner)
    assert {function.proname for function in found} >= set(FUNCTIONS)
    for function in found:
        # Without it at the end, tables and types of the caller would come first.
        [path] = [part for part in function.settings if part.startswith("search_path=")]
        assert path.endswith(", pg_temp"), function.proname
        if function.is_trigger:
            assert not function.is_public, function.proname
    # Any login may call this one. The test below says what it does then.
    others = [function.proname for function in found if not function.is_trigger]
    assert others == ["batch_pipeline_make_vectors"]


@pytest.mark.usefixtures("with_vector")
def test_the_reader_cannot_keep_others_from_writing_vectors(url_as):
    with (
        psycopg.connect(url_as("reader")) as reader,
        psycopg.connect(url_as("reader")) as other,
        psycopg.connect(url_as("worker")) as worker,
    ):
        [space] = reader.execute("SELECT id FROM embedding_spaces").fetchone()
        reader.execute("SELECT batch_pipeline_make_vectors(%s)", [space])
        with pytest.raises(psycopg.errors.RaiseException, match="no embedding space"):
            other.execute("SELECT batch_pipeline_make_vectors(99)")
        worker.execute(f"LOCK TABLE upload_vectors_{space} IN ROW EXCLUSIVE MODE NOWAIT".encode())


def test_only_the_owner_drops_an_embedding_space(url_as, change, open_pipeline):
    owner = connect(change(database_url=url_as("owner")))
    owner.upgrade()
    worker = open_pipeline(change(database_url=url_as("worker")))
    with worker.database.transaction() as connection:
        space = find_or_make_space(connection, SpaceKey("former", 8), Questions())
    current = key_of_settings(worker.settings)
    with pytest.raises(ConfigurationError, match=r"must be owner of .*upload_vectors_.*the owner"):
        drop(worker.database, space.id, current)
    assert drop(owner, space.id, current) == space
    owner.close()


@pytest.mark.slow
def test_the_worker_backs_up_and_only_the_owner_restores(url_as, change, open_pipeline, tmp_path):
    never = make_url(url_as("worker")).set(database=f"never_{uuid.uuid4().hex}")

    def settings(role: str):
        return change(
            database_url=url_as(role),
            dagster_database_url=never.render_as_string(hide_password=False),
        )

    owner = connect(settings("owner"))
    owner.upgrade()
    owner.close()
    file = tmp_path / "monday.tar"
    assert back_up(settings("worker"), file, with_files=False).left_out == []
    with pytest.raises(ConfigurationError, match="must be owner of"):
        restore(settings("worker"), file)
    restore(settings("owner"), file)
    worker = open_pipeline(settings("worker"))  # the new tables have the rights of the old ones
    submitted = submit(
        [ROOT / "examples" / "media" / "fog.webp"],
        publisher=worker.publisher,
        storage=worker.storage,
        settings=worker.settings,
    )
    assert len(upload_rows(worker.database, submitted.batch_id)) == 1


@pytest.mark.slow
def test_the_service_migrate_needs_no_more_than_the_roles_that_the_document_gives_it(
    url_as, server, tmp_path
):
    document = (ROOT / "docs" / "security.md").read_text()
    [example] = re.findall(r"```yaml\n(services:.+?)```", document, re.DOTALL)
    given = yaml.safe_load(example)["services"]["migrate"]["environment"]
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["migrate"]
    shutil.copy(ROOT / "deploy" / "dagster_one_host.yaml", tmp_path / "dagster.yaml")
    with server.new_database(migrated=False) as dagster_url:
        of_dagster = make_url(dagster_url).database
        with psycopg.connect(dagster_url, autocommit=True) as connection:
            worker = make_url(url_as("worker")).username
            connection.execute(f"ALTER DATABASE {of_dagster} OWNER TO {worker}".encode())
        urls = {}
        for name, value in given.items():
            there = make_url(value)
            here = make_url(url_as(there.username.removeprefix("batch_pipeline_")))
            if there.database == "dagster":
                here = here.set(database=of_dagster)
            urls[name] = here.render_as_string(hide_password=False)
        migrated = subprocess.run(
            service["command"],
            env={
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "DAGSTER_HOME": str(tmp_path),
                **urls,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert migrated.returncode == 0, migrated.stderr
        with psycopg.connect(dagster_url) as connection:
            owners = connection.execute(
                "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
        assert owners == [(worker,)]
