"""How many uploads a deployment processes in an hour: a small model, fitted and then tested.

    python benchmarks/capacity.py                  # about three minutes
    python benchmarks/capacity.py --sizes 60 120   # smaller

Three things limit a deployment; the slowest of them sets the pace:

- the model server: its slots / latency of a call;
- a run worker: T threads that wait L seconds for the model. Then each holds the interpreter lock
  for c seconds, one at a time. Such a queue has an exact solution (mean value analysis of a closed
  network with one queue and a delay; Reiser and Lavenberg, Journal of the ACM 27, 1980);
- the processors, which run workers and PostgreSQL share.

The time before the first upload of each run is added. The constants (start, c, processor time) are
fitted to batches of two sizes without latency, in a stack like that of `make demo`. The model is
then tested on batches that were not part of the fit. Uploads are tiny pictures. For your own files,
add their decoding time to c (`media.py`).
"""

import argparse
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg
from rich.console import Console
from tools.results import Table, add_results_option, machine, report
from tools.stand import Scene, Stand, await_end, tiny_pictures
from tools.usage import StackUsage

from batch_pipeline.demo import running_stack
from batch_pipeline.testing.model_server import ScriptedModelServer

SLICE = 250
SECONDS_PER_DAY = 86_400
log = Console(stderr=True)


@dataclass(frozen=True)
class Deployment:
    """What processes a batch, and on how much of a machine."""

    workers: int
    threads: int
    slots: int
    latency: float
    cores: int


@dataclass(frozen=True)
class Constants:
    """The fitted constants (seconds)."""

    start: float
    """From submission to the first upload, plus the end of the run: sensor, launch, worker."""
    lock: float
    """Time of an upload under the interpreter lock of its worker."""
    processor: float
    """Processor time of an upload: run worker and PostgreSQL."""
    start_processor: float
    """Processor time of the start of a run worker."""


@dataclass(frozen=True)
class Measured:
    """What a batch took."""

    uploads: int
    deployment: Deployment
    seconds: float
    processor_seconds: float
    connections: int
    event_rows: float
    event_bytes: float
    row_bytes: float


def worker_rate(threads: int, latency: float, lock: float) -> float:
    """Uploads per second of one run worker that has started."""
    waiting = 0.0  # mean number of threads at the lock
    rate = 0.0
    for population in range(1, threads + 1):
        at_lock = lock * (1 + waiting)
        rate = population / (latency + at_lock)
        waiting = rate * at_lock
    return rate


def predicted_seconds(uploads: int, where: Deployment, constants: Constants) -> float:
    """Seconds from the submission of a batch to its completion."""
    slices = [min(SLICE, uploads - first) for first in range(0, uploads, SLICE)]
    at_once = min(where.workers, len(slices))
    rate = min(
        worker_rate(where.threads, where.latency, constants.lock),
        where.slots / where.latency / at_once if where.latency else math.inf,
        where.cores / constants.processor / at_once,
    )
    start = max(constants.start, constants.start_processor * at_once / where.cores)
    free_at = [0.0] * at_once
    for count in slices:
        soonest = free_at.index(min(free_at))
        # While the last call of a slice waits, no other upload is processed.
        free_at[soonest] += start + count / rate + where.latency
    return max(free_at)


def needed(
    uploads_per_day: float, latency: float, threads: int, constants: Constants
) -> list[object]:
    """Return the slots, run workers and cores that process this many uploads a day."""
    per_second = uploads_per_day / SECONDS_PER_DAY
    rate = worker_rate(threads, latency, constants.lock)
    of_worker = SLICE / (constants.start + SLICE / rate + latency)
    cores = per_second * (constants.processor + constants.start_processor / SLICE)
    return [
        f"{uploads_per_day:,.0f}",
        per_second,
        math.ceil(per_second * latency),
        math.ceil(per_second / of_worker),
        cores,
        per_second / SLICE * 60,
    ]


def measure(stand: Stand, name: str, uploads: int, where: Deployment) -> Measured:
    """Let a warm stack process a batch with at most this many run workers."""
    with (
        ScriptedModelServer(latency_seconds=where.latency, slots=where.slots) as server,
        stand.scene(
            name,
            analyzer="ollama",
            embedder="embedded",
            ollama_host=server.ollama_url,
            max_vision_calls=where.slots,
            max_concurrent_uploads=where.threads,
            max_runs_in_flight=where.workers,
            uploads_per_run=SLICE,
        ) as scene,
        running_stack(scene.pipeline.settings),
    ):
        process(scene, tiny_pictures(2, seed=0))  # warms it up
        usage = StackUsage(stand.server_pid)
        cpu_before, rows_before = usage.cpu_seconds(), event_log(scene)
        with counting_connections(scene) as connections:
            seconds = process(scene, tiny_pictures(uploads))
        rows, event_bytes = (
            after - before for after, before in zip(event_log(scene), rows_before, strict=True)
        )
        measured = Measured(
            uploads,
            where,
            seconds=seconds,
            processor_seconds=sum(usage.cpu_seconds().values()) - sum(cpu_before.values()),
            connections=max(connections),
            event_rows=rows / uploads,
            event_bytes=event_bytes / uploads,
            row_bytes=scene.ask("SELECT pg_total_relation_size('uploads')") / uploads,
        )
    log.print(f"{name}: {uploads} uploads, {measured.seconds:.1f} s")
    return measured


