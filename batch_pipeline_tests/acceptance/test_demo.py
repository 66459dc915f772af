"""The demo as a process: it ends as it should, and leaves no process behind."""

import signal
import subprocess
import sys

import psutil
import pytest

from .conftest import clean_environment, wait_until


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended since it was listed
        return ""


@pytest.mark.slow
def test_a_demo_that_is_terminated_takes_the_whole_stack_with_it(tmp_path):
    with (tmp_path / "demo.log").open("wb") as log:
        demo = subprocess.Popen(
            [sys.executable, "-m", "batch_pipeline", "demo"],
            env=clean_environment(BATCH_PIPELINE_HOME=str(tmp_path / "home")),
            stdout=log,
            stderr=log,
        )

    def daemon_runs():
        children = psutil.Process(demo.pid).children(recursive=True)
        return children if any("_daemon" in command_of(child) for child in children) else None

    children = wait_until(daemon_runs, "the stack starts")
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
