"""Redoes one stage of completed uploads, for example after a change of model or prompt.

This module selects the uploads. ``batch_states.py`` makes them pending again, and
``upload_processing.py`` processes only the stages that are needed. Until new results are stored,
old results stay and search finds them.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, or_, select

from batch_pipeline.database.models import Stage, Upload, UploadBatch, UploadStatus
from batch_pipeline.database.readings import UPLOAD_CAME, upload_owned_by
from batch_pipeline.database.session import Database
from batch_pipeline.errors import RefusedError
from batch_pipeline.services.progress.publishing import BatchProgress
from batch_pipeline.services.short_ids import Named, require_existing
from batch_pipeline.services.states.batch_states import REDOABLE_BATCH, BatchStates


@dataclass(frozen=True)
class Selection:
    """Which completed uploads to redo; an empty field restricts nothing."""

    stage: Stage
    batch_ids: Sequence[uuid.UUID] = ()
    upload_ids: Sequence[uuid.UUID] = ()
    model_not: str | None = None
    """Only results by another model, or without the name of a model."""
    user_id: uuid.UUID | None = None
    model: str | None = None
    """Only results by this model."""
    since: datetime | None = None
    """Only uploads from this time on."""
    file_type: str | None = None
    """``image`` or ``video``."""
    fingerprint_not: str | None = None
    """Only results with another fingerprint than this one, or without one."""

    @property
    def is_everything(self) -> bool:
        """Whether nothing restricts the selection."""
        return self == Selection(self.stage)


@dataclass(frozen=True)
class ReopenedBatch:
    """A batch with uploads to redo."""

    uploads: int
    progress: BatchProgress


def reprocess(
    database: Database, batches: BatchStates, selection: Selection
) -> Sequence[ReopenedBatch]:
    """Make the selected uploads pending again, one transaction per batch; oldest batch first.

    Raises: as `count_selected`.
    """
    reopened = []
    for batch_id, upload_ids in _checked(database, selection):
        result = batches.redo(batch_id, selection.stage, upload_ids)
        if result and result[0]:
            reopened.append(ReopenedBatch(*result))
    if not reopened:
        raise RefusedError(f"nothing to redo: {_description(selection)}")
    return reopened


def count_selected(database: Database, selection: Selection) -> dict[uuid.UUID, int]:
    """Count the uploads that `reprocess` would make pending, by batch; changes nothing.

    Raises:
        RefusedError: nothing is selected, or the stage has no model to select by.
        NotFoundError: a named batch or upload does not exist.
    """
    counts = {batch_id: len(ids) for batch_id, ids in _checked(database, selection) if ids}
    if not counts:
        raise RefusedError(f"nothing to redo: {_description(selection)}")
    return counts


def _checked(
    database: Database, selection: Selection
) -> Iterator[tuple[uuid.UUID, Sequence[uuid.UUID]]]:
    for asked, option in (
        (selection.model_not, "--model-not"),
        (selection.model, "--model"),
        (selection.fingerprint_not, "--stale"),
    ):
        if asked is not None and selection.stage is Stage.THUMBNAIL:
            raise RefusedError(f"thumbnails are made without a model: leave {option} out")
    require_existing(database, Named.BATCH, selection.batch_ids)
    require_existing(database, Named.UPLOAD, selection.upload_ids)
    return _selected(database, selection)


def _selected(
    database: Database, selection: Selection
) -> Iterator[tuple[uuid.UUID, Sequence[uuid.UUID]]]:
    """Yield the selected uploads of each batch; each batch is read in its own transaction."""
    chosen = _conditions(selection)
    with database.transaction() as connection:
        batch_ids = connection.scalars(
            select(UploadBatch.id)
            .where(
                UploadBatch.status.in_(REDOABLE_BATCH),
                select(Upload.id).where(Upload.batch_id == UploadBatch.id, *chosen).exists(),
            )
            .order_by(UploadBatch.created_at, UploadBatch.id)
        ).all()
    for batch_id in batch_ids:
        with database.transaction() as connection:
            upload_ids = connection.scalars(
                select(Upload.id).where(Upload.batch_id == batch_id, *chosen)
            ).all()
        yield batch_id, upload_ids


def _conditions(selection: Selection) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Upload.processing_status == UploadStatus.COMPLETED]
    if selection.batch_ids:
        conditions.append(Upload.batch_id.in_(selection.batch_ids))
    if selection.upload_ids:
        conditions.append(Upload.id.in_(selection.upload_ids))
    if selection.user_id is not None:
        conditions.append(upload_owned_by(selection.user_id))
    if selection.since is not None:
        conditions.append(selection.since <= UPLOAD_CAME)
    if selection.file_type is not None:
        conditions.append(Upload.file_type == selection.file_type)
    model = Upload.embedding_model if selection.stage is Stage.EMBEDDING else Upload.vision_model
    if selection.model_not is not None:
        conditions.append(model.is_distinct_from(selection.model_not))
    if selection.model is not None:
        conditions.append(model == selection.model)
    if selection.fingerprint_not is not None:
        conditions.append(_is_stale(selection.stage, selection.fingerprint_not))
    return conditions


def _is_stale(stage: Stage, fingerprint: str) -> ColumnElement[bool]:
    """Condition: a result has another fingerprint.

    It uses ``<`` and ``>`` instead of ``<>``, because only these can use an index.
    """
    of_stage = {
        Stage.DESCRIPTION: Upload.vision_fingerprint,
        Stage.EMBEDDING: Upload.embedding_fingerprint,
    }[stage]
    return or_(of_stage < fingerprint, of_stage > fingerprint, of_stage.is_(None))


def stale_uploads(database: Database, fingerprint: str, *, at_most: int) -> int:
    """Count uploads whose description has another fingerprint, up to a limit."""
    found = _stale(fingerprint, at_most).subquery()
    with database.transaction() as connection:
        return connection.execute(select(func.count()).select_from(found)).scalar_one()


def refresh_stale(
    database: Database, batches: BatchStates, fingerprint: str, *, at_most: int
) -> int:
    """Make uploads pending whose description has another fingerprint; returns how many."""
    with database.transaction() as connection:
        rows = connection.execute(_stale(fingerprint, at_most)).all()
    by_batch: dict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
    for row in rows:
        by_batch[row.batch_id].append(row.id)
    results = [batches.redo(of, Stage.DESCRIPTION, ids) for of, ids in sorted(by_batch.items())]
    return sum(result[0] for result in results if result)


def _stale(fingerprint: str, at_most: int) -> Select[uuid.UUID, uuid.UUID | None]:
    return (
        select(Upload.id, Upload.batch_id)
        .join(UploadBatch, UploadBatch.id == Upload.batch_id)
        .where(
            Upload.processing_status == UploadStatus.COMPLETED,
            UploadBatch.status.in_(REDOABLE_BATCH),
            _is_stale(Stage.DESCRIPTION, fingerprint),
        )
        .limit(at_most)
    )


def _description(selection: Selection) -> str:
    parts = ["no completed upload"]
    if selection.batch_ids:
        parts.append("of the named batches")
    if selection.user_id is not None:
        parts.append(f"of user {selection.user_id}")
    if selection.upload_ids:
        parts.append("among the named ones")
    if selection.file_type is not None:
        parts.append(f"of kind {selection.file_type}")
    if selection.since is not None:
        parts.append(f"since {selection.since:%Y-%m-%d %H:%M}")
    if selection.model is not None:
        parts.append(f"has its {selection.stage} from {selection.model}")
    elif selection.fingerprint_not is not None:
        parts.append(
            f"has its {selection.stage} made with anything other than {selection.fingerprint_not}"
        )
    elif selection.model_not is not None:
        parts.append(f"has its {selection.stage} from another model than {selection.model_not}")
    else:
        parts.append("is there")
    said = " ".join(parts)
    return f"{said}; for failed uploads and cancelled batches, use `batch-pipeline retry`"
