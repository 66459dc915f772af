"""Time from submission to end in a warm stack, and its cost: `python benchmarks/stack.py`.

    python benchmarks/stack.py                                     # about ten minutes
    python benchmarks/stack.py --sizes 10 100 --photos 0 --idle 0

Starts `dagster dev` (web server, daemon, code location) like `make demo`, with default settings,
PostgreSQL and a scripted model server that answers at once. Nothing in the pipeline is replaced.
One upload, which is not counted, warms the stack up. Then the script measures:

- **one upload**: one tiny picture at a time is submitted at random moments. The script waits for
  the first message on the progress channel that its batch is being processed, and for the last. The
  moments in between come from Dagster's record of the run;
- **first results**: batches of different sizes are written as rows at random moments, and cancelled
  after their first completed upload;
- **whole batches**: the sample files, and batches of tiny pictures, which are written as rows as an
  upload API does;
- **photos** of 12 megapixels, compared with only decoding them and making thumbnails, on all cores,
  with the same threads and the same memory settings;
- **idle**: processor time of a stack that has nothing to do; at the end again with all sensors and
  the schedule stopped, which shows what Dagster's own processes need.

Processor time is that of all processes of a part of the stack, including ended ones. Private memory
is the memory that a run worker does not share with the process from which it was forked.
"""

import argparse
import contextlib
import io
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice, product
from pathlib import Path
from statistics import median

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorStatus
from PIL import Image
from rich.console import Console
from sqlalchemy import text
from tools.results import Table, Target, add_results_option, machine, report
from tools.stand import (
    Scene,
    Stand,
    await_end,
    take_memory_as_run_workers_do,
    tiny_pictures,
)
from tools.usage import PARTS, StackUsage

from batch_pipeline.demo import running_stack, sample_media
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.decoding import decode
from batch_pipeline.orchestration.tags import BATCH_TAG
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.testing.media import make_photo
from batch_pipeline.testing.model_server import ScriptedModelServer

#: Longest pause before an upload is submitted, so that it meets the stack at any moment (seconds).
RANDOM_PAUSE = 6.0
#: Sizes of the batches whose first results are compared.
FIRST_SIZES = (10, 10_000)
PHOTO_MEGAPIXELS = 12
#: Number of different photos; the rows use them in turn.
DIFFERENT_PHOTOS = 5
#: Expected seconds from submission to end.
ASKED_SECONDS = {"sample files": 4, "1000 tiny pictures": 9, "10000 tiny pictures": 85}

log = Console(stderr=True, markup=False, highlight=False)


@dataclass(frozen=True)
class UploadFigure:
    """Moments after one picture was submitted (seconds)."""

    asked_for: float
    """Its run exists."""
    begun: float
    """The worker's process has begun the run."""
    first_progress: float
    """The first message that the batch is being processed."""
    done: float
    """The message that it is completed."""


@dataclass(frozen=True)
class BatchFigure:
    """The measurements of one batch."""

    name: str
    uploads: int
    runs: int
    first_seconds: float
    """From the commit of its rows to the first completed upload."""
    seconds: float
    """From the commit of its rows to the message that it is completed."""
    cpu_ms: dict[str, float]
    """Per upload, by part of the stack."""
    growth_within: float | None
    """Seconds between completed uploads: the last quarter of the batch divided by the second."""
    private_mib: float
    """Highest of any run worker."""
    resident_mib: float

    @property
    def cost_ms(self) -> float:
        """Processor time per upload of the whole stack."""
        return sum(self.cpu_ms.values())


