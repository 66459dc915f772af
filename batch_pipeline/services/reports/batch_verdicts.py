"""Shows in a few numbers whether a batch was successful."""

import uuid
from dataclasses import dataclass

from sqlalchemy import func, or_, select

from batch_pipeline.database.models import BatchStatus, Upload, UploadBatch, UploadStatus
from batch_pipeline.database.readings import word
from batch_pipeline.database.session import Database
from batch_pipeline.services.descriptions.audit import PASS_SCORE
from batch_pipeline.services.short_ids import Named, no_such


@dataclass(frozen=True)
class BatchVerdict:
    """Numbers that show failures of a batch or of all batches."""

    total: int
    failed: int
    described: int
    """Descriptions that were made, including those that failed the audit at the last attempt."""
    passed_audit: int
    lowest_score: int | None
    """Lowest score of a stored description."""
    gave_up: str | None
    """Why the batch ended early; None if it did not."""


def verdict(database: Database, batch_id: uuid.UUID | None) -> BatchVerdict:
    """Return the verdict on a batch; without a batch, on everything that is stored.

    Raises:
        NotFoundError: there is no such batch.
    """
    score, failed = Upload.description_audit_score, Upload.processing_status == UploadStatus.FAILED
    stored = Upload.description.is_not(None)
    # An upload API may store descriptions without a score. These count as passed.
    good = or_(score.is_(None), score >= PASS_SCORE)
    refused = failed & (Upload.error_kind == "model_output_invalid")
    query = select(
        func.count().label("total"),
        func.count().filter(failed).label("failed"),
        func.count().filter(or_(stored, refused)).label("described"),
        func.count().filter(stored, good).label("passed_audit"),
        func.min(score).filter(stored).label("lowest_score"),
    )
    gave_up = None
    with database.transaction() as connection:
        if batch_id is not None:
            query = query.where(Upload.batch_id == batch_id)
            batch = connection.execute(
                select(word(UploadBatch.status)).where(UploadBatch.id == batch_id)
            ).one_or_none()
            if batch is None:
                raise no_such(Named.BATCH, batch_id)
            if batch.status in {BatchStatus.CANCELLED, BatchStatus.FAILED}:
                gave_up = f"the batch is {batch.status}"
        counts = connection.execute(query).one()
    return BatchVerdict(**counts._mapping, gave_up=gave_up)
