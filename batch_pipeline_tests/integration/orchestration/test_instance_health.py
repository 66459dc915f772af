"""What `doctor` reports about Dagster: its daemon, the state of sensors, its queue of runs."""

import re
import sys
import time
import uuid

import dagster as dg
import psycopg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster_postgres import PostgresRunStorage, PostgresScheduleStorage
from dagster_shared.error import SerializableErrorInfo
from sqlalchemy import make_url

from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.dagster_storage import instance_storage
from batch_pipeline.orchestration.instance_health import INSTIGATORS, check_dagster
from batch_pipeline.orchestration.tags import OURS
from batch_pipeline.services.progress.waiting import (
    NOTHING_PENDING,
    what_it_waits_for,
    why_batches_wait,
)
from batch_pipeline.testing.records import add_batch

HERE, ELSEWHERE = "batch_pipeline", "second_host"


@pytest.fixture
def dagster_url(server):
    with server.new_database(migrated=False) as url:
        yield url


@pytest.fixture
def checks(settings, change, dagster_url):
    configured = change(dagster_database_url=dagster_url)
    return lambda: {check.name: check for check in check_dagster(configured)}


def repository_in(location):
    return RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin("localhost", 1, None, location), "o")


QUEUED = dg.DagsterRun(
    "process_batch",
    status=dg.DagsterRunStatus.QUEUED,
    remote_job_origin=RemoteJobOrigin(repository_in(HERE), "process_batch"),
    job_code_origin=JobPythonOrigin(
        "process_batch",
        RepositoryPythonOrigin(sys.executable, ModuleCodePointer("module", "definitions")),
    ),
)
BROKE = SerializableErrorInfo("it broke\n", [], None)


class Daemon:
    """Write what a daemon leaves in Dagster's storage."""

    def __init__(self, url):
        self.url = url
        self.runs, self.ticks = PostgresRunStorage(url), PostgresScheduleStorage(url)
        for name in ("SENSOR", "SCHEDULER"):
            self.beat(name)
        for name in INSTIGATORS:
            self.ticks.add_instigator_state(state_of(name))

    def beat(self, name, *, seconds_ago=0):
        self.runs.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, name, "id", []))

    def run(self, status, *, tags=OURS):
        self.runs.add_run(dg.DagsterRun("process_batch", status=status, tags=tags))

    def tick(self, name, status, error=None, *, said=None, seconds_ago=0, location=HERE):
        state = state_of(name, location=location)
        self.ticks.create_tick(
            TickData(
                instigator_origin_id=state.instigator_origin_id,
                instigator_name=name,
                instigator_type=InstigatorType.SENSOR,
                status=status,
                timestamp=time.time() - seconds_ago,
                error=error,
                skip_reason=said,
                run_ids=[] if status is TickStatus.SUCCESS else None,
                selector_id=state.selector_id,
            )
        )


def state_of(name, status=InstigatorStatus.DECLARED_IN_CODE, *, location=HERE):
    origin = RemoteInstigatorOrigin(repository_in(location), name)
    data = SensorInstigatorData(sensor_type=SensorType.STANDARD)
    return InstigatorState(origin, InstigatorType.SENSOR, status, data)


@pytest.fixture
def daemon(dagster_url):
    return Daemon(dagster_url)


def test_doctor_asks_whether_a_database_without_dagster_is_the_wrong_one(checks, settings):
    check = checks()["dagster daemon"]
    assert not check.ok
    assert "no Dagster has ever run on this database" in check.detail
    assert str(settings.home) in check.detail
    assert "BATCH_PIPELINE_HOME" in check.hint


def test_a_role_that_may_not_read_the_storage_is_told_so_without_our_statements(
    change, daemon, dagster_url
):
    role = f"role_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(dagster_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN".encode())
        url = make_url(dagster_url).set(username=role).render_as_string(hide_password=False)
        [found] = check_dagster(change(dagster_database_url=url))
        owner.execute(f"DROP ROLE {role}".encode())

    assert (found.name, found.ok) == ("dagster storage", False)
    assert re.match(r"the database refuses: permission denied for [^.\[]*\. Give", found.detail)
    assert "the rights of its role" in found.hint


