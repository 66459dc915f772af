"""The roles of `deploy/roles.sql`: what each may and may not do."""

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from sqlalchemy.engine import make_url

from batch_pipeline.database.session import connect
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.search import search
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import UploadProcessor
from batch_pipeline.testing.records import upload_rows

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
