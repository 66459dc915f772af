"""`dagster dev` in a clone with no variable set: it starts, works, and keeps its runs."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batch_pipeline.demo import free_port

from .conftest import MEDIA, ROOT, GraphQl, RealStack, clean_environment, wait_until


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@contextmanager
def dagster_dev(clone: Path) -> Iterator[RealStack]:
    port = free_port()
    with (clone / "dev.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-p", str(port)],
            cwd=clone,
            env=clean_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    graphql = GraphQl(f"http://127.0.0.1:{port}")

    def answers() -> bool:
        assert process.poll() is None, (clone / "dev.log").read_text()[-3000:]
        try:
            graphql("{ version }")
        except OSError:
            return False
        return True

    try:
        wait_until(answers, "the webserver answers")
        yield RealStack(clone / ".batch_pipeline", graphql)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.slow
def test_dagster_dev_works_with_no_variable_set_and_runs_persist(clone):
    with dagster_dev(clone) as stack:
        submitted = stack.cli("submit", MEDIA / "fog.webp", "--wait")
        assert submitted["status"]["status"] == "completed"
        first = stack.graphql.ended_run_of(submitted["batch_id"])
    with dagster_dev(clone) as stack:
        [kept] = stack.graphql.runs_of(submitted["batch_id"])
        assert kept["runId"] == first["runId"]
        assert stack.cli("status", submitted["batch_id"])["successful_uploads"] == 1
