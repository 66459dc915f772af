"""Reuse of stored results: the same bytes are not described again with the same fingerprint.

The fingerprint names model, prompts and options (`batch_pipeline.model_servers.fingerprints`).
Results of the same user are reused, and those of other users only if a setting allows it.
"""

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Uuid, and_, bindparam, or_, select, true
from sqlalchemy.orm import aliased

from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.database.models import Upload, UploadVector
from batch_pipeline.database.readings import owner
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.errors import PipelineError
from batch_pipeline.model_servers.base import Description
from batch_pipeline.services.description_audit import PASS_SCORE

if TYPE_CHECKING:
    from batch_pipeline.services.pipeline import Pipeline


@dataclass(frozen=True)
class Described:
    """A description that passed the audit, and how it was made."""

    description: Description
    score: int
    model: str
    fingerprint: str
    copied_from: uuid.UUID | None = None
    """The upload of the same bytes that it was made for; None: it was made for this one."""

    @classmethod
    def of(cls, row: AnyRow) -> "Described | None":
        """Read the stored description of an upload; None if it has none."""
        if not row.description:
            return None
        return cls(
            Description(row.description, tuple(row.vision_tags or ()), row.visible_text or ""),
            row.description_audit_score or 0,
            row.vision_model or "",
            row.vision_fingerprint or "",
        )


_FIND: Any = (
    select(
        Upload.id,
        Upload.description,
        Upload.description_audit_score,
        Upload.vision_model,
        Upload.vision_tags,
        Upload.visible_text,
        Upload.vision_fingerprint,
    )
    .where(
        Upload.checksum == bindparam("content"),
        Upload.vision_fingerprint == bindparam("made_with"),
        Upload.embedding_model.is_not(None),  # completed once; says that the index may be used
        Upload.description_audit_score >= PASS_SCORE,
        Upload.id != bindparam("of_upload", type_=Uuid),
        or_(
            bindparam("of_all_users", type_=Boolean),
            owner(Upload.user_id) == bindparam("of_user", type_=Uuid),
        ),
    )
    .order_by(Upload.created_at)
    .limit(1)
)
_KNOWN = LoneStatement(_FIND)


def find_known(
    database: Database, upload: AnyRow, checksum: str, fingerprint: str, *, of_all_users: bool
) -> Described | None:
    """Find a description of the same bytes with the current fingerprint, or None.

    Raises:
        ServiceDownError: the database cannot be reached.
    """
    row = database.execute(
        _KNOWN,
        {
            "content": checksum,
            "made_with": fingerprint,
            "of_upload": upload.id,
            "of_user": upload.user_id,
            "of_all_users": of_all_users,
        },
    )
    if row is None or (described := Described.of(row)) is None:
        return None
    return replace(described, copied_from=row.id)


def vector_of(
    database: Database, upload_id: uuid.UUID, space_id: int, fingerprint: str
) -> list[float] | None:
    """Return the vector of an upload in a space if it has the current fingerprint, else None."""
    statement = (
        select(UploadVector.vector)
        .join(Upload, Upload.id == UploadVector.upload_id)
        .where(
            UploadVector.upload_id == upload_id,
            UploadVector.space_id == space_id,
            Upload.embedding_fingerprint == fingerprint,
        )
    )
    with database.transaction() as connection:
        return connection.scalar(statement)


def count_known(pipeline: "Pipeline", batch_id: uuid.UUID) -> int:
    """Count uploads of a batch whose bytes already have a description with the current fingerprint.

    Models are asked for their fingerprint only if there are candidates. If they cannot be asked,
    the count is 0.
    """
    other = aliased(Upload)
    everybody = pipeline.settings.share_results
    same_bytes = (
        select(Upload.id, other.vision_fingerprint)
        .join(other, and_(Upload.checksum == other.checksum, Upload.id != other.id))
        .where(
            Upload.batch_id == batch_id,
            other.embedding_model.is_not(None),
            other.vision_fingerprint.is_not(None),
            true() if everybody else other.user_id == Upload.user_id,
        )
    )
    with pipeline.database.transaction() as connection:
        rows = connection.execute(same_bytes).all()
    if not rows:
        return 0
    try:
        fingerprint = pipeline.analyzer.vision.fingerprint()
    except PipelineError:
        return 0
    return len({row.id for row in rows if row.vision_fingerprint == fingerprint})
