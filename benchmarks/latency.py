"""How soon one upload is begun, and done, in a warm stack: `python benchmarks/latency.py`.

Starts `dagster dev` (web server, daemon, code location) as `make demo` does, on an embedded
PostgreSQL, and lets it settle with one upload that is not counted. Then one tiny picture at a time
is submitted, and the messages on the progress channel are awaited: the first that says that the
batch is in work, and the last. The embedded analyzer describes, which takes milliseconds: what is
measured is the sensor, the launch of a run, the start of its process, and the run.

The parts come from Dagster's record of the run: asked for (the sensor's tick), begun (a process
has started and imported everything).
"""

import argparse
import json
import os
import random
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import dagster as dg
import psycopg
from PIL import Image
from rich.console import Console
from tools.results import Table, Target, add_results_option, machine, report

from batch_pipeline.demo import running_stack
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.publishing import CHANNEL
from batch_pipeline.settings import Settings

#: Longest wait for a batch (seconds).
PATIENCE = 180
ASKED_SECONDS = 8

log = Console(stderr=True, markup=False, highlight=False)


@dataclass(frozen=True)
class Figure:
    """Seconds since one picture was submitted."""

    asked_for: float
    """Its run exists."""
    begun: float
    """The worker's process has begun the run."""
    first_progress: float
    """The first message that the batch is in work."""
    done: float
    """The message that it is completed."""


def measure(pipeline: Pipeline, picture: Path, instance: dg.DagsterInstance) -> Figure:
    url = pipeline.database.url.set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        submitted_at = time.time()
        submission = submit(
            [picture],
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=pipeline.settings,
        )
        assert submission.batch_id
        first_at, done_at = await_progress(listener, submission.batch_id)
    filters = dg.RunsFilter(tags={BATCH_TAG: str(submission.batch_id)})
    [record] = instance.get_run_records(filters)
    assert record.start_time
    # All moments are of one machine's clock.
    return Figure(
        asked_for=record.create_timestamp.timestamp() - submitted_at,
        begun=record.start_time - submitted_at,
        first_progress=first_at - submitted_at,
        done=done_at - submitted_at,
    )


def await_progress(listener: psycopg.Connection, batch_id: uuid.UUID) -> tuple[float, float]:
    """Moments of the first message of work on a batch, and of its completion."""
    first_at = 0.0
    for notification in listener.notifies(timeout=PATIENCE):
        message = json.loads(notification.payload)
        if message["payload"]["batch_id"] != str(batch_id):
            continue
        status = message["payload"]["status"]
        if not first_at and status == "processing":
            first_at = time.time()
        if message["action"] == "batch_progress" and status == "completed":
            return first_at, time.time()
    raise TimeoutError(f"batch {batch_id} was not completed within {PATIENCE} s")


def save_picture(folder: Path, number: int) -> Path:
    path = folder / f"{number}.jpg"
    pixels = random.Random(number).randbytes(32 * 24 * 3)
    Image.frombytes("RGB", (32, 24), pixels).save(path)
    return path


def rows(figures: Sequence[Figure]) -> Iterable[list[object]]:
    titles = {
        "asked_for": "submit to run asked for (sensor)",
        "begun": "submit to run begun (process started)",
        "first_progress": "submit to first progress",
        "done": "submit to done",
    }
    for name, title in titles.items():
        values = [getattr(figure, name) for figure in figures]
        yield [title, *(f"{value:.2f}" for value in (median(values), min(values), max(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=7, help="uploads, one after another")
    add_results_option(parser)
    arguments = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(_env_file=None, home=folder / "home")
        pipeline = Pipeline(settings)
        os.environ["BATCH_PIPELINE_HOME"] = str(settings.home)
        with running_stack(settings) as stack:
            os.environ["DAGSTER_HOME"] = str(stack.dagster_home)
            with dg.DagsterInstance.get() as instance:
                figures = []
                for number in range(arguments.repetitions + 1):
                    figure = measure(pipeline, save_picture(folder, number), instance)
                    log.print(f"{figure.first_progress:6.2f} s to the first progress")
                    figures.append(figure)
        pipeline.close()
    warm = figures[1:]
    table = Table("Seconds for one upload", ("", "median", "min", "max"), list(rows(warm)))
    first = median(figure.first_progress for figure in warm)
    report(
        "latency",
        where,
        {"uploads": [asdict(figure) for figure in warm]},
        [table],
        targets=[Target("submit to first progress, median", ASKED_SECONDS, first, unit=" s")],
        folder=arguments.results,
    )


if __name__ == "__main__":
    main()
