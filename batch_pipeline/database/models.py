"""The tables, column by column, with how each value changes over time.

The names are shared with upload APIs that write the same rows; the columns of ours have defaults,
so that a writer who knows only the others keeps working. Who may change what stands in
``services/states/transitions.py``; the migrations that build the tables in ``migrations/``.
"""

import uuid
from collections.abc import Callable
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
    Integer,
    MetaData,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from batch_pipeline.database.vectors import BinaryVector


class BatchStatus(StrEnum):
    """Where a batch stands."""

    PENDING = "pending"
    """Nothing was processed yet."""
    PROCESSING = "processing"
    """At least one run has taken uploads."""
    COMPLETED = "completed"
    """Every upload is completed or failed."""
    FAILED = "failed"
    """It could not be processed at all; ``error_message`` says why."""
    CANCELLED = "cancelled"
    """A person stopped it; ``retry`` reopens it."""


class UploadStatus(StrEnum):
    """Where an upload stands."""

    PENDING = "pending"
    """To be processed; with an owner: reserved by a run, not begun."""
    ANALYZING = "analyzing"
    """Thumbnail and description are being made."""
    EMBEDDING = "embedding"
    """The description is stored; its vector is being made."""
    COMPLETED = "completed"
    """Everything is stored; searchable."""
    FAILED = "failed"
    """Given up; ``error_kind`` and ``error_message`` say why."""


class Stage(StrEnum):
    """A part of the work on an upload that can be redone; words of ``uploads.redo``."""

    THUMBNAIL = "thumbnail"
    DESCRIPTION = "description"
    """With its vector, which would say something else."""
    EMBEDDING = "embedding"


class Priority(StrEnum):
    """Which of the batches of one user go first; ``dispatch/turns.py`` says by how much."""

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


