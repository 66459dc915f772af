"""The test bench: PostgreSQL, and separate databases, storage and batches for each contender."""

import json
import logging
import os
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import dagster as dg
import psycopg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from PIL import Image
from sqlalchemy import insert, text

from batch_pipeline.database.models import Upload, UploadBatch
from batch_pipeline.demo import prepare_dagster_home
from batch_pipeline.media.memory import use_huge_pages
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.tags import RUN_KEY_TAG
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.publishing import CHANNEL
from batch_pipeline.settings import ENVIRONMENT_PREFIX, load_settings
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.stack import PostgresProcess

USER = uuid.UUID(int=1)
#: Longest wait for a batch without any message (seconds).
PATIENCE = 180


def take_memory_as_run_workers_do() -> None:
    """Restart this script with huge pages, so that everything that it compares uses them."""
    before = os.environ.get("GLIBC_TUNABLES")
    use_huge_pages()
    if os.environ["GLIBC_TUNABLES"] != before:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@dataclass(frozen=True)
class Scene:
    """Databases and storage that nobody else uses, and a pipeline on them."""

    folder: Path
    database_url: str
    state_url: str
    """Empty database for Dagster's storage, or for another orchestrator."""
    pipeline: Pipeline

    @property
    def storage(self) -> str:
        return self.pipeline.settings.storage_location

    def add_batch(self, pictures: Iterable[bytes]) -> uuid.UUID:
        """Store pictures and write their rows, as an upload API does."""
        batch_id, begin = uuid.uuid4(), datetime.now(UTC)
        rows = []
        for number, picture in enumerate(pictures):
            upload_id = uuid.uuid4()
            path = self.pipeline.storage.original_path(USER, upload_id, "jpg")
            self.pipeline.storage.write(path, picture)
            rows.append(
                {
                    "id": upload_id,
                    "user_id": USER,
                    "batch_id": batch_id,
                    "filename": f"picture_{number:05}.jpg",
                    "file_path": path,
                    "file_type": "image",
                    "file_size": len(picture),
                    "created_at": begin + timedelta(microseconds=number),
                }
            )
        with self.pipeline.database.transaction() as connection:
            batch = {
                "id": batch_id,
                "user_id": USER,
                "total_uploads": len(rows),
                "created_at": datetime.now(UTC),
            }
            connection.execute(insert(UploadBatch).values(batch))
            connection.execute(insert(Upload), rows)
        return batch_id

    @contextmanager
    def listening(self) -> Iterator[psycopg.Connection]:
        """Listen on the progress channel, for `await_end`."""
        url = self.pipeline.database.url.set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(False), autocommit=True) as listener:
            listener.execute(f"LISTEN {CHANNEL}")
            yield listener

    def ask(self, statement: str) -> int:
        with self.pipeline.database.transaction() as connection:
            return int(connection.execute(text(statement)).scalar_one() or 0)


def await_end(listener: psycopg.Connection, batch_id: uuid.UUID) -> tuple[float, float]:
    """Return the moments of the first message about a batch in progress, and of its completion."""
    first_at = 0.0
    # The timeout of `notifies` is for everything that it yields, so it is called for each message.
    while received := list(listener.notifies(timeout=PATIENCE, stop_after=1)):
        for message in (json.loads(notification.payload) for notification in received):
            if message["payload"]["batch_id"] != str(batch_id):
                continue
            status = message["payload"]["status"]
            if not first_at and status == "processing":
                first_at = time.time()
            if message["action"] == "batch_progress" and status == "completed":
                return first_at, time.time()
    raise TimeoutError(f"batch {batch_id} was not completed within {PATIENCE} s")


class Stand:
    """Start an embedded PostgreSQL with default settings in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._postgres = PostgresProcess(folder)
        self._server = DatabaseServer(self._postgres.url)
        pid_file = folder / "postgres" / "postmaster.pid"
        self.server_pid = int(pid_file.read_text().splitlines()[0])

    def close(self) -> None:
        """Stop PostgreSQL, before its files are removed."""
        self._postgres.close()

    @contextmanager
    def scene(self, name: str, **settings: object) -> Iterator[Scene]:
        """Put the settings into the environment, for this process and those that it starts."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        with self._server.new_database() as url, self._server.new_database(migrated=False) as state:
            values = {
                "HOME": folder,
                "DATABASE_URL": url,
                "DAGSTER_DATABASE_URL": state,
                **{name.upper(): value for name, value in settings.items()},
            }
            variables = {f"{ENVIRONMENT_PREFIX}{name}": str(v) for name, v in values.items()}
            with environment(variables):
                pipeline = Pipeline(load_settings())
                with environment({"DAGSTER_HOME": str(prepare_dagster_home(pipeline.settings))}):
                    try:
                        yield Scene(folder, url, state, pipeline)
                    finally:
                        pipeline.close()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables, and restore their old values at the end."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Dispatcher:
    """Replaces the daemon: evaluates `pending_batches` and creates the runs that it requests."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        logging.disable(logging.INFO)  # what the sensor reports about each run
        self._instance = instance
        definitions = build_definitions()
        self._job = definitions.resolve_job_def("process_batch")
        self._sensor = definitions.resolve_sensor_def("pending_batches")
        self._context = dg.build_sensor_context(
            instance=instance, resources={"batch_pipeline": pipeline}, definitions=definitions
        )
        repository = ReconstructableRepository.for_module("batch_pipeline.definitions", "defs")
        self._origin = repository.get_reconstructable_job("process_batch").get_python_origin()

    def tick(self, execution: Mapping[str, object] | None = None) -> list[str]:
        """Return the ids of the runs to execute now."""
        asked = self._sensor.evaluate_tick(self._context).run_requests or ()
        return [
            self._instance.create_run_for_job(
                self._job,
                run_config={
                    **request.run_config,
                    **({"execution": {"config": dict(execution)}} if execution else {}),
                },
                tags={
                    **self._job.run_tags,
                    **request.tags,
                    RUN_KEY_TAG: request.run_key or "",
                },
                job_code_origin=self._origin,
            ).run_id
            for request in asked
        ]


def tiny_pictures(count: int, seed: int = 1) -> Iterator[bytes]:
    """Make JPEGs of 32 x 24 pixels in different colours, which are decoded very fast."""
    dice = random.Random(seed)
    for _ in range(count):
        file = BytesIO()
        colour = (dice.randrange(256), dice.randrange(256), dice.randrange(256))
        Image.new("RGB", (32, 24), colour).save(file, "JPEG")
        yield file.getvalue()
