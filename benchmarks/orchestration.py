"""Compares this pipeline with other orchestrators, from the submission of a batch to its end.

    python benchmarks/orchestration.py                       # about an hour
    python benchmarks/orchestration.py --only pipeline dbos --part race
    python benchmarks/orchestration.py --install-peers       # environments for the peers, first

All contenders do the same work. Each upload is a separate unit (a step, task, job, actor or
workflow), which calls the same `UploadProcessor` with the same settings, on the same PostgreSQL and
the same scripted model server. Pictures are tiny (32 x 24 pixels), because `media.py` measures
decoding.

Each contender is running and warm before anything is submitted. `this pipeline` is the stack that
`make demo` starts, with default settings. Peers have their servers and workers running, and have
processed one small batch. If a peer's documentation says how to use several processes, it has as
many as there are cores. The clock runs from the moment when the rows of a batch are written until
the message that the batch is completed. So it includes everything that a contender starts for a
batch: our sensor's tick and our run workers, a flow, a job. Peers learn of the batch at once. The
race has three rounds, and its result is the median of each contender.

Saturation is uploads x latency / slots / seconds: 1 is a model server that never waits.

At the end, one worker of each contender is killed (SIGKILL) while it processes a batch, and nobody
intervenes. The result is the number of uploads that are completed after two minutes.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import psutil
from rich.console import Console
from tools.results import ROOT, Table, Target, add_results_option, machine, report
from tools.stand import (
    Scene,
    Stand,
    await_end,
    take_memory_as_run_workers_do,
    tiny_pictures,
)
from tools.usage import StackUsage, run_workers, tree_cpu_seconds

from batch_pipeline.demo import running_stack
from batch_pipeline.testing.model_server import ScriptedModelServer

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".environments"
#: Latency (seconds) and slots of the scripted server, and the expected saturation.
LOADS = ((1.0, 8, 0.97), (0.5, 16, 0.95), (0.25, 32, 0.88))
#: Uploads in a batch that saturation is measured with. A batch of a minute has fewer, unless the
#: server is so fast that the cores limit all contenders.
MOST_UNDER_LOAD = 2000
#: Parts of this benchmark, each with its own results.
PARTS = ("race", "saturation")
CORES = os.cpu_count() or 1
#: Uploads in flight without latency: four runs with four threads are the pipeline's defaults.
IN_FLIGHT = 16
#: Time for a contender to end (seconds).
PATIENCE = 180
#: For the batch during which a worker is killed: number of uploads, how many are completed before
#: the kill, and the time for the others (seconds).
KILL_UPLOADS, KILL_AFTER, KILL_SECONDS = 100, 30, 120
#: Latency of the model during that batch (seconds).
KILL_LATENCY = 0.5

log = Console(stderr=True, markup=False, highlight=False)


@dataclass(frozen=True)
class Contender:
    """A system that processes batches: this pipeline or a peer."""

    name: str
    """The name that `--only` accepts."""
    title: str
    records: str
    """What it records about each upload."""
    script: str = ""
    """Script in `peers/`; empty: the stack of this pipeline."""
    variant: str = ""
    """Argument for a script that supports several executors or modes."""
    at_most: int | None = None
    """Number of uploads without latency, if it is slow."""
    processes: int = 1
    """Number of workers; each gets its share of the uploads in flight."""
    worker: str = ""
    """A word in the command line of workers that can be killed; empty: it has no such workers."""
    in_flight: int | None = None
    """Maximum number of uploads in flight; None: any number."""
    under_load: bool = True
    """Whether saturation is also measured."""
    needs: str = ""
    """Module of the extra `benchmarks` that must be installed."""
    environment: str = ""
    """Name of its own virtual environment."""

    @property
    def python(self) -> Path:
        if not self.environment:
            return Path(sys.executable)
        return ENVIRONMENTS / self.environment / "bin" / "python"

    @property
    def missing(self) -> str:
        """How to install it; empty: it is installed."""
        if self.needs and find_spec(self.needs) is None:
            return "pip install -e '.[benchmarks]'"
        if not self.python.exists():
            return "python benchmarks/orchestration.py --install-peers"
        return ""


CONTENDERS = (
    Contender(
        "pipeline",
        "this pipeline",
        "step events, materialization, check, stages in the row",
    ),
    Contender(
        "job-default",
        "this job, Dagster's default executor",
        "step events, materialization, check, stages in the row",
        script="process_batch.py",
        at_most=8,
        under_load=False,
    ),
    Contender(
        "dagster-default",
        "a mapped op, Dagster's default executor",
        "step events",
        script="dagster_jobs.py",
        variant="default",
        at_most=15,
        under_load=False,
    ),
    Contender(
        "dagster-forkserver",
        "a mapped op, multiprocess with forkserver",
        "step events",
        script="dagster_jobs.py",
        variant="forkserver",
        at_most=30,
        under_load=False,
    ),
    Contender(
        "dagster-in-process",
        "a mapped op, Dagster's in-process executor",
        "step events",
        script="dagster_jobs.py",
        variant="in_process",
        at_most=100,
        under_load=False,
    ),
    Contender(
        "dagster-async",
        "a mapped op, dagster-async-executor",
        "step events",
        script="dagster_jobs.py",
        variant="async",
        at_most=200,
        needs="dagster_async_executor",
    ),
    Contender(
        "loop",
        "plain loop",
        "nothing",
        script="plain.py",
        variant="loop",
        in_flight=1,
        at_most=1000,
    ),
    Contender("threads", "plain threads", "nothing", script="plain.py", variant="threads"),
    Contender(
        "celery",
        "Celery, Redis",
        "result",
        script="celery_tasks.py",
        processes=CORES,
        worker="-A celery_tasks",
        needs="celery",
    ),
    Contender(
        "dramatiq",
        "Dramatiq, Redis",
        "result",
        script="dramatiq_actors.py",
        processes=CORES,
        worker="dramatiq_actors",
        needs="dramatiq",
    ),
    Contender(
        "procrastinate",
        "procrastinate",
        "job with its events",
        script="procrastinate_jobs.py",
        processes=CORES,
        worker="procrastinate_jobs.py worker",
        needs="procrastinate",
    ),
    Contender(
        "dbos",
        "DBOS, queue",
        "workflow and step",
        script="dbos_queue.py",
        processes=CORES,
        worker="dbos_queue.py worker",
        needs="dbos",
    ),
    Contender(
        "prefect",
        "Prefect 3, task.map",
        "task run with its states",
        script="prefect_tasks.py",
        environment="prefect",
    ),
)
#: Contenders that record the end of each upload where an operator can look it up.
RECORDING = ("celery", "dramatiq", "procrastinate", "dbos", "prefect")


@dataclass(frozen=True)
class Figure:
    """The time that one contender took for one batch."""

    name: str
    uploads: int
    latency: float
    slots: int
    seconds: float
    """From submission to the end of the batch."""
    cpu_seconds: float
    """Processor time of all processes; for this pipeline of the whole stack, including the UI."""
    database_cpu_seconds: float

    @property
    def ms_per_upload(self) -> float:
        return self.seconds / self.uploads * 1000

    @property
    def saturation(self) -> float:
        return self.uploads * self.latency / self.slots / self.seconds


@dataclass(frozen=True)
class Running:
    """A contender that waits for batches."""

    hand_out: Callable[[str], object]
    cpu_seconds: Callable[[], float]
    workers: Callable[[], Sequence[psutil.Process]]
    at_the_end: dict[str, int] = field(default_factory=dict)
    """How many ends a peer has recorded, and of how many uploads."""


@contextlib.contextmanager
def running(
    contender: Contender, scene: Scene, server_pid: int, in_flight: int
) -> Iterator[Running]:
    """Start a contender, and wait until it is ready."""
    if contender.script:
        with peer(contender, scene, in_flight) as host:
            yield host
        return
    with running_stack(scene.pipeline.settings):
        usage = StackUsage(server_pid)

        def stack_seconds() -> float:
            return sum(value for part, value in usage.cpu_seconds().items() if part != "PostgreSQL")

        yield Running(lambda _: None, stack_seconds, lambda: list(run_workers()))


@contextlib.contextmanager
def peer(contender: Contender, scene: Scene, in_flight: int) -> Iterator[Running]:
    """Start the host of a peer (`peers/work.py`); at the end stop it and everything it started."""
    assignment = {
        "state_url": scene.state_url,
        "folder": str(scene.folder),
        "processes": contender.processes,
        "threads": math.ceil(in_flight / contender.processes),
        "variant": contender.variant,
    }
    path = os.pathsep.join(map(str, (HERE, HERE / "peers")))
    log_file = scene.folder / "contender.log"
    with log_file.open("wb") as errors:
        process = subprocess.Popen(
            [str(contender.python), "-W", "ignore", str(HERE / "peers" / contender.script)],
            env=os.environ | {"PYTHONPATH": path, "BENCHMARK_ASSIGNMENT": json.dumps(assignment)},
            cwd=scene.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    assert process.stdin
    assert process.stdout

    def hand_out(batch_id: str) -> None:
        assert process.stdin
        process.stdin.write(f"{batch_id}\n")
        process.stdin.flush()

    def workers() -> Sequence[psutil.Process]:
        return [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if contender.worker in " ".join(child.cmdline()) and not child.children()
        ]

    try:
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{contender.name} did not start:\n{log_file.read_text()[-3000:]}")
        host = Running(hand_out, lambda: tree_cpu_seconds(process.pid), workers)
        yield host
        printed, _ = process.communicate(timeout=PATIENCE)
        [line] = [line for line in printed.splitlines() if line.startswith("{")]
        host.at_the_end.update(json.loads(line))
    finally:
        with contextlib.suppress(ProcessLookupError):  # processes that it has left behind
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def warm(
    contender: Contender,
    stand: Stand,
    what: str,
    in_flight: int,
    server: ScriptedModelServer,
    **settings: object,
) -> Iterator[tuple[Scene, Running]]:
    """Start a contender, and let it process one small batch."""
    with (
        stand.scene(
            f"{contender.name}-{what}",
            analyzer="ollama",
            embedder="embedded",
            ollama_host=server.ollama_url,
            **settings,
        ) as scene,
        running(contender, scene, stand.server_pid, in_flight) as host,
    ):
        with scene.listening() as listener:
            # Fewer for contenders that take seconds for each upload.
            pictures = tiny_pictures(in_flight if contender.under_load else 1, seed=0)
            batch_id = scene.add_batch(pictures)
            host.hand_out(str(batch_id))
            await_end(listener, batch_id)
        yield scene, host


def measure(
    contender: Contender,
    stand: Stand,
    sizes: Sequence[int],
    *,
    in_flight: int = IN_FLIGHT,
    latency: float = 0,
    slots: int = IN_FLIGHT,
) -> Iterator[Figure]:
    """Let a contender process one batch of each size, and check that it has."""
    # A load sets the number of calls in flight; without a load, everything has its default.
    settings = load_settings(max(sizes), in_flight) if latency else {}
    with (
        ScriptedModelServer(latency_seconds=latency, slots=slots) as server,
        warm(
            contender,
            stand,
            f"{slots}x{latency:g}s",
            in_flight,
            server,
            max_vision_calls=slots,
            **settings,
        ) as (scene, host),
    ):
        pictures = tiny_pictures(sum(sizes))
        for uploads in sizes:
            some = list(islice(pictures, uploads))
            before = host.cpu_seconds(), tree_cpu_seconds(stand.server_pid)
            with scene.listening() as listener:
                batch_id = scene.add_batch(some)
                begun_at = scene.ask(
                    f"SELECT 1000 * extract(epoch FROM created_at) FROM upload_batches"
                    f" WHERE id = '{batch_id}'"
                )
                host.hand_out(str(batch_id))
                _, done_at = await_end(listener, batch_id)
            after = host.cpu_seconds(), tree_cpu_seconds(stand.server_pid)
            done = completed(scene, batch_id)
            assert done == uploads, f"{contender.name}: {done} of {uploads} are completed"
            own, database = (now - then for now, then in zip(after, before, strict=True))
            seconds = done_at - begun_at / 1000
            yield Figure(contender.name, uploads, latency, slots, seconds, own, database)
    if contender.name in RECORDING:
        assert host.at_the_end["recorded"] == host.at_the_end["of"], host.at_the_end


def completed_after_kill(contender: Contender, stand: Stand) -> int:
    """Kill a worker in the middle of a batch; return how many uploads are completed in the end."""
    with (
        ScriptedModelServer(latency_seconds=KILL_LATENCY) as server,
        # Two runs of this pipeline, as the others have two workers.
        warm(
            contender, stand, "kill", IN_FLIGHT, server, uploads_per_run=KILL_UPLOADS // CORES
        ) as (scene, host),
    ):
        batch_id = scene.add_batch(tiny_pictures(KILL_UPLOADS))
        host.hand_out(str(batch_id))
        await_completed(scene, batch_id, KILL_AFTER)
        host.workers()[0].kill()
        return await_completed(scene, batch_id, KILL_UPLOADS)


def await_completed(scene: Scene, batch_id: uuid.UUID, count: int) -> int:
    """Wait until this many uploads are completed, at most `KILL_SECONDS`; returns how many are."""
    give_up_at = time.monotonic() + KILL_SECONDS
    while (done := completed(scene, batch_id)) < count and time.monotonic() < give_up_at:
        time.sleep(0.2)
    return done


def completed(scene: Scene, batch_id: uuid.UUID) -> int:
    return scene.ask(
        "SELECT count(*) FROM uploads WHERE processing_status = 'completed'"
        f" AND batch_id = '{batch_id}'"
    )


def load_settings(uploads: int, in_flight: int) -> dict[str, object]:
    """Return the settings of docs/scaling.md: a run worker per core shares the calls."""
    return {
        "max_concurrent_uploads": math.ceil(in_flight / CORES),
        "uploads_per_run": math.ceil(uploads / CORES),
    }


def install_peers() -> None:
    """Make the virtual environments of the peers that cannot use ours."""
    for name in {contender.environment for contender in CONTENDERS} - {""}:
        folder = ENVIRONMENTS / name
        log.print(f"environment of {name}: {folder}")
        venv.create(folder, with_pip=True)
        requirements = HERE / "peers" / f"requirements-{name}.txt"
        command = [str(folder / "bin" / "pip"), "install", "--quiet", "-r", str(requirements)]
        subprocess.run([*command, "-e", f"{ROOT}[embedded]"], check=True)


def attempt(contender: Contender, measured: Iterator[Figure]) -> list[Figure]:
    """Measure; leave out a peer that fails. If our pipeline fails, the benchmark ends."""
    try:
        return list(measured)
    except (RuntimeError, AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
        if contender.name == "pipeline":
            raise
        log.print(f"{contender.name} is left out: {error}")
        return []


def without_latency(
    contenders: Sequence[Contender], stand: Stand, sizes: Sequence[int], rounds: int
) -> list[Figure]:
    """Measure each contender once per round; return its median round for each size.

    The speed of a machine changes within minutes. So no contender gets all its turns at one time,
    and every second round is in reverse order. Slow contenders have one round.
    """
    found: dict[tuple[str, int], list[Figure]] = {}
    for number in range(rounds):
        for contender in reversed(contenders) if number % 2 else contenders:
            most = contender.at_most or max(sizes)
            if number and most < max(sizes):
                continue
            own = sorted({min(size, most) for size in sizes})
            for figure in attempt(contender, measure(contender, stand, own)):
                log.print(f"{figure.name:20}{figure.uploads:7} uploads  {figure.seconds:8.2f} s")
                found.setdefault((figure.name, figure.uploads), []).append(figure)
    in_order = [sorted(figures, key=lambda figure: figure.seconds) for figures in found.values()]
    return [figures[len(figures) // 2] for figures in in_order]


def under_load(
    contenders: Sequence[Contender], stand: Stand, loads: int, ideal_seconds: float
) -> Iterator[Figure]:
    for latency, slots, _ in LOADS[:loads]:
        for contender in contenders:
            if not contender.under_load:
                continue
            count = min(max(round(ideal_seconds * slots / latency), slots), MOST_UNDER_LOAD)
            # A contender that cannot keep the server busy gets few uploads; more would take
            # minutes.
            count = min(count, contender.at_most or count)
            if contender.in_flight:
                count = min(count, round(ideal_seconds / latency))
            # Enough that a call waits for a slot while other uploads are decoded or stored.
            in_flight = slots + math.ceil(slots / 4)
            load = measure(
                contender, stand, [count], in_flight=in_flight, latency=latency, slots=slots
            )
            for figure in attempt(contender, load):
                log.print(
                    f"{figure.name:20}{figure.uploads:7} uploads  {latency:g} s, {slots} slots: "
                    f"{figure.saturation:.3f}"
                )
                yield figure


def killed(contenders: Sequence[Contender], stand: Stand) -> dict[str, int]:
    """Return the completed uploads of each contender whose worker was killed, by its name."""
    found: dict[str, int] = {}
    for contender in contenders:
        if contender.worker or contender.name == "pipeline":
            found[contender.name] = completed_after_kill(contender, stand)
            log.print(f"{contender.name:20}{found[contender.name]:7} of {KILL_UPLOADS} completed")
    return found


def race_table(figures: Sequence[Figure], by_name: dict[str, Contender]) -> Table:
    rows = [
        [
            by_name[figure.name].title,
            figure.uploads,
            figure.seconds,
            figure.ms_per_upload,
            figure.cpu_seconds / figure.uploads * 1000,
            figure.database_cpu_seconds / figure.uploads * 1000,
            by_name[figure.name].records,
        ]
        for figure in figures
    ]
    headings = (
        *("", "uploads", "s from submission to done", "ms per upload", "CPU ms"),
        *("PostgreSQL CPU ms", "what it records of each upload"),
    )
    return Table("No latency of the model", headings, rows)


def saturation_table(figures: Sequence[Figure], by_name: dict[str, Contender]) -> Table:
    loads = list(dict.fromkeys((figure.latency, figure.slots) for figure in figures))
    rows: list[list[object]] = []
    for name in dict.fromkeys(figure.name for figure in figures):
        of_one = {(f.latency, f.slots): f for f in figures if f.name == name}
        cells: list[object] = [by_name[name].title]
        for load in loads:
            figure = of_one.get(load)
            cells += [figure.saturation, figure.cpu_seconds] if figure else ["", ""]
        rows.append(cells)
    headings = [""]
    for latency, slots in loads:
        headings += [f"{latency:g} s, {slots} slots", "CPU s"]
    return Table("Saturation of the model server", headings, rows)


def race_targets(race: Sequence[Figure], by_name: dict[str, Contender]) -> Iterator[Target]:
    ours = {figure.uploads: figure for figure in race if figure.name == "pipeline"}
    largest = ours[max(ours)]
    for figure in race:
        title, uploads = by_name[figure.name].title, figure.uploads
        if figure.name in RECORDING and uploads in ours:
            what = f"{uploads} uploads, seconds by those of {title}"
            yield Target(what, 1, ours[uploads].seconds / figure.seconds)
        if figure.name in RECORDING and uploads == largest.uploads:
            cpu = (f.cpu_seconds + f.database_cpu_seconds for f in (largest, figure))
            what = f"{uploads} uploads, processor time by that of {title}"
            yield Target(what, 1, next(cpu) / next(cpu))
        if figure.name in {"job-default", "dagster-default"}:
            times = figure.ms_per_upload / largest.ms_per_upload
            yield Target(f"times less than {title}", 200, times, at_least=True)


def saturation_targets(loads: Sequence[Figure]) -> Iterator[Target]:
    for latency, slots, asked in LOADS:
        for figure in loads:
            if (figure.name, figure.latency, figure.slots) == ("pipeline", latency, slots):
                what = f"saturation, {latency:g} s and {slots} slots"
                yield Target(what, asked, figure.saturation, at_least=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[15, 1000], help="of batches with no latency"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="of the race; the result is the median round"
    )
    parser.add_argument(
        "--ideal-seconds",
        type=float,
        default=60,
        help="seconds that a server that never waits needs for the batch of a load; the batch has "
        f"at most {MOST_UNDER_LOAD:,} uploads",
    )
    parser.add_argument(
        "--loads", type=int, default=len(LOADS), help="how many, of 3, saturation is measured for"
    )
    parser.add_argument("--no-kill", action="store_true", help="kill no worker")
    parser.add_argument(
        "--part", choices=PARTS, help="only the race, or only saturation and the kill"
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--install-peers", action="store_true", help="only make the environments of the peers"
    )
    add_results_option(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    take_memory_as_run_workers_do()
    if arguments.install_peers:
        install_peers()
        return
    chosen = []
    for contender in CONTENDERS:
        if arguments.only and contender.name not in {"pipeline", *arguments.only}:
            continue
        if contender.missing:
            log.print(f"{contender.name} is skipped, it is not installed: {contender.missing}")
        else:
            chosen.append(contender)
    # The path is short, because Redis listens on a socket in it.
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Stand(Path(folder))) as stand,
    ):
        begun = time.monotonic()
        if arguments.part in {None, "race"}:
            race(chosen, stand, arguments)
        if arguments.part in {None, "saturation"}:
            saturation(chosen, stand, arguments)
        log.print(f"{time.monotonic() - begun:.0f} s in all")


def race(chosen: Sequence[Contender], stand: Stand, arguments: argparse.Namespace) -> None:
    where, by_name = machine(), {contender.name: contender for contender in chosen}
    figures = without_latency(chosen, stand, arguments.sizes, arguments.rounds)
    report(
        "race",
        where,
        {
            "titles": {name: contender.title for name, contender in by_name.items()},
            "race": [asdict(f) | {"ms_per_upload": f.ms_per_upload} for f in figures],
        },
        [race_table(figures, by_name)],
        targets=list(race_targets(figures, by_name)),
        folder=arguments.results,
    )


def saturation(chosen: Sequence[Contender], stand: Stand, arguments: argparse.Namespace) -> None:
    where, by_name = machine(), {contender.name: contender for contender in chosen}
    loads = list(under_load(chosen, stand, arguments.loads, arguments.ideal_seconds))
    survived = {} if arguments.no_kill else killed(chosen, stand)
    tables = [saturation_table(loads, by_name)]
    if survived:
        rows = [
            [by_name[name].title, f"{done} of {KILL_UPLOADS}"] for name, done in survived.items()
        ]
        title = f"Completed within {KILL_SECONDS} s after the SIGKILL of one worker"
        tables.append(Table(title, ("", "uploads"), rows))
    report(
        "saturation",
        where,
        {
            "titles": {name: contender.title for name, contender in by_name.items()},
            "saturation": [asdict(f) | {"saturation": f.saturation} for f in loads],
            "completed_after_kill": survived,
        },
        tables,
        targets=list(saturation_targets(loads)),
        folder=arguments.results,
    )


if __name__ == "__main__":
    main()
