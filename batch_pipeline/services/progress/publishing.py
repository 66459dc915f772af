"""Progress messages: what they contain, and how they are sent.

Every message is sent on a PostgreSQL channel, in the transaction of the change that it reports. So
messages arrive in the order of the transitions, and no message reports a change that was rolled
back. With a Redis URL the same messages are sent to Redis after the transaction has ended.

Messages that come faster than a person can follow are left out: counters of a batch in progress,
and the stages between the beginning and the end of an upload. The beginning and the end of an
upload and every other status of a batch are always sent. Counters that were left out are sent
within about a second. So a batch of N uploads that W runs process for at most T seconds sends,
besides the messages of its own beginning and end, at most

    2 N  +  W (2 BURST + 2 PER_SECOND T)  +  W T  messages.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Numeric,
    Text,
    and_,
    case,
    cast,
    func,
    literal_column,
    select,
    text,
)

from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.database.models import OPEN_BATCH, BatchStatus, UploadBatch
from batch_pipeline.database.readings import NAME, count, owner, word
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.services.progress.pace import Pace
from batch_pipeline.services.short_ids import batch_label
from batch_pipeline.wording import how_to_install

CHANNEL = "batch_pipeline_progress"
#: PostgreSQL refuses a payload of 8000 bytes and more.
MAX_PAYLOAD_BYTES = 7999
#: Longest file name that a message shows (characters).
MAX_SHOWN_NAME = 255
#: Limit for the messages that may be left out: how many of each kind a process sends at once, and
#: then per second. The kinds are the counters of each batch and the stages of each run.
BURST, PER_SECOND = 20, 5
#: Timeout of a call to Redis (seconds).
_REDIS_TIMEOUT_SECONDS = 2.0
_NO_REDIS = (
    "BATCH_PIPELINE_REDIS_URL is set, but the extra `redis` is not installed: "
    f"{how_to_install('redis')}"
)
#: After a timeout Redis is not called for this time. Otherwise each message would wait for the
#: timeout. Only the end of a batch is still sent (seconds).
_REDIS_REST_SECONDS = 10.0

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
    name: str | None = None

    @property
    def progress_percentage(self) -> float:
        """Share of the uploads that have ended, 0-100."""
        return round(100 * self.processed / self.total, 1) if self.total else 0.0

    @property
    def label(self) -> str:
        """The name of the batch in a message to a person."""
        return batch_label(self.batch_id, self.name)

    def payload(self) -> dict[str, Any]:
        """Return the body of a ``batch_progress`` message."""
        return {
            "batch_id": str(self.batch_id),
            "status": self.status,
            "total": self.total,
            "processed": self.processed,
            "successful": self.successful,
            "failed": self.failed,
            "progress_percentage": self.progress_percentage,
            "name": self.name,
        }


@dataclass(frozen=True)
class FileProgress:
    """Progress of one file; the percentage is that of the stage it has reached."""

    batch_id: uuid.UUID | None
    upload_id: uuid.UUID
    file_name: str
    file_size: int
    progress_percentage: int
    status: FileStatus

    def payload(self) -> dict[str, Any]:
        """Return the body of a ``file_progress`` message."""
        return {
            "batch_id": str(self.batch_id) if self.batch_id else None,
            "upload_id": str(self.upload_id),
            "file_name": self.file_name[:MAX_SHOWN_NAME],
            "file_size": self.file_size,
            "progress_percentage": self.progress_percentage,
            "status": self.status,
        }


Message = BatchProgress | FileProgress
#: A message and its user.
Addressed = tuple[Message, uuid.UUID | None]

#: Columns in the order of the fields of `BatchProgress`.
PROGRESS = (
    UploadBatch.id,
    owner(UploadBatch.user_id),
    word(UploadBatch.status),
    count(UploadBatch.total_uploads),
    count(UploadBatch.processed_uploads),
    count(UploadBatch.successful_uploads),
    count(UploadBatch.failed_uploads),
    NAME,
)


# The bodies are passed as a JSON array, which is escaped in C. An array of PostgreSQL would be
# escaped character by character in Python.
_NOTIFY = text(
    "SELECT pg_notify(:channel, body) FROM json_array_elements_text(CAST(:bodies AS json)) AS body"
)


class Announcer:
    """Sends messages inside one transaction."""

    def __init__(self, connection: Connection, filter_: "_Filter") -> None:
        self.connection = connection
        self.sent: list[Addressed] = []
        self._bodies: list[str] = []
        self._filter = filter_

    def announce(self, message: Message, user_id: uuid.UUID | None = None) -> None:
        """Queue a message for delivery at commit, unless it may be left out."""
        if self._filter.admits(message):
            self.send(message, user_id)

    def send(self, message: Message, user_id: uuid.UUID | None) -> None:
        """Queue a message for delivery at commit."""
        self.sent.append((message, user_id))
        self._bodies.append(body_of(message))

    def note(self, message: Message, user_id: uuid.UUID | None) -> None:
        """Record a message that a statement has queued (`queue_file_message`)."""
        self.sent.append((message, user_id))

    def deliver(self) -> None:
        """Pass all messages to PostgreSQL in one statement."""
        if self._bodies:
            names = {"channel": CHANNEL, "bodies": json.dumps(self._bodies)}
            self.connection.execute(_NOTIFY, names)


class ProgressPublisher:
    """Opens transactions whose messages are sent on every configured channel."""

    def __init__(self, database: Database, redis_url: str = "") -> None:
        self.database = database
        self._filter = _Filter()
        self._redis = _connect_redis(redis_url) if redis_url else None
        self._redis_failed = False
        self._redis_rests_until = 0.0

    @contextmanager
    def transaction(self) -> Iterator[Announcer]:
        """Open a transaction; its messages are delivered when it commits."""
        with self.database.transaction() as connection:
            announcer = Announcer(connection, self._filter)
            yield announcer
            announcer.deliver()
        self._relay(announcer.sent)

    def execute(
        self,
        statement: LoneStatement,
        parameters: Mapping[str, Any],
        messages: Callable[[AnyRow], Iterable[Addressed]],
    ) -> AnyRow | None:
        """Execute a statement that is a transaction of its own and queues its messages itself.

        ``messages`` returns these messages for the returned row; they are repeated on Redis.
        """
        row = self.database.execute(statement, parameters)
        if row is not None and self._redis is not None:
            self._relay(list(messages(row)))
        return row

    def stage_is_due(self, run_id: str) -> bool:
        """Return whether to send a message about a stage of an upload of a run."""
        return self._filter.admits_pace(("stage", run_id))

    def counters_are_due(self, run_id: str) -> bool:
        """Return whether to send the counters of a batch in progress that a run has changed."""
        return self._filter.admits_pace(("counters", run_id))

    def left_out(self, batch_id: uuid.UUID) -> None:
        """Record that the counters of a batch were left out; `catch_up` sends them."""
        self._filter.leave_behind({batch_id})

    def catch_up(self) -> None:
        """Send the counters of the batches whose last message was left out."""
        behind = self._filter.take_behind()
        if not behind:
            return
        in_work = and_(UploadBatch.id.in_(behind), UploadBatch.status == BatchStatus.PROCESSING)
        try:
            with self.transaction() as transaction:
                # The lock keeps a batch from ending between reading and sending. A batch that
                # another transaction has locked is left for the next call.
                rows = transaction.connection.execute(
                    select(*PROGRESS)
                    .where(in_work)
                    .order_by(UploadBatch.id)
                    .with_for_update(read=True, skip_locked=True)
                ).all()
                for progress in [BatchProgress(*row) for row in rows]:
                    transaction.send(progress, progress.user_id)
                open_ = set(transaction.connection.scalars(select(UploadBatch.id).where(in_work)))
            behind = open_ - {row.id for row in rows}
        finally:
            self._filter.leave_behind(behind)

    def _relay(self, sent: Sequence[Addressed]) -> None:
        """Repeat the messages on Redis; a failure is one warning, never a failed upload."""
        if self._redis is None or not sent:
            return
        begin = time.monotonic()
        if begin < self._redis_rests_until and not any(_is_end(message) for message, _ in sent):
            return
        try:
            _publish(self._redis, sent)
            # Another process may have ended the batch and sent that before these messages. Then the
            # end is sent again, so that it is the last message that a client receives.
            said = {message.batch_id for message, _ in sent if _is_end(message)}
            batch_ids = {message.batch_id for message, _ in sent} - said - {None}
            if batch_ids:
                _publish(self._redis, self._ends_of(batch_ids))
        except Exception as error:
            if not self._redis_failed:
                log.warning("progress is not published on Redis: %s", error)
            self._redis_failed = True
            if time.monotonic() - begin >= _REDIS_TIMEOUT_SECONDS:
                self._redis_rests_until = time.monotonic() + _REDIS_REST_SECONDS
        else:
            self._redis_failed = False

    def _ends_of(self, batch_ids: set[uuid.UUID | None]) -> list[Addressed]:
        ended = and_(UploadBatch.id.in_(batch_ids), UploadBatch.status.not_in(OPEN_BATCH))
        with self.database.transaction() as connection:
            rows = connection.execute(select(*PROGRESS).where(ended)).all()
        ends = [BatchProgress(*row) for row in rows]
        return [(progress, progress.user_id) for progress in ends]


class _Filter:
    """Decides which messages are left out, and remembers the batches concerned; thread-safe."""

    def __init__(self) -> None:
        self._pace = Pace(burst=BURST, per_second=PER_SECOND)
        self._behind: set[uuid.UUID] = set()
        self._lock = threading.Lock()

    def admits_pace(self, key: tuple[str, str]) -> bool:
        return self._pace.admits(key)

    def admits(self, message: Message) -> bool:
        if isinstance(message, FileProgress):
            return True
        may_wait = message.status == BatchStatus.PROCESSING
        admitted = not may_wait or self._pace.admits(("batch", message.batch_id))
        with self._lock:
            if admitted:
                self._behind.discard(message.batch_id)
            else:
                self._behind.add(message.batch_id)
        return admitted

    def take_behind(self) -> set[uuid.UUID]:
        with self._lock:
            behind, self._behind = self._behind, set()
        return behind

    def leave_behind(self, batch_ids: set[uuid.UUID]) -> None:
        with self._lock:
            self._behind |= batch_ids


def _publish(redis: Any, messages: Sequence[Addressed]) -> None:
    with redis.pipeline(transaction=False) as pipeline:
        for message, user_id in messages:
            body = body_of(message)
            if message.batch_id:
                pipeline.publish(f"batch_progress:{message.batch_id}", body)
            if user_id:
                pipeline.publish(f"user:{user_id}", body)
        pipeline.execute()


def _is_end(message: Message) -> bool:
    return isinstance(message, BatchProgress) and message.status not in OPEN_BATCH


def body_of(message: Message) -> str:
    """Return a message as the JSON text that is sent."""
    action = "batch_progress" if isinstance(message, BatchProgress) else "file_progress"
    return _encode(action, message.payload())


def queue_file_message(
    upload: Any, percentage: int, status: FileStatus, *, if_: ColumnElement[bool] | None = None
) -> ColumnElement[None]:
    """Return SQL that queues the `body_of` of a `FileProgress` for delivery at commit.

    ``upload`` has the columns ``batch_id``, ``id``, ``filename`` and ``file_size``.
    """
    return _queue(
        "file_progress",
        {
            "batch_id": upload.batch_id,
            "upload_id": upload.id,
            "file_name": func.left(
                func.coalesce(upload.filename, literal_column("''")),
                literal_column(str(MAX_SHOWN_NAME)),
            ),
            "file_size": func.coalesce(upload.file_size, literal_column("0")),
            "progress_percentage": literal_column(str(percentage)),
            "status": literal_column(f"'{status}'"),
        },
        if_=if_,
    )


def queue_counters(batch: Any, *, if_: ColumnElement[bool]) -> ColumnElement[None]:
    """Return SQL that queues the `body_of` of a `BatchProgress` for delivery at commit.

    ``batch`` has the columns `PROGRESS` of a batch that has uploads.
    """
    processed = cast(batch.processed_uploads, Numeric)
    return _queue(
        "batch_progress",
        {
            "batch_id": batch.id,
            "status": batch.status,
            "total": batch.total_uploads,
            "processed": batch.processed_uploads,
            "successful": batch.successful_uploads,
            "failed": batch.failed_uploads,
            "progress_percentage": func.round(
                literal_column("100") * processed / batch.total_uploads, literal_column("1")
            ),
            "name": batch.name,
        },
        if_=if_,
    )


def _queue(
    action: str, payload: Mapping[str, Any], *, if_: ColumnElement[bool] | None
) -> ColumnElement[None]:
    body = _json_object(
        {
            "action": literal_column(f"'{action}'"),
            "payload": _json_object(payload),
            "timestamp": func.clock_timestamp(),
        }
    )
    queued = func.pg_notify(literal_column(f"'{CHANNEL}'"), cast(body, Text))
    return queued if if_ is None else case((if_, queued))


def _json_object(values: Mapping[str, Any]) -> ColumnElement[Any]:
    pairs: Iterator[tuple[Any, Any]] = (
        (literal_column(f"'{name}'"), value) for name, value in values.items()
    )
    return func.json_build_object(*chain.from_iterable(pairs))


def _encode(action: str, payload: Mapping[str, Any]) -> str:
    message = {"action": action, "payload": payload, "timestamp": datetime.now(UTC).isoformat()}
    body = json.dumps(message)
    if len(body) > MAX_PAYLOAD_BYTES:  # JSON is ASCII by default, so characters are bytes
        raise ValueError(f"progress message of {len(body)} bytes; {MAX_PAYLOAD_BYTES} are allowed")
    return body


def check_redis(url: str) -> str:
    """Publish a test message in the same way as messages about a batch; returns a sentence.

    Raises:
        ConfigurationError: the URL is not valid, or the client is not installed.
        Exception: any error of the client: no server answers, or the server refuses.
    """
    redis = _connect_redis(url)
    if redis is None:
        raise ConfigurationError(_NO_REDIS)
    with redis:
        heard = redis.publish("batch_progress:doctor", _encode("doctor", {}))
    return f"messages can be published; {heard} listened"


def _connect_redis(url: str) -> Any:
    try:
        import redis  # noqa: PLC0415 - an optional extra
    except ImportError:
        log.warning(_NO_REDIS)
        return None
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=_REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=_REDIS_TIMEOUT_SECONDS,
        )
    except ValueError as error:
        raise ConfigurationError(
            f"BATCH_PIPELINE_REDIS_URL cannot be used: {error}; expected redis://host:port/0"
        ) from error
