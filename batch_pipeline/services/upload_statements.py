"""The statements that every upload goes through, from its start to its end.

Built once: SQLAlchemy took 2 of the 7 ms that an upload spends on our tables to put the same ones
together again each time. Parameters have other names than columns, which SQLAlchemy asks for.
When they are executed, and what they mean, says `upload_states`.
"""

from typing import Any

from sqlalchemy import (
    Float,
    Integer,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from batch_pipeline.database.models import Upload, UploadBatch, UploadStatus
from batch_pipeline.services.transitions import ANNOUNCED, interval

#: The row of an upload under a claim (`of_upload`, `of_run`, `token`); nobody else's.
_HELD = and_(
    Upload.id == bindparam("of_upload"),
    Upload.owner_run_id == bindparam("of_run"),
    Upload.claim == bindparam("token"),
)
_COLUMNS = Upload.__table__.columns
_NO_STAGES = cast([], ARRAY(Text))


def held_update(**values: Any) -> Update:
    """Change an upload under a claim, which is a sign of life, too; returns `ANNOUNCED`."""
    return (
        update(Upload)
        .where(_HELD)
        .values(heartbeat_at=func.now(), updated_at=func.now(), **values)
        .returning(*ANNOUNCED)
    )


def _without(array: Any, *words: str) -> Any:
    for word in words:
        array = func.array_remove(array, word)
    return array


_ADD_SECONDS = Upload.stage_seconds.concat(bindparam("seconds", type_=JSONB))

#: Lock an upload (`of_upload`), and read it with its batch's status and whether its claim is older
#: than a lease (`lease`, seconds).
LOCK_TO_START = (
    select(
        *_COLUMNS,
        UploadBatch.status.label("batch_status"),
        or_(
            Upload.heartbeat_at.is_(None),
            Upload.heartbeat_at < func.now() - interval(bindparam("lease", type_=Float)),
        ).label("expired"),
    )
    .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
    .where(Upload.id == bindparam("of_upload"))
    .with_for_update(of=Upload.__table__)
)
#: Claim an upload that is locked, for a run (`of_run`); returns all columns.
START = (
    update(Upload)
    .where(Upload.id == bindparam("of_upload"))
    .values(
        processing_status=UploadStatus.ANALYZING,
        owner_run_id=bindparam("of_run"),
        claim=Upload.claim + 1,
        heartbeat_at=func.now(),
        not_before=None,
        attempts=case(
            (Upload.processing_status == UploadStatus.FAILED, 1), else_=Upload.attempts + 1
        ),
        retry_at=None,
        updated_at=func.now(),
    )
    .returning(*_COLUMNS)
)
STORE_THUMBNAIL = held_update(
    thumbnail_path=bindparam("path"),
    redo=_without(Upload.redo, "thumbnail"),
    stage_seconds=_ADD_SECONDS,
)
_REGENERATED = bindparam("regenerated", type_=Integer)
STORE_DESCRIPTION = held_update(
    processing_status=UploadStatus.EMBEDDING,
    description=bindparam("words"),
    description_audit_score=bindparam("score"),
    vision_model=bindparam("model"),
    # The old vector says something else: whoever takes over from here makes a new one.
    redo=func.array_append(_without(Upload.redo, "description", "embedding"), "embedding"),
    regeneration_count=Upload.regeneration_count + _REGENERATED,
    last_regenerated_at=case((_REGENERATED > 0, func.now()), else_=Upload.last_regenerated_at),
    facts=Upload.facts.concat(bindparam("found", type_=JSONB)),
    # What the content says; whoever wrote the row may have gone by the name.
    file_type=func.coalesce(bindparam("true_file_type", type_=Text), Upload.file_type),
    mime_type=func.coalesce(bindparam("true_mime_type", type_=Text), Upload.mime_type),
    video_codec=bindparam("codec"),
    stage_seconds=_ADD_SECONDS,
)


def _complete(**vector: Any) -> Update:
    return held_update(
        processing_status=UploadStatus.COMPLETED,
        owner_run_id=None,
        deaths=0,
        redo=_NO_STAGES,
        error_kind=None,
        error_message=None,
        retries=0,
        stage_seconds=_ADD_SECONDS,
        **vector,
    )


COMPLETE = _complete()
COMPLETE_WITH_VECTOR = _complete(
    embedding_local=bindparam("vector", type_=Upload.embedding_local.type),
    embedding_model=bindparam("model"),
)
