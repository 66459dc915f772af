"""The tables, column by column, and how each value changes over time.

Upload APIs write the same tables and columns. Our own columns have defaults, so that a writer that
does not know them keeps working. ``services/states/transitions.py`` has the rules for changes, and
``migrations/`` builds the tables.
"""

import uuid
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Dialect,
    Double,
    ForeignKey,
    Identity,
    Index,
    Insert,
    Integer,
    MetaData,
    Text,
    Uuid,
    func,
    insert,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from batch_pipeline.database.vectors import BinaryVector


class BatchStatus(StrEnum):
    """Status of a batch."""

    PENDING = "pending"
    """No run has taken uploads yet."""
    PROCESSING = "processing"
    """At least one run has taken uploads."""
    COMPLETED = "completed"
    """Every upload is completed or failed."""
    FAILED = "failed"
    """It could not be processed at all; ``error_message`` says why."""
    CANCELLED = "cancelled"
    """A person stopped it; ``retry`` reopens it."""


class UploadStatus(StrEnum):
    """Status of an upload."""

    PENDING = "pending"
    """To be processed. With an owner: a run has reserved it but not started it."""
    ANALYZING = "analyzing"
    """Thumbnail and description are being made."""
    EMBEDDING = "embedding"
    """The description is stored; its vector is being made."""
    COMPLETED = "completed"
    """Everything is stored, and search finds it."""
    FAILED = "failed"
    """It has no result; ``error_kind`` and ``error_message`` say why."""


class Stage(StrEnum):
    """A part of the work on an upload that can be redone. ``uploads.redo`` contains these words."""

    THUMBNAIL = "thumbnail"
    DESCRIPTION = "description"
    """Includes the vector, because it belongs to the description."""
    EMBEDDING = "embedding"


class Priority(StrEnum):
    """Priority of a batch among the batches of its user; ``dispatch/turns.py`` has the rule."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class PauseScope(StrEnum):
    """What a person can pause."""

    EVERYTHING = "everything"
    USER = "user"
    BATCH = "batch"
    SERVER = "server"


OPEN_BATCH = (BatchStatus.PENDING, BatchStatus.PROCESSING)
IN_WORK = (UploadStatus.ANALYZING, UploadStatus.EMBEDDING)
ENDED = (UploadStatus.COMPLETED, UploadStatus.FAILED)
OPEN_UPLOAD = (UploadStatus.PENDING, *IN_WORK)


def sql_list(words: Iterable[str]) -> str:
    """Return words of ours as the list that follows ``IN`` in SQL text."""
    quoted = ", ".join(f"'{word}'" for word in words)
    return f"({quoted})"


class Word(UserDefinedType[str]):
    """A short text from a fixed list. Some upload APIs store it in a column of an ENUM type.

    So values are sent without a type, and the server gives them the type of the column.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type of such columns in tables that we create."""
        return "TEXT"

    def bind_processor(self, dialect: Dialect) -> Callable[[str | None], str | None]:
        """Return the function that converts a value for psycopg. SQLAlchemy calls this."""
        del dialect
        return lambda word: None if word is None else str(word)

    def literal_processor(self, dialect: Dialect) -> Callable[[str], str]:
        """Return the function that writes a value into SQL text. SQLAlchemy calls this."""
        del dialect
        return lambda word: f"'{word}'"


class Base(DeclarativeBase):
    """All tables of the pipeline."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy on the class
        datetime: TIMESTAMP(timezone=True),
        str: Text,
        uuid.UUID: Uuid,
        dict[str, Any]: JSONB,
    }


def insert_all(table: type[Base], given: Collection[str]) -> Insert:
    """Return the INSERT of rows that give some columns; every other column gets our default.

    In a table that an upload API has made, a column may have no default, or a word of the API.
    """
    values: dict[str, Any] = {}
    for column in table.__table__.columns:
        default = getattr(column.server_default, "arg", None)
        if default is not None and column.name not in given:
            is_word = isinstance(default, str)  # sent without a type, like a `Word`
            values[column.name] = literal_column(f"'{default}'") if is_word else default
    return insert(table).values(values)


_NOW = func.now()
_NEW_ID = text("gen_random_uuid()")
_CLOCK = func.clock_timestamp()


