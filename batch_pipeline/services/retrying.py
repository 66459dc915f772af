"""Selects failed uploads of one or many batches for a retry, and shows whether a retry can help.

``states/batch_states.py`` makes the uploads pending again.
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


@dataclass
class FailedUploads:
    """The selected failed uploads by batch, the oldest failure first."""

    by_batch: dict[uuid.UUID, list[uuid.UUID]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

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
    """Read the selected failed uploads; changes nothing."""
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
