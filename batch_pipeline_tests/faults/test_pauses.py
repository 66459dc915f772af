"""A running stack is paused and resumed while model calls are in flight, for each scope.

In every case: calls in flight end and are stored, no call begins later than a second after the
pause is committed, no attempt is lost, and no picture is described twice.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from batch_pipeline.database.models import IN_WORK
from batch_pipeline.database.session import AnyRow, connect
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline.testing.stack import Part, PostgresProcess, StackProcesses, kill_all
from batch_pipeline_tests.acceptance.conftest import GraphQl, RealStack
from batch_pipeline_tests.acceptance.test_dagster_ui import wait_for_tick
from batch_pipeline_tests.integration.console import Console
from batch_pipeline_tests.patience import promised, wait_until

PICTURES = 30
CALL_SECONDS = 1.5
#: A call that begins later than this after the commit breaks the promise (seconds).
PROMISED_SECONDS = 1.0

pytestmark = [pytest.mark.slow, pytest.mark.lengthy, pytest.mark.xdist_group("pauses")]


@dataclass
class World:
    """The stack, its two model servers, and the command line."""

    processes: StackProcesses
    servers: Sequence[ScriptedModelServer]
    pipeline: Pipeline
    stack: RealStack
    console: Console
    folder: Path
    made: int = 0

    def submit(self, count: int = PICTURES, user_id: uuid.UUID | None = None) -> uuid.UUID:
        """Submit pictures that nobody has described yet."""
        paths = []
        for _ in range(count):
            self.made += 1
            paths.append(self.folder / f"{self.made}.png")
            Image.new("RGB", (40 + self.made % 200, 40), (self.made % 256, 80, 160)).save(paths[-1])
        submission = submit(
            paths,
            user_id=user_id or uuid.uuid4(),
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.pipeline.settings,
        )
        assert submission.batch_id
        return submission.batch_id

    def starts(self, *servers: ScriptedModelServer) -> list[float]:
        """Return the times when model calls began, in order."""
        return sorted(
            call.started_at for server in servers or self.servers for call in server.calls
        )

    def pause(self, *arguments: object) -> float:
        """Pause while calls are in flight; return the time after the commit."""
        before = len(self.starts())
        wait_until(lambda: len(self.starts()) >= before + 4, "calls are in flight")
        answer = self.console("pause", *arguments, "--reason", "maintenance", "--json")
        assert answer.code == 0, answer.err
        return time.monotonic()

    def resume(self, *arguments: object) -> float:
        answer = self.console("resume", *arguments, "--json")
        assert answer.code == 0, answer.err
        return time.monotonic()

    def rows(self, batch_id: uuid.UUID) -> list[AnyRow]:
        return list(upload_rows(self.pipeline.database, batch_id))

    def wait_until_at_rest(self, batch_id: uuid.UUID) -> None:
        """Wait until no run holds an upload of the batch."""

        def is_at_rest() -> bool:
            rows = self.rows(batch_id)
            in_work = any(row.processing_status in IN_WORK for row in rows)
            return not in_work and {row.owner_run_id for row in rows} == {None}

        wait_until(is_at_rest, "what was in flight has ended")

    def wait_for_the_end(self, *batch_ids: uuid.UUID) -> None:
        """Wait until all are done; each upload needed one attempt and one vision call."""
        for batch_id in batch_ids:
            wait_until(
                lambda batch_id=batch_id: (
                    batch_row(self.pipeline.database, batch_id).status == "completed"
                ),
                "the batch is completed",
            )
            rows = self.rows(batch_id)
            assert {(row.processing_status, row.attempts) for row in rows} == {("completed", 1)}
            assert {row.error_kind for row in rows} == {None}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: Path = tmp_path_factory.mktemp("pauses")
    postgres = PostgresProcess(home)
    with (
        ScriptedModelServer(latency_seconds=CALL_SECONDS) as first,
        ScriptedModelServer(latency_seconds=CALL_SECONDS) as second,
    ):
        changed = {
            "DATABASE_URL": postgres.url,
            "ANALYZER": "ollama",
            "OLLAMA_HOST": f"{first.ollama_url},{second.ollama_url}",
            "LEASE_SECONDS": "5",
            "UPLOADS_PER_RUN": "10",
            "MAX_VISION_CALLS": "3",
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
            stack = RealStack(home, GraphQl(processes.url))
            console = Console(processes.environment, home)
            folder = tmp_path_factory.mktemp("pictures")
            yield World(processes, (first, second), pipeline, stack, console, folder)
        pipeline.close()
    postgres.close()


@pytest.fixture(autouse=True)
def everything_runs(world: World) -> None:
    world.processes.revive()
    for server in world.servers:
        server.calls.clear()


def said_by_the_sensor(world: World, said: str) -> None:
    """Wait until a tick that begins after now has this message."""
    began = time.time()
    wait_until(
        lambda: wait_for_tick(world.stack, "sensor", "pending_batches", said) > began,
        f"a new tick says: {said}",
    )


@pytest.mark.proof
def test_everything_is_paused_over_restarts_and_resumed(world: World) -> None:
    batch_id = world.submit()
    committed = world.pause()
    world.wait_until_at_rest(batch_id)

    assert max(world.starts()) < committed + promised(PROMISED_SECONDS)
    described = [row for row in world.rows(batch_id) if row.description]
    calls = [call for server in world.servers for call in server.calls_of("vision")]
    assert 4 <= len(calls) == len(described) < PICTURES, "what was in flight is stored"
    assert {row.attempts for row in described if row.processing_status == "pending"} <= {0}

    kill_all(world.processes.run_workers())
    for part in (Part.DAEMON, Part.CODE_SERVER):
        world.processes.kill(part)
    world.processes.revive()
    said_by_the_sensor(world, " paused [")
    said_by_the_sensor(world, "everything has been paused since")
    begun = len(world.starts())
    [shown] = world.console("paused", "--json").json
    assert (shown["scope"], shown["reason"]) == ("everything", "maintenance")
    assert len(world.starts()) == begun

    resumed = world.resume()
    wait_until(lambda: len(world.starts()) > begun, "the first call")
    print(f"the first call came {world.starts()[begun] - resumed:.1f} s after the resume")
    world.wait_for_the_end(batch_id)
    assert sum(len(server.calls_of("vision")) for server in world.servers) == PICTURES


@pytest.mark.proof
def test_a_user_is_paused_and_another_ones_batch_goes_on(world: World) -> None:
    user = uuid.uuid4()
    held, other = world.submit(user_id=user), world.submit(10)
    wait_until(
        lambda: any(row.description for row in world.rows(held)), "the first is being processed"
    )
    world.pause("--user", user)
    world.wait_until_at_rest(held)
    done = [row.id for row in world.rows(held) if row.description]
    world.wait_for_the_end(other)
    assert [row.id for row in world.rows(held) if row.description] == done
    assert len(done) < PICTURES

    world.resume("--user", user)
    world.wait_for_the_end(held)
    assert sum(len(server.calls_of("vision")) for server in world.servers) == PICTURES + 10


@pytest.mark.proof
def test_a_batch_is_paused_and_another_one_of_its_user_goes_on(world: World) -> None:
    user = uuid.uuid4()
    held = world.submit(user_id=user)
    world.pause("--batch", held)
    world.wait_until_at_rest(held)
    done = [row.id for row in world.rows(held) if row.description]
    assert 0 < len(done) < PICTURES
    other = world.submit(10, user_id=user)
    world.wait_for_the_end(other)
    assert [row.id for row in world.rows(held) if row.description] == done

    world.resume("--batch", held)
    world.wait_for_the_end(held)


@pytest.mark.proof
def test_one_server_is_paused_and_the_other_takes_over(world: World) -> None:
    first, second = world.servers
    batch_id = world.submit()
    wait_until(lambda: first.calls and second.calls, "both are called")
    committed = world.pause("--server", first.ollama_url)
    world.wait_for_the_end(batch_id)
    assert max(world.starts(first)) < committed + promised(PROMISED_SECONDS)
    assert len(second.calls_of("vision")) > len(first.calls_of("vision"))

    batch_id = world.submit()
    begun = len(first.calls)
    committed = world.pause("--server", second.ollama_url)
    world.wait_until_at_rest(batch_id)
    assert max(world.starts(second)) < committed + promised(PROMISED_SECONDS)
    said_by_the_sensor(world, "every vision server is paused")
    assert len(first.calls) == begun
    assert {row.error_kind for row in world.rows(batch_id)} == {None}, "it is no outage"

    world.resume("--server", first.ollama_url)
    world.wait_for_the_end(batch_id)
    world.resume("--server", second.ollama_url)
