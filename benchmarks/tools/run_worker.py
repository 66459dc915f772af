"""A run worker that measures itself: `python -m tools.run_worker RUN_ID`.

Does what `dagster api execute_run` does, settings in the environment, and prints one line of JSON
at its end: what the start of Python and the imports took, what the run took, the peak of memory.
With `--at-a-word`, the run begins when a line comes on standard input: several begin at a time.
"""

import json
import sys
import time

import psutil

from tools.usage import Usage, peak_mib, tree_cpu_seconds


def main() -> None:
    started = psutil.Process().create_time()
    import dagster as dg  # noqa: PLC0415 - part of the start that is measured
    from dagster._cli.api import _execute_run_command_body  # noqa: PLC0415
    from dagster._serdes import serialize_value  # noqa: PLC0415

    import batch_pipeline.definitions  # noqa: PLC0415
    import batch_pipeline.model_servers.ollama  # noqa: F401, PLC0415 - else with the first upload

    start = {"start_seconds": time.time() - started, "start_cpu_seconds": tree_cpu_seconds()}
    returned: list[str] = []  # as `dagster api execute_run` keeps what it is handed
    with dg.DagsterInstance.get() as instance:
        if "--at-a-word" in sys.argv:
            print("ready", flush=True)
            sys.stdin.readline()
        with Usage() as usage:
            code = _execute_run_command_body(
                sys.argv[1],
                instance,
                write_stream_fn=lambda event: returned.append(serialize_value(event)),
                set_exit_code_on_failure=True,
            )
    print(json.dumps({**start, **usage.figures, "peak_mib": peak_mib()}), flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
