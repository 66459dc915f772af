"""Steps on Celery workers: how they are chosen, and what happens if a broker or worker is gone.

Workers on other hosts: `test_several_hosts.py`.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import dagster as dg
import psutil
import pytest
from sqlalchemy import text

from batch_pipeline.database.connection_budget import DAGSTER_POOL
from batch_pipeline.database.models import PauseScope
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.orchestration import executors
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.failures import step_failures_that_ended_it
from batch_pipeline.orchestration.instance_health import check_dagster
from batch_pipeline.orchestration.run_ends import clean_up_failed_run
from batch_pipeline.services.pauses import pause, resume
from batch_pipeline.settings import Settings
from batch_pipeline_tests.patience import wait_until

from ..patience import DEADLINE
from . import run_worker
from .broker import RabbitMq, Redis
from .conftest import failures

ROOT = Path(__file__).parents[2]
LEASE = 3.0
THREADED = {"threaded": {"max_concurrent": 2}}
APP = "batch_pipeline.orchestration.celery.app"
WORKER = ("celery", "-A", APP, "worker", "--queues", "dagster", "--pool", "solo")


#: Behaviour in which the brokers differ.
both_brokers = pytest.mark.parametrize("broker", [Redis, RabbitMq], indirect=True)
#: The second takes half a minute and more.
both_brokers_at_leisure = pytest.mark.parametrize(
    "broker", [Redis, pytest.param(RabbitMq, marks=pytest.mark.proof)], indirect=True
)


@pytest.fixture(params=[Redis])
def broker(request, tmp_path):
    started = request.param("127.0.0.1", tmp_path)
    try:
        started.start()
        yield started
    finally:
        started.kill()


@pytest.fixture
def start(work, tmp_path):
    """Starts Python processes that see the settings of `work`, and end before its database does."""
    started = []

    def start_(*arguments, **variables):
        with (tmp_path / "processes.log").open("ab") as log:
            command = [sys.executable, "-m", *arguments]
            environment = os.environ | variables
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
        return started[-1]

    yield start_
    for process in started:
        process.kill()
        process.wait()


def run(work, batch_id, executor):
    share = {"batch_id": str(batch_id)}
    config = {"execution": {"config": executor}, "ops": {"load_batch": {"config": share}}}
    return work._execute(config, {})


@both_brokers
def test_messages_that_the_broker_loses_end_the_run_and_the_uploads_go_to_another(work, broker):
    work = work(lease_seconds=LEASE)
    batch_id = work.submit("fog.webp", "sea.jpg")

    def lose_everything():
        wait_until(lambda: broker.waiting() == 2, "both wait")
        broker.lose_everything()

    loss = threading.Thread(target=lose_everything)
    loss.start()
    result = run(work, batch_id, {"celery": {"broker": broker.url}})
    loss.join()

    assert len(failures(result)) == 2
    assert all(reason.startswith("lost_message: ") for reason in failures(result))
    ended = [event.step_key for event in result.all_events if event.is_step_success]
    assert "finalize_batch" in ended
    [request] = work.tick().run_requests
    assert request.tags["batch_pipeline/reason"] == "rescue"
    assert work.column(batch_id, "processing_status") == ["pending"] * 2
    assert run(work, batch_id, THREADED).success
    assert work.counts(batch_id) == ("completed", 2, 0)


def test_a_killed_process_of_a_worker_fails_only_its_step(work, broker, start, model_server):
    work = work(celery_broker_url=broker.url)
    batch_id = work.submit("fog.webp", "sea.jpg")
    model_server.latency_seconds = 600
    several = (*WORKER[:-1], "prefork", "--concurrency", "1")
    worker = start(*several, PYTHONPATH=str(ROOT))

    def kill_the_process():
        wait_until(lambda: model_server.calls_of("vision"), "a worker has taken the first")
        model_server.latency_seconds = 0
        [process] = psutil.Process(worker.pid).children()
        process.kill()

    kill = threading.Thread(target=kill_the_process)
    kill.start()
    result = run(work, batch_id, {"celery": {"broker": broker.url}})
    kill.join()

    [reason] = failures(result)
    assert reason.startswith("lost_worker: ")
    assert "signal 9 (SIGKILL)" in reason
    [end] = [event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE"]
    steps = [event for event in result.all_events if event.is_step_failure]
    assert step_failures_that_ended_it(end, steps) == steps
    ended = [event.step_key for event in result.all_events if event.is_step_success]
    assert "finalize_batch" in ended
    tick = work.tick()
    [request] = tick.run_requests
    assert request.tags["batch_pipeline/reason"] == "rescue"
    [again] = work.run_what_is_asked_for(tick)
    assert again.success
    assert work.counts(batch_id) == ("completed", 2, 0)


def terminated(work, batch_id, broker, once):
    """Process a batch on Celery workers; terminate the run, like the UI, once a condition holds."""

    def terminate():
        once()
        [record] = work.instance.get_run_records(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        )
        work.instance.report_run_canceling(record.dagster_run)
        os.kill(os.getpid(), signal.SIGINT)  # its launcher sends this signal

    termination = threading.Thread(target=terminate)
    termination.start()
    result = run(work, batch_id, {"celery": {"broker": broker.url}})
    termination.join()
    return result


def test_terminate_ends_a_run_whose_steps_nobody_takes_and_cancels_its_batch(work, broker):
    work = work()
    batch_id = work.submit("fog.webp", "sea.jpg")

    def both_wait():
        wait_until(lambda: broker.waiting() == 2, "both wait")

    result = terminated(work, batch_id, broker, once=both_wait)

    ended = work.instance.get_run_by_id(result.run_id)
    assert ended.status == dg.DagsterRunStatus.CANCELED
    assert work.counts(batch_id) == ("cancelled", 0, 0)
    assert work.column(batch_id, "processing_status") == ["pending"] * 2
    assert work.column(batch_id, "owner_run_id") == [None] * 2


def test_terminate_takes_effect_while_the_run_executes_a_step_in_its_own_process(
    work, broker, monkeypatch
):
    work = work()
    batch_id = work.submit("fog.webp", "sea.jpg")
    handle = dg.DagsterInstance.handle_new_event

    def terminate_at_the_end_of_the_first_step(instance, event, **options):
        handle(instance, event, **options)
        known = event.dagster_event
        if known and known.is_step_success and event.step_key == "load_batch":
            instance.report_run_canceling(instance.get_run_by_id(event.run_id))
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(
        dg.DagsterInstance, "handle_new_event", terminate_at_the_end_of_the_first_step
    )

    result = run(work, batch_id, {"celery": {"broker": broker.url}})

    ended = work.instance.get_run_by_id(result.run_id)
    assert ended.status == dg.DagsterRunStatus.CANCELED
    assert work.counts(batch_id) == ("cancelled", 0, 0)
    assert broker.waiting() == 0


@both_brokers_at_leisure
def test_terminate_stops_the_call_that_a_worker_makes_and_retry_finishes(
    work, broker, start, model_server
):
    work = work(celery_broker_url=broker.url)
    batch_id = work.submit("fog.webp", "sea.jpg")
    model_server.latency_seconds = 600
    start(*WORKER, PYTHONPATH=str(ROOT))  # the job of `work` is in a module of the tests

    def a_call_is_made():
        wait_until(lambda: model_server.calls_of("vision"), "a worker has taken the first")

    result = terminated(work, batch_id, broker, once=a_call_is_made)

    [call] = model_server.calls_of("vision")
    assert call.client_left.wait(DEADLINE), "the model call went on"
    ended = work.instance.get_run_by_id(result.run_id)
    assert ended.status == dg.DagsterRunStatus.CANCELED
    assert work.counts(batch_id) == ("cancelled", 0, 0)
    assert work.column(batch_id, "processing_status") == ["pending"] * 2
    assert work.column(batch_id, "owner_run_id") == [None] * 2

    model_server.latency_seconds = 0
    work.pipeline.batches.retry_batch(batch_id)
    [again] = work.run_what_is_asked_for_soon()
    assert again.success
    assert work.counts(batch_id) == ("completed", 2, 0)
    assert len(model_server.calls_of("vision")) == 3


@pytest.mark.parametrize("scope", ["batch", pytest.param("server", marks=pytest.mark.proof)])
def test_a_pause_lets_the_call_of_a_worker_end_and_steps_in_the_broker_wait(
    work, broker, start, model_server, scope
):
    work = work(celery_broker_url=broker.url)
    batch_id = work.submit("fog.webp", "sea.jpg", "city.jpg")
    model_server.latency_seconds = 1.5
    start(*WORKER, PYTHONPATH=str(ROOT))
    held = PauseScope(scope), {"batch": str(batch_id), "server": model_server.ollama_url}[scope]

    def pause_in_the_first_call():
        wait_until(lambda: model_server.calls_of("vision"), "a worker has taken the first")
        pause(work.pipeline.database, work.pipeline.settings, *held)

    pausing = threading.Thread(target=pause_in_the_first_call)
    pausing.start()
    result = run(work, batch_id, {"celery": {"broker": broker.url}})
    pausing.join()

    assert result.success
    assert len(model_server.calls) == 1
    rows = work.uploads(batch_id)
    assert [bool(row.description) for row in rows] == [True, False, False]
    assert {(row.processing_status, row.owner_run_id, row.attempts) for row in rows} == {
        ("pending", None, 0)
    }
    assert not work.tick().run_requests

    resume(work.pipeline.database, *held)
    model_server.latency_seconds = 0
    [again] = work.run_what_is_asked_for()
    assert again.success
    assert work.counts(batch_id) == ("completed", 3, 0)
    assert len(model_server.calls_of("vision")) == 3


def test_uploads_that_are_executed_again_may_wait_in_the_broker_for_longer_than_the_lease(
    work, broker, start, model_server, tmp_path
):
    work = work(celery_broker_url=broker.url, lease_seconds=LEASE)
    batch_id = work.submit_cut_off(tmp_path, "sea.jpg", "city.jpg")
    start(*WORKER, PYTHONPATH=str(ROOT))
    failed = run(work, batch_id, {"celery": {"broker": broker.url}})
    assert work.counts(batch_id) == ("completed", 0, 2)
    work.repair(batch_id)
    model_server.latency_seconds = 2 * LEASE + 1  # the second one waits: lease, then grace

    again = work.re_execute(failed.run_id)

    assert failures(again) == []
    assert work.counts(batch_id) == ("completed", 2, 0)


@pytest.mark.parametrize("ended", ["has ended as FAILURE", "was terminated"])
def test_steps_that_reach_a_worker_after_their_run_has_ended_are_not_executed_and_say_so(
    work, broker, start, model_server, ended
):
    work = work(celery_broker_url=broker.url)
    batch_id = work.submit("fog.webp", "sea.jpg")
    [request] = work.tick().run_requests
    run_id = work.instance.create_run_for_job(
        run_worker.process_batch(), run_config=request.run_config, tags=request.tags
    ).run_id
    launched = run_worker.start(run_id, "", DAGSTER_HOME=work.instance.root_directory)
    wait_until(lambda: broker.waiting() == 2, "both wait")
    launched.kill()
    launched.join()
    report = {
        "has ended as FAILURE": work.instance.report_run_failed,
        "was terminated": work.instance.report_run_canceling,
    }
    report[ended](work.instance.get_run_by_id(run_id), "killed")
    reported = work.instance.get_run_by_id(run_id)
    before = states(work, batch_id)
    assert {owner for _, owner, *_ in before} == {run_id}, "nobody has cleaned up after the run yet"

    start(*WORKER)
    wait_until(lambda: len(failures_of(work, run_id)) == 2, "a worker has taken both")

    late = f"the run {ended}; a step that starts so late does nothing, and another run "
    assert failures_of(work, run_id) == [f"{late}processes its upload"] * 2
    assert model_server.calls == []
    assert states(work, batch_id) == before
    assert work.instance.get_run_by_id(run_id).status is reported.status
    clean_up_failed_run(work.pipeline, reported, died=True, reason="killed")
    assert run(work, batch_id, THREADED).success
    assert work.counts(batch_id) == ("completed", 2, 0)


def states(work, batch_id):
    return [
        (row.processing_status, row.owner_run_id, row.claim_token, row.attempts, row.thumbnail_path)
        for row in work.uploads(batch_id)
    ]


def failures_of(work, run_id):
    return [
        entry.dagster_event.step_failure_data.user_failure_data.description
        for entry in work.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    ]


@both_brokers_at_leisure
def test_while_the_broker_is_down_nothing_is_launched_or_failed_and_threads_still_work(
    work, broker
):
    work = work(celery_broker_url=broker.url)
    batch_id = work.submit("fog.webp", "sea.jpg")
    assert findings(work) == {"celery broker": True, "celery workers": False}
    broker.kill()

    tick = work.tick()
    assert not tick.run_requests
    assert f"the Celery broker {where(broker)} cannot be used" in tick.skip_message
    assert findings(work) == {"celery broker": False}

    by_hand = work.run(batch_id)
    first, second = sorted(failures(by_hand), key=lambda reason: reason.startswith("stopped"))
    assert first.startswith(f"broker_down: the Celery broker {where(broker)}")
    assert second.startswith("stopped, the upload is pending: broker_down")
    assert work.column(batch_id, "processing_status") == ["pending"] * 2
    assert work.column(batch_id, "owner_run_id") == [None] * 2
    assert work.column(batch_id, "attempts") == [0, 0]

    work.end_the_pause()
    assert run(work, batch_id, THREADED).success
    assert work.counts(batch_id) == ("completed", 2, 0)


def where(broker):
    """Return its address as in messages, without the password."""
    return f"{broker.url.partition('://')[0]}://127.0.0.1:{broker.port}"


@both_brokers_at_leisure
def test_a_full_broker_is_an_outage_and_costs_no_attempt(work, broker, start):
    work = work(celery_broker_url=broker.url, lease_seconds=LEASE)
    batch_id = work.submit("fog.webp", "sea.jpg", "city.jpg")
    broker.fill_up()

    tick = work.tick()
    assert not tick.run_requests
    assert f"the Celery broker {where(broker)} cannot be used" in tick.skip_message
    assert "celery broker" in findings(work)
    assert not findings(work)["celery broker"]

    by_hand = work.run(batch_id)
    assert any(reason.startswith("broker_down: ") for reason in failures(by_hand))
    assert work.column(batch_id, "processing_status") == ["pending"] * 3
    assert work.column(batch_id, "attempts") == [0] * 3

    broker.make_room()
    start(*WORKER, PYTHONPATH=str(ROOT))
    work.end_the_pause()
    wait_until(lambda: findings(work) == {"celery broker": True, "celery workers": True}, "up")
    [result] = work.run_what_is_asked_for()
    assert result.success
    assert work.counts(batch_id) == ("completed", 3, 0)


def findings(work):
    checks = check_dagster(work.pipeline.settings)
    return {check.name: check.ok for check in checks if check.name.startswith("celery")}


def test_without_the_extra_both_ways_to_choose_celery_say_how_to_install_it(work, monkeypatch):
    monkeypatch.setattr(executors, "find_spec", lambda _: None)
    install = r"run pip install '\.\[celery\]' in the clone of"
    with pytest.raises(ConfigurationError, match=f"BATCH_PIPELINE_CELERY_BROKER_URL.*{install}"):
        build_definitions(Settings(_env_file=None, celery_broker_url="redis://127.0.0.1:1/0"))
    work = work()
    with pytest.raises(ConfigurationError, match=f"the run's config.*{install}"):
        run(work, work.submit("fog.webp"), {"celery": {"broker": "redis://127.0.0.1:1/0"}})


def test_celery_without_a_broker_says_where_to_name_one(work):
    work = work()
    with pytest.raises(ConfigurationError, match=r"without a `broker`.*CELERY_BROKER_URL"):
        run(work, work.submit("fog.webp"), {"celery": {}})


def test_instances_that_workers_open_for_each_step_share_their_connections(instance):
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    counts, opened = [], []
    for _ in range(5):
        opened.append(dg.DagsterInstance.from_ref(instance.get_ref()))
        opened[-1].get_runs_count()
        with opened[-1].run_storage.connect() as connection:
            counts.append(connection.scalar(text(asked)))
    assert counts[-1] <= max(counts[0], DAGSTER_POOL)
