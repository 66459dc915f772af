"""The unit of work of every peer: one upload, by the same `UploadProcessor` as in our own steps.

Nothing is left out: claim, decoding, thumbnail, description, audit, vector, stored row, counters
of the batch, progress messages, heartbeats. A peer hands each upload to a unit of its own (a task,
job, actor or workflow), which calls `process`.

A peer is a script with a host. The host starts its workers, prints ``ready``, reads ids of batches
from standard input, and hands out the uploads of each. When its input ends, it stops its workers
and prints how many ends it has recorded.
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

#: Stands in the rows where the pipeline's own runs have their ids.
RUN_ID = "peer"
#: Time for what a peer records after the work (seconds).
_RECORD_SECONDS = 20

_lock = threading.Lock()


@dataclass(frozen=True)
class Assignment:
    """What a peer is to do; JSON in the environment, which its workers inherit."""

    state_url: str
    """An empty PostgreSQL database for what the peer keeps."""
    folder: str
    """For files of the peer."""
    processes: int
    """Workers, if the peer has several."""
    threads: int
    """Uploads in flight in each worker."""
    variant: str = ""
    """For a peer that knows several ways."""


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
    """Process one upload; raises what it failed with."""
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
    """Hand out the uploads of each batch that is named, and at the end say what is recorded."""
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
