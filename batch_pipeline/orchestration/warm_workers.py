"""Run workers that start warm: forked from a process that has imported the code location.

Dagster's code server starts a process for every run, by Python's ``multiprocessing``. Its way is
``spawn``: a new interpreter imports Dagster and this project, for 2.6 s of a core, and keeps
133 MiB of its own. Here the code server is given the standard library's ``forkserver`` instead: a
process beside it imports everything once (`fork_server`) and forks a worker for each run. All else
stays Dagster's: how a run is started, watched, terminated and found dead.

The fork server is a process of its own because the code server has threads. It ends by itself once
the code server and all workers are gone. Code and the settings that jobs are made of are those of
the moment in which the code location was loaded; reloading it starts another fork server.

Where a fork is not safe (macOS) or not there (Windows), and where ``WARM_RUN_WORKERS`` is off,
workers are spawned as ever.
"""

import multiprocessing.connection
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver, popen_forkserver, util
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess

from batch_pipeline.dagster_internals import DagsterApiServer
from batch_pipeline.settings import Settings

#: What the standard library gives as exit code of a worker whose fork server is gone.
_UNKNOWN_EXIT = 255


class _Popen(popen_forkserver.Popen):
    """A worker that is not called dead because its fork server is."""

    def _launch(self, process_obj: BaseProcess) -> None:
        super()._launch(process_obj)  # type: ignore[misc]
        self._worker: int | None = None
        with suppress(OSError):  # it has ended already, and its exit code is there to be read
            self._worker = os.pidfd_open(self.pid)
            util.Finalize(self, os.close, (self._worker,))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Give the exit code; None while the worker lives."""
        code: int | None = super().poll(flag)
        if code == _UNKNOWN_EXIT and self._worker is not None:
            timeout = 0 if flag == os.WNOHANG else None
            if not multiprocessing.connection.wait([self._worker], timeout):
                self.returncode = code = None
        return code


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> _Popen:  # noqa: N802 - named by the standard library
        return _Popen(process_obj)


class _WarmContext(ForkServerContext):
    Process = _Process


def start_run_workers_warm(settings: Settings) -> bool:
    """Have the code server that is loading this code location fork its run workers.

    Tells whether it will: not if the settings or the system say otherwise, nor if this process is
    no code server.
    """
    if not (settings.warm_run_workers and sys.platform == "linux"):
        return False
    servers = list(_code_servers_on_the_stack())
    for server in servers:
        server._mp_ctx = _WarmContext()  # type: ignore[assignment]
    if servers:
        forkserver.set_forkserver_preload(["batch_pipeline.orchestration.fork_server"])
        forkserver.ensure_running()
    return bool(servers)


def _code_servers_on_the_stack() -> Iterator[DagsterApiServer]:
    """Find the code server that imports us: it hands itself to nobody, but it is our caller."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        caller = frame.f_locals.get("self")
        if frame.f_code.co_name == "__init__" and isinstance(caller, DagsterApiServer):
            yield caller
