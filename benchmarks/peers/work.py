"""The unit of work of every peer: one upload, by the same `UploadProcessor` as in our own steps.

Nothing is left out: claim, decoding, thumbnail, description, audit, vector, stored row, counters of
the batch, progress messages, heartbeats. A peer passes each upload to a separate unit (a task, job,
actor or workflow), which calls `process`.

A peer is a script with a host. The host starts its workers and prints ``ready``. Then it reads ids
of batches from standard input, and passes the uploads of each to the workers. When its input ends,
it stops its workers and prints how many ends it has recorded.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from batch_pipeline.services.pipeline import Pipeline, shared_pipeline
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import FailedUpload, UploadProcessor
from batch_pipeline.settings import load_settings

#: Stored in rows in place of the id of one of the pipeline's own runs.
RUN_ID = "peer"
#: Time in which a peer may record something after the work (seconds).
_RECORD_SECONDS = 20

_lock = threading.Lock()


@dataclass(frozen=True)
class Assignment:
    """The task of a peer; JSON in the environment, which its workers inherit."""

    state_url: str
    """An empty PostgreSQL database for the peer's own data."""
    folder: str
    """Folder for files of the peer."""
    processes: int
    """Number of workers, if the peer can have several."""
    threads: int
    """Uploads in flight in each worker."""
    variant: str = ""
    """Argument for a peer that supports several executors or modes."""


@cache
def assignment() -> Assignment:
    return Assignment(**json.loads(os.environ["BENCHMARK_ASSIGNMENT"]))


def pipeline() -> Pipeline:
    """The pipeline of this process, made from the settings in the environment."""
    return shared_pipeline(load_settings())


@cache
def _processor() -> UploadProcessor:
    states, lease = pipeline().states, pipeline().settings.lease_seconds
    keeper = ClaimKeeper(states, RUN_ID, lease_seconds=lease)
    keeper.__enter__()
    atexit.register(keeper.__exit__, None, None, None)
    return UploadProcessor(pipeline(), keeper)


def process(upload_id: str) -> None:
    """Process one upload; raises the error with which it failed."""
    with _lock:
        processor = _processor()
    outcome = processor.process(uuid.UUID(upload_id), RUN_ID, retries_left=0)
    if isinstance(outcome, FailedUpload):
        raise outcome.error


def reserve(batch_id: str) -> list[str]:
    """Reserve all uploads of a batch, oldest first, as the first step of a run does."""
    loaded = pipeline().states.load_batch(uuid.UUID(batch_id), RUN_ID, limit=sys.maxsize)
    assert loaded
    return [str(upload.id) for upload in loaded.reserved]


@contextmanager
def workers(command: Sequence[str], count: int = 1) -> Iterator[None]:
    """Run workers of a peer as child processes, until the host ends."""
    running = [
        subprocess.Popen([sys.executable, "-W", "ignore", *command], stdin=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for worker in running:
            worker.terminate()
        for worker in running:
            worker.wait(timeout=30)


def host(hand_out: Callable[[Sequence[str]], object], recorded: Callable[[], int]) -> None:
    """Pass on the uploads of each named batch; at the end print what was recorded."""
    print("ready", flush=True)
    total = 0
    for line in sys.stdin:
        upload_ids = reserve(line.strip())
        total += len(upload_ids)
        hand_out(upload_ids)
    deadline = time.monotonic() + _RECORD_SECONDS
    while (count := recorded()) < total and time.monotonic() < deadline:
        time.sleep(0.2)
    print(json.dumps({"recorded": count, "of": total}), flush=True)
