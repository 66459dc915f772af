"""The job `process_batch` with Dagster's default executor: a process for each step."""

import json
import sys

import dagster as dg
from dagster._cli.api import _execute_run_command_body
from tools.stand import Dispatcher
from work import pipeline


def run(instance: dg.DagsterInstance, dispatcher: Dispatcher) -> None:
    for run_id in dispatcher.tick({"multiprocess": {}}):
        _execute_run_command_body(
            run_id, instance, write_stream_fn=lambda _: None, set_exit_code_on_failure=False
        )


if __name__ == "__main__":
    # The sensor finds its batches. So `work.host` reserves nothing, and leaves it to the runs.
    with dg.DagsterInstance.get() as opened:
        sensor = Dispatcher(pipeline(), opened)
        print("ready", flush=True)
        for _ in sys.stdin:
            run(opened, sensor)
    print(json.dumps({"recorded": 0, "of": 0}), flush=True)
