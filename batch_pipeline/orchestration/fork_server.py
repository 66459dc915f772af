"""What run workers are forked from (`warm_workers`); only the fork server imports this module.

At a fork a child gets memory and open files, but of the threads only the one that forks. So nothing
is opened here: importing the code location starts no thread, takes no lock and connects to nothing,
which a test looks at.
"""

import gc
import importlib
import logging
import os
import signal

from batch_pipeline.errors import PipelineError

#: What a run needs that the code location imports only when it is asked for.
_NEEDED_BY_RUNS = (
    "batch_pipeline.definitions",
    "batch_pipeline.model_servers.factory",
    "batch_pipeline.model_servers.embedded",
)


def _leave_signals_to_workers() -> None:
    """Outlive SIGTERM, which who stops a stack sends to all its processes at once.

    Until the workers have ended, this is what tells the code server of their ends. SIGINT is
    treated like that by the standard library, but only once everything is imported.
    """
    server = os.getpid()

    def hear_it() -> None:
        if os.getppid() == server:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.register_at_fork(after_in_child=hear_it)


def _import_everything() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    # numpy's library for matrices would start a thread for each core.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        definitions, *_ = [importlib.import_module(name) for name in _NEEDED_BY_RUNS]
        definitions.defs.get_repository_def().load_all_definitions()
    except Exception:
        # Each worker will meet the same error, and say so in its run.
        logging.exception("run workers start cold: the code location could not be imported")
    _preload_models()
    gc.collect()
    gc.freeze()  # a worker's collector would write to, and so copy, every page it looks at
    signal.signal(signal.SIGINT, before)


def _preload_models() -> None:
    """Import and load once what each worker would for itself.

    That is 1.5 s of a core and 150 MiB for the embedded models, and 0.1 s (Ollama) or 0.8 s
    (OpenAI) for the client of a model server.
    """
    from batch_pipeline.model_servers.factory import preload  # noqa: PLC0415 - after SIGINT
    from batch_pipeline.settings import load_settings  # noqa: PLC0415

    try:
        preload(load_settings())
    except PipelineError:
        # Each worker will meet the same error, and say so of its uploads.
        logging.exception("the models could not be loaded for all run workers")


_leave_signals_to_workers()
_import_everything()
