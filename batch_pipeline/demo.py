"""The whole stack on free ports for the demo: webserver, daemon and code location in one child.

The child is ``dagster dev`` with a separate instance under the home folder. Its output goes to a
log file there.
"""

import fcntl
import importlib.resources
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from batch_pipeline.errors import ConfigurationError, PipelineError, RefusedError
from batch_pipeline.settings import Settings

#: The sample files of a checkout; an installed package does not have them.
SAMPLE_MEDIA = Path(__file__).resolve().parent.parent / "examples" / "media"

START_SECONDS, STOP_SECONDS = 120.0, 20.0


@dataclass(frozen=True)
class Stack:
    """A running Dagster."""

    url: str
    """Address of the UI."""
    log_file: Path
    process: "subprocess.Popen[bytes]"
    """``dagster dev``, the leader of the process group of the whole stack."""

    def require_alive(self) -> None:
        """Check that the stack still runs; otherwise nothing is processed any more.

        Raises:
            PipelineError: it has ended; the message ends with the last lines of its log.
        """
        if self.process.poll() is not None:
            raise _gone("ended", self.log_file)


def sample_media() -> list[Path]:
    """List the sample files, without the script that made them.

    Raises:
        RefusedError: this is not a checkout of the project.
    """
    if not SAMPLE_MEDIA.is_dir():
        raise RefusedError(
            "the sample files are part of the project's checkout, not of the installed package: "
            "run `batch-pipeline demo --media FOLDER` with your own photos and videos"
        )
    notes = {".py", ".md"}
    return sorted(path for path in SAMPLE_MEDIA.iterdir() if path.suffix not in notes)


def prepare_dagster_home(settings: Settings) -> Path:
    """Make the folder for ``DAGSTER_HOME``, with our ``dagster.yaml`` in it."""
    folder = settings.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    config = importlib.resources.files("batch_pipeline.orchestration") / "dagster.yaml"
    (folder / "dagster.yaml").write_text(config.read_text())
    return folder


def dagster_environment(settings: Settings) -> dict[str, str]:
    """Return variables for a Dagster on this home: its folders, and which warning to hide."""
    return {
        "DAGSTER_HOME": str(prepare_dagster_home(settings)),
        "BATCH_PIPELINE_HOME": str(settings.home),
        # Dagster causes this warning itself: it copies sensors with a parameter that is beta.
        "PYTHONWARNINGS": ",".join(
            [
                "ignore:Parameter `owners` of initializer `SensorDefinition",
                *filter(None, [os.environ.get("PYTHONWARNINGS")]),
            ]
        ),
    }


def hold_home(settings: Settings) -> int:
    """Take the home for one stack; return a descriptor that holds it until it is closed.

    Raises:
        ConfigurationError: the home cannot be written.
        RefusedError: another stack has the home. With two stacks on one database, one of them would
            process nothing.
    """
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        lock = os.open(settings.home / "dagster.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"BATCH_PIPELINE_HOME={str(settings.home)!r} cannot be used: {error.strerror}; "
            "expected a folder that can be written"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise RefusedError(
            f"a stack already runs on {settings.home} (process {holder or 'unknown'}): stop it, "
            "use it, or set BATCH_PIPELINE_HOME to another folder"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


@contextmanager
def running_stack(
    settings: Settings, *, port: int | None = None, announce: Callable[[], None] = lambda: None
) -> Iterator[Stack]:
    """Start webserver, daemon and code location; stop them at the end.

    Args:
        settings: the settings, which name the home.
        port: port of the UI; None: a free one.
        announce: called right before the start, after all checks have passed.

    Raises:
        ConfigurationError: the home cannot be written.
        RefusedError: another program listens on the port, or another stack has this home.
        PipelineError: they did not start; the message ends with the last lines of their log.
    """
    port = free_port() if port is None else require_free(port)
    with _ended_by_signals(), _held(settings) as lock:
        environment = os.environ | dagster_environment(settings)
        # Dagster recommends `dg dev` instead of `dagster dev`. They start the same, but `dg` brings
        # about 30 packages, such as clients of GitHub and of Dagster's cloud, which only `make dev`
        # installs.
        environment["PYTHONWARNINGS"] += ",ignore:Function `dev_command` is superseded"
        log_file = Path(environment["DAGSTER_HOME"]) / "dagster-dev.log"
        command = [
            *(sys.executable, "-m", "dagster", "dev"),
            *("-m", "batch_pipeline.definitions", "-h", "127.0.0.1", "-p", str(port)),
        ]
        announce()
        process: subprocess.Popen[bytes] | None = None
        try:
            # Otherwise an exception in between would leave the child running.
            with log_file.open("wb") as log, _signals_held_back():
                # The child gets its own session: Ctrl-C reaches only us, and we stop the whole
                # group.
                process = subprocess.Popen(  # noqa: S603 - our own interpreter
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock],  # the home stays taken as long as the stack lives
                )
            stack = Stack(f"http://127.0.0.1:{port}", log_file, process)
            _wait_until_loaded(stack)
            yield stack
        finally:
            if process:
                _stop(process)


@contextmanager
def _held(settings: Settings) -> Iterator[int]:
    lock = hold_home(settings)
    try:
        yield lock
    finally:
        os.close(lock)


def free_port() -> int:
    """Find a port of this machine on which no program listens.

    It is not one of the ports for outgoing connections (32768 and above): such a connection could
    take it before our server does.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def require_free(
    port: int, *, host: str = "127.0.0.1", advice: str = "or leave out --port for a free one"
) -> int:
    """Return the port, unless another program listens on it.

    Raises:
        RefusedError: the UI cannot listen on it; `advice` ends the message.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the web server does
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RefusedError(
                f"port {port} cannot be used: {error.strerror}; choose another, {advice}"
            ) from error
    return port


def _wait_until_loaded(stack: Stack) -> None:
    deadline = time.monotonic() + START_SECONDS
    # A proxy in the environment cannot reach this machine's loopback.
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while stack.process.poll() is None and time.monotonic() < deadline:
        try:
            with directly.open(f"{stack.url}/server_info", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    ended = stack.process.poll()
    what = f"did not start within {START_SECONDS:g} s" if ended is None else "ended at its start"
    raise _gone(what, stack.log_file)


def _gone(what: str, log_file: Path) -> PipelineError:
    text = click.unstyle(log_file.read_text(errors="replace"))  # Dagster's log is coloured
    lines = text.splitlines()[-15:]
    return PipelineError(f"Dagster {what}; the end of {log_file}:\n" + "\n".join(lines))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise an exception when a signal ends this process, so that the child is stopped too.

    In a script's background job, SIGINT is ignored. The child would inherit that, but we stop it
    with SIGINT. So SIGINT gets its handler back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda n, _: sys.exit(128 + n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let signals that end this process take effect only when the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda n, _: received.append(n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
        except (ProcessLookupError, PermissionError):  # macOS refuses to signal a group of zombies
            process.poll()
            return
        except subprocess.TimeoutExpired:
            continue
        return
