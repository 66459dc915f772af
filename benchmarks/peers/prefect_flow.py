"""The flow of `prefect_tasks`."""

import sqlite3
from pathlib import Path

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner
from work import assignment, begin_batch, work


@task
def upload(upload_id: str) -> None:
    work(upload_id)


@flow(task_runner=ThreadPoolTaskRunner(max_workers=assignment().threads))
def batch() -> None:
    upload.map(begin_batch()).result()


def run() -> None:
    batch()


def recorded() -> int:
    """Task runs that the server has noted as completed; they reach it behind the work."""
    with sqlite3.connect(Path(assignment().folder) / "prefect.db") as connection:
        statement = "SELECT count(*) FROM task_run WHERE state_type = 'COMPLETED'"
        return int(connection.execute(statement).fetchone()[0])
