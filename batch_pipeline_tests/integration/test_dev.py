"""`make dev` refuses what Dagster would find out after half a minute.

`acceptance/test_dagster_dev.py` starts it.
"""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dagster_dg_cli.cli.dev import dev_command

from batch_pipeline.demo import free_port

DEV = Path(__file__).parents[2] / "scripts" / "dev.py"


@pytest.fixture
def refusal(tmp_path):
    """Return a function that starts `make dev` and returns its last words."""

    def start(*arguments: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, str(DEV), *arguments],
            env={"PATH": os.environ["PATH"], "BATCH_PIPELINE_HOME": str(tmp_path), **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    return start


@pytest.mark.slow
def test_a_port_at_which_another_program_listens_is_named(refusal):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal("-p", str(port))
    assert f"Error: port {port} cannot be used: Address already in use; choose another" in said
    assert "for example ARGS='--port 3001'" in said


@pytest.mark.slow
def test_a_database_that_does_not_answer_or_was_not_upgraded_is_named(refusal, server):
    port = f"--port={free_port()}"
    away = refusal(port, BATCH_PIPELINE_DATABASE_URL="postgresql://a:b@127.0.0.1:1/c")
    with server.new_database(migrated=False) as url:
        not_upgraded = refusal(port, BATCH_PIPELINE_DATABASE_URL=url)
    assert "Error: the database does not answer" in away
    assert "run `batch-pipeline db upgrade`" in not_upgraded


def test_dg_takes_our_options_and_those_of_the_caller_replace_them():
    ours = runpy.run_path(str(DEV))["OPTIONS"]
    theirs = ["-h", "0.0.0.0", "-p", "3001", "--log-level", "info", "--log-format", "json"]

    options = dev_command.make_context("dev", [*ours, *theirs]).params

    given = {"host": "0.0.0.0", "port": 3001, "log_level": "info", "log_format": "json"}
    assert options | given == options
    assert list(options["module_name"]) == ["batch_pipeline.definitions"]