class Word(UserDefinedType[str]):
    """A short text of ours; upload APIs keep some in columns of a native ENUM type.

    So the server is not told that it is text: it takes it for what the column is.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """What it is in tables of ours."""
        return "TEXT"

    def bind_processor(self, dialect: Dialect) -> Callable[[str | None], str | None]:
        """What a value becomes before psycopg sees it; called by SQLAlchemy."""
        del dialect
        return lambda word: None if word is None else str(word)

    def literal_processor(self, dialect: Dialect) -> Callable[[str], str]:
        """How a value is written into a statement; called by SQLAlchemy."""
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


_NOW = func.now()
_NEW_ID = text("gen_random_uuid()")
_CLOCK = func.clock_timestamp()


class UploadBatch(Base):
    """Files that were submitted together."""

    __tablename__ = "upload_batches"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=_NEW_ID)
    user_id: Mapped[uuid.UUID]
    #: One of `BatchStatus`; changes in the transaction of the upload that causes it.
    status: Mapped[str] = mapped_column(Word(), server_default=BatchStatus.PENDING)
    #: Rows in ``uploads``; put right when a run finds another number.
    total_uploads: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Always ``successful_uploads + failed_uploads``.
    processed_uploads: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Uploads that are ``completed``.
    successful_uploads: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Uploads that are ``failed``; goes down when one of them is processed again.
    failed_uploads: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Why it failed, was cancelled from the UI, or why its last run died; empty once it is done.
    error_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    #: First time a run took uploads; never changed afterwards.
    started_at: Mapped[datetime | None]
    #: When the last upload ended; empty again while a failed upload is processed again.
    completed_at: Mapped[datetime | None]

    # Ours
    #: For people: as submitted, or the folder's. Never changed; an upload API may leave it empty.
    name: Mapped[str | None]
    #: One of `Priority`, as submitted; empty, as an upload API may leave it, is normal.
    priority: Mapped[str | None] = mapped_column(Word())
    #: Slices opened so far; one run processes each. Only grows.
    slices: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Runs that died since an upload last ended; too many of them end the batch as ``failed``.
    died_runs: Mapped[int] = mapped_column(Integer, server_default="0")

    __table_args__ = (
        Index("ix_upload_batches_newest", text("created_at DESC"), "id"),
        Index(
            "ix_upload_batches_open",
            "created_at",
            "id",
            postgresql_where=text("status IN ('pending', 'processing')"),
        ),
        Index(
            "ix_upload_batches_stopped",
            "id",
            postgresql_where=text("status IN ('cancelled', 'failed')"),
        ),
    )


#: Key of ``metadata`` for the date that a sidecar says, local time as ISO 8601 writes it.
SIDECAR_DATE = "sidecar_date"
#: All words that an upload can be found by; the function is made and explained by migration 0011.
UPLOAD_WORDS = "upload_words(description, filename, metadata::jsonb, vision_tags, visible_text)"


class Upload(Base):
    """One file of a batch, and everything that was learnt about it."""

    __tablename__ = "uploads"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=_NEW_ID)
    user_id: Mapped[uuid.UUID]
    batch_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("upload_batches.id", ondelete="SET NULL")
    )
    #: Name on the submitter's machine; for showing only, never part of a path.
    filename: Mapped[str]
    #: The original, relative to the storage.
    file_path: Mapped[str]
    #: ``image`` or ``video``.
    file_type: Mapped[str] = mapped_column(Word())
    #: Bytes.
    file_size: Mapped[int] = mapped_column(BigInteger)
    mime_type: Mapped[str | None]
    #: One of `UploadStatus`.
    processing_status: Mapped[str] = mapped_column(Word(), server_default=UploadStatus.PENDING)
    #: Stored once it has passed the audit; kept by a retry.
    description: Mapped[str | None]
    #: 0-100, of the stored description.
    description_audit_score: Mapped[int | None] = mapped_column(Integer)
    #: The newest vector if it fits the column, for upload APIs that read it; else empty. Search
    #: reads `UploadVector`.
    embedding_local: Mapped[list[float] | None] = mapped_column(BinaryVector())
    #: JPEG within 256 x 256 pixels, relative to the storage; kept by a retry.
    thumbnail_path: Mapped[str | None]
    video_codec: Mapped[str | None]
    #: Of the last attempt that did not succeed; empty once one has.
    error_message: Mapped[str | None]
    #: Named ``metadata`` in the table, a word that SQLAlchemy keeps for itself.
    #: Facts about the file, as `MediaFacts.as_stored`, from the first description on. A submission
    #: may add `SIDECAR_DATE` ahead of that.
    facts: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    hidden: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    regeneration_count: Mapped[int] = mapped_column(Integer, server_default="0")
    last_regenerated_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)

    # Ours
    #: Number of the slice; one run processes its uploads. Empty until the sensor opens it.
    slice: Mapped[int | None] = mapped_column(Integer)
    #: Why the slice was opened: new, retry, rescue or reprocess.
    dispatch_reason: Mapped[str] = mapped_column(server_default="new")
    #: Dagster run that holds the upload; empty when nobody does.
    owner_run_id: Mapped[str | None]
    #: Fencing token: grows with every claim, and a write that names an older one is refused.
    claim_token: Mapped[int] = mapped_column(BigInteger, server_default="0")
    #: Last sign of life of the owner, on the database's clock.
    heartbeat_at: Mapped[datetime | None]
    #: Attempts begun in this dispatch; 0 again on a new one.
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    #: No run is asked for before this moment; set when a service was down or a retry is due later.
    not_before: Mapped[datetime | None]
    #: Each a `Stage`, to be done again although its result is stored; the old one stays meanwhile.
    redo: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    #: Stable word for the reason in ``error_message``.
    error_kind: Mapped[str | None]
    vision_model: Mapped[str | None]
    #: What the vision model would have it found by: small letters, each once. Changes with
    #: ``description``; also in ``metadata``.
    vision_tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    #: What can be read in the picture, word for word; empty: nothing, or nobody asked. As above.
    visible_text: Mapped[str | None]
    #: What the description was made with: model, digest, prompts, options. Changes with it.
    vision_fingerprint: Mapped[str | None]
    #: What the vector was made with: model, digest, options. Changes with it.
    embedding_fingerprint: Mapped[str | None]
    #: Model of the newest vector; set with the first one.
    embedding_model: Mapped[str | None]
    #: Seconds that each stage took when it last ran.
    stage_seconds: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    #: SHA-256 of the original, hexadecimal.
    checksum: Mapped[str | None]
    #: Workers that died with this upload in work; 0 again once an attempt has ended in any way.
    deaths: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Times that the model server went down in the middle of its own call; 0 again once it
    #: completes, or a person asks for it again.
    server_deaths: Mapped[int] = mapped_column(Integer, server_default="0")
    #: Times that the sweep has opened it again after a failure that may pass; 0 once it completes.
    retries: Mapped[int] = mapped_column(Integer, server_default="0")
    #: When the sweep opens it again; set while it is ``failed`` for a reason that may pass.
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
                "owner_run_id IS NOT NULL OR processing_status IN ('analyzing', 'embedding')"
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
        # These four cover only uploads that search finds: others change often while in progress.
        Index(
            "ix_uploads_words",
            text(UPLOAD_WORDS),
            postgresql_using="gin",
            postgresql_where=text("embedding_model IS NOT NULL"),
        ),
        # Of a hash, as names may be longer than a tree takes.
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
        # These two say what is stale: few rows have another fingerprint than most.
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
    """Vectors that can be compared: of one model, one width, one prefix; `database/spaces.py`."""

    __tablename__ = "embedding_spaces"

    id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    model: Mapped[str]
    #: Numbers of a vector.
    width: Mapped[int] = mapped_column(Integer)
    #: In front of each text that was embedded.
    document_prefix: Mapped[str] = mapped_column(server_default="")
    # What is needed to embed a question; kept up to date while the settings name this space.
    question_prefix: Mapped[str] = mapped_column(server_default="")
    #: ``embedded``, ``ollama`` or ``openai``; empty: not known, from before there were spaces.
    embedder: Mapped[str] = mapped_column(server_default="")
    #: Of its servers, without passwords; empty: those of the settings.
    addresses: Mapped[str] = mapped_column(server_default="")
    #: Additions to each request, a JSON object.
    options: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)

    __table_args__ = (
        Index("ix_embedding_spaces_key", "model", "width", "document_prefix", unique=True),
    )


class UploadVector(Base):
    """The vector of an upload in a space; a table for each space, see `database/spaces.py`.

    A trigger removes it with its upload.
    """

    __tablename__ = "upload_vectors"

    upload_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    space_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    vector: Mapped[list[float]] = mapped_column(BinaryVector())

    __table_args__ = ({"postgresql_partition_by": "LIST (space_id)"},)


class AnsweringSpace(Base):
    """The space that answers the searches of a user; set by the user's first vector."""

    __tablename__ = "answering_spaces"

    user_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: Changes once a newer space has a vector of everything that this one has.
    space_id: Mapped[int] = mapped_column(Integer)
    since: Mapped[datetime] = mapped_column(server_default=_NOW)

    __table_args__ = (Index("ix_answering_spaces_space_id", "space_id"),)


