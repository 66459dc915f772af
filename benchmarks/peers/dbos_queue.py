"""DBOS: a durable workflow with one step for each upload, on a queue that several processes serve.

The queue is polled every 20 ms, because each poll returns at most as much work as there are free
places. With the default of one second, the polls would limit the throughput.
"""

import os
import signal
import sys
from collections.abc import Sequence

import psycopg
from dbos import DBOS, DBOSClient, run_dbos_database_migrations
from work import assignment, host, process, workers

QUEUE, POLL_SECONDS = "uploads", 0.02
URL = assignment().state_url.replace("postgresql://", "postgresql+psycopg://", 1)


@DBOS.step()
def processed(upload_id: str) -> None:
    process(upload_id)


@DBOS.workflow()
def upload(upload_id: str) -> None:
    processed(upload_id)


def work() -> None:
    # This name distinguishes processes that share a database.
    os.environ["DBOS__VMID"] = str(os.getpid())
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": URL,
            "log_level": "ERROR",
            "application_version": "1",
        }
    )
    DBOS.launch()
    DBOS.register_queue(
        QUEUE, worker_concurrency=assignment().threads, polling_interval_sec=POLL_SECONDS
    )
    signal.sigwait({signal.SIGTERM})
    DBOS.destroy()


def enqueue(upload_ids: Sequence[str]) -> None:
    client = DBOSClient(system_database_url=URL)
    for upload_id in upload_ids:
        client.enqueue({"queue_name": QUEUE, "workflow_name": "upload"}, upload_id)
    client.destroy()


def recorded() -> int:
    with psycopg.connect(assignment().state_url) as connection:
        statement = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'"
        [[count]] = connection.execute(statement).fetchall()
    return int(count)


if __name__ == "__main__":
    if "worker" in sys.argv:
        work()
    else:
        run_dbos_database_migrations(URL)
        with workers([__file__, "worker"], assignment().processes):
            host(enqueue, recorded)
