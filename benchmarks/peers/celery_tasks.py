"""Celery: a task for each upload on Redis, workers with threads, results kept in Redis.

Tasks are acknowledged after the work, so that tasks of a killed worker are repeated.
"""

from collections.abc import Sequence

from celery import Celery
from redis import Redis
from redis_broker import SOCKET, redis_server
from work import assignment, host, process, workers

app = Celery(
    "celery_tasks",
    broker=f"redis+socket://{SOCKET}",
    backend=f"redis+socket://{SOCKET}?virtual_host=1",
)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1)


@app.task(name="upload")
def upload(upload_id: str) -> None:
    process(upload_id)


def send(upload_ids: Sequence[str]) -> None:
    for upload_id in upload_ids:
        upload.delay(upload_id)


def recorded() -> int:
    results = Redis(unix_socket_path=str(SOCKET), db=1)
    return sum(1 for _ in results.scan_iter("celery-task-meta-*"))


if __name__ == "__main__":
    worker = ["-m", "celery", "-A", "celery_tasks", "worker", "-P", "threads", "-l", "ERROR"]
    worker += ["-c", str(assignment().threads), "-n", "worker-%n@%h"]
    with redis_server(), workers(worker, assignment().processes):
        host(send, recorded)
