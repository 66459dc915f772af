"""Selects failed uploads of one or many batches for a retry, and shows whether a retry can help.

``states/batch_states.py`` makes the uploads pending again.
"""

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, or_, select

from batch_pipeline.database.models import (
    OPEN_UPLOAD,
    BatchStatus,
    ModelCall,
    Upload,
    UploadBatch,
    UploadStatus,
)
from batch_pipeline.database.readings import NAME, one_of
from batch_pipeline.database.session import Database
from batch_pipeline.errors import NotFoundError
from batch_pipeline.services.error_kinds import SAME_AGAIN
from batch_pipeline.services.reports.failures import UNKNOWN, FailureFilter, has_failed
from batch_pipeline.services.short_ids import Named, batch_label, require_existing


@dataclass(frozen=True)
class FailedSelection(FailureFilter):
    """Which failed uploads to process again; an empty field restricts nothing."""

    upload_ids: Sequence[uuid.UUID] = ()
    only_retryable: bool = False
    """Leave out uploads that would fail in the same way again."""
    model: str | None = None
    """Only uploads that this model has described or embedded, or for which it answered a call."""

    @property
    def chooses(self) -> bool:
        """Whether the selection has other conditions than batch and uploads."""
        return bool(self.kinds or self.only_retryable or self.since or self.user_id or self.model)


@dataclass(frozen=True)
class StoppedBatch:
    """A cancelled batch, or one that was given up."""

    label: str
    """Its name in messages."""
    status: str
    left: int
    """Number of its uploads that have not ended."""


@dataclass
class FailedUploads:
    """The selected failed uploads by batch, the oldest failure first."""

    by_batch: dict[uuid.UUID, list[uuid.UUID]] = field(default_factory=dict)
    lone: list[uuid.UUID] = field(default_factory=list)
    """Uploads without a batch, because an upload API has deleted it."""
    kinds: Counter[str] = field(default_factory=Counter)
    reopens: list[StoppedBatch] = field(default_factory=list)
    """Batches that the retry reopens, so that their other uploads are processed, too."""
    cancelled: int = 0
    """Number of uploads that were left out because their batch was cancelled."""

    @property
    def count(self) -> int:
        """Number of selected uploads."""
        return self.kinds.total()

    @property
    def same_again(self) -> Mapping[str, int]:
        """Number of uploads that will fail in the same way unless the cause is fixed, by kind.

        The most frequent kind comes first.
        """
        return {kind: n for kind, n in self.kinds.most_common() if kind in SAME_AGAIN}


def failed_uploads(database: Database, chosen: FailedSelection) -> FailedUploads:
    """Read the selected failed uploads; changes nothing.

    A person has stopped a cancelled batch, so its uploads are selected only if it is named.

    Raises:
        NotFoundError: a named batch or upload does not exist, or they do not belong together.
    """
    if chosen.batch_id:
        require_existing(database, Named.BATCH, [chosen.batch_id])
        _require_its_own(database, chosen.batch_id, chosen.upload_ids)
    require_existing(database, Named.UPLOAD, chosen.upload_ids)
    kind = func.coalesce(Upload.error_kind, UNKNOWN)
    conditions = [has_failed(chosen)]
    if chosen.upload_ids:
        conditions.append(Upload.id.in_(chosen.upload_ids))
    if chosen.only_retryable:
        conditions.append(kind.not_in(SAME_AGAIN))
    if chosen.model is not None:
        conditions.append(_touched_by(chosen.model))
    query: Select[*tuple[Any, ...]] = (
        select(Upload.batch_id, Upload.id, kind, UploadBatch.status)
        .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
        .where(*conditions, or_(UploadBatch.id.is_not(None), Upload.batch_id.is_(None)))
        .order_by(Upload.updated_at, Upload.id)
    )
    found = FailedUploads()
    with database.transaction() as connection:
        for batch_id, upload_id, name, status in connection.execute(query):
            if status == BatchStatus.CANCELLED and chosen.batch_id is None:
                found.cancelled += 1
                continue
            of_batch = found.by_batch.setdefault(batch_id, []) if batch_id else found.lone
            of_batch.append(upload_id)
            found.kinds[name] += 1
        retried = set(found.by_batch)
        if chosen.batch_id and not chosen.chooses:
            retried.add(chosen.batch_id)
        found.reopens = [
            StoppedBatch(batch_label(row.id, row.name), row.status, row.left)
            for row in connection.execute(_stopped(retried))
        ]
    return found


def _require_its_own(
    database: Database, batch_id: uuid.UUID, upload_ids: Sequence[uuid.UUID]
) -> None:
    its_own = select(Upload.id).where(Upload.batch_id == batch_id, one_of(Upload.id, upload_ids))
    with database.transaction() as connection:
        missing = set(upload_ids) - set(connection.scalars(its_own))
    if missing:
        names = ", ".join(map(str, sorted(missing)))
        raise NotFoundError(f"batch {batch_id} holds no upload {names}")


def _stopped(batch_ids: Collection[uuid.UUID]) -> Select[*tuple[Any, ...]]:
    left = select(func.count()).where(
        Upload.batch_id == UploadBatch.id, Upload.processing_status.in_(OPEN_UPLOAD)
    )
    return (
        select(UploadBatch.id, NAME, UploadBatch.status, left.scalar_subquery().label("left"))
        .where(
            one_of(UploadBatch.id, batch_ids),
            UploadBatch.status.in_([BatchStatus.CANCELLED, BatchStatus.FAILED]),
            exists().where(  # one without uploads is not reopened
                Upload.batch_id == UploadBatch.id,
                Upload.processing_status.in_(list(UploadStatus)),
            ),
        )
        .order_by(UploadBatch.created_at, UploadBatch.id)
    )


def _touched_by(model: str) -> ColumnElement[bool]:
    called = exists().where(ModelCall.upload_id == Upload.id, ModelCall.model == model)
    return or_(Upload.vision_model == model, Upload.embedding_model == model, called)
