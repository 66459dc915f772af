"""Parts of one running stack are killed: daemon, code server, run workers, PostgreSQL.

Every part is a process as in production. Tests restart a part only if a supervisor would do so.
"""

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Page, expect

from batch_pipeline.database.session import connect
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline.testing.stack import Part, PostgresProcess, StackProcesses, kill_all
from batch_pipeline_tests.acceptance.conftest import MEDIA, GraphQl
from batch_pipeline_tests.acceptance.test_dagster_ui import (
    TIMEOUT_MS,
    is_in_sight,
    open_failed_step,
    page,  # noqa: F401 - a fixture
    re_execute_from_failure,
)
from batch_pipeline_tests.patience import WAIT_SECONDS, wait_until

LEASE = 5.0
FILES = ("fog.webp", "lighthouse.gif", "sea.jpg", "city.jpg", "night.jpg", "forest.webp")
UPLOADS_PER_RUN = 3
AT_ONCE = 2
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
OUTAGE_SECONDS = 20

pytestmark = [pytest.mark.slow, pytest.mark.lengthy, pytest.mark.xdist_group("stack")]


@dataclass
class World:
    """The stack and its services."""

    processes: StackProcesses
    postgres: PostgresProcess
    models: ScriptedModelServer
    pipeline: Pipeline
    graphql: GraphQl

    def submit(self, *names: str) -> uuid.UUID:
        self.models.calls.clear()
        submission = submit(
            [MEDIA / name for name in names or FILES],
            user_id=uuid.uuid4(),  # the same files of one user would be described only once
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.pipeline.settings,
        )
        assert submission.batch_id
        return submission.batch_id

    def wait_for_calls(self, count: int) -> None:
        wait_until(lambda: len(self.models.calls_of("vision")) >= count, f"{count} calls")

    def runs(self, batch_id: uuid.UUID) -> list[dict[str, Any]]:
        return self.graphql.runs_of(str(batch_id))

    def states(self, batch_id: uuid.UUID) -> Counter[str]:
        return Counter(
            row.processing_status for row in upload_rows(self.pipeline.database, batch_id)
        )

    def wait_for_the_end(self, batch_id: uuid.UUID, seconds: float = WAIT_SECONDS) -> None:
        """Wait until nothing is left to do; check every count."""
        wait_until(
            lambda: batch_row(self.pipeline.database, batch_id).status == "completed",
            "the batch is completed",
            seconds,
        )
        wait_until(
            lambda: {run["status"] for run in self.runs(batch_id)} <= ENDED, "runs end", seconds
        )
        batch = batch_row(self.pipeline.database, batch_id)
        rows = upload_rows(self.pipeline.database, batch_id)
        assert self.states(batch_id) == {"completed": len(FILES)}
        assert all(row.description and row.embedding_local is not None for row in rows)
        assert {row.owner_run_id for row in rows} == {None}
        assert (batch.processed_uploads, batch.successful_uploads, batch.failed_uploads) == (
            len(FILES),
            len(FILES),
            0,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: Path = tmp_path_factory.mktemp("stack_faults")
    postgres = PostgresProcess(home)
    with ScriptedModelServer(latency_seconds=0.5) as models:
        changed = {
            "DATABASE_URL": postgres.url,
            "ANALYZER": "ollama",
            "OLLAMA_HOST": models.ollama_url,
            "LEASE_SECONDS": str(LEASE),
            "UPLOADS_PER_RUN": str(UPLOADS_PER_RUN),
            "MAX_CONCURRENT_UPLOADS": str(AT_ONCE),
            "RETRY_BASE_SECONDS": "0",
        }
        settings = Settings(
            _env_file=None, home=home, **{name.lower(): value for name, value in changed.items()}
        )
        database = connect(settings)
        database.upgrade()
        database.close()
        pipeline = Pipeline(settings)
        variables = {f"BATCH_PIPELINE_{name}": value for name, value in changed.items()}
        with StackProcesses(home, variables) as processes:
            yield World(processes, postgres, models, pipeline, GraphQl(processes.url))
        pipeline.close()
    postgres.close()


@pytest.fixture(autouse=True)
def everything_runs(world: World) -> None:
    world.processes.revive()
    world.models.latency_seconds = 0.5


@contextmanager
def no_writes_to(world: World, table: str) -> Iterator[None]:
    """Lock a table of Dagster's against writes; a process that still waits at the end is killed."""
    with psycopg.connect(world.postgres.url, dbname="dagster") as connection:
        connection.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())
        yield
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE relation = %s::regclass AND NOT granted",
            [table],
        )


#: For each moment: the locked table that stops the daemon, and the sign that it waits there.
BEFORE_THE_LAUNCH = {
    "asked": ("runs", lambda world, batch_id: batch_row(world.pipeline.database, batch_id).slices),
    "recorded": ("event_logs", lambda world, batch_id: world.runs(batch_id)),
}


@pytest.mark.parametrize("moment", BEFORE_THE_LAUNCH)
def test_1_a_daemon_killed_before_the_launch_leaves_one_run_per_slice(world, moment):
    table, has_come = BEFORE_THE_LAUNCH[moment]
    with no_writes_to(world, table):
        batch_id = world.submit()
        wait_until(lambda: has_come(world, batch_id), moment)
        world.processes.kill(Part.DAEMON)
    assert world.processes.revive() == [Part.DAEMON]
    world.wait_for_the_end(batch_id)
    assert_one_run_per_slice(world, batch_id)