class ModelCallSlots(Base):
    """What one process wants and holds of a model server's slots; gone when it makes no calls."""

    __tablename__ = "model_call_slots"

    #: Address of the server; one on loopback is named with its host.
    server: Mapped[str] = mapped_column(primary_key=True)
    #: ``vision`` or ``embedding``: each has slots of its own.
    kind: Mapped[str] = mapped_column(primary_key=True)
    #: The process.
    holder: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: Calls in flight and calls that wait, up to the limit.
    wanted: Mapped[int] = mapped_column(Integer)
    #: Slots that nobody else may use; never less than its calls in flight.
    held: Mapped[int] = mapped_column(Integer)
    #: When it began to wait (it holds none) or to hold (it holds some).
    since: Mapped[datetime]
    #: Renewed while it lives; afterwards others remove the row.
    leased_until: Mapped[datetime]


class ModelPause(Base):
    """Until when a model server wants no calls, as it told whoever called it last."""

    __tablename__ = "model_pauses"

    #: As in `ModelCallSlots`.
    server: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    not_before: Mapped[datetime]
    #: What the server said.
    reason: Mapped[str]


class WorkPause(Base):
    """Something that a person has paused; removed when it is resumed."""

    __tablename__ = "work_pauses"

    #: One of `PauseScope`.
    scope: Mapped[str] = mapped_column(primary_key=True)
    #: Id of the user or the batch, or the server as in `ModelCallSlots`; empty: everything.
    target: Mapped[str] = mapped_column(primary_key=True, server_default="")
    #: For people; may be empty.
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime] = mapped_column(server_default=_NOW)


