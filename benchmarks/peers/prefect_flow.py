"""The flow of `prefect_tasks`."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner
from work import assignment, process


@task
def upload(upload_id: str) -> None:
    process(upload_id)


@flow(task_runner=ThreadPoolTaskRunner(max_workers=assignment().threads))
def batch(upload_ids: Sequence[str]) -> None:
    upload.map(upload_ids).result()


def recorded() -> int:
    """Count completed task runs in the server, which records them after the work."""
    with sqlite3.connect(Path(assignment().folder) / "prefect.db") as connection:
        statement = "SELECT count(*) FROM task_run WHERE state_type = 'COMPLETED'"
        return int(connection.execute(statement).fetchone()[0])