def test_1_a_daemon_killed_after_the_launch_leaves_one_run_per_slice(world):
    world.models.latency_seconds = 5.0  # longer than it takes to launch both
    batch_id = world.submit()
    slices = len(FILES) // UPLOADS_PER_RUN
    world.wait_for_calls(AT_ONCE * (slices - 1) + 1)
    world.processes.kill(Part.DAEMON)
    world.models.latency_seconds = 0.5
    assert world.processes.revive() == [Part.DAEMON]
    world.wait_for_the_end(batch_id)
    assert_one_run_per_slice(world, batch_id)


def assert_one_run_per_slice(world: World, batch_id: uuid.UUID) -> None:
    keys = Counter(
        tag["value"]
        for run in world.runs(batch_id)
        for tag in run["tags"]
        if tag["key"] == "dagster/run_key"
    )
    assert len(keys) == len(FILES) // UPLOADS_PER_RUN
    assert set(keys.values()) == {1}
    assert len(world.models.calls_of("vision")) == len(FILES)


def test_6_a_worker_whose_code_server_is_killed_goes_on_and_no_picture_is_described_twice(world):
    world.models.latency_seconds = 2 * LEASE
    batch_id = world.submit()
    world.wait_for_calls(1)
    world.processes.kill(Part.CODE_SERVER)
    assert world.processes.run_workers()
    world.models.latency_seconds = 0.5  # of the calls after this one
    world.processes.revive()
    world.wait_for_the_end(batch_id)
    assert len(world.models.calls_of("vision")) == len(FILES)


def test_7_code_server_and_workers_killed_together_lose_nothing_and_their_runs_are_closed(world):
    world.models.latency_seconds = 60  # nothing is done before the kill
    batch_id = world.submit()
    world.wait_for_calls(1)
    world.processes.kill(Part.CODE_SERVER)
    kill_all(world.processes.run_workers())
    world.models.latency_seconds = 0.5
    begin = time.monotonic()
    world.processes.revive()
    world.wait_for_the_end(batch_id)
    assert "FAILURE" in {run["status"] for run in world.runs(batch_id)}
    print(f"7: all done and closed {time.monotonic() - begin:.0f} s after the kill")


@pytest.mark.proof
def test_8_re_execute_from_failure_clicked_after_a_crash_drops_nothing_and_does_not_hang(
    world,
    page: Page,  # noqa: F811
):
    world.models.latency_seconds = 60  # nothing is done before the kill
    batch_id = world.submit()
    world.wait_for_calls(1)
    # Without the daemon, no process acts before the person does.
    world.processes.kill(Part.DAEMON)
    kill_all(world.processes.run_workers())
    world.models.latency_seconds = 0.5
    [crashed, *_] = wait_until(
        lambda: [run for run in world.runs(batch_id) if run["status"] == "FAILURE"],
        "the code server reports the death",
    )
    again = re_execute_from_failure(page, f"{world.processes.url}/runs/{crashed['runId']}")
    world.processes.revive()
    world.wait_for_the_end(batch_id)
    assert again in {run["runId"] for run in world.runs(batch_id)}
    # Only uploads of the dead workers are described again.
    assert len(world.models.calls_of("vision")) <= len(FILES) + 2 * AT_ONCE


def test_10_terminate_clicked_in_mid_upload_stops_the_calls_and_retry_finishes(
    world,
    page: Page,  # noqa: F811
):
    world.models.latency_seconds = 60
    batch_id = world.submit()
    world.wait_for_calls(1)
    run = next(run for run in world.runs(batch_id) if run["status"] == "STARTED")
    page.goto(f"{world.processes.url}/runs/{run['runId']}")
    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name="Terminate").click()
    wait_until(
        lambda: batch_row(world.pipeline.database, batch_id).status == "cancelled", "cancelled"
    )
    wait_until(lambda: world.states(batch_id) == {"pending": len(FILES)}, "released")
    wait_until(lambda: {run["status"] for run in world.runs(batch_id)} <= ENDED, "runs end")
    world.models.latency_seconds = 0
    world.pipeline.batches.retry_batch(batch_id)
    world.wait_for_the_end(batch_id)


def test_13_postgresql_away_for_twenty_seconds_and_everything_goes_on_by_itself(world):
    batch_id = world.submit()
    world.wait_for_calls(1)
    world.postgres.kill()
    time.sleep(OUTAGE_SECONDS)  # the fault is this long
    world.postgres.start()
    begin = time.monotonic()
    world.wait_for_the_end(batch_id)
    print(f"13: all done {time.monotonic() - begin:.0f} s after the return")
    assert world.processes.revive() == [], "a part died of the outage"


# No part is killed; this test needs a stack whose model answers as it says.


def test_the_thumbnail_of_a_failed_step_is_one_click_away_however_long_the_reason(
    world,
    page: Page,  # noqa: F811
):
    # Its descriptions of a picture do not pass the audit.
    world.models.play("vision", [Fault.LOOP, Fault.CONTROL_TOKENS])
    batch_id = world.submit("fog.webp")
    run = world.graphql.ended_run_of(str(batch_id))
    page.goto(f"{world.processes.url}/runs/{run['runId']}")

    panel = open_failed_step(page, "process_upload[fog_webp__")
    expect(panel.get_by_text("model_output_invalid", exact=True)).to_be_visible()
    shows = panel.get_by_role("row", name="preview").get_by_text("[Show Markdown]")
    wait_until(lambda: is_in_sight(shows), "nothing hides it", seconds=TIMEOUT_MS / 1000)
    shows.click()

    picture = page.get_by_role("dialog").get_by_role("img", name="thumbnail")
    expect(picture).to_be_visible()
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") >= 48
    assert is_in_sight(picture)
