"""procrastinate: a job for each upload in a table of PostgreSQL, workers that listen for jobs."""

import asyncio
import sys
from collections.abc import Sequence

import procrastinate
import psycopg
from work import assignment, host, process, workers

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=assignment().state_url))


@app.task(name="upload")
def upload(upload_id: str) -> None:
    process(upload_id)  # a task that is not a coroutine runs in a thread


async def defer(upload_ids: Sequence[str]) -> None:
    async with app.open_async():
        await upload.batch_defer_async(*({"upload_id": upload_id} for upload_id in upload_ids))


async def prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def work() -> None:
    async with app.open_async():
        await app.run_worker_async(concurrency=assignment().threads)


def recorded() -> int:
    with psycopg.connect(assignment().state_url) as connection:
        statement = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        [[count]] = connection.execute(statement).fetchall()
    return int(count)


if __name__ == "__main__":
    if "worker" in sys.argv:
        asyncio.run(work())
    else:
        asyncio.run(prepare())
        with workers([__file__, "worker"], assignment().processes):
            host(lambda upload_ids: asyncio.run(defer(upload_ids)), recorded)
