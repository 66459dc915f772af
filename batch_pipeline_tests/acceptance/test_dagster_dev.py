"""`dagster dev` in a clone without any variables: it starts, processes, and keeps its runs."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from batch_pipeline.database.embedded_server import server_is_running
from batch_pipeline.demo import free_port
from batch_pipeline_tests.patience import wait_until

from .conftest import MEDIA, ROOT, GraphQl, RealStack, clean_environment


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
            env=clean_environment(XDG_DATA_HOME=str(clone / "data")),
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
        yield RealStack(clone / "data" / "batch_pipeline", graphql)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.slow
def test_dagster_dev_works_with_no_variable_set_and_runs_persist(clone):
    with dagster_dev(clone) as stack:
        submitted = stack.cli("submit", MEDIA / "fog.webp", "--wait")
        assert submitted["status"]["status"] == "completed"
        first = stack.graphql.ended_run_of(submitted["batch_id"])
    wait_until(lambda: not server_is_running(stack.home), "PostgreSQL stops")
    listed = subprocess.check_output(
        [sys.executable, "-m", "dagster", "run", "list"],
        env=clean_environment(DAGSTER_HOME=str(clone), XDG_DATA_HOME=str(clone / "data")),
        text=True,
    )
    assert first["runId"] in listed
    assert stack.cli("status", submitted["batch_id"])["successful_uploads"] == 1


def processes_below(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize("what", ["dagster dev", "make dev", "make demo"])
def test_sigterm_ends_everything_that_a_script_started_in_the_background(what, tmp_path):
    """A shell without a terminal starts background jobs with SIGINT ignored."""
    port, log = free_port(), tmp_path / "log"
    environment = Path(sys.executable).parents[1]
    installed = (f"--old-file={environment}/bin/{name}" for name in (".installed", ".installed-dg"))
    make = ("make", *installed, f"VENV={environment}")
    command = {
        "dagster dev": (sys.executable, "-m", "dagster", "dev", "-p", str(port)),
        "make dev": (*make, "dev", f"ARGS=-p {port}"),
        "make demo": (*make, "demo", f"ARGS=--port {port}"),
    }[what]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment() | {"BATCH_PIPELINE_HOME": str(tmp_path / "home")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509
        )
    graphql = GraphQl(f"http://127.0.0.1:{port}")

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            graphql("{ version }")
        except OSError:
            return False
        return True

    started: list[psutil.Process] = []
    try:
        wait_until(answers, "the web server answers")
        started = processes_below(process.pid)
        assert len(started) > 3
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        _, alive = psutil.wait_procs(started, timeout=30)
        assert not alive, [one.cmdline() for one in alive]
        wait_until(lambda: not server_is_running(tmp_path / "home"), "PostgreSQL stops")
    finally:
        for one in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.proof
def test_make_dev_is_quiet_when_idle_keeps_its_logs_and_locks_its_home(tmp_path):
    port, log, home = free_port(), tmp_path / "log", tmp_path / "home"
    environment = clean_environment() | {"BATCH_PIPELINE_HOME": str(home)}
    command = [sys.executable, str(ROOT / "scripts" / "dev.py"), f"--port={port}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    stack = RealStack(home, GraphQl(f"http://127.0.0.1:{port}"))
    ticks = """{ sensorOrError(sensorSelector: {repositoryName: "__repository__",
      repositoryLocationName: "batch_pipeline.definitions", sensorName: "sweep_on_start"})
      { ... on Sensor { sensorState { ticks(limit: 3) { status } } } } }"""

    def has_ticked() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            found = stack.graphql(ticks)["sensorOrError"]
        except OSError:
            return False
        return len(found.get("sensorState", {}).get("ticks", [])) == 3

    try:
        wait_until(has_ticked, "a sensor was evaluated three times")
        assert log.read_text().splitlines() == [
            f"Everything is kept in {home}",
            f"In half a minute the UI is at http://127.0.0.1:{port} "
            "(Ctrl-C stops; ARGS='--log-level info' shows every tick)",
        ]
        second = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert second.returncode == 2
        assert second.stderr.startswith(
            f"Error: a stack already runs on {home} (process {process.pid}): stop it"
        )
        batch = stack.cli("submit", MEDIA / "fog.webp", "--wait")["batch_id"]
        run = stack.graphql.ended_run_of(batch)
        kept = list((home / "dagster" / "storage" / run["runId"]).rglob("*.err"))
        assert kept, "what the run printed is kept under the home"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
