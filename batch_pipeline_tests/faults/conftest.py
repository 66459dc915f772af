"""Runs of the real job on files, PostgreSQL and a scripted model server over real HTTP."""

import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import JobExecutionResult
from PIL import Image
from sqlalchemy import make_url, text

from batch_pipeline.database.models import Upload
from batch_pipeline.database.session import AnyRow
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.tags import RUN_KEY_TAG
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline, shared_pipeline
from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings, load_settings
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline.testing.tcp_proxy import TcpProxy
from batch_pipeline_tests.integration.console import Console
from batch_pipeline_tests.integration.orchestration.conftest import (  # noqa: F401 - fixture
    instance,
    no_unfinished_runs,
    stored_instance,
)
from batch_pipeline_tests.patience import wait_until

MEDIA = Path(__file__).parents[2] / "examples" / "media"
#: Modules without waiting times.
FAST = {"test_hostile_inputs.py"}
#: Pictures that are decoded very fast.
PICTURES = ("fog.webp", "lighthouse.gif", "sea.jpg", "city.jpg", "night.jpg", "forest.webp")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the slow modules in `make test`: each worker would import them for nothing."""
    is_slow = collection_path.name.startswith("test_") and collection_path.name not in FAST
    return True if is_slow and config.option.markexpr == "not slow" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all except the fast modules as slow: `make test-slow` runs them."""
    for item in items:
        if "faults" in Path(item.path).parts and item.path.name not in FAST:
            item.add_marker(pytest.mark.slow)


def process_batch_of_the_environment(_database_url: str) -> dg.JobDefinition:
    """Build the job like a run worker; the argument prevents reuse of another test's job."""
    return build_definitions().resolve_job_def("process_batch")


@dataclass
class Work:
    """Submits, ticks and runs like a daemon and its run workers, one step after another."""

    pipeline: Pipeline
    instance: dg.DagsterInstance
    cursor: str | None = None

    def submit(self, *names: str | Path) -> uuid.UUID:
        submission = submit(
            [MEDIA / name for name in names],
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.pipeline.settings,
        )
        assert submission.batch_id, submission.refused
        assert not submission.refused
        return submission.batch_id

    def submit_cut_off(self, folder: Path, *names: str) -> uuid.UUID:
        """Submit the first third of each file, which cannot be decoded."""
        for name in names:
            whole = (MEDIA / name).read_bytes()
            (folder / name).write_bytes(whole[: len(whole) // 3])
        return self.submit(*(folder / name for name in names))

    def repair(self, batch_id: uuid.UUID) -> None:
        """Replace the stored files of a batch by the whole ones."""
        for row in self.uploads(batch_id):
            stored = Path(self.pipeline.settings.storage_location, row.file_path)
            stored.write_bytes((MEDIA / row.filename).read_bytes())

    def tick(self) -> Any:
        """Make one tick of the sensor; return ``run_requests`` and ``skip_message``."""
        sensor = build_definitions().resolve_sensor_def("pending_batches")
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"batch_pipeline": self.pipeline}
        )
        tick = sensor.evaluate_tick(context)
        self.cursor = tick.cursor
        print("tick:", tick.skip_message)  # the reason, if a test expected a request
        return tick

    def run_what_is_asked_for(self, tick: Any = None) -> list[JobExecutionResult]:
        """Execute the runs that a tick has requested; makes a tick if none is given."""
        return [self.run_request(request) for request in (tick or self.tick()).run_requests]

    def run_what_is_asked_for_soon(self) -> list[JobExecutionResult]:
        """Make ticks until one requests runs, and execute these.

        While another process ends its work, it may lock the row of a batch, which then loses its
        turn.
        """

        def asking() -> Any:
            tick = self.tick()
            return tick if tick.run_requests else None

        return self.run_what_is_asked_for(wait_until(asking, "a run is requested"))

    def run_request(self, request: dg.RunRequest) -> JobExecutionResult:
        """Execute a run that a sensor has requested."""
        return self._execute(request.run_config, request.tags | {RUN_KEY_TAG: request.run_key})

    def run(self, batch_id: uuid.UUID, **config: Any) -> JobExecutionResult:
        """Execute a run that was launched by hand."""
        uploads = {"batch_id": str(batch_id), **config}
        return self._execute({"ops": {"load_batch": {"config": uploads}}}, {})

    def re_execute(self, run_id: str, steps: Sequence[str] = ()) -> JobExecutionResult:
        """Re-execute steps of a run like the UI, from failure if none are named."""
        options = (
            dg.ReexecutionOptions(run_id, step_selection=steps)
            if steps
            else dg.ReexecutionOptions.from_failure(run_id, self.instance)
        )
        return dg.execute_job(self._job, self.instance, reexecution_options=options)

    def end_the_pause(self) -> None:
        """Skip the time for which uploads wait after an outage."""
        with self.pipeline.database.transaction() as connection:
            connection.execute(text("UPDATE uploads SET not_before = now()"))

    def make_retries_due(self) -> None:
        """Skip the time until the sweep reopens failed uploads."""
        with self.pipeline.database.transaction() as connection:
            connection.execute(text("UPDATE uploads SET retry_at = now() WHERE retry_at > now()"))

    def rest(self, batch_id: uuid.UUID) -> list[float]:
        """Return how long each upload still waits, by the database's clock (seconds)."""
        seconds = "SELECT extract(epoch FROM not_before - now()) FROM uploads WHERE batch_id = :id"
        with self.pipeline.database.transaction() as connection:
            return [float(s) for s in connection.scalars(text(seconds), {"id": batch_id})]

    def uploads(self, batch_id: uuid.UUID) -> list[AnyRow]:
        return list(upload_rows(self.pipeline.database, batch_id))

    def column(self, batch_id: uuid.UUID, name: str) -> list[Any]:
        assert name in Upload.__table__.columns
        return [getattr(row, name) for row in self.uploads(batch_id)]

    def counts(self, batch_id: uuid.UUID) -> tuple[str, int, int]:
        """Return status, successful and failed; check the counters against the uploads."""
        batch = batch_row(self.pipeline.database, batch_id)
        recount = Counter(self.column(batch_id, "processing_status"))
        assert batch.successful_uploads == recount["completed"]
        assert batch.failed_uploads == recount["failed"]
        assert batch.processed_uploads == recount["completed"] + recount["failed"]
        assert batch.total_uploads == recount.total()
        return batch.status, batch.successful_uploads, batch.failed_uploads

    def _execute(self, run_config: dict[str, Any], tags: dict[str, str]) -> JobExecutionResult:
        return dg.execute_job(self._job, self.instance, run_config=run_config, tags=tags)

    @property
    def _job(self) -> Any:
        return dg.build_reconstructable_job(
            __name__,
            process_batch_of_the_environment.__name__,
            reconstructable_args=(self.pipeline.settings.database_url,),
        )


