"""Runs of the real job, in this process, on real files and a real database."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.publishing import CHANNEL
from batch_pipeline.settings import Settings
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.listening import messages_until_now
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import ScriptedModelServer

ROOT = Path(__file__).parents[3]
#: Small pictures named like the examples: decoding one of those takes a tenth of a second.
MEDIA = ROOT / "batch_pipeline_tests" / "cases" / "small"
SMALL = ("lighthouse.gif", "fog.webp", "ball_on_meadow.mp4")


DAGSTER_DATABASE_URL = "BATCH_PIPELINE_DAGSTER_DATABASE_URL"
#: To capture what a run prints, Dagster starts four processes. Few tests read it.
NOTHING_CAPTURED = """
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""


@pytest.fixture(scope="session")
def stored_instance(
    server: DatabaseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dg.DagsterInstance, str]]:
    """Dagster as in production: the repository's `dagster.yaml`, with our storage on PostgreSQL."""
    home = tmp_path_factory.mktemp("dagster_home")
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text() + NOTHING_CAPTURED)
    with server.new_database(migrated=False) as url:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(DAGSTER_DATABASE_URL, url)
            instance = dg.DagsterInstance.from_config(str(home))
        with instance:
            yield instance, url


@pytest.fixture
def instance(
    stored_instance: tuple[dg.DagsterInstance, str], monkeypatch: pytest.MonkeyPatch
) -> dg.DagsterInstance:
    """The instance of this session; it is in the environment only of tests that use the fixture."""
    instance, url = stored_instance
    monkeypatch.setenv(DAGSTER_DATABASE_URL, url)
    return instance


@pytest.fixture(autouse=True)
def no_unfinished_runs(request: pytest.FixtureRequest) -> None:
    """Delete unfinished runs of earlier tests: they would count as in flight, or as dead."""
    if "instance" in request.fixturenames:
        instance: dg.DagsterInstance = request.getfixturevalue("instance")
        under_way = dg.RunsFilter(statuses=list(NOT_FINISHED_STATUSES))
        for run in instance.get_runs(under_way):
            instance.delete_run(run.run_id)


@dataclass
class Runner:
    """Submits files and runs `process_batch` like the sensor."""

    pipeline: Pipeline
    instance: dg.DagsterInstance
    runs: list[dg.ExecuteInProcessResult] = field(default_factory=list)

    @cached_property
    def job(self) -> dg.JobDefinition:
        resource = dg.ResourceDefinition.hardcoded_resource(self.pipeline)
        definitions = build_definitions(self.pipeline.settings, {"batch_pipeline": resource})
        return definitions.resolve_job_def("process_batch")

    def submit(self, *names: str | Path) -> uuid.UUID:
        submission = submit(
            [MEDIA / name for name in names or SMALL],
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.pipeline.settings,
        )
        assert submission.batch_id, submission.refused
        return submission.batch_id

    def run(
        self,
        batch_id: uuid.UUID | str,
        *,
        tags: Mapping[str, str] | None = None,
        **config: Any,
    ) -> dg.ExecuteInProcessResult:
        result = self.job.execute_in_process(
            run_config={"ops": {"load_batch": {"config": {"batch_id": str(batch_id), **config}}}},
            instance=self.instance,
            tags=tags,
            raise_on_error=False,
        )
        self.runs.append(result)
        return result

    def log_of(self, result: dg.ExecuteInProcessResult, level: str) -> list[str]:
        records = self.instance.all_logs(result.run_id)
        return [
            record.user_message
            for record in records
            if record.level == logging.getLevelName(level) and not record.is_dagster_event
        ]


@pytest.fixture
def model_server() -> Iterator[ScriptedModelServer]:
    with ScriptedModelServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_connection_stays_open() -> Iterator[None]:
    """Close it: a forgotten one warns when it is collected, perhaps in a different test."""
    yield
    close_analyzers()


@pytest.fixture
def runner(
    model_server: ScriptedModelServer,
    change: Callable[..., Settings],
    open_pipeline: Callable[[Settings], Pipeline],
    instance: dg.DagsterInstance,
) -> Runner:
    """A runner with the scripted model server: embedded models take 0.2 s of a core per picture."""
    settings = change(analyzer="ollama", ollama_host=model_server.ollama_url)
    return Runner(open_pipeline(settings), instance)


@pytest.fixture
def messages(database_url: str) -> Iterator[Callable[[], list[str]]]:
    """Progress messages published since the test began, in order."""
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        received: list[str] = []

        def read() -> list[str]:
            received.extend(messages_until_now(listener))
            return received

        yield read