class UploadBatch(Base):
    """Files that were submitted together."""

    __tablename__ = "upload_batches"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=_NEW_ID)
    user_id: Mapped[uuid.UUID]
    #: One of `BatchStatus`. It changes in the same transaction as the upload that causes it.
    status: Mapped[str] = mapped_column(Word(), server_default=BatchStatus.PENDING)
    #: Number of its rows in ``uploads``; corrected when a run counts another number.
    total_uploads: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Always ``successful_uploads + failed_uploads``.
    processed_uploads: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Number of ``completed`` uploads.
    successful_uploads: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Number of ``failed`` uploads; decreases when one of them is processed again.
    failed_uploads: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Why it failed, was cancelled from the UI, or why its last run died; empty when completed.
    error_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    #: When a run took uploads for the first time; never changed afterwards.
    started_at: Mapped[datetime | None]
    #: When the last upload ended; empty again while a failed upload is processed again.
    completed_at: Mapped[datetime | None]

    # Ours
    #: Name for people, by default that of the folder. Never changed; an upload API may leave it
    #: empty.
    name: Mapped[str | None]
    #: One of `Priority`, set at submission; empty (if an upload API wrote the row) means normal.
    priority: Mapped[str | None] = mapped_column(Word())
    #: Number of slices opened so far; one run processes each. Never decreases.
    slices: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Number of runs that died since an upload last ended. After too many, the batch is ``failed``.
    died_runs: Mapped[int] = mapped_column(Integer, server_default="0")

    __table_args__ = (
        Index(
            "ix_upload_batches_newest",
            text("nullif(nullif(created_at, 'infinity'), '-infinity') DESC NULLS LAST"),
            "id",
        ),
        Index(
            "ix_upload_batches_open",
            "created_at",
            "id",
            postgresql_where=text(f"status IN {sql_list(OPEN_BATCH)}"),
        ),
        Index(
            "ix_upload_batches_stopped",
            "id",
            postgresql_where=text("status IN ('cancelled', 'failed')"),
        ),
    )


#: Key of ``metadata`` for the date in a sidecar: local time in ISO 8601.
SIDECAR_DATE = "sidecar_date"
#: All words by which an upload can be found. `first_release.words` explains the functions.
UPLOAD_WORDS = (
    "upload_words(description, filename, upload_facts(metadata), vision_tags, visible_text)"
)


