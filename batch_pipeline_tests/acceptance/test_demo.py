"""The demo as a process: it ends correctly, and leaves no process behind."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading

import click
import psutil
import pytest

from batch_pipeline import demo as stack_runner
from batch_pipeline_tests.patience import WAIT_SECONDS, wait_until

from ..integration.console import Console
from .conftest import clean_environment


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended after it was listed
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [pytest.param([], marks=pytest.mark.proof), ["--exit", "--json"]]
)
def test_a_demo_whose_dagster_is_killed_ends_with_the_end_of_its_log(tmp_path, options):
    home, log = tmp_path / "home", tmp_path / "demo.log"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "batch_pipeline", "demo", *options],
            env=clean_environment(BATCH_PIPELINE_HOME=str(home)),
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: batch_of(home), "the batch is submitted")
        [dagster] = [
            child
            for child in psutil.Process(demo.pid).children()
            if "dagster dev" in command_of(child)
        ]
        os.killpg(dagster.pid, signal.SIGKILL)
        assert demo.wait(WAIT_SECONDS) == 1, log.read_text()
    finally:
        demo.terminate()  # so that it stops its database
        demo.wait(60)
    said = log.read_text()
    assert "Error: Dagster ended" in said
    last_line = (home / "dagster" / "dagster-dev.log").read_text().splitlines()[-1]
    assert click.unstyle(last_line) in said
    assert "Traceback" not in said
    wait_until(lambda: not processes_of(home), f"nothing is left of {processes_of(home)}")


def batch_of(home):
    """Return whether a batch has been submitted: its originals are stored, its note is gone."""
    return any(home.glob("uploads/*/*/original.*")) and not any(
        home.glob("uploads/.batch_pipeline/submissions/*")
    )


IMPATIENT_DEMO = """
import sys
from batch_pipeline.cli import demo, main

demo.STANDSTILL_SECONDS = 1
sys.argv[1:] = ["demo", "--exit"]
main()
"""


@pytest.mark.slow
@pytest.mark.proof
def test_a_demo_that_nobody_watches_ends_if_the_model_server_stays_down(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT_DEMO],
        env=clean_environment(
            BATCH_PIPELINE_HOME=str(tmp_path / "home"),
            BATCH_PIPELINE_ANALYZER="ollama",
            BATCH_PIPELINE_OLLAMA_HOST="http://127.0.0.1:9",
        ),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    expected = r"^Error: the batch has stood still for .* minutes: (waits|nothing)\b"
    assert re.search(expected, done.stderr, re.MULTILINE), done.stderr
    wait_until(lambda: not processes_of(tmp_path / "home"), "nothing is left")


def processes_of(home):
    """List the processes of this home: their command or environment names it."""

    def mentions(process):
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            return False
        return any(str(home) in word for word in words)

    return [command_of(p) for p in psutil.process_iter() if mentions(p)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "code", "sentence"),
    [
        (None, 130, "Stopped"),  # while the database is created
        ("Starting Dagster", 130, "The next start continues the work"),
        pytest.param(
            *("files queued", 130, "The next start continues the work"),
            marks=pytest.mark.proof,
        ),
        pytest.param(
            *("reading", 130, "The next start continues the work"),
            marks=pytest.mark.proof,
        ),
        ("Ctrl-C stops it", 0, "Stopping"),
    ],
)
def test_ctrl_c_stops_the_demo_at_any_moment_and_the_batch_is_intact(
    tmp_path, moment, code, sentence
):
    home = tmp_path / "home"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "BATCH_PIPELINE_HOME": str(home),
    }
    console = Console(environment, tmp_path)
    with console.in_terminal("demo") as terminal:
        if moment is None:
            wait_until((home / "postgres").is_dir, "the database is being made")
        else:
            terminal.wait_until(lambda text: moment in text, seconds=120)
        for _ in range(3):  # people press it more than once
            terminal.press_ctrl_c()
            terminal.read_for(0.05)
        ended = terminal.wait(WAIT_SECONDS)
        if "Ctrl-C stops it" in terminal.text:  # the batch ended first
            code, sentence = 0, "Stopping"
        assert ended == code, terminal.text
        assert "Traceback" not in terminal.text
        assert sentence in terminal.text
    wait_until(lambda: not processes_of(home), f"nothing is left of {processes_of(home)}")

    # All that was begun is complete, including what the next start needs.
    listed = console("status", "--json")
    assert listed.code == 0, listed.err
    for batch in listed.json:
        uploads = console("status", batch["batch_id"], "--json").json["uploads"]
        ended = [u for u in uploads if u["processing_status"] in {"completed", "failed"}]
        assert len(uploads) == batch["total_uploads"] == 15
        assert len(ended) == batch["processed_uploads"]
    assert bool(listed.json) == (moment not in {None, "Starting Dagster"})


CTRL_C_AT_THE_START = """
import os, signal, subprocess, sys
from pathlib import Path
from batch_pipeline.demo import running_stack
from batch_pipeline.settings import Settings

start = subprocess.Popen._execute_child

def start_and_press_ctrl_c(*arguments):
    start(*arguments)
    os.kill(os.getpid(), signal.SIGINT)

subprocess.Popen._execute_child = start_and_press_ctrl_c
try:
    with running_stack(Settings(_env_file=None, home=Path(sys.argv[1]))):
        print("it went on")
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_while_the_stack_is_being_started_leaves_no_process_behind(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C_AT_THE_START, str(tmp_path / "home")],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.stdout == "stopped\n", done.stderr
    wait_until(lambda: not processes_of(tmp_path / "home"), "nothing is left")


def test_a_stack_that_has_just_ended_is_not_an_error_on_macos(monkeypatch):
    def refuse(*_):  # macOS does so if only zombies are left in a group
        raise PermissionError

    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    monkeypatch.setattr(os, "killpg", refuse)

    stack_runner._stop(process)

    assert process.returncode == 0


def test_a_proxy_of_the_environment_does_not_keep_the_demo_from_its_own_stack(
    tmp_path, monkeypatch
):
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setattr(stack_runner, "START_SECONDS", 5)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    (tmp_path / "log").touch()
    command = [sys.executable, "-c", "input()"]
    with (
        http.server.HTTPServer(("127.0.0.1", 0), Ready) as server,
        subprocess.Popen(command, stdin=subprocess.PIPE) as process,
    ):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            stack = stack_runner.Stack(url, tmp_path / "log", process)
            stack_runner._wait_until_loaded(stack)
        finally:
            server.shutdown()
            thread.join()
            process.kill()
