"""Steps of one run on several hosts, which share a database, a broker and an object store only.

The stack runs on one host and two Celery workers on others, each with a network and a disk of its
own where the machine lets us make them (`batch_pipeline.testing.hosts`).
"""

import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import redis
from sqlalchemy import make_url, text

from batch_pipeline.demo import free_port
from batch_pipeline.orchestration.celery_broker import listening_workers
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.hosts import Host, Network
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.object_store import ObjectStore
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline.testing.stack import Part, StackProcesses
from batch_pipeline.testing.tcp_proxy import TcpProxy
from batch_pipeline_tests.acceptance.conftest import MEDIA, wait_until
from batch_pipeline_tests.integration.conftest import program

LEASE = 5.0
AT_ONCE = 2
PICTURES = ("fog.webp", "lighthouse.gif", "sea.jpg", "city.jpg", "night.jpg", "forest.webp")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several_hosts")]


class Broker:
    """A Redis that keeps nothing on disk."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address, self._folder, self._port = address, folder, free_port()
        self.url = f"redis://{address}:{self._port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(program("redis-server"), "--port", str(self._port), "--bind", self._address),
                *("--protected-mode", "no", "--save", "", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            try:
                return bool(redis.Redis.from_url(self.url).ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, "the broker answers", 30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class World:
    network: Network
    broker: Broker
    models: ScriptedModelServer
    pipeline: Pipeline
    instance: dg.DagsterInstance
    processes: StackProcesses
    variables: dict[str, str]
    submitter: Path
    hosts: list[Host] = field(default_factory=list)

    def start_worker(self, name: str) -> Host:
        host = self.network.host(name)
        app = "batch_pipeline.orchestration.celery_app"
        host.start(
            [
                *(sys.executable, "-m", "celery", "-A", app, "worker", "--queues", "dagster"),
                *("--concurrency", str(AT_ONCE), "--hostname", f"worker@{name}"),
            ],
            self.variables | {"BATCH_PIPELINE_HOME": str(host.home / "pipeline")},
        )
        self.hosts.append(host)
        return host

    def wait_for_workers(self, *names: str) -> None:
        expected = sorted(f"worker@{name}" for name in names)
        wait_until(lambda: listening_workers(self.broker.url) == expected, f"{names} listen", 60)

    def submit(self) -> uuid.UUID:
        """Submit with the command, from a folder that nobody else sees."""
        self.models.calls.clear()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "batch_pipeline", "submit", "--json"),
                *(str(MEDIA / name) for name in PICTURES),
            ],
            env=self.processes.environment,
            cwd=self.submitter,
            capture_output=True,
            text=True,
            check=True,
        )
        return uuid.UUID(hex=done.stdout.split('"batch_id": "')[1].split('"')[0])

    def wait_for_calls(self, count: int) -> None:
        wait_until(lambda: len(self.models.calls_of("vision")) >= count, f"{count} calls", 60)

    def runs(self, batch_id: uuid.UUID) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs(dg.RunsFilter(tags={BATCH_TAG: str(batch_id)})))

    def workers_of(self, run: dg.DagsterRun) -> dict[str, str]:
        """Which worker began which step."""
        return {
            str(entry.step_key): str(entry.dagster_event.engine_event_data.metadata["Celery worker"].value)
            for entry in self.instance.all_logs(run.run_id)
            if entry.dagster_event
            and entry.dagster_event.is_engine_event
            and "Celery worker" in entry.dagster_event.engine_event_data.metadata
        }

    def story(self, run: dg.DagsterRun) -> str:
        return "\n".join(
            f"{entry.timestamp} {entry.step_key}: {entry.user_message or entry.message} {entry.dagster_event and entry.dagster_event.event_specific_data}" for entry in self.instance.all_logs(run.run_id)
        )

    def failures_of(self, run: dg.DagsterRun) -> list[str]:
        return [
            str(entry.dagster_event.step_failure_data.user_failure_data.description)
            for entry in self.instance.all_logs(run.run_id)
            if entry.dagster_event and entry.dagster_event.is_step_failure
        ]

    def wait_for_the_end(self, batch_id: uuid.UUID) -> None:
        """Wait until nothing is left to do; then every upload has ended exactly once."""
        database = self.pipeline.database
        wait_until(
            lambda: batch_row(database, batch_id).status == "completed", "it is completed", 60
        )
        wait_until(lambda: all(run.is_finished for run in self.runs(batch_id)), "runs end", 60)
        batch, rows = batch_row(database, batch_id), upload_rows(database, batch_id)
        assert Counter(row.processing_status for row in rows) == {"completed": len(PICTURES)}
        assert all(row.description and row.embedding_local is not None for row in rows)
        assert {row.owner_run_id for row in rows} == {None}
        counts = (batch.processed_uploads, batch.successful_uploads, batch.failed_uploads)
        assert counts == (len(PICTURES), len(PICTURES), 0)


@pytest.fixture(scope="module")
def world(server: DatabaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("several_hosts")
    submitter = tmp_path_factory.mktemp("submitter")
    with (
        Network(hidden=tmp_path_factory.getbasetemp()) as network,
        ObjectStore(home / "object_store.log", network.address) as store,
        ScriptedModelServer() as models,
        TcpProxy(
            address=("127.0.0.1", make_url(models.ollama_url).port or 0), host=network.address
        ) as to_models,
        server.new_database() as pipeline_url,
        server.new_database(migrated=False) as dagster_url,
        on_the_network(pipeline_url, network) as our_url,
        on_the_network(dagster_url, network) as their_url,
        pytest.MonkeyPatch.context() as patch,
    ):
        broker = Broker(network.address, home)
        broker.start()
        changed = {
            "DATABASE_URL": our_url,
            "DAGSTER_DATABASE_URL": their_url,
            "STORAGE_URL": f"s3://{store.bucket}/uploads",
            "ANALYZER": "ollama",
            "OLLAMA_HOST": f"http://{network.address}:{to_models.port}",
            "CELERY_BROKER_URL": broker.url,
            "LEASE_SECONDS": str(LEASE),
        }
        variables = {f"BATCH_PIPELINE_{name}": value for name, value in changed.items()}
        variables |= store.variables
        for name, value in variables.items():
            patch.setenv(name, value)
        pipeline = Pipeline(Settings(_env_file=None, home=home))
        processes = StackProcesses(home, variables)
        with dg.DagsterInstance.from_config(processes.environment["DAGSTER_HOME"]) as instance:
            world = World(
                network, broker, models, pipeline, instance, processes, variables, submitter
            )
            try:
                for name in ("host-a", "host-b"):
                    world.start_worker(name)
                processes.start(Part.CODE_SERVER)
                processes.start(Part.DAEMON)
                yield world
            finally:
                processes.__exit__(None, None, None)
                pipeline.close()
                broker.kill()


@contextmanager
def on_the_network(url: str, network: Network) -> Iterator[str]:
    """The same database at an address of the network."""
    parsed = make_url(url)
    folder = parsed.query.get("host")
    path = f"{folder}/.s.PGSQL.{parsed.port or 5432}" if folder else None
    address = None if path else (parsed.host or "127.0.0.1", parsed.port or 5432)
    with TcpProxy(socket_path=path, address=address, host=network.address) as proxy:
        changed = parsed.set(host=network.address, port=proxy.port, query={})
        yield changed.render_as_string(hide_password=False)


def test_two_hosts_work_one_batch_and_share_no_disk(world):
    world.wait_for_workers("host-a", "host-b")
    world.models.latency_seconds = 1
    batch_id = world.submit()
    world.wait_for_the_end(batch_id)

    [run] = world.runs(batch_id)
    assert run.status == dg.DagsterRunStatus.SUCCESS, world.story(run)
    steps = world.workers_of(run)
    assert Counter(key.split("[")[0] for key in steps)["process_upload"] == len(PICTURES)
    assert set(steps.values()) >= {"worker@host-a", "worker@host-b"}
