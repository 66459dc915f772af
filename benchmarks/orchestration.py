"""What orchestration costs per upload, and how full it keeps a model server; ours and others'.

    python benchmarks/orchestration.py                       # about ten minutes
    python benchmarks/orchestration.py --only pipeline --uploads 200 --ideal-seconds 5
    python benchmarks/orchestration.py --install-peers       # environments for the peers, first

Every contender works the same batch of tiny pictures (32 x 24 pixels: decoding is not what is
measured) with the same scripted model server over HTTP, and makes the same row changes on
PostgreSQL. `pipeline` is `process_batch` as it is, in a run worker of its own, `pipeline-two` in
two that share the batch: it also decodes, makes and stores the thumbnail, audits, keeps two
checkpoints more, renews heartbeats. The peers do less (`peers/work.py`), and each notes the end of
every upload in its own place and idiom.

Overhead: no model latency. Wall time from the start of the run (or the flow, the queue, the worker)
to its end, set-up and collection included, starts of Python and imports excluded, divided by the
uploads. Saturation: uploads x latency / slots / wall time; 1 is a server that never waits.
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
import venv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dagster as dg
from rich.console import Console
from tools.results import Table, Target, add_results_option, machine, report
from tools.stand import Dispatcher, Scene, Stand, tiny_pictures
from tools.usage import SERVER_PID_VARIABLE

from batch_pipeline.testing.model_server import ScriptedModelServer

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".environments"
MODEL = "qwen2.5vl:7b"
#: Latency (seconds) and slots of the scripted server, and the saturation asked for.
LOADS = ((1.0, 8, 0.95), (0.5, 16, 0.92), (0.25, 32, 0.85))
#: A contender that takes longer is given up (seconds).
PATIENCE = 600

log = Console(stderr=True, markup=False, highlight=False)


@dataclass(frozen=True)
class Contender:
    """Someone who works a batch.

    Args:
        name: as `--only` takes it.
        title: as tables show it.
        records: what it keeps of each upload.
        at_most: uploads that it is given without latency, if it is slow.
        script: of `peers/`; none: the job `process_batch`.
        variant: for a script that knows several ways.
        execution: run config of `process_batch`.
        needs: module that must be there, of the extra `benchmarks`.
        environment: virtual environment of its own, by name.
        in_flight: the most that it can have, whatever it is told.
        workers: processes that share the batch, each with its part of what is in flight.
        under_load: saturation is measured too.
    """

    name: str
    title: str
    records: str
    at_most: int | None = None
    script: str = ""
    variant: str = ""
    execution: dict[str, Any] = field(default_factory=dict)
    needs: str = ""
    environment: str = ""
    in_flight: int | None = None
    workers: int = 1
    under_load: bool = True

    @property
    def python(self) -> Path:
        if not self.environment:
            return Path(sys.executable)
        return ENVIRONMENTS / self.environment / "bin" / "python"

    @property
    def missing(self) -> str:
        """What to do to have it; empty: it is there."""
        if self.needs and find_spec(self.needs) is None:
            return "pip install -e '.[benchmarks]'"
        if not self.python.exists():
            return "python benchmarks/orchestration.py --install-peers"
        return ""


STEPS = "step events, materialization, check, stages in the row"
EVENTS = "step events"
FORKSERVER = {"start_method": {"forkserver": {"preload_modules": ["batch_pipeline.definitions"]}}}
CONTENDERS = (
    Contender("pipeline", "this pipeline", STEPS),
    Contender("pipeline-two", "this pipeline, two run workers", STEPS, workers=2),
    Contender(
        "pipeline-in-process",
        "this job, Dagster's in-process executor",
        STEPS,
        at_most=100,
        execution={"in_process": {}},
        in_flight=1,
        under_load=False,
    ),
    Contender(
        "pipeline-forkserver",
        "this job, multiprocess with forkserver",
        STEPS,
        at_most=40,
        execution={"multiprocess": FORKSERVER},
        in_flight=os.cpu_count(),
        under_load=False,
    ),
    Contender(
        "pipeline-default",
        "this job, Dagster's default executor",
        STEPS,
        at_most=8,
        execution={"multiprocess": {}},
        in_flight=os.cpu_count(),
        under_load=False,
    ),
    Contender("loop", "plain loop", "nothing", script="plain.py", variant="loop", in_flight=1),
    Contender(
        "threads",
        "plain threads",
        "nothing",
        script="plain.py",
        variant="threads",
        under_load=False,
    ),
    Contender(
        "dagster-in-process",
        "Dagster, in-process executor",
        EVENTS,
        at_most=100,
        script="dagster_jobs.py",
        variant="in_process",
        in_flight=1,
    ),
    Contender(
        "dagster-async",
        "Dagster, dagster-async-executor",
        EVENTS,
        at_most=200,
        script="dagster_jobs.py",
        variant="async",
        needs="dagster_async_executor",
    ),
    Contender(
        "dagster-forkserver",
        "Dagster, multiprocess with forkserver",
        EVENTS,
        at_most=40,
        script="dagster_jobs.py",
        variant="forkserver",
        in_flight=os.cpu_count(),
    ),
    Contender(
        "dagster-default",
        "Dagster, default executor",
        EVENTS,
        at_most=16,
        script="dagster_jobs.py",
        variant="default",
        in_flight=os.cpu_count(),
    ),
    Contender(
        "prefect",
        "Prefect 3, task.map",
        "task run with its states",
        script="prefect_tasks.py",
        environment="prefect",
    ),
    Contender(
        "dbos",
        "DBOS, queue",
        "workflow and step",
        script="dbos_queue.py",
        needs="dbos",
    ),
    Contender(
        "procrastinate",
        "procrastinate",
        "job with its events",
        script="procrastinate_jobs.py",
        needs="procrastinate",
    ),
)


@dataclass(frozen=True)
class Figure:
    """What one contender took for one batch."""

    name: str
    uploads: int
    latency: float
    slots: int
    seconds: float
    cpu_seconds: float
    database_cpu_seconds: float
    recorded: int

    @property
    def ms_per_upload(self) -> float:
        return self.seconds / self.uploads * 1000

    @property
    def saturation(self) -> float:
        return self.uploads * self.latency / self.slots / self.seconds


def measure(
    contender: Contender,
    stand: Stand,
    *,
    uploads: int,
    threads: int,
    slots: int,
    latency: float = 0,
) -> Figure:
    """Let a contender work a batch, and check that it did."""
    name = f"{contender.name}-{slots}x{latency:g}s"
    with (
        ScriptedModelServer(latency_seconds=latency, slots=slots, vision_models=[MODEL]) as server,
        stand.scene(
            name,
            analyzer="ollama",
            embedder="embedded",
            ollama_host=server.ollama_url,
            vision_model=MODEL,
            max_vision_calls=slots,
            max_concurrent_uploads=math.ceil(threads / contender.workers),
            uploads_per_run=math.ceil(uploads / contender.workers),
        ) as scene,
    ):
        batch_id = scene.add_batch(tiny_pictures(uploads), head_start=False)
        with commands(contender, scene, str(batch_id), server.ollama_url, threads) as started:
            figures = run(started, contender, scene, stand.server_pid)
        done, calls = scene.completed(), len(server.calls_of("vision"))
        assert (done, calls) == (uploads, uploads), f"{name}: {done} done, {calls} calls"
    recorded = figures.pop("recorded", 0)
    used = {key: figures[key] for key in ("seconds", "cpu_seconds", "database_cpu_seconds")}
    return Figure(contender.name, uploads, latency, slots, recorded=int(recorded), **used)


@contextlib.contextmanager
def commands(
    contender: Contender, scene: Scene, batch_id: str, model_url: str, threads: int
) -> Iterator[list[list[str]]]:
    """What to start, and the environment for it."""
    if contender.script:
        assignment = {
            "database_url": scene.database_url,
            "state_url": scene.state_url,
            "model_url": model_url,
            "model": MODEL,
            "storage": scene.storage,
            "batch_id": batch_id,
            "threads": threads,
            "folder": str(scene.folder),
            "variant": contender.variant,
        }
        os.environ["BENCHMARK_ASSIGNMENT"] = json.dumps(assignment)
        yield [[str(HERE / "peers" / contender.script)]]
        return
    with dg.DagsterInstance.get() as instance:
        run_ids = Dispatcher(scene.pipeline, instance).tick(contender.execution)
        assert len(run_ids) == contender.workers, run_ids
        yield [["-m", "tools.run_worker", run_id, "--at-a-word"] for run_id in run_ids]


def run(
    commands_: list[list[str]], contender: Contender, scene: Scene, server_pid: int
) -> dict[str, float]:
    """Start processes, and read the figures that each prints at its end."""
    log_file = scene.folder / "contender.log"
    path = os.pathsep.join(map(str, (HERE, HERE / "peers")))
    processes: list[subprocess.Popen[str]] = []
    with log_file.open("wb") as errors:
        for words in commands_:
            process = subprocess.Popen(
                [str(contender.python), "-W", "ignore", *words],
                env=os.environ | {"PYTHONPATH": path, SERVER_PID_VARIABLE: str(server_pid)},
                cwd=scene.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            processes.append(process)
    found: list[dict[str, float]] = []
    try:
        if not contender.script:
            begin_together(processes)
        for process in processes:
            printed, _ = process.communicate(timeout=PATIENCE)
            lines = printed.splitlines()
            if process.returncode or not lines:
                raise RuntimeError(f"{contender.name} failed:\n{log_file.read_text()[-3000:]}")
            found.append(json.loads(lines[-1]))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # whatever it has left behind
                os.killpg(process.pid, signal.SIGKILL)
    figures = {
        # Those that begin together: the last one to end says how long all took, and what the
        # database did meanwhile.
        "seconds": max(one["seconds"] for one in found),
        "cpu_seconds": sum(one["cpu_seconds"] for one in found),
        "database_cpu_seconds": max(one["database_cpu_seconds"] for one in found),
        "recorded": sum(one.get("recorded", 0) for one in found),
    }
    if not contender.script:
        figures["recorded"] = recorded_steps(scene)
    return figures


def begin_together(run_workers: list[subprocess.Popen[str]]) -> None:
    """Wait until all are ready, and let them begin; one that has failed says so at its end."""
    for process in run_workers:
        assert process.stdout
        process.stdout.readline()
    for process in run_workers:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("go\n")
            process.stdin.flush()


def recorded_steps(scene: Scene) -> int:
    """Mapped steps whose success is in Dagster's event log."""
    with dg.DagsterInstance.get() as instance:
        counts = [
            instance.get_run_stats(record.dagster_run.run_id).steps_succeeded
            for record in instance.get_run_records()
        ]
    return sum(counts) - 2 * len(counts)  # the fan-out and the collector


