"""What every peer does for one upload, in plain functions: one call to the model, the row changes.

The same calls to the scripted model server and the same changes to the same tables as the
pipeline makes them: claim, completion with description and vector, the batch's counters in the
same transaction, progress on the PostgreSQL channel. It is less than the pipeline does: the file is
sent as it is (nothing is decoded, no thumbnail, no audit), nothing is kept between claim and
completion, no heartbeat. So what is compared is generous to the peers.

Needs nothing of `batch_pipeline`: peers run in environments that do not have it.
"""

import base64
import hashlib
import http.client
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from tools.usage import Usage

CHANNEL, DIMENSIONS = "batch_pipeline_progress", 1024
#: How long a peer may take to note what has ended, before it is counted (seconds).
RECORD_SECONDS = 20
PROMPT = "Describe this picture in three sentences."

_CLAIM = """
    UPDATE uploads SET processing_status = 'analyzing', owner_run_id = 'peer', claim = claim + 1,
        heartbeat_at = now(), attempts = attempts + 1, updated_at = now()
    WHERE id = %s AND processing_status = 'pending'
    RETURNING filename, file_path, file_size
"""
_COMPLETE = """
    UPDATE uploads SET processing_status = 'completed', owner_run_id = NULL, description = %s,
        description_audit_score = 100, vision_model = %s, embedding_local = %s::vector,
        embedding_model = 'peer', stage_seconds = %s, updated_at = now()
    WHERE id = %s AND processing_status = 'analyzing'
"""
_COUNT = """
    UPDATE upload_batches SET processed_uploads = processed_uploads + 1,
        successful_uploads = successful_uploads + 1, updated_at = now(),
        status = CASE WHEN processed_uploads + 1 >= total_uploads THEN 'completed' ELSE status END
    WHERE id = %s RETURNING status, total_uploads, processed_uploads
"""


@dataclass(frozen=True)
class Assignment:
    """What a peer is to do; JSON in the environment, which a process of its own inherits."""

    database_url: str
    state_url: str
    """An empty database for whatever the peer keeps of its own."""
    model_url: str
    model: str
    storage: str
    batch_id: str
    threads: int
    folder: str
    """For files of the peer."""
    variant: str = ""
    """For a peer that knows several ways."""


_kept = threading.local()
_assignment: Assignment | None = None


def assignment() -> Assignment:
    """What this process is to do."""
    global _assignment  # noqa: PLW0603 - read once per process
    if _assignment is None:
        _assignment = Assignment(**json.loads(os.environ["BENCHMARK_ASSIGNMENT"]))
    return _assignment


def begin_batch() -> list[str]:
    """Mark the batch processing; the ids of its uploads, oldest first."""
    with _database().transaction():
        _database().execute(
            "UPDATE upload_batches SET status = 'processing', started_at = now() WHERE id = %s",
            [assignment().batch_id],
        )
        rows = _database().execute(
            "SELECT id::text FROM uploads WHERE batch_id = %s AND processing_status = 'pending'"
            " ORDER BY created_at, id",
            [assignment().batch_id],
        )
        return [row[0] for row in rows.fetchall()]


def work(upload_id: str) -> None:
    """One upload from claim to stored row."""
    filename, path, size = _claim(upload_id)
    begun = time.perf_counter()
    description = _describe((Path(assignment().storage) / path).read_bytes())
    seconds = {"describe": round(time.perf_counter() - begun, 3)}
    _complete(upload_id, filename, size, description, seconds)


def _uploads() -> int:
    statement = "SELECT total_uploads FROM upload_batches WHERE id = %s"
    row = _database().execute(statement, [assignment().batch_id]).fetchone()
    assert row is not None
    return int(row[0])


def _claim(upload_id: str) -> tuple[str, str, int]:
    with _database().transaction():
        row = _database().execute(_CLAIM, [upload_id]).fetchone()
        assert row is not None, f"{upload_id} is not pending"
        _announce_file(upload_id, row[0], row[2], 0, "processing")
    return row


def _complete(
    upload_id: str, filename: str, size: int, description: str, seconds: dict[str, float]
) -> None:
    batch_id = assignment().batch_id
    vector = json.dumps(_embed(description))
    values = [description, assignment().model, vector, json.dumps(seconds), upload_id]
    with _database().transaction():
        assert _database().execute(_COMPLETE, values).rowcount == 1
        _announce_file(upload_id, filename, size, 100, "completed")
        row = _database().execute(_COUNT, [batch_id]).fetchone()
        assert row is not None
        status, total, processed = row
        counts = {"status": status, "total": total, "processed": processed}
        _announce("batch_progress", {"batch_id": batch_id, **counts})


def _announce_file(upload_id: str, name: str, size: int, percentage: int, status: str) -> None:
    file = {"upload_id": upload_id, "file_name": name, "file_size": size}
    state = {"progress_percentage": percentage, "status": status}
    _announce("file_progress", {"batch_id": assignment().batch_id, **file, **state})


def _announce(action: str, payload: dict[str, Any]) -> None:
    body = json.dumps({"action": action, "payload": payload, "timestamp": time.time()})
    _database().execute("SELECT pg_notify(%s, %s)", [CHANNEL, body])


def _describe(picture: bytes) -> str:
    message = {
        "role": "user",
        "content": PROMPT,
        "images": [base64.b64encode(picture).decode()],
    }
    question = {"model": assignment().model, "messages": [message], "stream": False}
    http_client = _model_server()
    http_client.request("POST", "/api/chat", json.dumps(question))
    answer = http_client.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    return str(json.loads(body)["message"]["content"])


def _embed(text: str) -> list[float]:
    """Stand for an embedding built in: each word adds to a few places."""
    vector = [0.0] * DIMENSIONS
    for word in text.lower().split():
        digest = hashlib.sha256(word.encode()).digest()
        for place in range(0, 32, 4):
            number = int.from_bytes(digest[place : place + 4], "big")
            vector[number % DIMENSIONS] += 1.0 if number & 0x80000000 else -1.0
    length = math.sqrt(sum(number * number for number in vector))
    return [number / length for number in vector]


def _database() -> psycopg.Connection:
    """One connection for each thread, kept: what a pool would come to."""
    if not hasattr(_kept, "database"):
        _kept.database = psycopg.connect(assignment().database_url, autocommit=True)
    connection: psycopg.Connection = _kept.database
    return connection


def _model_server() -> http.client.HTTPConnection:
    if not hasattr(_kept, "model_server"):
        host = urlsplit(assignment().model_url).netloc
        _kept.model_server = http.client.HTTPConnection(host, timeout=600)
    connection: http.client.HTTPConnection = _kept.model_server
    return connection


def measure(run: Callable[[], object], recorded: Callable[[], int] | None = None) -> None:
    """Run, and print what it took as one line of JSON.

    Args:
        run: works the whole batch.
        recorded: counts the uploads whose end the peer has noted in a place of its own; asked
            again for a while, since some write behind.
    """
    with Usage() as usage:
        run()
    noted = 0
    if recorded:
        deadline = time.monotonic() + RECORD_SECONDS
        while (noted := recorded()) < _uploads() and time.monotonic() < deadline:
            time.sleep(0.2)
    print(json.dumps({**usage.figures, "recorded": noted}), flush=True)
