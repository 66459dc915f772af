"""procrastinate: a job for each upload in a table of PostgreSQL, one worker with many slots."""

import asyncio

import procrastinate
import psycopg
from work import assignment, begin_batch, measure, work

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=assignment().state_url))


@app.task(name="upload")
def upload(upload_id: str) -> None:
    # One that is not a coroutine is run in a thread.
    work(upload_id)


async def run() -> None:
    async with app.open_async():
        jobs = [{"upload_id": upload_id} for upload_id in begin_batch()]
        await upload.batch_defer_async(*jobs)
        await app.run_worker_async(
            wait=False, concurrency=assignment().threads, install_signal_handlers=False
        )


async def prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


def recorded() -> int:
    with psycopg.connect(assignment().state_url) as connection:
        statement = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        [[count]] = connection.execute(statement).fetchall()
    return int(count)


if __name__ == "__main__":
    asyncio.run(prepare())
    measure(lambda: asyncio.run(run()), recorded)
