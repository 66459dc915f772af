"""A role whose name and password have every character that URLs and libpq treat specially."""

import shutil
import uuid
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from batch_pipeline.database.libpq import libpq_url
from batch_pipeline.database.listening import listening
from batch_pipeline_tests.integration.console import Console

ROOT = Path(__file__).parents[3]
PICTURE = ROOT / "examples" / "media" / "fog.webp"
PASSWORD = "a b%c@d'e\\f/g:h?i#j+k\"l&m=n ü$(o);"


@pytest.fixture
def role(server_url):
    """A superuser whose password the server really checks."""
    name = f"role of {uuid.uuid4().hex[:8]} 100%"
    rules = f'local all "{name}" scram-sha-256\nhost all "{name}" all scram-sha-256\n'
    with psycopg.connect(libpq_url(server_url), autocommit=True) as owner:
        [found] = owner.execute("SHOW hba_file").fetchone()
        file = Path(found)
        before = file.read_text()
        file.write_text(rules + before)
        owner.execute("SELECT pg_reload_conf()")
        identifier = sql.Identifier(name)
        owner.execute(
            sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(identifier, PASSWORD)
        )
        yield name
        file.write_text(file.read_text().replace(rules, ""))
        owner.execute("SELECT pg_reload_conf()")
        owner.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(identifier))
        owner.execute(sql.SQL("DROP ROLE {}").format(identifier))


def encoded(url, role):
    """Encode every special character as a percent sign and digits."""
    *_, place = url.removeprefix("postgresql://").rpartition("@")
    return f"postgresql://{quote(role, safe='')}:{quote(PASSWORD, safe='')}@{place}"


def as_sqlalchemy_writes_it(url, role):
    """Leave spaces and plus signs unchanged."""
    return make_url(url).set(username=role, password=PASSWORD).render_as_string(False)


@pytest.fixture(params=[encoded, as_sqlalchemy_writes_it])
def urls(request, server, role):
    """An empty database for the tables, one for Dagster's, and one for a restore."""
    with ExitStack() as stack:
        made = [stack.enter_context(server.new_database(migrated=False)) for _ in range(3)]
        yield [request.param(url, role) for url in made]


@pytest.fixture
def console(urls, tmp_path):
    variables = {
        "PATH": "/usr/bin:/bin",
        "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
        "BATCH_PIPELINE_DATABASE_URL": urls[0],
        "BATCH_PIPELINE_DAGSTER_DATABASE_URL": urls[1],
    }
    return Console(variables, tmp_path)


@pytest.fixture
def migrated(console):
    assert console("db", "upgrade").code == 0


def test_the_server_asks_for_the_password(urls):
    for url in urls:
        psycopg.connect(libpq_url(url)).close()
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(libpq_url(url), password="another")


@pytest.mark.slow
def test_every_command_connects_with_the_password(console, urls, tmp_path):
    def said(*arguments, code=0, **variables):
        answer = console(*arguments, **variables)
        assert answer.code == code, answer.err
        assert "Traceback" not in answer.err
        return answer

    said("db", "upgrade")
    submitted = said("submit", PICTURE, "--json").json
    assert said("status", submitted["batch_id"], "--json").json["total_uploads"] == 1
    assert "batch_pipeline_open_uploads" in said("metrics").out
    checks = {check["name"]: check for check in console("doctor", "--quick", "--json").json}
    for name in ("database", "migrations", "tables", "owner of the storage", "dagster storage"):
        assert checks[name]["ok"], checks[name]
    assert "has written no heartbeat" in said("alive", "daemon", code=2).err
    said("db", "backup", tmp_path / "backup.tar")
    said("cancel", submitted["batch_id"])
    said(
        *("db", "restore", tmp_path / "backup.tar"),
        BATCH_PIPELINE_DATABASE_URL=urls[2],
        BATCH_PIPELINE_HOME=str(tmp_path / "restored"),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("migrated")
def test_slots_listeners_and_the_instance_connect(
    urls, change, open_pipeline, monkeypatch, tmp_path
):
    pipeline = open_pipeline(change(database_url=urls[0]))
    with pipeline.call_slots.of("vision", 1).taken(lambda: ["http://model"], lambda: False):
        pass
    with listening(pipeline.database, "batch_pipeline_work"):
        pass
    pipeline.close()
    home = tmp_path / "dagster_home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    monkeypatch.setenv("BATCH_PIPELINE_DAGSTER_DATABASE_URL", urls[1])
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_runs() == []
