"""What an executor costs per mapped step. The N steps only wait; all use the same storage.

    python benchmarks/executor_overhead.py --steps 250 --threads 8
    python benchmarks/executor_overhead.py --wait 0.1              # with a model to wait for
    python benchmarks/executor_overhead.py --dagster-home FOLDER   # storage of its dagster.yaml

Without `--dagster-home`, the script makes an instance on SQLite in a temporary folder. Each figure
is the wall time of a run, including its set-up, divided by the number of mapped steps. So the
fan-out and the collector count as overhead. The multiprocess executor gets few steps, because each
of them starts a process.

If steps do not wait, threads cannot be faster than sequential steps. Then the script measures CPU
time under the interpreter lock. Threads are useful when steps wait.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator

import dagster as dg

from batch_pipeline.executor import threaded_executor

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class Plan(dg.Config):
    steps: int


@dg.op(out=dg.DynamicOut(dg.Nothing))
def fan_out(config: Plan) -> Iterator[dg.DynamicOutput[None]]:
    for number in range(config.steps):
        yield dg.DynamicOutput(None, mapping_key=str(number))


class Wait(dg.Config):
    seconds: float


@dg.op(ins={"item": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
def only_wait(config: Wait) -> None:
    if config.seconds:
        time.sleep(config.seconds)


@dg.op(ins={"items": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
def collect() -> None:
    return


@dg.graph
def mapped() -> None:
    collect(fan_out().map(only_wait).collect())


# These are functions, because Dagster's other processes find the jobs by name.
def threaded() -> dg.JobDefinition:
    return mapped.to_job(executor_def=threaded_executor)


def in_process() -> dg.JobDefinition:
    return mapped.to_job(executor_def=dg.in_process_executor)


def multiprocess() -> dg.JobDefinition:
    return mapped.to_job(executor_def=dg.multiprocess_executor)


def milliseconds_per_step(
    instance: dg.DagsterInstance,
    job: Callable[[], dg.JobDefinition],
    steps: int,
    threads: int | None,
    wait: float,
) -> float:
    ops = {
        "fan_out": {"config": {"steps": steps}},
        "only_wait": {"config": {"seconds": wait}},
    }
    config: dict[str, object] = {"ops": ops, **QUIET}
    if threads:
        config["execution"] = {"config": {"max_concurrent": threads}}
    begun = time.perf_counter()
    with dg.execute_job(dg.reconstructable(job), instance, run_config=config) as result:
        seconds = time.perf_counter() - begun
        assert result.success, f"{job.__name__} failed"
    return seconds / steps * 1000


def open_instance(dagster_home: str | None, folder: str) -> dg.DagsterInstance:
    if dagster_home:
        os.environ["DAGSTER_HOME"] = os.path.abspath(dagster_home)
        return dg.DagsterInstance.get()
    return dg.DagsterInstance.local_temp(folder, overrides={"telemetry": {"enabled": False}})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=250, help="mapped steps")
    parser.add_argument("--threads", type=int, default=8, help="steps in flight at a time")
    parser.add_argument("--wait", type=float, default=0, help="seconds that each step waits")
    parser.add_argument(
        "--multiprocess-steps", type=int, default=8, help="steps of the multiprocess run; 0: none"
    )
    parser.add_argument("--dagster-home", help="folder of a dagster.yaml; default: SQLite")
    arguments = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as folder,
        open_instance(arguments.dagster_home, folder) as instance,
    ):
        runs = [(threaded, arguments.steps, arguments.threads), (in_process, arguments.steps, None)]
        if arguments.multiprocess_steps:
            runs.append((multiprocess, arguments.multiprocess_steps, arguments.threads))
        milliseconds_per_step(instance, threaded, 10, None, 0)  # imports, first connections
        figures = [
            (
                job.__name__,
                steps,
                milliseconds_per_step(instance, job, steps, threads, arguments.wait),
            )
            for job, steps, threads in runs
        ]
        storage = type(instance.event_log_storage).__name__
    base = figures[0][2]
    print(f"storage {storage}, {arguments.threads} at a time")
    print(f"{'executor':14}{'steps':>7}{'ms/step':>10}{'ratio':>8}")
    for name, steps, figure in figures:
        print(f"{name:14}{steps:7}{figure:10.1f}{figure / base:8.1f}")


if __name__ == "__main__":
    main()