def failures(result: JobExecutionResult) -> list[str]:
    """Return the error message of each failed step, in order of time."""
    return [
        event.step_failure_data.user_failure_data.description
        for event in result.all_events
        if event.is_step_failure
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., list[Path]]:
    """Makes pictures of one colour each, all different."""

    def make(count: int, green: int = 0) -> list[Path]:
        paths = []
        for number in range(count):
            path = tmp_path / f"picture_{green}_{number}.png"
            side = 64 + number
            Image.new("RGB", (side, 64), (0, green, 120)).save(path)
            paths.append(path)
        return paths

    return make


@pytest.fixture
def model_server() -> Iterator[ScriptedModelServer]:
    with ScriptedModelServer(drip_seconds=0.05) as server:
        yield server


@pytest.fixture(params=["ollama"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


both_dialects = pytest.mark.parametrize("dialect", ["ollama", "openai"], indirect=True)


@pytest.fixture
def work(
    settings: Settings,
    dialect: str,
    model_server: ScriptedModelServer,
    instance: dg.DagsterInstance,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Work]]:
    """Opens the pipeline with settings, which are also in the environment of its runs."""
    opened: list[Pipeline] = []

    def open_(**changed: Any) -> Work:
        values = {
            "home": settings.home,
            "database_url": settings.database_url,
            "analyzer": dialect,
            "ollama_host": model_server.ollama_url,
            "openai_base_url": model_server.openai_url,
            "retry_base_seconds": 0,
            **changed,
        }
        for name, value in values.items():
            monkeypatch.setenv(f"{ENVIRONMENT_PREFIX}{name.upper()}", str(value))
        opened.append(shared_pipeline(load_settings()))
        return Work(opened[-1], instance)

    yield open_
    for pipeline in opened:
        pipeline.close()
    close_analyzers()


@pytest.fixture
def proxy(settings: Settings) -> Iterator[tuple[str, TcpProxy]]:
    """A proxy in front of the database, and its URL through it."""
    url = make_url(settings.database_url)
    folder = url.query.get("host")
    path = f"{folder}/.s.PGSQL.{url.port or 5432}" if folder else None
    address = None if path else (url.host or "127.0.0.1", url.port or 5432)
    with TcpProxy(socket_path=path, address=address) as proxy:
        yield url.set(host="127.0.0.1", port=proxy.port, query={}).render_as_string(False), proxy


@pytest.fixture
def proxied(
    proxy: tuple[str, TcpProxy],
    change: Callable[..., Settings],
    open_pipeline: Callable[[Settings], Pipeline],
) -> tuple[Pipeline, TcpProxy]:
    """The pipeline behind a proxy."""
    through, lossy = proxy
    return open_pipeline(change(database_url=through)), lossy


@pytest.fixture
def console(settings: Settings, tmp_path: Path) -> Console:
    """The installed command, on the database of the test."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "BATCH_PIPELINE_HOME": str(settings.home),
        "BATCH_PIPELINE_DATABASE_URL": settings.database_url,
    }
    return Console(variables, tmp_path)