def install_peers() -> None:
    """Make the environments of the peers that do not share ours."""
    for name in {contender.environment for contender in CONTENDERS} - {""}:
        folder = ENVIRONMENTS / name
        log.print(f"environment of {name}: {folder}")
        venv.create(folder, with_pip=True)
        requirements = HERE / "peers" / f"requirements-{name}.txt"
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "-r", str(requirements)]
        subprocess.run(pip, check=True)


def attempt(contender: Contender, stand: Stand, **size: Any) -> Figure | None:
    """Measure; a peer that fails is left out, with a message, but ours ends the benchmark."""
    try:
        return measure(contender, stand, **size)
    except (RuntimeError, AssertionError, subprocess.TimeoutExpired) as error:
        if contender.name == "pipeline":
            raise
        log.print(f"{contender.name} is left out: {error}")
        return None


def overhead(
    contenders: list[Contender], stand: Stand, uploads: int, threads: int
) -> Iterator[Figure]:
    for contender in contenders:
        count = min(uploads, contender.at_most or uploads)
        figure = attempt(contender, stand, uploads=count, threads=threads, slots=threads)
        if figure is None:
            continue
        log.print(f"{contender.name:22}{count:6} uploads  {figure.ms_per_upload:9.1f} ms each")
        yield figure


def saturation(
    contenders: list[Contender], stand: Stand, loads: int, ideal_seconds: float
) -> Iterator[Figure]:
    for latency, slots, _ in LOADS[:loads]:
        for contender in contenders:
            if not contender.under_load:
                continue
            count = max(round(ideal_seconds * slots / latency), slots)
            # Who cannot fill the server is given few, who is slow fewer: else they take minutes.
            most = 2 * (contender.in_flight or contender.at_most or count)
            figure = attempt(
                contender,
                stand,
                uploads=min(count, most),
                threads=threads_for(slots),
                slots=slots,
                latency=latency,
            )
            if figure is None:
                continue
            log.print(
                f"{contender.name:22}{figure.uploads:6} uploads  {latency:g} s, {slots} slots: "
                f"{figure.saturation:.3f}"
            )
            yield figure


