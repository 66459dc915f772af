"""A run worker as a separate process.

A fault kills the process with SIGKILL at a chosen instruction: `gif` when a GIF is decoded, like a
decoder that crashes; `thumbnail` after the file and before its row; `answered` after a description
has arrived and before it is stored; `described` after it is stored. `clock` only sets the process's
clock an hour ahead.
"""

import os
import signal
import time
import warnings
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from typing import Any

import dagster as dg
from dagster._core.execution.api import execute_run

from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.services import upload_processing
from batch_pipeline.services.states.upload_states import UploadStates
from batch_pipeline_tests.faults import forked


def process_batch() -> dg.JobDefinition:
    return build_definitions().resolve_job_def("process_batch")


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare(fault: str) -> None:
    decode = upload_processing.decode
    if fault == "gif":
        upload_processing.decode = lambda file, type_, **how: (
            die() if type_.format == "gif" else decode(file, type_, **how)
        )
    elif fault == "thumbnail":
        UploadStates.store_thumbnail = die
    elif fault == "answered":
        UploadStates.store_description = die
    elif fault == "described":
        UploadStates.complete = die
    elif fault == "clock":
        clock = time.time
        time.time = lambda: clock() + 3600


def main(run_id: str, fault: str, environment: Mapping[str, str]) -> None:
    """Execute a run, with settings from this environment."""
    os.environ.clear()
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)
    warnings.simplefilter("ignore")
    prepare(fault)
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        execute_run(dg.reconstructable(process_batch), run, instance)


def start(run_id: str, fault: str, **variables: str) -> BaseProcess:
    """Start a worker, with the settings that the environment has now, and these variables."""
    return forked.start(main, run_id, fault, os.environ | variables)