class Upload(Base):
    """One file of a batch, and everything that is known about it."""

    __tablename__ = "uploads"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=_NEW_ID)
    user_id: Mapped[uuid.UUID]
    batch_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("upload_batches.id", ondelete="SET NULL")
    )
    #: Name on the submitter's machine; only for display, never part of a path.
    filename: Mapped[str]
    #: Path of the original, relative to the storage.
    file_path: Mapped[str]
    #: ``image`` or ``video``.
    file_type: Mapped[str] = mapped_column(Word())
    #: Size in bytes.
    file_size: Mapped[int] = mapped_column(BigInteger)
    mime_type: Mapped[str | None]
    #: One of `UploadStatus`.
    processing_status: Mapped[str] = mapped_column(Word(), server_default=UploadStatus.PENDING)
    #: Stored when it has passed the audit; a retry keeps it.
    description: Mapped[str | None]
    #: Score of the stored description, 0-100.
    description_audit_score: Mapped[int | None] = mapped_column(Integer)
    #: The newest vector, if it fits the column, for upload APIs; else empty. Search reads
    #: `UploadVector`.
    embedding_local: Mapped[list[float] | None] = mapped_column(BinaryVector())
    #: Path of a JPEG within 256 x 256 pixels, relative to the storage; a retry keeps it.
    thumbnail_path: Mapped[str | None]
    video_codec: Mapped[str | None]
    #: Reason of the last attempt without a result; empty after an attempt with one.
    error_message: Mapped[str | None]
    #: Facts about the file (`MediaFacts.as_stored`), stored with the first description. A
    #: submission may add `SIDECAR_DATE` before that. The column is named ``metadata``, a name that
    #: SQLAlchemy reserves.
    facts: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    hidden: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    regeneration_count: Mapped[int] = mapped_column(Integer, server_default="0")
    last_regenerated_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)

    # Ours
    #: Number of the slice; one run processes its uploads. Empty until the sensor opens it.
    slice: Mapped[int | None] = mapped_column(Integer)
    #: Why the upload was dispatched: new, retry, rescue or reprocess.
    dispatch_reason: Mapped[str] = mapped_column(server_default="new")
    #: Id of the Dagster run that holds the upload; empty if none does.
    owner_run_id: Mapped[str | None]
    #: Fencing token: it grows with every claim. A write with an older token is refused.
    claim_token: Mapped[int] = mapped_column(BigInteger, server_default="0")
    #: Last sign of life of the owner, by the database's clock.
    heartbeat_at: Mapped[datetime | None]
    #: Number of attempts in this dispatch; reset to 0 by a new dispatch.
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    #: No run is requested before this time. Set when a service is down or a retry is due later.
    not_before: Mapped[datetime | None]
    #: Stages (`Stage`) to redo although they have a result. The old result stays until then.
    redo: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    #: Kind of the error in ``error_message``, a stable word.
    error_kind: Mapped[str | None]
    vision_model: Mapped[str | None]
    #: Tags by the vision model, in lower case, each once. They change with ``description`` and are
    #: also in ``metadata``.
    vision_tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    #: Text in the picture, word for word; empty if there is none or the model was not asked for it.
    #: It changes with ``description`` and is also in ``metadata``.
    visible_text: Mapped[str | None]
    #: What the description was made with: model, digest, prompts, options.
    vision_fingerprint: Mapped[str | None]
    #: What the newest vector was made with: model, digest, options.
    embedding_fingerprint: Mapped[str | None]
    #: Model of the newest vector; empty without one.
    embedding_model: Mapped[str | None]
    #: Duration of the last run of each stage (seconds).
    stage_seconds: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    #: SHA-256 of the original, hexadecimal; another value is a hash of an upload API, and stays.
    checksum: Mapped[str | None]
    #: Number of workers that died while they processed this upload; reset to 0 when an attempt ends
    #: in any other way.
    deaths: Mapped[int] = mapped_column(Integer, server_default="0")
    #: How often the model server died during a call for this upload; reset to 0 when the upload
    #: completes or a person retries it.
    server_deaths: Mapped[int] = mapped_column(Integer, server_default="0")
    #: How often the sweep has retried it after a temporary failure; reset to 0 when it completes or
    #: a person retries it.
    retries: Mapped[int] = mapped_column(Integer, server_default="0")
    #: When the sweep retries it; set only while it is ``failed`` for a temporary reason.
    retry_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_uploads_batch", "batch_id", "created_at", "id"),
        Index(
            "ix_uploads_waiting",
            "batch_id",
            "slice",
            "created_at",
            "id",
            postgresql_where=text("processing_status = 'pending' AND owner_run_id IS NULL"),
        ),
        Index(
            "ix_uploads_held",
            "owner_run_id",
            postgresql_where=text(
                f"owner_run_id IS NOT NULL OR processing_status IN {sql_list(IN_WORK)}"
            ),
        ),
        Index(
            "ix_uploads_ended",
            "updated_at",
            postgresql_where=text("processing_status IN ('completed', 'failed')"),
        ),
        Index("ix_uploads_retry_at", "retry_at", postgresql_where=text("retry_at IS NOT NULL")),
        Index(
            "ix_uploads_without_batch",
            "created_at",
            postgresql_where=text("batch_id IS NULL AND processing_status = 'pending'"),
        ),
        Index("ix_uploads_embedding_model", "embedding_model"),
        Index("ix_uploads_user", "user_id", "embedding_model"),
        Index("ix_uploads_audit_score", "description_audit_score"),
        # Some indexes below contain only uploads that search finds, because the rows of others
        # change often.
        Index(
            "ix_uploads_words",
            text(UPLOAD_WORDS),
            postgresql_using="gin",
            postgresql_where=text("embedding_model IS NOT NULL"),
        ),
        # A hash index, because names may be too long for a B-tree.
        Index(
            "ix_uploads_filename",
            text("lower(filename)"),
            postgresql_using="hash",
            postgresql_where=text("embedding_model IS NOT NULL"),
        ),
        Index(
            "ix_uploads_checksum",
            "checksum",
            postgresql_where=text("embedding_model IS NOT NULL"),
        ),
        # These two find stale results. Nearly all rows have the same fingerprint.
        Index(
            "ix_uploads_vision_fingerprint",
            "vision_fingerprint",
            postgresql_where=text("processing_status = 'completed'"),
        ),
        Index(
            "ix_uploads_embedding_fingerprint",
            "embedding_fingerprint",
            postgresql_where=text("processing_status = 'completed'"),
        ),
        Index(
            "ix_uploads_tags",
            "vision_tags",
            postgresql_using="gin",
            postgresql_where=text("embedding_model IS NOT NULL"),
        ),
    )


