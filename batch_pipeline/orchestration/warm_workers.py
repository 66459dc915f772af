"""Run workers that start warm: forked from a process that has imported the code location.

Dagster's code server starts a process for every run with Python's ``multiprocessing``. It uses the
method ``spawn``: a new interpreter imports Dagster and this project, which takes 2.6 s of a core
and 133 MiB of memory that is not shared. Here the code server gets the standard library's
``forkserver`` instead: a process beside it imports everything once (`fork_server`) and forks a
worker for each run. Dagster still starts and watches runs, terminates them and notices when they
are dead.

The fork server is a separate process because the code server has threads. It ends by itself when
the code server and all workers are gone. Workers use the code and the job settings that were
current when the code location was loaded; reloading it starts another fork server.

Workers are spawned as usual where a fork is not safe (macOS) or not available (Windows), and where
``WARM_RUN_WORKERS`` is off.
"""

import atexit
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

#: Exit code that the standard library reports for a worker whose fork server is gone.
_UNKNOWN_EXIT = 255


class _Popen(popen_forkserver.Popen):
    """A worker that is not reported as dead just because its fork server is dead."""

    def _launch(self, process_obj: BaseProcess) -> None:
        super()._launch(process_obj)  # type: ignore[misc]
        self._worker: int | None = None
        with suppress(OSError):  # the worker has already ended; its exit code can be read
            self._worker = os.pidfd_open(self.pid)
            util.Finalize(self, os.close, (self._worker,))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code; None while the worker lives."""
        code: int | None = super().poll(flag)
        if code == _UNKNOWN_EXIT and self._worker is not None:
            timeout = 0 if flag == os.WNOHANG else None
            if not multiprocessing.connection.wait([self._worker], timeout):
                self.returncode = code = None
        return code


class _Process(ForkServerProcess):
    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        try:
            code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
            return code
        finally:
            # A spawned worker does this when its interpreter ends; a forked one would not. Without
            # it, the slots for model calls that a worker holds stay unused for a lease.
            atexit._run_exitfuncs()

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> _Popen:  # noqa: N802 - named by the standard library
        return _Popen(process_obj)


class _WarmContext(ForkServerContext):
    Process = _Process


def start_run_workers_warm(settings: Settings) -> bool:
    """Make the code server that loads this code location fork its run workers.

    Returns whether it will. It will not if the settings or the system do not allow it, or if this
    process is not a code server.
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
    """Find the code server that imports us. No API returns it, but it is one of our callers."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        caller = frame.f_locals.get("self")
        if frame.f_code.co_name == "__init__" and isinstance(caller, DagsterApiServer):
            yield caller
