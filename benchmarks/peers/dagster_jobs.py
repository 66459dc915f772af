"""Dagster without this project: a mapped op for each upload, and an executor.

The storage is plain dagster-postgres. If steps are processes, each step opens new connections.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import psycopg
import yaml
from work import assignment, host, process


@dg.op(config_schema=[str], out=dg.DynamicOut(str))
def fan_out(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput[str]]:
    for upload_id in context.op_config:
        yield dg.DynamicOutput(upload_id, mapping_key=upload_id.replace("-", "_"))


@dg.op
def upload(upload_id: str) -> None:
    process(upload_id)


@dg.op
async def upload_in_thread(upload_id: str) -> None:
    """For an executor whose steps are coroutines. The work blocks, so it runs in a thread."""
    await asyncio.to_thread(process, upload_id)


@dg.op(ins={"uploads": dg.In(dg.Nothing)})
def collect() -> None:
    return


@dg.graph
def mapped() -> None:
    collect(fan_out().map(upload).collect())


@dg.graph
def mapped_coroutines() -> None:
    collect(fan_out().map(upload_in_thread).collect())


# These are functions, because Dagster's other processes find the jobs by name.
def in_process() -> dg.JobDefinition:
    return mapped.to_job(executor_def=dg.in_process_executor)


def multiprocess() -> dg.JobDefinition:
    return mapped.to_job(executor_def=dg.multiprocess_executor)


def coroutines() -> dg.JobDefinition:
    from dagster_async_executor import async_executor  # noqa: PLC0415 - an extra

    return mapped_coroutines.to_job(executor_def=async_executor)


VARIANTS = {
    "default": (multiprocess, {}),
    "forkserver": (
        multiprocess,
        {"start_method": {"forkserver": {"preload_modules": ["dagster_jobs"]}}},
    ),
    "in_process": (in_process, {}),
    "async": (coroutines, {"max_concurrent": assignment().threads}),
}


def run(instance: dg.DagsterInstance, upload_ids: Sequence[str]) -> None:
    job, execution = VARIANTS[assignment().variant]
    config = {
        "loggers": {"console": {"config": {"log_level": "ERROR"}}},
        "ops": {"fan_out": {"config": list(upload_ids)}},
        "execution": {"config": execution},
    }
    with dg.execute_job(dg.reconstructable(job), instance, run_config=config) as result:
        assert result.success


def new_instance() -> dg.DagsterInstance:
    url = urlsplit(assignment().state_url)._replace(scheme="postgresql+psycopg2").geturl()
    home = Path(assignment().folder)
    settings = {"storage": {"postgres": {"postgres_url": url}}, "telemetry": {"enabled": False}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return dg.DagsterInstance.from_config(str(home))


def recorded() -> int:
    """Count mapped steps whose success is in the event log."""
    statement = (
        "SELECT count(*) FROM event_logs WHERE dagster_event_type = 'STEP_SUCCESS'"
        " AND step_key LIKE 'upload%'"
    )
    with psycopg.connect(assignment().state_url) as connection:
        [[count]] = connection.execute(statement).fetchall()
    return int(count)


if __name__ == "__main__":
    import dagster_jobs  # by its name, because the process of a step imports it

    with dagster_jobs.new_instance() as opened:
        host(lambda upload_ids: dagster_jobs.run(opened, upload_ids), dagster_jobs.recorded)