class EmbeddingSpace(Base):
    """Vectors that can be compared, of one model, width and prefix (`database/spaces.py`)."""

    __tablename__ = "embedding_spaces"

    id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    model: Mapped[str]
    #: Length of its vectors.
    width: Mapped[int] = mapped_column(Integer)
    #: Text in front of each document that was embedded.
    document_prefix: Mapped[str] = mapped_column(server_default="")
    # How to embed a question; updated as long as the settings name this space.
    question_prefix: Mapped[str] = mapped_column(server_default="")
    #: ``embedded``, ``ollama`` or ``openai``; empty: unknown, because the vectors were copied
    #: from ``uploads``.
    embedder: Mapped[str] = mapped_column(server_default="")
    #: Addresses of its servers, without passwords; empty: those of the settings.
    addresses: Mapped[str] = mapped_column(server_default="")
    #: Additions to each request, as a JSON object.
    options: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)

    __table_args__ = (
        Index("ix_embedding_spaces_key", "model", "width", "document_prefix", unique=True),
    )


class UploadVector(Base):
    """The vector of an upload in a space. Each space has its own partition (`database/spaces.py`).

    A trigger deletes the vectors of deleted uploads.
    """

    __tablename__ = "upload_vectors"

    upload_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    space_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    vector: Mapped[list[float]] = mapped_column(BinaryVector())

    __table_args__ = ({"postgresql_partition_by": "LIST (space_id)"},)


class AnsweringSpace(Base):
    """The space that answers the searches of a user; set when the user's first vector is stored."""

    __tablename__ = "answering_spaces"

    user_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: Changes when a newer space has vectors of all embedded uploads of the user.
    space_id: Mapped[int] = mapped_column(Integer)
    since: Mapped[datetime] = mapped_column(server_default=_NOW)

    __table_args__ = (Index("ix_answering_spaces_space_id", "space_id"),)


class ModelCallSlots(Base):
    """The call slots of a model server that a process wants and holds.

    The row is removed when the process makes no calls.
    """

    __tablename__ = "model_call_slots"

    #: Address of the server; a loopback address is stored with the name of its host.
    server: Mapped[str] = mapped_column(primary_key=True)
    #: ``vision`` or ``embedding``, which have separate slots.
    kind: Mapped[str] = mapped_column(primary_key=True)
    #: Id of the process.
    holder: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: Number of calls in flight and waiting calls, up to the limit.
    wanted: Mapped[int] = mapped_column(Integer)
    #: Number of slots that only this process may use; never less than its calls in flight.
    held: Mapped[int] = mapped_column(Integer)
    #: Since when it holds slots, or since when it waits if it holds none.
    since: Mapped[datetime]
    #: End of the lease. A living process renews it; after it, other processes remove the row.
    leased_until: Mapped[datetime]


class ModelPause(Base):
    """The pause that a model server has asked for (rate limit)."""

    __tablename__ = "model_pauses"

    #: As in `ModelCallSlots`.
    server: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    not_before: Mapped[datetime]
    #: The server's answer.
    reason: Mapped[str]


class WorkPause(Base):
    """Something that a person has paused; removed when it is resumed."""

    __tablename__ = "work_pauses"

    #: One of `PauseScope`.
    scope: Mapped[str] = mapped_column(primary_key=True)
    #: Id of the user or batch, or name of the server as in `ModelCallSlots`; empty: everything.
    target: Mapped[str] = mapped_column(primary_key=True, server_default="")
    #: Reason for people; may be empty.
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime] = mapped_column(server_default=_NOW)