class Bench:
    """A warm stack, and a listener on its progress channel."""

    def __init__(self, scene: Scene, usage: StackUsage, instance: dg.DagsterInstance) -> None:
        self.scene = scene
        self._usage = usage
        self._instance = instance

    def upload(self, picture: Path) -> UploadFigure:
        """Submit one picture, and wait until it is described."""
        with self.scene.listening() as listener:
            submitted_at = time.time()
            batch_id = self._submit([picture])
            first_at, done_at = await_end(listener, batch_id)
        [record] = self._runs(batch_id)
        assert record.start_time
        # All moments are by the clock of one machine.
        return UploadFigure(
            asked_for=record.create_timestamp.timestamp() - submitted_at,
            begun=record.start_time - submitted_at,
            first_progress=first_at - submitted_at,
            done=done_at - submitted_at,
        )

    def files(self, name: str, paths: Sequence[Path]) -> BatchFigure:
        """Submit files, as `batch-pipeline submit` does."""
        return self._batch(name, len(paths), lambda: self._submit(paths))

    def rows(self, name: str, pictures: Sequence[bytes]) -> BatchFigure:
        """Write rows of stored pictures, as an upload API does."""
        return self._batch(name, len(pictures), lambda: self.scene.add_batch(pictures))

    def first_result(self, pictures: Sequence[bytes]) -> float:
        """Return the seconds from the commit of a batch's rows to its first completed upload.

        Then the batch is cancelled, and its runs end.
        """
        batch_id = self.scene.add_batch(pictures)
        begun_at = time.time()
        while not (moments := self._ended_at(batch_id)):
            time.sleep(0.1)
        self.scene.pipeline.batches.cancel_batch(batch_id)
        while not all(record.dagster_run.is_finished for record in self._runs(batch_id)):
            time.sleep(0.5)
        return moments[0] - begun_at

    def idle(self, seconds: float) -> dict[str, float]:
        """Return the share of a core that each part of an idle stack needs."""
        before = self._usage.cpu_seconds()
        time.sleep(seconds)
        after = self._usage.cpu_seconds()
        return {part: (after[part] - before[part]) / seconds for part in PARTS}

    def stop_ticks(self) -> None:
        """Stop all sensors and schedules, as a person does in the UI."""
        for state in self._instance.all_instigator_state():
            self._instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))

    def _batch(self, name: str, uploads: int, begin: Callable[[], uuid.UUID]) -> BatchFigure:
        before = self._usage.cpu_seconds()
        with self.scene.listening() as listener, self._usage.watching_workers() as workers:
            batch_id = begin()
            # The time starts at the commit, because storing files and writing rows is the work of
            # an upload API, not of the stack.
            begun_at = time.time()
            _, done_at = await_end(listener, batch_id)
        after = self._usage.cpu_seconds()
        moments = self._ended_at(batch_id)
        assert len(moments) == uploads, f"{len(moments)} of {uploads} have ended"
        return BatchFigure(
            name=name,
            uploads=uploads,
            runs=len(self._runs(batch_id)),
            first_seconds=moments[0] - begun_at,
            seconds=done_at - begun_at,
            cpu_ms={part: (after[part] - before[part]) / uploads * 1000 for part in PARTS},
            growth_within=growth(moments),
            private_mib=workers.private_mib,
            resident_mib=workers.resident_mib,
        )

    def _submit(self, paths: Sequence[Path]) -> uuid.UUID:
        pipeline = self.scene.pipeline
        submission = submit(
            paths,
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=pipeline.settings,
        )
        assert submission.batch_id
        return submission.batch_id

    def _runs(self, batch_id: uuid.UUID) -> Sequence[dg.RunRecord]:
        return self._instance.get_run_records(dg.RunsFilter(tags={BATCH_TAG: str(batch_id)}))

    def _ended_at(self, batch_id: uuid.UUID) -> list[float]:
        statement = text(
            "SELECT extract(epoch FROM updated_at) FROM uploads WHERE batch_id = :batch_id"
            # One of the sample files is damaged.
            " AND processing_status IN ('completed', 'failed') ORDER BY 1"
        )
        with self.scene.pipeline.database.transaction() as connection:
            return [float(at) for at in connection.scalars(statement, {"batch_id": batch_id})]


def growth(moments: Sequence[float]) -> float | None:
    """Return the time for the last quarter of a batch divided by the second; None: too few."""
    quarter = len(moments) // 4
    if quarter < 100:
        return None
    second = moments[2 * quarter - 1] - moments[quarter - 1]
    return (moments[-1] - moments[3 * quarter - 1]) / second


