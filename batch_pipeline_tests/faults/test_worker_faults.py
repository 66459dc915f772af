"""Run workers are killed, stopped and terminated: real processes, real signals.

The tests act as the daemon and the sweep, so that each fault comes between two known instructions.
"""

import os
import shutil
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import text

from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.run_ends import clean_up_failed_run, clean_up_terminated_run
from batch_pipeline.orchestration.sweep import sweep_once, work_for_a_sweep
from batch_pipeline.orchestration.tags import BATCH_TAG, RUN_KEY_TAG
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.model_costs import costs_by_user
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.pipeline import Pipeline, shared_pipeline
from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings, load_settings
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline_tests.faults import run_worker
from batch_pipeline_tests.patience import promised, wait_until
from batch_pipeline_tests.runs import record_run

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"
FIVE = ("fog.webp", "sea.jpg", "city.jpg", "night.jpg", "forest.webp")
LEASE = 5.0
#: Longest wait for a process to reach a point (seconds).
DEADLINE = 90.0

pytestmark = pytest.mark.slow


class Worker:
    """A process that executes one run."""

    def __init__(self, run_id: str, fault: str) -> None:
        self.run_id = run_id
        self.process = run_worker.start(run_id, fault)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        self.process.join(DEADLINE)
        assert self.process.exitcode is not None, "the worker goes on"
        return self.process.exitcode


