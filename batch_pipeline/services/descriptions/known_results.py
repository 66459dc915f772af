"""Reuse of stored results: the same bytes are not described again with the same fingerprint.

The fingerprint names model, prompts and options (`batch_pipeline.model_servers.fingerprints`).
Results of the same user are reused. Results of other users are reused only if a setting allows it.
Copies that are processed at the same time are described once, too: each attempt first records in
``descriptions_in_work`` that it describes this content, and the others wait.
"""

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Float,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased

from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.database.models import (
    DescriptionInWork,
    Stage,
    Upload,
    UploadStatus,
    UploadVector,
)
from batch_pipeline.database.readings import LOCAL_USER, interval, lease_lives, owner
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.errors import PipelineError
from batch_pipeline.model_servers.base import Description
from batch_pipeline.services.descriptions.audit import PASS_SCORE

if TYPE_CHECKING:
    from batch_pipeline.services.pipeline import Pipeline
    from batch_pipeline.services.states.upload_states import Claim

#: After this time, a note in ``descriptions_in_work`` is useless, because every attempt ends sooner
#: (seconds).
NOTE_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Described:
    """A description that passed the audit, and how it was made."""

    description: Description
    score: int
    model: str
    fingerprint: str
    copied_from: uuid.UUID | None = None
    """The upload with the same bytes for which it was made; None: it was made for this upload."""

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


@dataclass(frozen=True)
class Lookup:
    """Result of a look-up: a description, or the right to make it, or neither.

    Neither means that another attempt is making the description now.
    """

    described: Described | None
    is_ours_to_make: bool


def _look_up() -> Select[Any]:
    """Find a description. If there is none, record that this attempt makes it.

    If another attempt with a valid claim makes it already, nothing is recorded.
    """
    result = (
        Upload.id,
        Upload.description,
        Upload.description_audit_score,
        Upload.vision_model,
        Upload.vision_tags,
        Upload.visible_text,
        Upload.vision_fingerprint,
    )
    of_same_content = and_(
        Upload.checksum == bindparam("content"),
        Upload.vision_fingerprint == bindparam("made_with"),
        Upload.description_audit_score >= PASS_SCORE,
        Upload.description != "",  # an upload API may have emptied it
        Upload.id != bindparam("of_upload", type_=Uuid),
    )
    note = DescriptionInWork
    completed = (
        select(*result)
        .where(
            of_same_content,
            Upload.embedding_model.is_not(None),  # so that the partial index can be used
            or_(
                bindparam("of_all_users", type_=Boolean),
                owner(Upload.user_id) == bindparam("of_user", type_=Uuid),
            ),
        )
        .order_by(Upload.created_at)
        .limit(1)
    )
    # This upload has its description, but is not completed yet because its vector is missing.
    just_described = (
        select(*result)
        .join(note, note.upload_id == Upload.id)
        .where(
            note.user_id == bindparam("shared_by", type_=Uuid),
            note.checksum == bindparam("content"),
            note.fingerprint == bindparam("made_with"),
            of_same_content,
        )
    )
    known = union_all(completed, just_described).limit(1).cte("known")
    # An upload that waits for its next attempt keeps its claim, but makes no description until
    # then.
    lives = exists().where(
        Upload.id == literal_column("descriptions_in_work.upload_id"),
        Upload.claim_token == literal_column("descriptions_in_work.claim_token"),
        or_(
            Upload.processing_status == UploadStatus.ANALYZING,
            Upload.processing_status == UploadStatus.EMBEDDING,
        ),
        lease_lives(bindparam("lease", type_=Float)),
    )
    mine = insert(note).from_select(
        ["user_id", "checksum", "fingerprint", "upload_id", "claim_token"],
        select(
            bindparam("shared_by", type_=Uuid),
            bindparam("content", type_=Text),
            bindparam("made_with", type_=Text),
            bindparam("of_upload", type_=Uuid),
            bindparam("token", type_=BigInteger),
        ).where(~exists(select(known.c.id))),
    )
    taken = (
        mine.on_conflict_do_update(
            index_elements=[note.user_id, note.checksum, note.fingerprint],
            set_={
                "upload_id": mine.excluded.upload_id,
                "claim_token": mine.excluded.claim_token,
                "taken_at": func.now(),
            },
            # A note that is newer than this statement names a claim that the statement cannot see.
            where=and_(note.taken_at < func.now(), ~lives),
        )
        .returning(note.upload_id)
        .cte("taken")
    )
    always = select(literal(1).label("one")).subquery()
    return select(*known.c, exists(select(taken.c.upload_id)).label("is_ours_to_make")).select_from(
        always.outerjoin(known, true())
    )


_LOOK_UP = LoneStatement(_look_up())


def look_up(
    database: Database,
    claim: "Claim",
    upload: AnyRow,
    checksum: str,
    fingerprint: str,
    *,
    of_all_users: bool,
    lease_seconds: float,
) -> Lookup:
    """Look for a description of the same bytes with the current fingerprint.

    If there is none and no other attempt makes it, the caller has to make it. Until the caller's
    attempt ends, other attempts wait for it.

    Raises:
        ServiceDownError: the database cannot be reached.
    """
    row = database.execute(
        _LOOK_UP,
        {
            "content": checksum,
            "made_with": fingerprint,
            "of_upload": upload.id,
            "of_user": upload.user_id,
            "of_all_users": of_all_users,
            "shared_by": LOCAL_USER if of_all_users else upload.user_id,
            "token": claim.token,
            "lease": lease_seconds,
        },
    )
    described = Described.of(row) if row else None
    return Lookup(
        replace(described, copied_from=row.id) if row and described else None,
        is_ours_to_make=bool(row and row.is_ours_to_make),
    )


def forget_old_notes(database: Database) -> int:
    """Delete notes about descriptions in progress that are older than a day; returns how many."""
    old = DescriptionInWork.taken_at < func.now() - interval(NOTE_SECONDS)
    with database.transaction() as connection:
        return int(connection.execute(delete(DescriptionInWork).where(old)).rowcount)


def vector_of(
    database: Database, described: Described, space_id: int, fingerprint: str
) -> list[float] | None:
    """Return the vector of a copied description in a space, made with the current fingerprint.

    None: there is none. The upload that it was copied from may have got another description since,
    and keeps its old vector until the new one is stored.
    """
    statement = (
        select(UploadVector.vector)
        .join(Upload, Upload.id == UploadVector.upload_id)
        .where(
            UploadVector.upload_id == described.copied_from,
            UploadVector.space_id == space_id,
            Upload.embedding_fingerprint == fingerprint,
            Upload.description == described.description.text,
            ~Upload.redo.contains([Stage.EMBEDDING.value]),
        )
    )
    with database.transaction() as connection:
        return connection.scalar(statement)


def count_known(pipeline: "Pipeline", batch_id: uuid.UUID) -> int:
    """Count uploads of a batch whose bytes already have a description with the current fingerprint.

    Models are asked for their fingerprint only if there are candidates. If they or the database
    cannot be asked, the count is 0: the batch is submitted anyway.
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
            true() if everybody else owner(other.user_id) == owner(Upload.user_id),
        )
    )
    try:
        with pipeline.database.transaction() as connection:
            rows = connection.execute(same_bytes).all()
        if not rows:
            return 0
        fingerprint = pipeline.analyzer.vision.fingerprint()
    except PipelineError:
        return 0
    return len({row.id for row in rows if row.vision_fingerprint == fingerprint})