def save_picture(folder: Path, number: int) -> Path:
    path = folder / f"{number}.jpg"
    pixels = random.Random(number).randbytes(32 * 24 * 3)
    Image.frombytes("RGB", (32, 24), pixels).save(path)
    return path


def photos(count: int) -> list[bytes]:
    """Make photos; some show the same picture, but no two are the same file."""
    different = [make_photo(PHOTO_MEGAPIXELS, seed=n) for n in range(min(count, DIFFERENT_PHOTOS))]
    # Decoders ignore data after the end of a JPEG. Identical files would be described only once.
    return [
        data + str(number).encode() for number, data in enumerate(islice(cycle(different), count))
    ]


def decoding_alone(pictures: Sequence[bytes], threads: int) -> float:
    """Return the seconds that threads of one process need to decode and make thumbnails."""

    def make(data: bytes) -> None:
        decode(io.BytesIO(data), accept(data)).make_thumbnail()

    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        for _ in pool.map(make, pictures):
            pass
        return time.perf_counter() - begun


@contextlib.contextmanager
def warm_stack(stand: Stand, name: str, **settings: object) -> Iterator[Bench]:
    """Start a stack on separate databases, and warm it up with one upload."""
    with (
        stand.scene(name, **settings) as scene,
        running_stack(scene.pipeline.settings),
        dg.DagsterInstance.get() as instance,
    ):
        bench = Bench(scene, StackUsage(stand.server_pid), instance)
        bench.upload(save_picture(scene.folder, -1))
        yield bench


def first_results(bench: Bench, repetitions: int, dice: random.Random) -> dict[int, list[float]]:
    """Return the seconds to the first result of batches of each size, one after another."""
    seconds: dict[int, list[float]] = {size: [] for size in FIRST_SIZES}
    # Sizes take turns, so that a slow minute of the machine affects all of them.
    for _, size in product(range(repetitions), FIRST_SIZES):
        pictures = list(tiny_pictures(size, seed=dice.randrange(10**9)))
        time.sleep(dice.uniform(0, RANDOM_PAUSE))
        seconds[size].append(bench.first_result(pictures))
        log.print(f"{size:6} uploads: {seconds[size][-1]:.2f} s to the first result")
    return seconds


def upload_table(figures: Sequence[UploadFigure]) -> Table:
    titles = {
        "asked_for": "submit to run asked for (sensor)",
        "begun": "submit to run begun (process started)",
        "first_progress": "submit to first progress",
        "done": "submit to done",
    }
    rows = []
    for name, title in titles.items():
        values = [getattr(figure, name) for figure in figures]
        rows.append([title, median(values), min(values), max(values)])
    return Table("Seconds for one upload", ("", "median", "min", "max"), rows)


def first_table(seconds: Mapping[int, Sequence[float]]) -> Table:
    rows = [[size, len(s), median(s), min(s), max(s)] for size, s in seconds.items()]
    return Table(
        "Seconds to the first result", ("uploads", "batches", "median", "min", "max"), rows
    )


def batch_table(figures: Iterable[BatchFigure]) -> Table:
    headings = (
        *("batch", "uploads", "runs", "s to first result", "s in all", "ms per upload"),
        *(f"CPU ms of {part}" for part in PARTS),
        *("last quarter / second", "private MiB of a worker", "resident MiB"),
    )
    rows = [
        [
            *(f.name, f.uploads, f.runs, f.first_seconds, f.seconds, f.seconds / f.uploads * 1000),
            *f.cpu_ms.values(),
            *(f.growth_within, f.private_mib, f.resident_mib),
        ]
        for f in figures
    ]
    return Table("Whole batches", headings, rows)


def idle_table(shares: Mapping[str, float], without_ticks: Mapping[str, float]) -> Table:
    rows = [[part, f"{shares[part]:.1%}", f"{without_ticks[part]:.1%}"] for part in shares]
    total = ["all", *(f"{sum(each.values()):.1%}" for each in (shares, without_ticks))]
    return Table("Idle", ("part", "of a core", "sensors stopped"), [*rows, total])