def test_a_working_dagster_passes_all_checks(checks, daemon):
    daemon.tick("pending_batches", TickStatus.FAILURE, BROKE)
    daemon.tick("pending_batches", TickStatus.SKIPPED)
    daemon.tick("pending_batches", TickStatus.STARTED)
    assert [name for name, check in checks().items() if not check.ok] == []


def test_status_says_what_the_sensor_said_how_many_runs_are_in_flight_and_why_it_is_stuck(
    change, daemon, dagster_url, database
):
    settings = change(dagster_database_url=dagster_url)
    batch = add_batch(database, 1)
    daemon.run(dg.DagsterRunStatus.STARTED)
    daemon.run(dg.DagsterRunStatus.SUCCESS)
    daemon.tick("pending_batches", TickStatus.SKIPPED, said="2 batches wait")
    daemon.tick("report_ended_batches", TickStatus.SKIPPED, said="no batch has ended since")
    daemon.tick("pending_batches", TickStatus.STARTED)
    assert why_batches_wait(settings) == "2 batches wait"
    launching = "waits for its run to be launched; 1 of 4 runs in flight"
    assert what_it_waits_for(database, settings, batch) == launching

    wrapped = SerializableErrorInfo("Error occurred during the execution", [], None, BROKE)
    daemon.tick("pending_batches", TickStatus.FAILURE, wrapped)
    failing = "the sensor pending_batches fails: it broke"
    assert why_batches_wait(settings) == failing
    assert what_it_waits_for(database, settings, batch).startswith(f"waits, because {failing}; ")

    daemon.tick("pending_batches", TickStatus.SUCCESS, seconds_ago=300)
    silent = "has not run for 5 minutes: it is switched off, its code location cannot be"
    assert silent in what_it_waits_for(database, settings, batch)
    assert silent in why_batches_wait(settings)

    for name in ("SENSOR", "SCHEDULER"):
        daemon.beat(name, seconds_ago=300)
    for said in (why_batches_wait(settings), what_it_waits_for(database, settings, batch)):
        assert said.startswith("nothing is being processed: is Dagster running? ")


def test_a_run_of_another_projects_job_with_the_same_name_is_not_counted_as_in_flight(
    change, daemon, database
):
    daemon.tick("pending_batches", TickStatus.SKIPPED, said="2 batches wait")
    daemon.run(dg.DagsterRunStatus.NOT_STARTED)
    daemon.run(dg.DagsterRunStatus.STARTED, tags={})
    said = what_it_waits_for(
        database, change(dagster_database_url=daemon.url), add_batch(database, 1)
    )
    assert said == "waits for its run to be launched; 1 of 4 runs in flight"


def test_status_does_not_say_that_nothing_is_pending_below_a_batch_that_waits(change, daemon):
    settings = change(dagster_database_url=daemon.url)
    daemon.tick("pending_batches", TickStatus.SKIPPED, said=NOTHING_PENDING)
    assert why_batches_wait(settings) == "", "the batch was submitted after this tick"


@pytest.mark.parametrize(
    "message",
    [
        "dagster._core.errors.DagsterUserCodeUnreachableError: Unable to reach the user code "
        "server for sensor pending_batches. Sensor will resume execution once the server is "
        "available.\n",
        "dagster._core.errors.DagsterCodeLocationLoadError: Failure loading "
        "batch_pipeline.definitions: dagster._core.errors.DagsterUserCodeUnreachableError: Could "
        "not reach user code server. gRPC Error code: UNAVAILABLE\n",
    ],
)
def test_a_code_server_that_is_gone_is_named_once_with_what_to_do(checks, change, daemon, message):
    error = SerializableErrorInfo(message, [], None)
    for name in ("pending_batches", "report_ended_batches"):
        daemon.tick(name, TickStatus.FAILURE, error)
    settings = change(dagster_database_url=daemon.url)
    gone = "Dagster's code server does not answer: restart it, or press Reload in the UI under"
    assert why_batches_wait(settings).startswith(f"the sensor pending_batches fails: {gone}")
    detail = checks()["sensors"].detail
    assert detail.startswith(f"pending_batches, report_ended_batches: last tick failed: {gone}")
    assert detail.count(gone) == 1


def test_doctor_gives_the_cause_of_a_failed_tick_and_not_dagsters_words_around_it(checks, daemon):
    wrapped = SerializableErrorInfo("Error occurred during the execution", [], None, BROKE)
    daemon.tick("notifications", TickStatus.FAILURE, wrapped)
    assert checks()["sensors"].detail == "notifications: last tick failed: it broke"


