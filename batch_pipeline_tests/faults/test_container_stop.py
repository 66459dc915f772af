"""A container engine stops the code location, or kills its first process.

No engine is needed: the test runs the command of ``deploy/compose.yaml``, with the environment of
that file, under the init process that Docker uses in containers.
"""

import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from batch_pipeline.database.session import connect
from batch_pipeline.errors import RefusedError
from batch_pipeline.orchestration.tags import OUTCOME_TAG
from batch_pipeline.services.health.liveness import check_code_server, check_daemon
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings
from batch_pipeline.testing.media import make_image
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.records import USER, add_batch, batch_row, upload_rows
from batch_pipeline.testing.stack import Part, PostgresProcess, StackProcesses, kill_all
from batch_pipeline_tests.acceptance.conftest import GraphQl
from batch_pipeline_tests.patience import WAIT_SECONDS, wait_until

TINI = shutil.which("tini-static")
DEPLOY = Path(__file__).parents[2] / "deploy"
UPLOADS = 500
#: `stop_grace_period` of the code location in compose.yaml (seconds).
GRACE_SECONDS = 30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.lengthy,
    pytest.mark.xdist_group("container"),
    pytest.mark.skipif(not TINI, reason="needs tini-static: scripts/install_test_system.sh"),
]


LEASE_SECONDS = 120
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}


@dataclass
class World:
    processes: StackProcesses
    models: ScriptedModelServer
    pipeline: Pipeline
    graphql: GraphQl
    pictures: int = 0
    """Number of pictures submitted so far."""

    def submit(self) -> uuid.UUID:
        """Add a batch like an upload API, with pictures that differ from all earlier ones."""
        storage, rows = self.pipeline.storage, []
        first, self.pictures = self.pictures, self.pictures + UPLOADS
        for number in range(UPLOADS):
            path = storage.original_path(USER, uuid.uuid4(), "jpg")
            storage.write(path, make_image("jpeg", size=(32, 24), seed=first + number))
            rows.append({"file_path": path})
        return add_batch(self.pipeline.database, rows)

    def held(self, batch_id: uuid.UUID) -> int:
        rows = upload_rows(self.pipeline.database, batch_id)
        return sum(row.owner_run_id is not None for row in rows)

    def submit_and_wait_until_all_is_held(self) -> uuid.UUID:
        self.models.latency_seconds = 300
        self.models.calls.clear()
        batch_id = self.submit()
        wait_until(lambda: self.held(batch_id) == UPLOADS, "both runs hold their uploads")
        calls = 2 * self.pipeline.settings.max_concurrent_uploads
        wait_until(
            lambda: len(self.models.calls_of("vision")) >= calls, "both runs are in progress"
        )
        return batch_id

    def finish(self, batch_id: uuid.UUID) -> None:
        self.models.latency_seconds = 0
        wait_until(
            lambda: batch_row(self.pipeline.database, batch_id).status == "completed",
            "the batch is completed",
            2 * WAIT_SECONDS,  # each upload that was in progress then has its own run
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    common = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["x-app"]
    assert common["init"] is True
    of_init = {n: v for n, v in common["environment"].items() if n.startswith("TINI_")}
    home = tmp_path_factory.mktemp("container")
    postgres = PostgresProcess(home)
    with ScriptedModelServer() as models:
        changed = {
            "DATABASE_URL": postgres.url,
            "ANALYZER": "ollama",
            "OLLAMA_HOST": models.ollama_url,
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "MAX_VISION_CALLS": "16",
        }
        settings = Settings(_env_file=None, home=home, **{n.lower(): v for n, v in changed.items()})
        database = connect(settings)
        database.upgrade()
        database.close()
        pipeline = Pipeline(settings)
        with StackProcesses(
            home,
            of_init | {f"BATCH_PIPELINE_{name}": value for name, value in changed.items()},
            init=[str(TINI), "-s", "--"],
            dagster_yaml=(DEPLOY / "dagster_one_host.yaml").read_text(),
        ) as processes:
            yield World(processes, models, pipeline, GraphQl(processes.url))
        pipeline.close()
    postgres.close()


@pytest.fixture(autouse=True)
def everything_runs(world: World) -> None:
    world.processes.revive()


def left_of(pid: int) -> str:
    """Return the processes of a container, with what each is doing."""
    return "; ".join(
        f"{process.pid} ({process.status()}, {process.num_threads()} threads, "
        f"{process.cpu_times().user:.1f} s): {' '.join(process.cmdline())[-100:]}"
        for process in psutil.Process(pid).children(recursive=True)
    )


def test_a_stop_reaches_the_run_workers_which_release_all_their_uploads(world):
    batch_id = world.submit_and_wait_until_all_is_held()
    stopped = {run["runId"] for run in world.graphql.runs_of(str(batch_id))}
    init = world.processes.process(Part.CODE_SERVER)
    begin = time.monotonic()
    init.send_signal(signal.SIGTERM)
    try:
        assert init.wait(GRACE_SECONDS) == 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"still there after {GRACE_SECONDS} s: {left_of(init.pid)}")
    print(f"F14: stopped after {time.monotonic() - begin:.1f} s")
    assert world.held(batch_id) == 0
    # The fork server ends by itself when it notices that all others have ended.
    left = world.processes
    wait_until(lambda: not [*left.run_workers(), *left.fork_servers()], "no process is left")
    world.processes.revive()
    world.finish(batch_id)

    def outcomes() -> set[str | None]:
        runs = [r for r in world.graphql.runs_of(str(batch_id)) if r["runId"] in stopped]
        return {{tag["key"]: tag["value"] for tag in r["tags"]}.get(OUTCOME_TAG) for r in runs}

    wait_until(lambda: None not in outcomes(), "the sensor has looked at the stopped runs")
    assert outcomes() == {"stopped"}, "a stop counts as a death of the worker"


@pytest.mark.proof
def test_dead_runs_of_a_killed_container_end_when_its_next_one_starts_and_block_nobody(world):
    batch_id = world.submit_and_wait_until_all_is_held()
    dead = {run["runId"] for run in world.graphql.runs_of(str(batch_id))}
    workers = [*world.processes.run_workers(), *world.processes.fork_servers()]
    init = psutil.Process(world.processes.process(Part.CODE_SERVER).pid)
    everything = {*workers, *init.children(recursive=True)}
    world.processes.kill(Part.CODE_SERVER)
    kill_all(everything)
    world.processes.revive()
    begin = time.monotonic()

    def all_ended():
        runs = world.graphql.runs_of(str(batch_id))
        return all(run["status"] in ENDED for run in runs if run["runId"] in dead)

    wait_until(all_ended, "the dead runs end", LEASE_SECONDS / 2)
    print(f"F14: dead runs closed {time.monotonic() - begin:.1f} s after the start")
    world.finish(batch_id)


def test_the_health_checks_of_the_containers_find_both_parts_alive(world):
    port = world.processes.code_port
    assert "serves" in check_code_server("127.0.0.1", port)
    settings = world.pipeline.settings

    def lives() -> str:
        try:
            return check_daemon(settings)
        except RefusedError:  # it writes its first heartbeat some time after its start
            return ""

    assert "lives" in wait_until(lives, "a heartbeat")
