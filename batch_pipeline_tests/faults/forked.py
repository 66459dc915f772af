"""Processes that are forked from one that has imported everything, as run workers in production.

A new interpreter would import for two seconds of a core.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import TextIO

from batch_pipeline.testing import model_caller

#: Imported once for each process that runs tests: what workers import only on demand, too.
_PRELOADED = [
    __name__,
    "batch_pipeline_tests.faults.run_worker",
    "batch_pipeline.model_servers.ollama",
    "batch_pipeline.model_servers.openai_compatible",
    "psycopg2.extras",
    "upath.implementations.local",
]


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Call a function of a module in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def start_model_caller(
    arguments: list[str], environment: dict[str, str]
) -> tuple[BaseProcess, TextIO]:
    """Start `model_caller` in this environment; return its input and output, too."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(120)
        return start(_call_models, arguments, environment, theirs), ours.makefile("rw")


def _call_models(
    arguments: list[str], environment: dict[str, str], connection: socket.socket
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = sys.stdout = connection.makefile("rw")
    model_caller.main(arguments)
