"""Reads the status of batches and their uploads; changes nothing."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, func, or_, select

from batch_pipeline.database.models import OPEN_BATCH, Priority, Upload, UploadBatch
from batch_pipeline.database.readings import (
    BATCH_CAME,
    BATCH_ENDED,
    FACTS,
    FILENAME,
    NAME,
    NOT_PAUSED,
    PENDING_WORK,
    PRIORITY,
    WAITING_SINCE,
    known,
    newest_first,
    one_of,
    owned_by,
    word,
)
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.model_servers.base import Usage
from batch_pipeline.services.model_costs import (
    cost_of_upload,
    costs_by_batch,
    costs_by_model,
    costs_by_upload,
    total,
)
from batch_pipeline.services.pauses import Pause, pauses_of_batches
from batch_pipeline.services.progress.publishing import PROGRESS, BatchProgress
from batch_pipeline.services.short_ids import Named, no_such

_BATCH = (
    *PROGRESS,
    UploadBatch.created_at,
    UploadBatch.started_at,
    UploadBatch.completed_at,
    UploadBatch.error_message,
    PRIORITY,
)

_UPLOAD = (
    Upload.id.label("upload_id"),
    FILENAME,
    Upload.file_type,
    word(Upload.processing_status),
    Upload.attempts,
    Upload.error_kind,
    Upload.error_message,
    Upload.description,
    Upload.description_audit_score,
    Upload.vision_tags.label("tags"),
    Upload.visible_text,
    Upload.vision_fingerprint,
    Upload.embedding_fingerprint,
    Upload.thumbnail_path,
)


@dataclass(frozen=True)
class AboutBatch:
    """What a report shows about a batch."""

    head: Mapping[str, Any]
    """The batch as in ``status --json``, without its uploads."""

    @property
    def has_ended(self) -> bool:
        """Whether the batch has ended."""
        return self.head["status"] not in OPEN_BATCH

    @property
    def duration(self) -> timedelta | None:
        """Time from the first run that took uploads to the end of the last upload."""
        begin, end = self.head["started_at"], self.head["completed_at"]
        return end - begin if begin and end else None


def batch_status(database: Database, batch_id: uuid.UUID) -> dict[str, Any]:
    """Read a batch and its uploads, oldest first, in the shape that ``status --json`` prints.

    Raises:
        NotFoundError: there is no such batch.
    """
    with database.transaction() as connection:
        head = _head(connection, batch_id)
        uploads = connection.execute(
            select(*_UPLOAD)
            .where(Upload.batch_id == batch_id)
            .order_by(Upload.created_at, Upload.id)
        ).mappings()
        costs = costs_by_upload(connection, batch_id)
        return head | {
            "uploads": [
                {**upload, "cost": cost_shape(costs.get(upload["upload_id"]))} for upload in uploads
            ]
        }


def upload_status(database: Database, upload_id: uuid.UUID) -> dict[str, Any]:
    """Read everything about an upload, in the shape that ``show --json`` prints.

    Raises:
        NotFoundError: there is no such upload.
    """
    query = (
        select(
            *_UPLOAD,
            Upload.batch_id,
            NAME.label("batch_name"),
            Upload.file_path,
            FACTS.label("metadata"),
            Upload.stage_seconds,
        )
        .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
        .where(Upload.id == upload_id)
    )
    with database.transaction() as connection:
        upload = connection.execute(query).mappings().one_or_none()
        if upload is None:
            raise no_such(Named.UPLOAD, upload_id)
        return {**upload, "cost": cost_shape(cost_of_upload(connection, upload_id))}


def batch_head(database: Database, batch_id: uuid.UUID) -> dict[str, Any]:
    """Read a batch as `batch_status` does, without its uploads.

    Raises:
        NotFoundError: there is no such batch.
    """
    with database.transaction() as connection:
        return _head(connection, batch_id)


def progress_of(database: Database, batch_id: uuid.UUID) -> BatchProgress | None:
    """Read the counters of a batch; None if there is no such batch."""
    with database.transaction() as connection:
        row = connection.execute(select(*PROGRESS).where(UploadBatch.id == batch_id)).one_or_none()
    return BatchProgress(*row) if row else None


def newest_batches(
    database: Database, *, limit: int = 20, offset: int = 0
) -> Sequence[Mapping[str, Any]]:
    """Read batches without their uploads, newest first."""
    with database.transaction() as connection:
        rows = connection.execute(_newest(limit, offset)).all()
        ids = [row.id for row in rows]
        costs, pauses = costs_by_batch(connection, ids), pauses_of_batches(connection, ids)
        return [
            _shape(row, pauses.get(row.id, ())) | {"cost": cost_shape(costs.get(row.id))}
            for row in rows
        ]


def cost_shape(usage: Usage | None) -> dict[str, Any]:
    """Return the usage of model calls in the shape of ``--json``; embedded models need no calls."""
    shape = asdict(usage or Usage(calls=0))
    return shape | {"seconds": round(shape["seconds"], 3)}


def open_batches(
    database: Database, *, user_id: uuid.UUID | None = None, since: datetime | None = None
) -> Sequence[uuid.UUID]:
    """List batches that have not ended, oldest first.

    `user_id` selects those of a user, `since` those submitted from that time on.
    """
    query = select(UploadBatch.id).where(UploadBatch.status.in_(OPEN_BATCH))
    if user_id is not None:
        query = query.where(owned_by(UploadBatch.user_id, user_id))
    if since is not None:
        query = query.where(since <= BATCH_CAME)
    with database.transaction() as connection:
        return connection.scalars(query.order_by(UploadBatch.created_at, UploadBatch.id)).all()


@dataclass(frozen=True)
class OldestWaiting:
    """The upload that has waited for longest, over all batches."""

    upload_id: uuid.UUID
    batch_id: uuid.UUID | None
    batch_status: str | None
    batch_name: str | None
    waited: timedelta | None
    """Time since it was submitted or made pending again; None if its row does not contain it."""


def oldest_waiting(database: Database) -> OldestWaiting | None:
    """Read the upload that has waited for longest; None if none waits.

    Uploads of a batch that is paused, was cancelled or was given up do not count, because they wait
    for a person.
    """
    query = (
        select(
            Upload.id,
            Upload.batch_id,
            UploadBatch.status,
            NAME,
            func.date_trunc("second", func.now() - WAITING_SINCE),
        )
        .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
        .where(PENDING_WORK, NOT_PAUSED)
        # Uploads of unknown age come last: they must not hide one that has waited for too long.
        .order_by(WAITING_SINCE.nulls_last())
        .limit(1)
    )
    with database.transaction() as connection:
        row = connection.execute(query).one_or_none()
    return OldestWaiting(*row) if row else None


def waiting_without_their_batch(database: Database) -> int:
    """Count the waiting uploads that name a batch which another program has deleted."""
    query = (
        select(func.count())
        .select_from(Upload)
        .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
        .where(PENDING_WORK, Upload.batch_id.is_not(None), UploadBatch.id.is_(None))
    )
    with database.transaction() as connection:
        return connection.execute(query).scalar_one()


def _head(connection: Connection, batch_id: uuid.UUID) -> dict[str, Any]:
    batch = connection.execute(select(*_BATCH).where(UploadBatch.id == batch_id)).one_or_none()
    if batch is None:
        raise no_such(Named.BATCH, batch_id)
    by_model = costs_by_model(connection, batch_id)
    models = [asdict(cost) | cost_shape(total([cost])) for cost in by_model]
    pauses = pauses_of_batches(connection, [batch_id]).get(batch_id, ())
    return _shape(batch, pauses) | {"cost": cost_shape(total(by_model)) | {"models": models}}


def _newest(limit: int, offset: int) -> Select[*tuple[Any, ...]]:
    return (
        select(*_BATCH)
        .order_by(newest_first(UploadBatch.created_at), UploadBatch.id)
        .limit(limit)
        .offset(offset)
    )


def _shape(batch: AnyRow, pauses: Iterable[Pause]) -> dict[str, Any]:
    values = dict(batch._mapping)
    progress = BatchProgress(*tuple(batch)[: len(PROGRESS)])
    return {
        "batch_id": values.pop("id"),
        **values,
        "priority": values["priority"] or Priority.NORMAL,
        "progress_percentage": progress.progress_percentage,
        "paused": [pause.shape() for pause in pauses],
    }


def batches_ended_before(
    database: Database, batch_ids: Sequence[uuid.UUID], *, days: int
) -> list[uuid.UUID]:
    """List which of these batches were deleted, or have ended and not changed for `days`."""
    changed_at = func.coalesce(known(UploadBatch.updated_at), BATCH_ENDED)
    with database.transaction() as connection:
        kept = set(
            connection.scalars(
                select(UploadBatch.id).where(
                    one_of(UploadBatch.id, batch_ids),
                    or_(
                        UploadBatch.status.in_(OPEN_BATCH),
                        changed_at > func.now() - func.make_interval(0, 0, 0, days),
                    ),
                )
            )
        )
    return [batch_id for batch_id in batch_ids if batch_id not in kept]
