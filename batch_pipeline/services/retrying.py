"""Retry of failed uploads, of one batch or of many: which ones, and whether it can help.

How an upload is opened again stands in ``states/batch_states.py``.
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, or_, select

from batch_pipeline.database.models import ModelCall, Upload
from batch_pipeline.database.session import Database
from batch_pipeline.services.error_kinds import SAME_AGAIN
from batch_pipeline.services.reports.failures import UNKNOWN, FailureFilter, has_failed


@dataclass(frozen=True)
class FailedSelection(FailureFilter):
    """Which failed uploads to process again; what is left empty restricts nothing."""

    upload_ids: Sequence[uuid.UUID] = ()
    only_retryable: bool = False
    """Leave out what would fail the same way again."""
    model: str | None = None
    """Only what this model has described, embedded or answered a call for."""

    @property
    def chooses(self) -> bool:
        """Whether it says more than which batch and which uploads."""
        return bool(self.kinds or self.only_retryable or self.since or self.user_id or self.model)


@dataclass
class FailedUploads:
    """Failed uploads that were chosen, batch by batch, the oldest failure first."""

    by_batch: dict[uuid.UUID, list[uuid.UUID]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.kinds.total()

    @property
    def same_again(self) -> Mapping[str, int]:
        """How many will fail in the same way unless the cause is fixed, by kind; most first."""
        return {kind: n for kind, n in self.kinds.most_common() if kind in SAME_AGAIN}


def failed_uploads(database: Database, chosen: FailedSelection) -> FailedUploads:
    """Read which failed uploads are chosen; changes nothing."""
    kind = func.coalesce(Upload.error_kind, UNKNOWN)
    conditions = [Upload.batch_id.is_not(None), has_failed(chosen)]
    if chosen.upload_ids:
        conditions.append(Upload.id.in_(chosen.upload_ids))
    if chosen.only_retryable:
        conditions.append(kind.not_in(SAME_AGAIN))
    if chosen.model is not None:
        conditions.append(_touched_by(chosen.model))
    query: Select[*tuple[Any, ...]] = select(Upload.batch_id, Upload.id, kind).where(*conditions)
    found = FailedUploads()
    with database.transaction() as connection:
        for batch_id, upload_id, name in connection.execute(
            query.order_by(Upload.updated_at, Upload.id)
        ):
            found.by_batch.setdefault(batch_id, []).append(upload_id)
            found.kinds[name] += 1
    return found


def _touched_by(model: str) -> ColumnElement[bool]:
    called = exists().where(
        ModelCall.batch_id == Upload.batch_id,
        ModelCall.upload_id == Upload.id,
        ModelCall.model == model,
    )
    return or_(Upload.vision_model == model, Upload.embedding_model == model, called)