def batch_targets(figures: Sequence[BatchFigure]) -> Iterator[Target]:
    by_name = {figure.name: figure for figure in figures}
    for name, asked in ASKED_SECONDS.items():
        if name in by_name:
            yield Target(f"{name}, submission to done", asked, by_name[name].seconds, unit=" s")
    largest = max(figures, key=lambda figure: figure.uploads)
    if largest.growth_within:
        what = f"growth within the batch of {largest.uploads}"
        yield Target(what, 1.15, largest.growth_within)
    if largest.uploads > 100:
        private = largest.private_mib
        yield Target("private memory of a run worker, tiny pictures", 70, private, unit=" MiB")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=20, help="uploads, one after another")
    parser.add_argument("--first", type=int, default=7, help="batches of each size, cancelled")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[10, 100, 1000, 10_000], help="tiny pictures"
    )
    parser.add_argument("--photos", type=int, default=250, help="of 12 megapixels; 0: none")
    parser.add_argument("--idle", type=float, default=120, help="seconds; 0: not measured")
    add_results_option(parser)
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    take_memory_as_run_workers_do()
    where = machine()
    tables: list[Table] = []
    targets: list[Target] = []
    document: dict[str, object] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.closing(Stand(Path(name))) as stand,
        ScriptedModelServer() as server,
        warm_stack(
            stand, "stack", analyzer="ollama", embedder="embedded", ollama_host=server.ollama_url
        ) as bench,
    ):
        if arguments.idle:
            shares = bench.idle(arguments.idle)
            targets.append(Target("idle stack", 3, sum(shares.values()) * 100, unit=" % of a core"))
            document["idle"] = shares
        uploads, dice = [], random.Random(1)
        for number in range(arguments.repetitions):
            time.sleep(dice.uniform(0, RANDOM_PAUSE))
            uploads.append(bench.upload(save_picture(Path(name), number)))
            log.print(f"{uploads[-1].first_progress:6.2f} s to the first progress")
        if uploads:
            waits = [figure.first_progress for figure in uploads]
            tables.append(upload_table(uploads))
            targets += [
                Target("submit to first progress, median", 1.5, median(waits), unit=" s"),
                Target("submit to first progress, longest", 3, max(waits), unit=" s"),
            ]
            document["uploads"] = [asdict(figure) for figure in uploads]
        if arguments.first:
            first = first_results(bench, arguments.first, dice)
            tables.append(first_table(first))
            small, large = (median(first[size]) for size in FIRST_SIZES)
            what = f"first result of {max(FIRST_SIZES)}, by that of {min(FIRST_SIZES)}"
            targets.append(Target(what, 1, large / small))
            document["first_results"] = first
        batches = [bench.files("sample files", sample_media())]
        for size in sorted(arguments.sizes):
            batches.append(
                bench.rows(f"{size} tiny pictures", list(tiny_pictures(size, seed=size)))
            )
            log.print(f"{size:6} uploads: {batches[-1].seconds:.1f} s")
        targets += batch_targets(batches)
        if arguments.photos:
            pictures = photos(arguments.photos)
            alone = decoding_alone(pictures, bench.scene.pipeline.settings.max_concurrent_uploads)
            batches.append(bench.rows(f"{arguments.photos} photos", pictures))
            ratio = batches[-1].seconds / alone
            what = f"{arguments.photos} photos, by {alone:.1f} s of decoding and thumbnails alone"
            targets.append(Target(what, 1.15, ratio))
            document["decoding_alone_seconds"] = alone
        tables.append(batch_table(batches))
        document["batches"] = [asdict(f) | {"cost_ms": f.cost_ms} for f in batches]
        if arguments.idle:
            bench.stop_ticks()
            time.sleep(RANDOM_PAUSE)  # the last ticks end
            without_ticks = bench.idle(arguments.idle)
            tables.insert(0, idle_table(shares, without_ticks))
            document["idle_without_ticks"] = without_ticks
    report("stack", where, document, tables, targets=targets, folder=arguments.results)


if __name__ == "__main__":
    main()