def process(scene: Scene, pictures: Iterable[bytes]) -> float:
    """Submit a batch, and return the seconds until it is completed."""
    with scene.listening() as listener:
        batch_id = scene.add_batch(pictures)
        begun = time.monotonic()
        await_end(listener, batch_id)
        return time.monotonic() - begun


@contextmanager
def counting_connections(scene: Scene) -> Iterator[list[int]]:
    """Count the connections to both databases four times a second, including our own."""
    counts, ended = [0], threading.Event()

    def count() -> None:
        while not ended.wait(0.25):
            counts.append(
                scene.ask(
                    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                )
            )

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counts
    finally:
        ended.set()
        thread.join()


def event_log(scene: Scene) -> tuple[int, int]:
    """Rows of Dagster's event log, and its bytes with indexes."""
    with psycopg.connect(scene.state_url) as connection:
        row = connection.execute(
            "SELECT count(*), pg_total_relation_size('event_logs') FROM event_logs"
        ).fetchone()
    assert row
    return int(row[0]), int(row[1])


def fit(small: Measured, large: Measured) -> Constants:
    """Fit a line through two batch sizes of one run without latency."""
    more = large.uploads - small.uploads
    lock = (large.seconds - small.seconds) / more
    processor = (large.processor_seconds - small.processor_seconds) / more
    return Constants(
        start=small.seconds - small.uploads * lock,
        lock=lock,
        processor=processor,
        start_processor=small.processor_seconds - small.uploads * processor,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[100, 500, 2000],
        help="batches to test the model with",
    )
    parser.add_argument("--fit", type=int, nargs=2, default=[25, SLICE], help="sizes of the fit")
    add_results_option(parser)
    return parser.parse_args()


def main() -> None:
    arguments, where = parse(), machine()
    cores = os.cpu_count() or 1
    tried: Sequence[Deployment] = (
        Deployment(1, 10, 8, 1.0, cores),
        Deployment(2, 10, 16, 0.5, cores),
        Deployment(2, 16, 16, 0.25, cores),
    )
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(Path(folder))
        no_wait = Deployment(1, 8, 8, 0.0, cores)
        small, large = (measure(stand, f"fit-{size}", size, no_wait) for size in arguments.fit)
        constants = fit(small, large)
        trials = [
            measure(stand, f"trial-{number}", size, tried[min(number, len(tried) - 1)])
            for number, size in enumerate(arguments.sizes)
        ]
    predictions = [predicted_seconds(one.uploads, one.deployment, constants) for one in trials]
    report(
        "capacity",
        where,
        {
            "constants": asdict(constants),
            "fit": [asdict(small), asdict(large)],
            "trials": [
                asdict(one) | {"predicted_seconds": seconds}
                for one, seconds in zip(trials, predictions, strict=True)
            ],
        },
        [
            Table(
                "Constants",
                ("constant", "seconds"),
                [(name, value) for name, value in asdict(constants).items()],
            ),
            Table(
                "Model and measurement",
                (
                    *("uploads", "run workers", "threads", "slots", "latency (s)"),
                    *("predicted (s)", "measured (s)", "ratio", "uploads/hour", "connections"),
                ),
                [
                    (
                        one.uploads,
                        one.deployment.workers,
                        one.deployment.threads,
                        one.deployment.slots,
                        one.deployment.latency,
                        seconds,
                        one.seconds,
                        one.seconds / seconds,
                        one.uploads / one.seconds * 3600,
                        one.connections,
                    )
                    for one, seconds in zip(trials, predictions, strict=True)
                ],
            ),
            Table(
                "What an upload leaves",
                ("uploads", "event rows", "bytes of the event log", "bytes of its row and indexes"),
                [(one.uploads, one.event_rows, one.event_bytes, one.row_bytes) for one in trials],
            ),
            Table(
                "What is needed, at 2 s per call and 8 threads per run worker",
                ("uploads/day", "per second", "slots", "run workers", "cores", "runs/minute"),
                [needed(count, 2.0, 8, constants) for count in (1e5, 1e6, 1e7, 1e8)],
            ),
        ],
        folder=arguments.results,
    )


if __name__ == "__main__":
    main()