class ModelCall(Base):
    """One answered call to a model server, and what it took; a row never changes.

    Outlives upload and batch: it was paid for. Without foreign keys, as the rows of an upload API
    are deleted by the API.
    """

    __tablename__ = "model_calls"

    #: Made by whoever made the call, so that it is stored once however often that is tried.
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: Empty: a question of our own, which belongs to no upload.
    upload_id: Mapped[uuid.UUID | None]
    batch_id: Mapped[uuid.UUID | None]
    user_id: Mapped[uuid.UUID | None]
    #: ``vision`` or ``embedding``.
    kind: Mapped[str]
    model: Mapped[str]
    #: As the server counts them; 0: it does not tell.
    tokens_in: Mapped[int] = mapped_column(Integer)
    tokens_out: Mapped[int] = mapped_column(Integer)
    #: From the request to the end of the answer.
    seconds: Mapped[float] = mapped_column(Double)
    answered_at: Mapped[datetime] = mapped_column(server_default=_NOW)

    __table_args__ = (
        Index("ix_model_calls_batch", "batch_id"),
        Index("ix_model_calls_user", "user_id"),
        Index("ix_model_calls_answered_at", "answered_at"),
    )


class DescriptionInWork(Base):
    """Which attempt describes a content now, or did last; removed a day later.

    It holds as long as the claim lives that it names. Without a foreign key, as the rows of an
    upload API are deleted by the API.
    """

    __tablename__ = "descriptions_in_work"

    #: Whose copies share the description; the local user's id if all users share.
    user_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: SHA-256 of the content, hexadecimal.
    checksum: Mapped[str] = mapped_column(primary_key=True)
    #: What the description is made with, as in ``uploads.vision_fingerprint``.
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[uuid.UUID]
    claim_token: Mapped[int] = mapped_column(BigInteger)
    taken_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class DatabaseIdentity(Base):
    """One row that tells this database from others; `database/identity.py` says what else does."""

    __tablename__ = "database_identity"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=_NEW_ID)


class MadeThumbnail(Base):
    """A thumbnail that this pipeline wrote; the proof that it may be removed.

    Outlives the upload. Without a foreign key, as the rows of an upload API are deleted by the API.
    """

    __tablename__ = "made_thumbnails"

    upload_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    #: Owner of the upload: the thumbnail lies in a folder of that name.
    user_id: Mapped[uuid.UUID]
    made_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class BatchToRecount(Base):
    """A batch that had ended when one of its uploads came, went or was changed by somebody else.

    Written by triggers (migration 0014) and removed by the sweep once the batch is recounted. Has
    no key of the batch: whoever changes an upload must not wait for another who does.
    """

    __tablename__ = "batches_to_recount"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    batch_id: Mapped[uuid.UUID]


class AskedSlice(Base):
    """A slice for which a sensor has just asked for a run; removed a little later."""

    __tablename__ = "asked_slices"

    #: Of the run that was asked for (`WaitingSlice.key`).
    key: Mapped[str] = mapped_column(primary_key=True)
    asked_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Outage(Base):
    """A service that uploads wait for; removed when it is over. Triggers tell of both."""

    __tablename__ = "outages"

    #: Error kind that uploads are released with.
    kind: Mapped[str] = mapped_column(primary_key=True)
    #: What the first upload that waited was told.
    reason: Mapped[str]
    began_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    #: When an upload was last released because of it.
    seen_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class Notification(Base):
    """An event to be told; written by triggers (migration 0017), removed by the sender."""

    __tablename__ = "notifications"

    #: The same in every delivery.
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=_NEW_ID)
    type: Mapped[str]
    #: As it is sent; never changed.
    data: Mapped[dict[str, Any]]
    occurred_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    #: When a delivery was made for each target; empty: the sender has not seen it yet.
    addressed_at: Mapped[datetime | None]


class NotificationDelivery(Base):
    """What became of a notification at one target."""

    __tablename__ = "notification_deliveries"

    notification_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("notifications.id", ondelete="CASCADE"), primary_key=True
    )
    #: Digest of its URL, which may hold a secret.
    target: Mapped[str] = mapped_column(primary_key=True)
    #: Counted when a sender takes it, so that one that dies is counted, too.
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    #: While a sender has it: when others may take it. Empty: delivered, or given up.
    next_attempt_at: Mapped[datetime | None] = mapped_column(server_default=_CLOCK)
    delivered_at: Mapped[datetime | None]
    #: What the last attempt came to.
    answer: Mapped[str | None]

    __table_args__ = (Index("ix_notification_deliveries_next_attempt_at", "next_attempt_at"),)
