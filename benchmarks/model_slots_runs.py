"""The same as `model_slots.py` with real run workers: a batch through `process_batch`.

    python benchmarks/model_slots_runs.py
    python benchmarks/model_slots_runs.py --workers 4 --threads 8 --slots 16 --latency 0.5

A batch of small pictures is divided into as many slices as there are workers. Each slice is a run
in its own process, as the daemon would launch it: claims, thumbnails, descriptions, vectors (built
in), and events in Dagster's storage on PostgreSQL. Saturation is measured from the first call to
the end of the last one. So it does not include the start of Python and Dagster, but it includes
that workers are not all ready at the same moment.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from dagster._core.execution.api import execute_run
from PIL import Image
from sqlalchemy import update

from batch_pipeline.database.models import UploadBatch
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.tags import RUN_KEY_TAG
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_status import progress_of
from batch_pipeline.settings import ENVIRONMENT_PREFIX, load_settings
from batch_pipeline.testing.model_server import ScriptedModelServer

ROOT = Path(__file__).parents[1]


def process_batch() -> dg.JobDefinition:
    return build_definitions().resolve_job_def("process_batch")


def work(run_id: str) -> None:
    """What a run worker does."""
    from model_slots_runs import process_batch as importable  # noqa: PLC0415 - not __main__

    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        execute_run(dg.reconstructable(importable), run, instance)


def make_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        # All are different, because a submission refuses the same file twice.
        pixels = random.Random(number).randbytes(32 * 24 * 3)
        Image.frombytes("RGB", (32, 24), pixels).save(folder / f"{number:05}.jpg")


def launch(pipeline: Pipeline, instance: dg.DagsterInstance) -> list[subprocess.Popen[bytes]]:
    sensor = build_definitions().resolve_sensor_def("pending_batches")
    context = dg.build_sensor_context(instance=instance, resources={"batch_pipeline": pipeline})
    workers = []
    for request in sensor.evaluate_tick(context).run_requests or ():
        run = instance.create_run_for_job(
            process_batch(),
            run_config=request.run_config,
            tags=request.tags | {RUN_KEY_TAG: request.run_key or ""},
        )
        command = [sys.executable, "-W", "ignore", __file__, "--work", run.run_id]
        quiet = subprocess.DEVNULL
        workers.append(subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet))
    return workers


def measure(arguments: argparse.Namespace, folder: Path, server: ScriptedModelServer) -> None:
    shutil.copy(ROOT / "dagster.yaml", folder)
    os.environ["DAGSTER_HOME"] = str(folder)
    values = {
        "HOME": folder / "home",
        "ANALYZER": "ollama",
        "EMBEDDER": "embedded",
        "OLLAMA_HOST": server.ollama_url,
        "MAX_VISION_CALLS": arguments.slots,
        "MAX_CONCURRENT_UPLOADS": arguments.threads,
        "MAX_RUNS_IN_FLIGHT": arguments.workers,
        "UPLOADS_PER_RUN": -(-arguments.uploads // arguments.workers),
    }
    os.environ |= {f"{ENVIRONMENT_PREFIX}{name}": str(value) for name, value in values.items()}
    make_pictures(folder / "pictures", arguments.uploads)
    pipeline = Pipeline(load_settings())
    submission = submit(
        [folder / "pictures"],
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    )
    assert submission.batch_id
    with pipeline.database.transaction() as connection:  # all runs begin at the same time
        connection.execute(update(UploadBatch).values(created_at=datetime(2000, 1, 1, tzinfo=UTC)))
    with dg.DagsterInstance.get() as instance:
        begun = time.monotonic()
        workers = launch(pipeline, instance)
        for worker in workers:
            worker.wait()
        ended = time.monotonic()
    progress = progress_of(pipeline.database, submission.batch_id)
    assert progress
    calls = server.calls_of("vision")
    called = calls[-1].started_at + arguments.latency - calls[0].started_at
    ideal = len(calls) * arguments.latency / arguments.slots
    workload = f"{len(workers)} run workers x {arguments.threads} threads"
    print(f"{workload}, {arguments.slots} slots, {arguments.latency:g} s per call")
    print(f"completed           {progress.successful} of {progress.total}")
    print(f"seconds of calls    {called:.2f} (ideal {ideal:.2f})")
    print(f"seconds in all      {ended - begun:.2f}")
    print(f"saturation          {ideal / called:.3f}")
    print(f"most in flight      {server.most_in_flight['vision']}")
    pipeline.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4, help="runs at the same time")
    parser.add_argument("--threads", type=int, default=8, help="of each worker")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds per call")
    parser.add_argument("--uploads", type=int, default=640)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        ScriptedModelServer(latency_seconds=arguments.latency) as server,
    ):
        measure(arguments, Path(folder), server)


if __name__ == "__main__":
    main()
