"""Progress messages: what they say, and how they leave the process.

Every message goes out on the PostgreSQL channel in the transaction that makes it true, so that
messages arrive in the order of the transitions and none speaks of what was rolled back. With a
Redis URL the same messages follow there once the transaction has ended.
"""

import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, text

from batch_pipeline.database.session import Database

CHANNEL = "batch_pipeline_progress"
#: PostgreSQL refuses a payload of 8000 bytes and more.
MAX_PAYLOAD_BYTES = 7999
#: Longest file name that a message shows (characters).
MAX_SHOWN_NAME = 255

FileStatus = Literal["processing", "completed", "failed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchProgress:
    """Counters of a batch at one moment."""

    batch_id: uuid.UUID
    user_id: uuid.UUID
    status: str
    total: int
    processed: int
    successful: int
    failed: int

    @property
    def progress_percentage(self) -> float:
        """Share of the uploads that have ended, 0-100."""
        return round(100 * self.processed / self.total, 1) if self.total else 0.0

    def payload(self) -> dict[str, Any]:
        """Body of a ``batch_progress`` message."""
        return {
            "batch_id": str(self.batch_id),
            "status": self.status,
            "total": self.total,
            "processed": self.processed,
            "successful": self.successful,
            "failed": self.failed,
            "progress_percentage": self.progress_percentage,
        }


@dataclass(frozen=True)
class FileProgress:
    """Where one file stands; the percentage is that of the stage it has reached."""

    batch_id: uuid.UUID | None
    upload_id: uuid.UUID
    file_name: str
    file_size: int
    progress_percentage: int
    status: FileStatus

    def payload(self) -> dict[str, Any]:
        """Body of a ``file_progress`` message."""
        values = asdict(self)
        return values | {
            "batch_id": str(self.batch_id) if self.batch_id else None,
            "upload_id": str(self.upload_id),
            "file_name": self.file_name[:MAX_SHOWN_NAME],
        }


Message = BatchProgress | FileProgress


class Announcer:
    """Sends messages inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sent: list[tuple[uuid.UUID | None, uuid.UUID | None, str]] = []

    def announce(self, message: Message, user_id: uuid.UUID | None = None) -> None:
        """Queue a message for delivery at commit."""
        action = "batch_progress" if isinstance(message, BatchProgress) else "file_progress"
        body = _encode(action, message.payload())
        self.connection.execute(
            text("SELECT pg_notify(:channel, :body)"), {"channel": CHANNEL, "body": body}
        )
        self.sent.append((message.batch_id, user_id, body))


class ProgressPublisher:
    """Opens transactions whose messages reach every channel that is configured."""

    def __init__(self, database: Database, redis_url: str = "") -> None:
        self._database = database
        self._redis = _connect_redis(redis_url) if redis_url else None
        self._redis_failed = False

    @contextmanager
    def transaction(self) -> Iterator[Announcer]:
        """One transaction; its messages are delivered if and when it commits."""
        with self._database.transaction() as connection:
            announcer = Announcer(connection)
            yield announcer
        self._relay(announcer)

    def _relay(self, announcer: Announcer) -> None:
        """Repeat the messages on Redis; a failure is one warning, never a failed upload."""
        if self._redis is None:
            return
        try:
            for batch_id, user_id, body in announcer.sent:
                if batch_id:
                    self._redis.publish(f"batch_progress:{batch_id}", body)
                if user_id:
                    self._redis.publish(f"user:{user_id}", body)
        except Exception as error:
            if not self._redis_failed:
                log.warning("progress is not published on Redis: %s", error)
            self._redis_failed = True
        else:
            self._redis_failed = False


def _encode(action: str, payload: Mapping[str, Any]) -> str:
    message = {"action": action, "payload": payload, "timestamp": datetime.now(UTC).isoformat()}
    body = json.dumps(message)
    if len(body) > MAX_PAYLOAD_BYTES:  # ASCII by default: characters are bytes
        raise ValueError(f"progress message of {len(body)} bytes; {MAX_PAYLOAD_BYTES} are allowed")
    return body


def _connect_redis(url: str) -> Any:
    try:
        import redis  # noqa: PLC0415 - an optional extra
    except ImportError:
        log.warning("BATCH_PIPELINE_REDIS_URL is set, but the extra `redis` is not installed")
        return None
    return redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
