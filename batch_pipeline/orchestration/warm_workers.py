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
import logging
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver, popen_forkserver, synchronize, util
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess

from batch_pipeline.dagster_internals import DagsterApiServer
from batch_pipeline.settings import Settings

_log = logging.getLogger(__name__)

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
        # Its fork server held them back (`fork_server`), and the handlers are in place by now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
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


class _Event(synchronize.Event):
    """An event whose `set` does not wait for the processes that it wakes.

    The code server tells a run worker to end by an event, and holds a lock meanwhile. A worker that
    was killed never wakes: the code server would wait for it, and do nothing else, for ever.
    """

    def set(self) -> None:
        threading.Thread(target=super().set, name="wake a run worker", daemon=True).start()


class _WarmContext(ForkServerContext):
    Process = _Process

    def Event(self) -> _Event:  # noqa: N802 - named by the standard library
        return _Event(ctx=self.get_context())


def keep_reporting_ended_workers() -> None:
    """Let a code server outlive an error of its thread that reports how run workers ended.

    Such an error, for example of a database that is away, ends that thread of Dagster. No end of a
    worker would be reported any more, and the code server would not end until it is killed.
    """
    for server in _code_servers_on_the_stack():
        server._check_for_orphaned_runs = partial(  # type: ignore[method-assign]
            _check_or_log, server._check_for_orphaned_runs
        )


def _check_or_log(check: Callable[[], None]) -> None:
    try:
        check()
    except Exception:
        _log.exception("the ends of run workers could not be reported, and are reported later")


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
