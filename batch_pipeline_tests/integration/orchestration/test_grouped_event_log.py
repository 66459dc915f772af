"""When run workers write their events: in groups, but at once if a process waits for them.

The writer collects for as long as the test runs. So every event in the log was flushed.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.events import (
    AssetMaterializationPlannedData,
    EngineEventData,
    StepFailureData,
    StepMaterializationData,
)
from dagster._utils.error import SerializableErrorInfo
from sqlalchemy import create_engine, make_url

from batch_pipeline.orchestration.dagster_storage import group_writer
from batch_pipeline.orchestration.dagster_storage.grouped_event_log import GroupedEventLogStorage
from batch_pipeline.orchestration.dagster_storage.instance_storage import PipelineInstanceStorage
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.tcp_proxy import TcpProxy

DEADLINE = 30
KIND = dg.DagsterEventType
ERROR = SerializableErrorInfo("broken", [], "ValueError")


@pytest.fixture(scope="module")
def url(server: DatabaseServer) -> Iterator[str]:
    with server.new_database(migrated=False) as url:
        address = make_url(url).set(drivername="postgresql+psycopg2").render_as_string(False)
        PipelineInstanceStorage(address, grouped=True)  # creates the tables
        yield url


@pytest.fixture
def run_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def open_log(url, monkeypatch) -> Iterator[Callable[..., GroupedEventLogStorage]]:
    monkeypatch.setattr(group_writer, "GATHER_SECONDS", 1000)
    opened = []

    def open_(address: str = url, **options) -> GroupedEventLogStorage:
        address = make_url(address).set(drivername="postgresql+psycopg2").render_as_string(False)
        engine = create_engine(address, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        opened.append(GroupedEventLogStorage(address, engine, **options))
        return opened[-1]

    yield open_
    for storage in opened:
        storage.dispose()


@pytest.fixture
def log(open_log, run_id) -> GroupedEventLogStorage:
    """The log of a run that has begun."""
    storage = open_log()
    storage.store_event(event(run_id, KIND.RUN_START))
    return storage


@pytest.fixture
def rows(url, run_id) -> Iterator[Callable[..., list]]:
    """Return what another process sees of the run: a column of its rows, in order."""
    with psycopg.connect(url, autocommit=True) as other:
        yield lambda column="event::json->>'user_message'": [
            value
            for (value,) in other.execute(
                f"SELECT {column} FROM event_logs WHERE run_id = %s ORDER BY id", [run_id]
            )
        ]


def event(run_id, kind, *, step_key="step", data=None, message="", level=logging.DEBUG):
    return dg.EventLogEntry(
        error_info=None,
        level=level,
        user_message=message or kind.value,
        run_id=run_id,
        timestamp=time.time(),
        step_key=step_key,
        job_name="job",
        dagster_event=dg.DagsterEvent(
            kind.value, "job", step_key=step_key, event_specific_data=data
        ),
    )


def line(run_id, message, level=logging.INFO):
    return dg.EventLogEntry(None, level, str(message), run_id, time.time(), "step", "job")


def materialization(run_id, key, **values):
    data = StepMaterializationData(dg.AssetMaterialization(dg.AssetKey([key]), **values))
    return event(run_id, KIND.ASSET_MATERIALIZATION, data=data)


def test_a_group_is_one_transaction_with_one_message_to_listeners(log, run_id, rows, url):
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute("LISTEN run_events")
        for number in range(100):
            log.store_event(line(run_id, number))
        log.store_event(event(run_id, KIND.RUN_SUCCESS))
        last, success = rows("id")[-2:]
        said = [message.payload for message in listener.notifies(timeout=5, stop_after=2)]
    assert said == [f"{run_id}_{last}", f"{run_id}_{success}"]
    assert rows() == ["PIPELINE_START", *map(str, range(100)), "PIPELINE_SUCCESS"]
    assert len(set(rows("xmin::text"))) == 3


def test_each_event_is_written_at_once_if_grouping_is_off(open_log, run_id, rows):
    storage = open_log(grouped=False)
    storage.store_event(event(run_id, KIND.RUN_START))
    for number in range(3):
        storage.store_event(line(run_id, number))
        assert rows()[-1] == str(number)
    assert len(set(rows("xmin::text"))) == 4


def test_a_process_that_does_not_execute_the_run_writes_at_once(log, open_log, run_id, rows):
    daemon = open_log()
    daemon.store_event(line(run_id, "from the daemon"))
    assert rows() == ["PIPELINE_START", "from the daemon"]


@pytest.mark.parametrize(
    "urgent",
    [
        lambda run_id: event(run_id, KIND.RUN_SUCCESS),
        lambda run_id: event(run_id, KIND.RUN_FAILURE),
        lambda run_id: event(run_id, KIND.RUN_CANCELED),
        lambda run_id: event(run_id, KIND.STEP_FAILURE, data=StepFailureData(ERROR, None)),
        lambda run_id: event(run_id, KIND.STEP_UP_FOR_RETRY),
        lambda run_id: event(run_id, KIND.STEP_WORKER_STARTING, data=EngineEventData()),
        lambda run_id: event(run_id, KIND.RESOURCE_INIT_FAILURE, data=EngineEventData(error=ERROR)),
        lambda run_id: event(
            run_id, KIND.ENGINE_EVENT, data=EngineEventData(error=ERROR), level=logging.ERROR
        ),
        lambda run_id: line(run_id, "an error of the step", logging.ERROR),
    ],
)
def test_an_event_that_others_wait_for_is_written_at_once_after_all_earlier_ones(
    log, run_id, rows, urgent
):
    log.store_event(line(run_id, "before"))
    assert rows() == ["PIPELINE_START"]
    entry = urgent(run_id)
    log.store_event(entry)
    assert rows() == ["PIPELINE_START", "before", entry.user_message]


def test_asset_tables_are_as_if_each_event_had_been_written_alone(log, open_log, run_id):
    def story(storage, run_id, name):
        storage.store_event(event(run_id, KIND.RUN_START))
        for number in range(3):
            for key in (f"{name}_a", f"{name}_b"):
                planned = AssetMaterializationPlannedData(dg.AssetKey([key]))
                storage.store_event(event(run_id, KIND.ASSET_MATERIALIZATION_PLANNED, data=planned))
                storage.store_event(
                    materialization(
                        run_id, key, metadata={"n": number}, tags={"dagster/data_version": "1"}
                    )
                )
        [one, other] = storage.get_asset_records([dg.AssetKey([f"{name}_{x}"]) for x in "ab"])
        return [
            (
                record.asset_entry.last_materialization.asset_materialization.metadata["n"].value,
                record.asset_entry.last_run_id == run_id,
                record.asset_entry.last_materialization_storage_id
                == storage.fetch_materializations(record.asset_entry.asset_key, 1)
                .records[0]
                .storage_id,
                storage.get_event_tags_for_asset(record.asset_entry.asset_key),
            )
            for record in (one, other)
        ]

    alone = story(open_log(grouped=False), str(uuid.uuid4()), f"alone_{run_id}")
    assert story(log, run_id, f"grouped_{run_id}") == alone


def test_threads_of_several_workers_that_write_the_same_assets_never_wait_for_each_other(
    open_log, run_id
):
    keys = [f"{run_id}_{number}" for number in range(5)]

    def work(storage, order):
        own = str(uuid.uuid4())
        storage.store_event(event(own, KIND.RUN_START))
        for _ in range(20):
            for key in order:
                storage.store_event(materialization(own, key))
            storage.has_asset_key(dg.AssetKey([keys[0]]))

    threads = [
        threading.Thread(target=work, args=(open_log(), order), daemon=True)
        for order in (keys, keys[::-1], keys[2:] + keys[:2])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    reader = open_log()
    for key in keys:
        found = reader.fetch_materializations(dg.AssetKey([key]), limit=1000).records
        assert len(found) == 60


@pytest.fixture
def proxied(url) -> Iterator[tuple[str, TcpProxy]]:
    address = make_url(url)
    folder = address.query.get("host")
    path = f"{folder}/.s.PGSQL.{address.port or 5432}" if folder else None
    server = None if path else (address.host or "127.0.0.1", address.port or 5432)
    with TcpProxy(socket_path=path, address=server) as proxy:
        through = address.set(host="127.0.0.1", port=proxy.port, query={})
        yield through.render_as_string(False), proxy


def test_a_group_whose_commit_is_not_answered_is_written_once(open_log, run_id, rows, proxied):
    through, proxy = proxied
    storage = open_log(through)
    storage.store_event(event(run_id, KIND.RUN_START))
    for number in range(50):
        storage.store_event(materialization(run_id, f"{run_id}_{number}"))
    proxy.lose_the_reply_to(b"COMMIT\x00")
    storage.store_event(event(run_id, KIND.STEP_FAILURE, data=StepFailureData(ERROR, None)))
    assert proxy.dropped.is_set()
    assert rows() == ["PIPELINE_START", *["ASSET_MATERIALIZATION"] * 50, "STEP_FAILURE"]


def test_an_outage_in_the_middle_of_a_group_loses_and_doubles_nothing(
    open_log, run_id, rows, proxied
):
    through, proxy = proxied
    storage = open_log(through)
    storage.store_event(event(run_id, KIND.RUN_START))
    requests = (b"INTO event_logs", b"INTO asset_keys", b"pg_notify", b"pg_advisory_xact_lock")
    for number, request in enumerate(requests):
        storage.store_event(materialization(run_id, f"{run_id}_{number}"))
        proxy.lose_the_reply_to(request)
        storage.store_event(line(run_id, number, logging.ERROR))
        assert proxy.dropped.is_set()
        assert rows()[-2:] == ["ASSET_MATERIALIZATION", str(number)]
    assert len(rows()) == 9


def test_an_outage_that_lasts_is_an_error_and_the_events_are_written_after_it(
    open_log, run_id, rows, url
):
    name = make_url(url).database
    storage = open_log(patience=0.5)
    storage.store_event(event(run_id, KIND.RUN_START))
    storage.store_event(line(run_id, "said before"))
    with psycopg.connect(make_url(url).set(database="postgres").render_as_string(False)) as admin:
        admin.autocommit = True
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            with pytest.raises(Exception, match="not currently accepting connections"):
                storage.store_event(line(run_id, "said meanwhile", logging.ERROR))
        finally:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    storage.get_logs_for_run(run_id)
    with psycopg.connect(url) as other:
        found = other.execute("SELECT count(*) FROM event_logs WHERE run_id = %s", [run_id])
        assert found.fetchone() == (3,)


def test_the_web_server_shows_no_error_for_connections_that_a_restart_has_cut(log, run_id, url):
    log.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
    assert len(log.get_logs_for_run(run_id)) == 1  # a connection is open, and is kept
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )

    assert len(log.get_logs_for_run(run_id)) == 1


def test_an_event_that_postgresql_refuses_is_an_error_and_takes_no_other_with_it(log, run_id, rows):
    log.store_event(line(run_id, "before"))
    log.store_event(materialization(run_id, "asset", partition="nul \0"))
    log.store_event(line(run_id, "after"))
    with pytest.raises(ValueError, match="NUL"):
        log.get_logs_for_run(run_id)
    assert rows() == ["PIPELINE_START", "before", "after"]


WORKER = """
import sys, time
sys.path[:0] = [{tests!r}]
from dagster._utils.interrupts import capture_interrupts
from batch_pipeline_tests.integration.orchestration.test_grouped_event_log import *
group_writer.GATHER_SECONDS = 1000
engine = create_engine({url!r}, isolation_level="AUTOCOMMIT")
storage = GroupedEventLogStorage({url!r}, engine)
with capture_interrupts():  # as a run worker does, which leaves SIGTERM to SIGINT's handler
    storage.store_event(event({run_id!r}, KIND.RUN_START))
for number in range(100):
    storage.store_event(line({run_id!r}, number))
print("stored", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "sent"),
    [("", None), ("time.sleep(60)", signal.SIGTERM), ("time.sleep(60)", signal.SIGINT)],
    ids=["exit", "SIGTERM", "SIGINT"],
)
def test_a_process_that_ends_writes_what_is_left(url, run_id, rows, end, sent):
    address = make_url(url).set(drivername="postgresql+psycopg2").render_as_string(False)
    script = WORKER.format(
        tests=str(Path(__file__).parents[3]), url=address, run_id=run_id, end=end
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
    )
    with worker:
        assert worker.stdout.readline() == b"stored\n"
        if sent:
            assert rows() == ["PIPELINE_START"]
            worker.send_signal(sent)
        worker.communicate(timeout=DEADLINE)
    assert rows() == ["PIPELINE_START", *map(str, range(100))]
