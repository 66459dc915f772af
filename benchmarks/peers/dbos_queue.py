"""DBOS: a durable workflow for each upload on a queue, all of them in this process.

The queue is asked for work every 20 ms, since its default of a second would be the limit: each
time it hands out no more than there are free places.
"""

import psycopg
from dbos import DBOS
from work import assignment, begin_batch, measure, work

QUEUE, POLL_SECONDS = "uploads", 0.02


@DBOS.step()
def worked(upload_id: str) -> None:
    work(upload_id)


@DBOS.workflow()
def upload(upload_id: str) -> None:
    worked(upload_id)


def run() -> None:
    handles = [DBOS.enqueue_workflow(QUEUE, upload, upload_id) for upload_id in begin_batch()]
    for handle in handles:
        handle.get_result()


def recorded() -> int:
    with psycopg.connect(assignment().state_url) as connection:
        statement = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'"
        [[count]] = connection.execute(statement).fetchall()
    return int(count)


if __name__ == "__main__":
    url = assignment().state_url.replace("postgresql://", "postgresql+psycopg://", 1)
    DBOS(config={"name": "benchmark", "system_database_url": url, "log_level": "ERROR"})
    DBOS.launch()
    DBOS.register_queue(
        QUEUE, worker_concurrency=assignment().threads, polling_interval_sec=POLL_SECONDS
    )
    measure(run, recorded)
    DBOS.destroy()
