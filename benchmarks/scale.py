"""Cost per upload, time to the first result and memory, from ten uploads to ten thousand.

    python benchmarks/scale.py                               # about five minutes
    python benchmarks/scale.py --sizes 10 100 1000 --photos 0

A batch of tiny pictures is written as rows, as an upload API does. What Dagster's daemon does is
done by a plain loop: it evaluates `pending_batches` every two seconds, and at once when a run has
ended, and starts a run worker, a process of its own, for each run that the sensor asks for, until
the batch has ended. Slices, runs in flight, threads are the settings' defaults. The model server is
scripted and answers at once.

Cost per upload is processor time of the run workers and of PostgreSQL from the start of each run
to its end; the start of Python (once per run, the same for each) is a column of its own. It is
compared between sizes, and between the first and the last quarter of the largest batch's runs,
which tells growth apart from what a run costs once. Wall time depends on the cores: it is shown.

Memory is the highest of any run worker; once more with photos of 12 megapixels and 8 threads.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import mean

import dagster as dg
from rich.console import Console
from tools.results import Table, Target, add_results_option, machine, report
from tools.stand import Dispatcher, Scene, Stand, tiny_pictures
from tools.usage import tree_cpu_seconds

from batch_pipeline.orchestration.sensors import INTERVAL_SECONDS
from batch_pipeline.testing.media import make_photo
from batch_pipeline.testing.model_server import ScriptedModelServer

HERE = Path(__file__).parent
POLL_SECONDS = 0.05
PHOTO_MEGAPIXELS, PHOTO_THREADS = 12, 8
#: Photos that differ; the rows share them in turns.
DIFFERENT_PHOTOS = 5

log = Console(stderr=True, markup=False, highlight=False)


@dataclass(frozen=True)
class Figure:
    """What one batch took."""

    uploads: int
    runs: int
    seconds: float
    """From the rows to the end of the last run, starts of workers included."""
    first_seconds: float
    """From the rows to the first completed upload."""
    cpu_ms: float
    """Per upload, of the run workers between start and end of their runs."""
    database_cpu_ms: float
    start_cpu_ms: float
    """Per upload: start of Python and imports."""
    peak_mib: float
    growth_within: float | None
    """Processor time per upload of the last quarter of the runs by that of the first."""

    @property
    def cost_ms(self) -> float:
        return self.cpu_ms + self.database_cpu_ms


def work_batch(
    stand: Stand, uploads: int, pictures: Iterable[bytes], name: str, **settings: object
) -> Figure:
    with (
        ScriptedModelServer() as server,
        stand.scene(
            name,
            analyzer="ollama",
            embedder="embedded",
            ollama_host=server.ollama_url,
            **settings,
        ) as scene,
        dg.DagsterInstance.get() as instance,
    ):
        scene.add_batch(pictures)
        dispatcher = Dispatcher(scene.pipeline, instance)
        cpu, begun_at = tree_cpu_seconds(stand.server_pid), time.time()
        workers = drive(scene, dispatcher)
        seconds = time.time() - begun_at
        database_cpu = tree_cpu_seconds(stand.server_pid) - cpu
        assert scene.completed() == uploads
        first_at = scene.ask("SELECT 1000 * extract(epoch FROM min(updated_at)) FROM uploads")
    cpu_of = [figures["cpu_seconds"] for figures in workers]
    return Figure(
        uploads=uploads,
        runs=len(workers),
        seconds=seconds,
        first_seconds=first_at / 1000 - begun_at,  # one machine, one clock
        cpu_ms=sum(cpu_of) / uploads * 1000,
        database_cpu_ms=database_cpu / uploads * 1000,
        start_cpu_ms=sum(figures["start_cpu_seconds"] for figures in workers) / uploads * 1000,
        peak_mib=max(figures["peak_mib"] for figures in workers),
        growth_within=growth(cpu_of),
    )


def growth(costs: list[float]) -> float | None:
    """Of the last quarter of equal runs over the first; None: too few to tell."""
    quarter = len(costs) // 4
    return mean(costs[-quarter:]) / mean(costs[:quarter]) if quarter else None


def drive(scene: Scene, dispatcher: Dispatcher) -> list[dict[str, float]]:
    """Start what the sensor asks for until the batch has ended; the figures of each worker."""
    ended: list[dict[str, float]] = []
    running: list[subprocess.Popen[str]] = []
    due = time.monotonic()  # the next evaluation; at once when a run has ended
    log_file = scene.folder / "workers.log"
    try:
        while True:
            if time.monotonic() >= due:
                running += [start(run_id, log_file) for run_id in dispatcher.tick()]
                due = time.monotonic() + INTERVAL_SECONDS
            if not running:
                return ended
            for worker in [worker for worker in running if worker.poll() is not None]:
                assert worker.stdout
                lines = worker.stdout.read().splitlines()
                if worker.returncode or not lines:
                    raise RuntimeError(f"a run worker failed:\n{log_file.read_text()[-3000:]}")
                ended.append(json.loads(lines[-1]))
                running.remove(worker)
                due = time.monotonic()
            time.sleep(POLL_SECONDS)
    finally:
        for worker in running:  # only if one has failed
            worker.kill()
            worker.wait()


def start(run_id: str, log_file: Path) -> subprocess.Popen[str]:
    with log_file.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tools.run_worker", run_id],
            env=os.environ | {"PYTHONPATH": str(HERE)},
            cwd=log_file.parent,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def photos(count: int) -> Iterable[bytes]:
    different = [make_photo(PHOTO_MEGAPIXELS, seed=n) for n in range(min(count, DIFFERENT_PHOTOS))]
    return islice(cycle(different), count)


def targets(figures: list[Figure], memory: Figure | None) -> list[Target]:
    by_size = {figure.uploads: figure for figure in figures}
    found = []
    largest = max(by_size)
    if largest > 100 and 100 in by_size:
        ratio = by_size[largest].cost_ms / by_size[100].cost_ms
        found.append(Target(f"growth of cost per upload, 100 to {largest}", 1.15, ratio))
    if within := by_size[largest].growth_within:
        found.append(Target(f"growth of cost within the batch of {largest}", 1.15, within))
    if memory:
        what = f"run worker, {memory.uploads} photos of {PHOTO_MEGAPIXELS} megapixels"
        found.append(Target(f"{what}, {PHOTO_THREADS} threads", 350, memory.peak_mib, unit=" MiB"))
    return found


def rows(figures: Iterable[Figure]) -> list[list[object]]:
    return [
        [
            f.uploads,
            f.runs,
            f.first_seconds,
            f.seconds,
            f.seconds / f.uploads * 1000,
            f.cpu_ms,
            f.database_cpu_ms,
            f.start_cpu_ms,
            f.growth_within,
            f.peak_mib,
        ]
        for f in figures
    ]


HEADINGS = (
    *("uploads", "runs", "s to first result", "s in all", "wall ms per upload", "CPU ms of run"),
    *("CPU ms of PostgreSQL", "CPU ms of starts", "last quarter / first", "peak MiB of a worker"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10, 100, 1000, 10_000], help="uploads of a batch"
    )
    parser.add_argument(
        "--photos", type=int, default=250, help="uploads of the measurement of memory; 0: none"
    )
    add_results_option(parser)
    arguments = parser.parse_args()
    where, figures, memory = machine(), [], None
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Stand(Path(folder))) as stand,
    ):
        for size in sorted(arguments.sizes):
            figure = work_batch(stand, size, tiny_pictures(size), f"batch-{size}")
            log.print(f"{size:6} uploads: {figure.cost_ms:.1f} ms of CPU each")
            figures.append(figure)
        if arguments.photos:
            memory = work_batch(
                stand,
                arguments.photos,
                photos(arguments.photos),
                "photos",
                max_concurrent_uploads=PHOTO_THREADS,
                max_vision_calls=PHOTO_THREADS,
                uploads_per_run=arguments.photos,
            )
            log.print(f"{arguments.photos:6} photos: {memory.peak_mib:.0f} MiB")
    tables = [Table("Batches of tiny pictures", HEADINGS, rows(figures))]
    if memory:
        title = f"Photos of {PHOTO_MEGAPIXELS} megapixels, {PHOTO_THREADS} threads, one run"
        tables.append(Table(title, HEADINGS, rows([memory])))
    document = {
        "batches": [asdict(f) | {"cost_ms": f.cost_ms} for f in figures],
        "photos": asdict(memory) if memory else None,
    }
    judged = targets(figures, memory)
    report("scale", where, document, tables, targets=judged, folder=arguments.results)


if __name__ == "__main__":
    main()