def threads_for(slots: int) -> int:
    """So many that a call waits for a slot while another upload is decoded or stored."""
    return slots + math.ceil(slots / 4)


def overhead_table(figures: list[Figure], by_name: dict[str, Contender]) -> list[list[object]]:
    base = figures[0].ms_per_upload
    return [
        [
            by_name[figure.name].title,
            figure.uploads,
            figure.ms_per_upload,
            figure.ms_per_upload / base,
            figure.cpu_seconds / figure.uploads * 1000,
            figure.database_cpu_seconds / figure.uploads * 1000,
            figure.recorded,
            by_name[figure.name].records,
        ]
        for figure in figures
    ]


def saturation_table(figures: list[Figure], by_name: dict[str, Contender]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name in dict.fromkeys(figure.name for figure in figures):
        of_one = {(f.latency, f.slots): f for f in figures if f.name == name}
        cells: list[object] = [by_name[name].title]
        for latency, slots, _ in LOADS:
            figure = of_one.get((latency, slots))
            cells += [figure.saturation, figure.cpu_seconds] if figure else ["", ""]
        rows.append(cells)
    return rows


def targets(overheads: list[Figure], saturations: list[Figure]) -> list[Target]:
    cost = {figure.name: figure.ms_per_upload for figure in overheads}
    ours = cost["pipeline"]
    found = [Target("overhead per upload, one run worker", 10, ours, unit=" ms")]
    for name, what in (
        ("dagster-default", "times less than Dagster's default executor, the light work"),
        ("pipeline-default", "times less than Dagster's default executor, this job"),
    ):
        if name in cost:
            found.append(Target(what, 200, cost[name] / ours, at_least=True))
    for name, what in (("prefect", "less than Prefect 3"), ("dbos", "less than the DBOS queue")):
        if name in cost:
            found.append(Target(f"overhead {what}", round(cost[name], 2), ours, unit=" ms"))
    of_workers = {"pipeline": "one run worker", "pipeline-two": "two run workers"}
    found += [
        Target(
            f"saturation, {latency:g} s and {slots} slots, {of_workers[figure.name]}",
            asked,
            figure.saturation,
            at_least=True,
        )
        for latency, slots, asked in LOADS
        for figure in saturations
        if figure.name in of_workers and (figure.latency, figure.slots) == (latency, slots)
    ]
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--uploads", type=int, default=500, help="of the batch with no latency")
    parser.add_argument("--threads", type=int, default=8, help="with no latency")
    parser.add_argument(
        "--ideal-seconds",
        type=float,
        default=12,
        help="what a server that never waits would need for the batch of a load",
    )
    parser.add_argument(
        "--loads", type=int, default=len(LOADS), help="how many, of 3, saturation is measured for"
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--install-peers", action="store_true", help="make the environments of peers, and end"
    )
    add_results_option(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.install_peers:
        install_peers()
        return
    where, chosen = machine(), []
    for contender in CONTENDERS:
        if arguments.only and contender.name not in {"pipeline", *arguments.only}:
            continue
        if contender.missing:
            log.print(f"{contender.name} is skipped, it is not installed: {contender.missing}")
        else:
            chosen.append(contender)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Stand(Path(folder))) as stand,
    ):
        # The first one finds cold caches: it is not counted.
        measure(chosen[0], stand, uploads=4, threads=4, slots=4)
        overheads = list(overhead(chosen, stand, arguments.uploads, arguments.threads))
        saturations = list(saturation(chosen, stand, arguments.loads, arguments.ideal_seconds))
    by_name = {contender.name: contender for contender in CONTENDERS}
    tables = [
        Table(
            f"Overhead per upload, {arguments.threads} at a time, no latency",
            (
                *("", "uploads", "ms per upload", "ratio", "CPU ms", "PostgreSQL CPU ms"),
                *("ends recorded", "what is recorded of each"),
            ),
            overhead_table(overheads, by_name),
        )
    ]
    if saturations:
        title, headings = "Saturation of the model server", [""]
        for latency, slots, _ in LOADS:
            headings += [f"{latency:g} s, {slots} slots", "CPU s"]
        tables.append(Table(title, headings, saturation_table(saturations, by_name)))
    figures = {
        "arguments": {"uploads": arguments.uploads, "threads": arguments.threads},
        "titles": {contender.name: contender.title for contender in chosen},
        "overhead": [asdict(f) | {"ms_per_upload": f.ms_per_upload} for f in overheads],
        "saturation": [asdict(f) | {"saturation": f.saturation} for f in saturations],
    }
    report(
        "orchestration",
        where,
        figures,
        tables,
        targets=targets(overheads, saturations),
        folder=arguments.results,
    )


if __name__ == "__main__":
    main()
