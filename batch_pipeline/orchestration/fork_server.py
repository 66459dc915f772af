"""Prepares the process that run workers are forked from (`warm_workers`).

Only the fork server imports this module. A forked child gets the memory, the open files and only
the thread that forks. So this process must start no thread, hold no lock and open no connection. A
test checks this.
"""

import gc
import importlib
import logging
import os
import signal
import time

from batch_pipeline.errors import PipelineError

#: Modules that every run needs. The code location and Dagster import some of them only on demand.
NEEDED_BY_RUNS = (
    "batch_pipeline.definitions",
    "batch_pipeline.model_servers.factory",
    "batch_pipeline.model_servers.embedded",
    "psycopg2.extras",
    "upath.implementations.local",
)


#: If a worker is forked within this time after SIGTERM, its run was requested before the stop
#: (seconds). The worker ends at once: otherwise nothing would end it, and the code server would
#: wait for it.
STOP_SECONDS = 30.0
_STOPS = (signal.SIGTERM, signal.SIGINT)


def _leave_signals_to_workers() -> None:
    """Outlive SIGTERM, which a stack that stops sends to all its processes at once.

    The fork server has to live until its workers have ended, because it tells the code server how
    they ended. The standard library ignores SIGINT, but only after all imports. A worker inherits
    that both are ignored. So signals are held back during the fork, until the worker has its own
    handlers (`hear_signals`).
    """
    server = os.getpid()
    told_to_stop_at = -STOP_SECONDS

    def outlive(number: int, frame: object) -> None:
        nonlocal told_to_stop_at
        told_to_stop_at = time.monotonic()

    def in_child() -> None:
        if os.getppid() != server:  # forked by a worker
            hear_signals()
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if time.monotonic() - told_to_stop_at < STOP_SECONDS:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, outlive)
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS),
        after_in_parent=hear_signals,
        after_in_child=in_child,
    )


def hear_signals() -> None:
    """Receive the signals that were held back during a fork."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _import_everything() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    # OpenBLAS, which numpy uses, would start a thread for each core.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        definitions, *_ = [importlib.import_module(name) for name in NEEDED_BY_RUNS]
        definitions.defs.get_repository_def().load_all_definitions()
    except Exception:
        # Each worker meets the same error and reports it in its run.
        logging.exception("run workers start cold: the code location could not be imported")
    _preload_models()
    gc.collect()
    gc.freeze()  # otherwise a worker's garbage collector writes to shared pages and so copies them
    signal.signal(signal.SIGINT, before)


def _preload_models() -> None:
    """Load the models or the client of the model server, so that workers do not load them again.

    This saves each worker 1.5 s of a core and 150 MiB with the embedded models, and 0.1 s (Ollama)
    or 0.8 s (OpenAI) with a model server. The compiled patterns of refusals save 0.02 s.
    """
    from batch_pipeline.model_servers.factory import preload  # noqa: PLC0415 - after SIGINT
    from batch_pipeline.services.descriptions import refusals  # noqa: PLC0415
    from batch_pipeline.settings import load_settings  # noqa: PLC0415

    refusals.preload()
    try:
        preload(load_settings())
    except PipelineError:
        # Each worker meets the same error and reports it for its uploads.
        logging.exception("the models could not be loaded for all run workers")


_leave_signals_to_workers()
_import_everything()