def test_a_sensor_that_is_off_or_never_evaluated_or_failed_fails_the_check(checks, daemon):
    daemon.ticks.update_instigator_state(state_of("backlog_sweep", InstigatorStatus.STOPPED))
    daemon.tick("report_ended_batches", TickStatus.FAILURE, BROKE)
    state = state_of("sweep_on_start")
    daemon.ticks.delete_instigator_state(state.instigator_origin_id, state.selector_id)
    check = checks()["sensors"]
    assert not check.ok
    assert set(check.detail.split("; ")) == {
        "backlog_sweep is switched off",
        "report_ended_batches: last tick failed: it broke",
        "sweep_on_start was never evaluated",
    }


def test_sensors_of_a_code_location_that_was_removed_do_not_fail_the_check(checks, daemon):
    for name in ("pending_batches", "backlog_sweep", "notifications"):
        daemon.tick(name, TickStatus.SKIPPED)
    for state in (
        state_of("pending_batches", location=ELSEWHERE),
        state_of("backlog_sweep", InstigatorStatus.STOPPED, location=ELSEWHERE),
        state_of("notifications", InstigatorStatus.STOPPED, location=ELSEWHERE),
    ):
        daemon.ticks.add_instigator_state(state)
    before = {"seconds_ago": 3600, "location": ELSEWHERE}
    daemon.tick("pending_batches", TickStatus.FAILURE, BROKE, **before)
    daemon.tick("backlog_sweep", TickStatus.SUCCESS, **before)

    check = checks()["sensors"]

    assert check.ok, check.detail
    assert check.detail == (
        "on, and their last ticks succeeded; no longer evaluated in the code location second_host: "
        "backlog_sweep, pending_batches"
    )


def test_sensors_of_each_code_location_that_is_evaluated_are_checked(checks, daemon):
    daemon.tick("pending_batches", TickStatus.SKIPPED)
    daemon.ticks.add_instigator_state(state_of("pending_batches", location=ELSEWHERE))
    daemon.tick("pending_batches", TickStatus.FAILURE, BROKE, seconds_ago=60, location=ELSEWHERE)
    assert checks()["sensors"].detail == "pending_batches: last tick failed: it broke"


def test_sensors_that_failed_before_everything_stopped_fail_the_check(checks, daemon):
    daemon.tick("pending_batches", TickStatus.FAILURE, BROKE, seconds_ago=3600)
    assert checks()["sensors"].detail == "pending_batches: last tick failed: it broke"


def test_a_silent_run_queue_fails_the_check_as_soon_as_a_run_waits_in_it(checks, daemon):
    daemon.beat("QUEUED_RUN_COORDINATOR", seconds_ago=600)
    assert checks()["dagster daemon"].ok
    daemon.runs.add_run(QUEUED)
    assert checks()["dagster daemon"].detail == "no heartbeat of queued_run_coordinator"
    daemon.beat("QUEUED_RUN_COORDINATOR")
    assert checks()["dagster daemon"].ok


def test_a_second_daemon_on_the_same_database_fails_the_check(checks, daemon, dagster_url):
    first = psycopg.connect(dagster_url, application_name="dagster-daemon one 7")
    second = psycopg.connect(dagster_url, application_name="dagster-daemon two 8")
    with first, second:
        check = checks()["one daemon"]
    assert not check.ok
    assert check.detail == ("2 use this database: dagster-daemon one 7, dagster-daemon two 8")


@pytest.mark.parametrize(
    ("program", "is_daemon"),
    [
        ("/x/bin/dagster-daemon", True),
        ("/x/dagster/_daemon/__main__.py", True),
        ("/x/bin/dagster-webserver", False),
    ],
)
def test_the_name_of_a_connection_shows_whether_it_is_a_daemons(monkeypatch, program, is_daemon):
    monkeypatch.setattr(sys, "argv", [program])
    name = instance_storage._application_name()
    assert name.startswith(instance_storage.DAEMON_NAME) == is_daemon
    assert len(name) <= 63


def test_all_sensors_and_schedules_of_the_code_location_are_checked(settings):
    definitions = build_definitions(settings)
    assert {one.name for one in (*definitions.sensors, *definitions.schedules)} == set(INSTIGATORS)