class Stack:
    """Daemon, code server and sweep, one instruction after another."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self.pipeline, self.instance = pipeline, instance
        self.job = run_worker.process_batch()
        self.workers: list[Worker] = []

    def submit(self, *names: str) -> uuid.UUID:
        submission = submit(
            [MEDIA / name for name in names],
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.pipeline.settings,
        )
        assert submission.batch_id, submission.refused
        return submission.batch_id

    def tick(self, fault: str = "") -> list[Worker]:
        """Make one tick of the sensor; start the workers that it asks for."""
        sensor = build_definitions().resolve_sensor_def("pending_batches")
        context = dg.build_sensor_context(
            instance=self.instance, resources={"batch_pipeline": self.pipeline}
        )
        workers = []
        for request in sensor.evaluate_tick(context).run_requests:
            run = record_run(
                self.instance,
                self.job,
                run_config=request.run_config,
                tags=request.tags | {RUN_KEY_TAG: request.run_key},
            )
            workers.append(Worker(run.run_id, fault))
        self.workers += workers
        return workers

    def start(self, fault: str = "") -> Worker:
        [worker] = self.tick(fault)
        return worker

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def report_death(self, worker: Worker) -> None:
        """Do what the code server and then the sensor do after the end of a child."""
        if self.run(worker.run_id).status != dg.DagsterRunStatus.FAILURE:
            self.instance.report_run_failed(self.run(worker.run_id), "exited unexpectedly")
        run = self.run(worker.run_id)
        clean_up_failed_run(self.pipeline, run, died=True, reason="exited unexpectedly")

    def end_the_pause(self) -> None:
        with self.pipeline.database.transaction() as connection:
            connection.execute(text("UPDATE uploads SET not_before = now()"))

    def finish(self, batch_id: uuid.UUID, fault: str = "", *, rounds: int = 5) -> None:
        """Tick and wait for the runs, until the batch has ended."""
        for _ in range(rounds):
            self.end_the_pause()
            for worker in self.tick(fault):
                if worker.wait() != 0:
                    self.report_death(worker)
            if batch_row(self.pipeline.database, batch_id).status == "completed":
                return
        raise AssertionError(f"not completed after {rounds} rounds: {self.statuses(batch_id)}")

    def statuses(self, batch_id: uuid.UUID) -> list[str]:
        return [row.processing_status for row in upload_rows(self.pipeline.database, batch_id)]

    def counts(self, batch_id: uuid.UUID) -> tuple[str, int, int]:
        """Return status, successful and failed; check counters, and that nothing is unfinished."""
        batch = batch_row(self.pipeline.database, batch_id)
        recount = Counter(self.statuses(batch_id))
        assert batch.total_uploads == recount.total()
        assert batch.successful_uploads == recount["completed"]
        assert batch.failed_uploads == recount["failed"]
        assert batch.processed_uploads == recount["completed"] + recount["failed"]
        storage = Path(self.pipeline.settings.storage_location)
        assert not list(storage.rglob("*.partial"))
        return batch.status, batch.successful_uploads, batch.failed_uploads


@pytest.fixture
def model_server() -> Iterator[ScriptedModelServer]:
    with ScriptedModelServer() as server:
        yield server


@pytest.fixture
def open_stack(  # noqa: PLR0917 - pytest passes them by name
    server: DatabaseServer,
    settings: Settings,
    model_server: ScriptedModelServer,
    open_pipeline: Callable[[Settings], Pipeline],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Stack]]:
    """Opens the stack with settings, which are also in the environment of its workers."""
    stacks: list[Stack] = []
    home = tmp_path / "dagster_home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with server.new_database(migrated=False) as dagster_url:

        def open_(**changed: object) -> Stack:
            values = {
                "home": settings.home,
                "database_url": settings.database_url,
                "dagster_database_url": dagster_url,
                "analyzer": "ollama",
                "ollama_host": model_server.ollama_url,
                "lease_seconds": LEASE,
                "max_concurrent_uploads": 1,
                "retry_base_seconds": 0,
                **changed,
            }
            for name, value in values.items():
                monkeypatch.setenv(f"{ENVIRONMENT_PREFIX}{name.upper()}", str(value))
            pipeline = open_pipeline(Settings(_env_file=None, **values))
            stacks.append(Stack(pipeline, dg.DagsterInstance.get()))
            return stacks[-1]

        yield open_
        for stack in stacks:
            for worker in stack.workers:
                if worker.process.is_alive():
                    worker.kill()
            stack.instance.dispose()


def kill_in_upload_2_of_5(
    stack: Stack, model_server: ScriptedModelServer
) -> tuple[uuid.UUID, Worker]:
    """Wait until the first upload is completed and the second is at the model; three are left."""
    batch_id = stack.submit(*FIVE)
    model_server.play("vision", [None, Fault.HANG])
    worker = stack.start()
    wait_until(lambda: len(model_server.calls_of("vision")) == 2, "the second call")
    assert stack.statuses(batch_id) == ["completed", "analyzing", *["pending"] * 3]
    worker.kill()
    return batch_id, worker


def assert_each_described_once_but_the_one_in_work(model_server: ScriptedModelServer) -> None:
    prompts = Counter(bytes(call.images[0]) for call in model_server.calls_of("vision"))
    assert sorted(prompts.values()) == [1, 1, 1, 1, 2]


def assert_call_stops(model_server: ScriptedModelServer, seconds: float) -> None:
    [call] = model_server.calls_of("vision")
    assert call.client_left.wait(promised(seconds)), "the model call went on"


def test_5_after_a_kill_in_upload_2_of_5_all_finish_and_none_is_repeated(open_stack, model_server):
    stack = open_stack()
    batch_id, worker = kill_in_upload_2_of_5(stack, model_server)
    begin = time.monotonic()
    stack.report_death(worker)
    assert stack.statuses(batch_id) == ["completed", *["pending"] * 4]
    print(f"pending again {time.monotonic() - begin:.2f} s after the run was reported failed")
    stack.finish(batch_id)
    assert stack.counts(batch_id) == ("completed", 5, 0)
    assert batch_row(stack.pipeline.database, batch_id).error_message is None
    assert_each_described_once_but_the_one_in_work(model_server)


@pytest.mark.parametrize(
    ("dialect", "moment"),
    [("ollama", "in a call"), ("openai", "answered"), ("ollama", "described")],
)
def test_after_a_kill_the_costs_are_what_the_server_counted(
    open_stack, model_server, dialect, moment
):
    stack = open_stack(analyzer=dialect, openai_base_url=model_server.openai_url)
    if moment == "in a call":
        batch_id, worker = kill_in_upload_2_of_5(stack, model_server)
    else:
        batch_id = stack.submit(*FIVE)
        worker = stack.start(moment)
        assert worker.wait() == -signal.SIGKILL
    stack.report_death(worker)
    stack.finish(batch_id)
    assert stack.counts(batch_id) == ("completed", 5, 0)
    costs = [of.cost for of in costs_by_user(stack.pipeline.database)]
    assert {
        "in": sum(cost.tokens_in for cost in costs),
        "out": sum(cost.tokens_out for cost in costs),
    } == model_server.tokens
    described = [call for call in model_server.calls_of("vision") if call.fault is None]
    assert len(described) == (6 if moment == "answered" else 5)


def test_7_after_an_unreported_kill_the_lease_expires_and_the_run_is_closed(
    open_stack, model_server
):
    stack = open_stack()
    batch_id, worker = kill_in_upload_2_of_5(stack, model_server)
    assert stack.pipeline.backlog.rescue().returned == 0, "rescued before the lease was over"
    begin = time.monotonic()
    wait_until(
        lambda: stack.pipeline.backlog.rescue().returned, "the lease is over", promised(2 * LEASE)
    )
    print(f"returned {time.monotonic() - begin:.2f} s after the kill, lease {LEASE} s")
    stack.finish(batch_id)
    wait_until(
        lambda: work_for_a_sweep(stack.instance, stack.pipeline, LeftOut()).get(
            "runs without a worker"
        ),
        "the sweep sees that the run is dead",
    )
    assert sweep_once(stack.instance, stack.pipeline, LeftOut())["runs_closed"] == 1
    assert stack.run(worker.run_id).status == dg.DagsterRunStatus.FAILURE
    assert work_for_a_sweep(stack.instance, stack.pipeline, LeftOut()) == {}
    assert stack.counts(batch_id) == ("completed", 5, 0)
    assert_each_described_once_but_the_one_in_work(model_server)


def test_6_a_live_worker_is_left_alone_however_long_its_call_and_whatever_its_server(
    open_stack, model_server
):
    stack = open_stack()
    model_server.latency_seconds = 2 * LEASE
    batch_id = stack.submit("fog.webp")
    worker = stack.start()
    wait_until(lambda: model_server.calls_of("vision"), "the call")
    model_server.latency_seconds = 0  # of the calls after this one
    sweeps = 0
    while worker.process.is_alive():
        counts = sweep_once(stack.instance, stack.pipeline, LeftOut())
        assert set(counts.values()) == {0}, counts
        sweeps += 1
        time.sleep(0.1)
    assert sweeps > 1
    assert stack.counts(batch_id) == ("completed", 1, 0)
    assert len(model_server.calls_of("vision")) == 1


def test_8_re_execution_from_failure_after_a_kill_neither_hangs_nor_drops_nor_repeats(
    open_stack, model_server
):
    stack = open_stack()
    batch_id, worker = kill_in_upload_2_of_5(stack, model_server)
    stack.report_death(worker)
    with closing(shared_pipeline(load_settings())):  # which the run takes
        dg.execute_job(
            dg.reconstructable(run_worker.process_batch),
            stack.instance,
            reexecution_options=dg.ReexecutionOptions.from_failure(worker.run_id, stack.instance),
        )
    # Uploads outside of the re-executed run's plan are pending, and go to another run.
    stack.finish(batch_id)
    assert stack.counts(batch_id) == ("completed", 5, 0)
    assert_each_described_once_but_the_one_in_work(model_server)


def test_9_a_worker_that_was_stopped_past_its_lease_writes_nothing(open_stack, model_server):
    stack = open_stack()
    batch_id = stack.submit("fog.webp")
    model_server.latency_seconds = LEASE  # it is answered while its worker sleeps
    stale = stack.start()
    wait_until(lambda: model_server.calls_of("vision"), "the call")
    stale.send(signal.SIGSTOP)
    wait_until(lambda: stack.pipeline.backlog.rescue().returned, "the lease is over")
    model_server.latency_seconds = 0
    [fresh] = stack.tick()
    assert fresh.wait() == 0
    before = upload_rows(stack.pipeline.database, batch_id)
    assert stack.counts(batch_id) == ("completed", 1, 0)
    stale.send(signal.SIGCONT)
    stale.wait()
    assert upload_rows(stack.pipeline.database, batch_id) == before
    assert stack.counts(batch_id) == ("completed", 1, 0)


def test_10_sigterm_releases_at_once_and_another_run_takes_over(open_stack, model_server):
    stack = open_stack(lease_seconds=600)
    batch_id = stack.submit("fog.webp", "sea.jpg")
    model_server.latency_seconds = 60
    worker = stack.start()
    wait_until(lambda: model_server.calls_of("vision"), "the call")
    worker.send(signal.SIGTERM)
    assert model_server.calls_of("vision")[0].client_left.wait(promised(5)), (
        "the model call went on"
    )
    worker.wait()
    rows = upload_rows(stack.pipeline.database, batch_id)
    assert {(row.owner_run_id, row.processing_status, row.attempts) for row in rows} == {
        (None, "pending", 0)
    }
    model_server.latency_seconds = 0
    stack.finish(batch_id)
    assert stack.counts(batch_id) == ("completed", 2, 0)


def assert_left_alone(stack: Stack, batch_id: uuid.UUID, statuses: list[str]) -> None:
    """Check that neither the sensor nor a sweep touches a cancelled batch."""
    stack.end_the_pause()
    assert stack.tick() == []
    sweep_once(stack.instance, stack.pipeline, LeftOut())
    assert stack.tick() == []
    assert stack.statuses(batch_id) == statuses
    assert stack.counts(batch_id)[0] == "cancelled"


@pytest.mark.parametrize("is_forced", [False, True], ids=["terminate", "force"])
def test_10_terminate_stops_the_call_and_cancels_the_batch_until_a_retry(
    open_stack, model_server, is_forced
):
    stack = open_stack(lease_seconds=600)
    batch_id = stack.submit("fog.webp", "sea.jpg")
    model_server.latency_seconds = 60
    worker = stack.start()
    wait_until(lambda: model_server.calls_of("vision"), "the call")
    # What Terminate in the UI does: it marks the run, then its launcher sends the signal.
    stack.instance.report_run_canceling(stack.run(worker.run_id))
    if is_forced:  # "Force termination" marks it as ended before its worker hears the signal
        stack.instance.report_run_canceled(stack.run(worker.run_id))
    worker.send(signal.SIGTERM)
    assert model_server.calls_of("vision")[0].client_left.wait(promised(2)), (
        "the model call went on"
    )
    worker.wait()
    assert stack.run(worker.run_id).status == dg.DagsterRunStatus.CANCELED
    assert stack.counts(batch_id)[0] == "cancelled"
    clean_up_terminated_run(stack.pipeline, stack.run(worker.run_id))
    assert_left_alone(stack, batch_id, ["pending", "pending"])

    model_server.latency_seconds = 0
    stack.pipeline.batches.retry_batch(batch_id)
    clean_up_terminated_run(stack.pipeline, stack.run(worker.run_id))  # a sensor that comes late
    stack.finish(batch_id)
    assert stack.counts(batch_id) == ("completed", 2, 0)


def test_29_cancel_stops_the_call_within_2_s_and_no_other_begins(open_stack, model_server):
    stack = open_stack(lease_seconds=600)
    batch_id = stack.submit(*FIVE)
    model_server.latency_seconds = 60
    worker = stack.start()
    wait_until(lambda: model_server.calls_of("vision"), "the call")
    begin = time.monotonic()
    stack.pipeline.batches.cancel_batch(batch_id)
    assert model_server.calls_of("vision")[0].client_left.wait(promised(2)), (
        "the model call went on"
    )
    print(f"the call stopped after {time.monotonic() - begin:.2f} s")
    worker.wait()
    assert len(model_server.calls_of("vision")) == 1
    assert_left_alone(stack, batch_id, ["pending"] * 5)
    model_server.latency_seconds = 0
    stack.pipeline.batches.retry_batch(batch_id)
    stack.finish(batch_id)
    assert stack.counts(batch_id) == ("completed", 5, 0)


def test_11_an_upload_that_kills_its_process_every_time_is_failed_and_the_batch_completes(
    open_stack,
):
    stack = open_stack(max_concurrent_uploads=2)
    batch_id = stack.submit("fog.webp", "lighthouse.gif", "sea.jpg")
    stack.finish(batch_id, "gif")
    assert stack.counts(batch_id) == ("completed", 2, 1)
    [failed] = [
        row
        for row in upload_rows(stack.pipeline.database, batch_id)
        if row.processing_status == "failed"
    ]
    assert (failed.filename, failed.error_kind) == ("lighthouse.gif", "killed_worker")


def test_20_a_kill_between_a_file_and_its_row_leaves_nothing_that_a_rerun_does_not_use(open_stack):
    stack = open_stack()
    batch_id = stack.submit("fog.webp")
    worker = stack.start("thumbnail")
    assert worker.wait() == -signal.SIGKILL
    stack.report_death(worker)
    stack.finish(batch_id)
    assert stack.counts(batch_id) == ("completed", 1, 0)
    [row] = upload_rows(stack.pipeline.database, batch_id)
    folder = Path(stack.pipeline.settings.storage_location, row.file_path).parent
    assert {path.name for path in folder.iterdir()} == {"original.webp", "thumb_256.jpg"}


def test_12_connections_that_are_cut_before_the_store_are_opened_again(open_stack, model_server):
    stack = open_stack()
    batch_id = stack.submit("fog.webp")
    model_server.latency_seconds = 1
    worker = stack.start()
    wait_until(lambda: model_server.calls_of("vision"), "the call")
    with stack.pipeline.database.transaction() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    worker.wait()
    stack.finish(batch_id)
    assert stack.counts(batch_id) == ("completed", 1, 0)


def test_18_a_worker_whose_clock_is_an_hour_off_is_not_taken_for_dead(open_stack, model_server):
    stack = open_stack()
    batch_id = stack.submit("fog.webp")
    model_server.latency_seconds = 60
    worker = stack.start("clock")
    wait_until(lambda: model_server.calls_of("vision"), "the call")
    [first] = upload_rows(stack.pipeline.database, batch_id)

    def is_renewed() -> bool:
        [row] = upload_rows(stack.pipeline.database, batch_id)
        assert row.heartbeat_at - row.created_at < timedelta(minutes=10)
        assert stack.pipeline.backlog.rescue().returned == 0
        return row.heartbeat_at - first.heartbeat_at > timedelta(seconds=LEASE)

    wait_until(is_renewed, "the heartbeat is renewed for longer than a lease")
    assert not stack.pipeline.backlog.run_is_silent(worker.run_id)


def test_2_one_of_two_sensors_asks_for_a_run_and_two_runs_of_a_slice_take_it_once(open_stack):
    stack = open_stack()
    batch_id = stack.submit("fog.webp")
    first = stack.start()
    assert stack.tick() == [], "another sensor sees what was asked for"
    run = stack.run(first.run_id)
    clone = record_run(stack.instance, stack.job, run_config=run.run_config, tags=run.tags)
    second = Worker(clone.run_id, "")
    stack.workers.append(second)
    assert (first.wait(), second.wait()) == (0, 0)
    assert stack.run(first.run_id).tags[BATCH_TAG] == str(batch_id)
    assert stack.counts(batch_id) == ("completed", 1, 0)
    [row] = upload_rows(stack.pipeline.database, batch_id)
    assert row.claim_token == 2, "reserved once, started once"