class ModelCall(Base):
    """One answered call to a model server, and its costs; a row never changes.

    The row stays when its upload or batch is deleted, because the call has to be paid for. So it
    has no foreign keys, which would also keep an upload API from deleting its rows.
    """

    __tablename__ = "model_calls"

    #: Created by the caller, so that repeated tries to store a call store it once.
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: Empty for calls that the pipeline makes for itself, such as health checks.
    upload_id: Mapped[uuid.UUID | None]
    batch_id: Mapped[uuid.UUID | None]
    user_id: Mapped[uuid.UUID | None]
    #: ``vision`` or ``embedding``.
    kind: Mapped[str]
    model: Mapped[str]
    #: Tokens as the server counts them; 0 if it does not report them.
    tokens_in: Mapped[int] = mapped_column(Integer)
    tokens_out: Mapped[int] = mapped_column(Integer)
    #: Time from the request to the end of the answer.
    seconds: Mapped[float] = mapped_column(Double)
    answered_at: Mapped[datetime] = mapped_column(server_default=_NOW)

    __table_args__ = (
        Index("ix_model_calls_upload", "upload_id"),
        Index("ix_model_calls_batch", "batch_id"),
        Index("ix_model_calls_user", "user_id"),
        Index("ix_model_calls_answered_at", "answered_at"),
    )


class DescriptionInWork(Base):
    """The attempt that describes the content of a file now, or did so last; removed after a day.

    A row is valid as long as the claim that it names. It has no foreign key, which would keep an
    upload API from deleting its rows.
    """

    __tablename__ = "descriptions_in_work"

    #: The user whose copies share the description; that of the local user if all users share.
    user_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: SHA-256 of the content, hexadecimal.
    checksum: Mapped[str] = mapped_column(primary_key=True)
    #: As in ``uploads.vision_fingerprint``.
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[uuid.UUID]
    claim_token: Mapped[int] = mapped_column(BigInteger)
    taken_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class DatabaseIdentity(Base):
    """One row with a number, which is part of this database's identity (`database/identity.py`)."""

    __tablename__ = "database_identity"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=_NEW_ID)


class MadeThumbnail(Base):
    """A thumbnail that this pipeline wrote; proves that the file may be removed.

    The row stays when the upload is deleted, so it has no foreign key.
    """

    __tablename__ = "made_thumbnails"

    upload_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: Owner of the upload; part of the path of the thumbnail.
    user_id: Mapped[uuid.UUID]
    made_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class BatchToRecount(Base):
    """An ended batch in which another program has added, deleted or changed an upload.

    Triggers write the rows, and the sweep removes them after it has recounted the batch. The batch
    is not the primary key: otherwise two programs that change uploads of the same batch would wait
    for each other.
    """

    __tablename__ = "batches_to_recount"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    batch_id: Mapped[uuid.UUID]


class AskedSlice(Base):
    """A slice for which a sensor has just requested a run; removed soon after."""

    __tablename__ = "asked_slices"

    #: Key of the requested run (`WaitingSlice.key`).
    key: Mapped[str] = mapped_column(primary_key=True)
    asked_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Outage(Base):
    """An outage of a service for which uploads wait; removed when it is over.

    Triggers write notifications of its beginning and its end.
    """

    __tablename__ = "outages"

    #: Error kind of the uploads that wait.
    kind: Mapped[str] = mapped_column(primary_key=True)
    #: Error message of the first upload that waited.
    reason: Mapped[str]
    began_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    #: When an upload was last released because of this outage.
    seen_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class Notification(Base):
    """An event to send; triggers write it, and the sender removes it."""

    __tablename__ = "notifications"

    #: Id of the event, the same in every delivery.
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=_NEW_ID)
    type: Mapped[str]
    #: Contents that are sent; never changed.
    data: Mapped[dict[str, Any]]
    occurred_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    #: When its deliveries were created; empty: the sender has not read it yet.
    addressed_at: Mapped[datetime | None]


class NotificationDelivery(Base):
    """The delivery of a notification to one target."""

    __tablename__ = "notification_deliveries"

    notification_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("notifications.id", ondelete="CASCADE"), primary_key=True
    )
    #: Digest of the target's URL; the URL itself may contain a secret.
    target: Mapped[str] = mapped_column(primary_key=True)
    #: Number of attempts, counted when a sender takes the delivery, even if the sender then dies.
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    #: When a sender may take it next; empty: it was delivered or given up.
    next_attempt_at: Mapped[datetime | None] = mapped_column(server_default=_CLOCK)
    delivered_at: Mapped[datetime | None]
    #: Result of the last attempt.
    answer: Mapped[str | None]

    __table_args__ = (Index("ix_notification_deliveries_next_attempt_at", "next_attempt_at"),)
