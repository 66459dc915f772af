"""Steps of one run on several hosts that share only a database, a broker and an object store.

The stack runs on one host, and two Celery workers on others. Each has its own network and disk, if
the machine allows that (`batch_pipeline.testing.hosts`).
"""

import shutil
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
from sqlalchemy import make_url

from batch_pipeline.orchestration.celery.broker import listening_workers
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.publishing import CHANNEL
from batch_pipeline.settings import Settings
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.hosts import Host, Network
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.object_store import ObjectStore
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline.testing.stack import Part, StackProcesses
from batch_pipeline.testing.tcp_proxy import TcpProxy
from batch_pipeline_tests.acceptance.conftest import MEDIA
from batch_pipeline_tests.faults.broker import Redis
from batch_pipeline_tests.patience import wait_until

LEASE = 6.0
AT_ONCE = 1
PICTURES = ("fog.webp", "sea.jpg", "city.jpg", "night.jpg")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("several_hosts"),
    pytest.mark.timeout(400),  # seven processes have to start, on a busy machine one after another
]


@dataclass
class World:
    network: Network
    broker: Redis
    models: ScriptedModelServer
    pipeline: Pipeline
    instance: dg.DagsterInstance
    processes: StackProcesses
    variables: dict[str, str]
    submitter: Path
    hosts: list[Host] = field(default_factory=list)

    def start_worker(self, name: str) -> Host:
        host = self.network.host(name)
        app = "batch_pipeline.orchestration.celery.app"
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
        wait_until(lambda: listening_workers(self.broker.url) == expected, f"{names} listen")

    def submit(self) -> uuid.UUID:
        """Submit with the command, from a folder that nobody else sees."""
        self.models.calls.clear()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "batch_pipeline", "submit", "--json"),
                *(str(shutil.copy(MEDIA / name, self.submitter)) for name in PICTURES),
            ],
            env=self.processes.environment,
            cwd=self.submitter,
            capture_output=True,
            text=True,
            check=True,
        )
        return uuid.UUID(hex=done.stdout.split('"batch_id": "')[1].split('"')[0])

    def runs(self, batch_id: uuid.UUID) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs(dg.RunsFilter(tags={BATCH_TAG: str(batch_id)})))

    def workers_of(self, run: dg.DagsterRun) -> dict[str, str]:
        """Return the worker of each upload's step."""
        begun = {}
        for entry in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            assert entry.dagster_event
            worker = entry.dagster_event.engine_event_data.metadata.get("Celery worker")
            if worker and entry.step_key and entry.step_key.startswith("process_upload"):
                begun[entry.step_key] = str(worker.value)
        return begun

    def story(self, run: dg.DagsterRun) -> str:
        """Return the details for the message of a failed test."""
        entries = self.instance.all_logs(run.run_id)
        return "\n".join(f"{e.timestamp:.2f} {e.step_key}: {e.message}" for e in entries)

    def in_work_on(self, batch_id: uuid.UUID, host: str) -> bool:
        rows = upload_rows(self.pipeline.database, batch_id)
        in_work = {row.id.hex for row in rows if row.processing_status == "analyzing"}
        return any(
            step[-33:-1] in in_work
            for run in self.runs(batch_id)
            for step, worker in self.workers_of(run).items()
            if worker == f"worker@{host}"
        )

    def failures_of(self, run: dg.DagsterRun) -> list[str]:
        return [
            str(entry.dagster_event.step_failure_data.user_failure_data.description)
            for entry in self.instance.all_logs(run.run_id)
            if entry.dagster_event and entry.dagster_event.is_step_failure
        ]

    def wait_for_the_end(self, batch_id: uuid.UUID) -> None:
        """Wait until nothing is left to do; check that every upload has ended exactly once."""
        database = self.pipeline.database
        wait_until(lambda: batch_row(database, batch_id).status == "completed", "it is completed")
        wait_until(lambda: all(run.is_finished for run in self.runs(batch_id)), "runs end")
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
        broker = Redis(network.address, home)
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


def test_a_host_that_dies_in_mid_batch_costs_no_upload_and_hosts_share_no_disk(world):
    world.wait_for_workers("host-a", "host-b")
    world.models.latency_seconds = 4
    with listening(world) as messages:
        batch_id = world.submit()
        wait_until(lambda: world.in_work_on(batch_id, "host-a"), "host-a processes an upload")
        world.hosts[0].lose_power()
        world.models.latency_seconds = 0.5
        world.wait_for_the_end(batch_id)

    begun_by = Counter(
        worker for run in world.runs(batch_id) for worker in world.workers_of(run).values()
    )
    assert begun_by == {"worker@host-a": 1, "worker@host-b": len(PICTURES)}
    assert len(world.models.calls_of("vision")) <= len(PICTURES) + AT_ONCE
    first, *others = reversed(world.runs(batch_id))
    assert first.status == dg.DagsterRunStatus.FAILURE
    lost = world.failures_of(first)
    assert len(lost) == 1, world.story(first)
    assert "lost_worker: the Celery worker worker@host-a" in lost[0]
    assert {run.status for run in others} == {dg.DagsterRunStatus.SUCCESS}

    stored = [*everything_stored(world), *(message.payload for message in messages)]
    assert any(str(batch_id) in row for row in stored)
    assert not [row for row in stored if str(world.submitter) in row]
    assert {path.suffix for path in files_of_steps(world)} <= {".err", ".out", ".complete"}


def test_the_cap_on_model_calls_in_flight_holds_over_hosts(world):
    world.models.latency_seconds, calls, slots = 0.1, 40, 3
    world.models.calls.clear()
    world.models.most_in_flight.clear()
    hosts = [world.network.host(name) for name in ("caller-a", "caller-b")]
    for host in hosts:
        host.start(
            [
                *(sys.executable, "-m", "batch_pipeline.testing.model_caller"),
                *("--threads", "4", "--calls", str(calls)),
            ],
            world.variables | {"BATCH_PIPELINE_MAX_VISION_CALLS": str(slots)},
        )
    done = f'{{"described": {calls}}}'
    wait_until(lambda: all(done in host.log.read_text() for host in hosts), "both are done")
    assert len(world.models.calls_of("vision")) == 2 * calls
    assert world.models.most_in_flight["vision"] == slots


@contextmanager
def listening(world: World) -> Iterator[list[psycopg.Notify]]:
    """Progress messages that are published in the block."""
    messages: list[psycopg.Notify] = []
    url = world.pipeline.settings.database_url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        yield messages
        messages.extend(connection.notifies(timeout=0.5))


def everything_stored(world: World) -> Iterator[str]:
    """Return all rows of our database and of Dagster's, as text."""
    settings = world.pipeline.settings
    for url in (settings.database_url, settings.dagster_database_url):
        with psycopg.connect(url) as connection:
            tables = connection.execute(
                "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
            for (table,) in tables:
                for (row,) in connection.execute(f"SELECT whole::text FROM {table} AS whole"):
                    yield row


def files_of_steps(world: World) -> list[Path]:
    """Return the files that steps have written: on the run's host, and on those of workers."""
    written = [*Path(world.instance.storage_directory()).rglob("*")]
    if world.network.is_isolated:
        written += world.hosts[-1].files(world.processes.home)
    return [path for path in written if not path.is_dir()]
