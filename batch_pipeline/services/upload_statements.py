"""The statements that every upload goes through, from its start to its end.

Built once: SQLAlchemy took 2 of the 7 ms that an upload spends on our tables to put the same ones
together again each time. Parameters have other names than columns, which SQLAlchemy asks for.
When they are executed, and what they mean, says `upload_states`.
"""

from typing import Any

from sqlalchemy import (
    Float,
    Integer,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from batch_pipeline.database.models import BatchStatus, Upload, UploadBatch, UploadStatus
from batch_pipeline.services.transitions import ANNOUNCED, count_ends, interval

#: The row of an upload under a claim (`of_upload`, `of_run`, `token`); nobody else's.
_HELD = and_(
    Upload.id == bindparam("of_upload"),
    Upload.owner_run_id == bindparam("of_run"),
    Upload.claim == bindparam("token"),
)
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

#: What the work on an upload needs of its row.
STARTED = (
    *ANNOUNCED,
    Upload.file_path,
    Upload.claim,
    Upload.attempts,
    Upload.description_audit_score,
    Upload.vision_model,
    Upload.embedding_model,
    Upload.embedding_local.is_not(None).label("has_vector"),
    Upload.redo,
)
_EXPIRED = or_(
    Upload.heartbeat_at.is_(None),
    Upload.heartbeat_at < func.now() - interval(bindparam("lease", type_=Float)),
)
#: Claim an upload (`of_upload`) for a run (`of_run`), if it is open, its batch too, and nobody else
#: holds it with a heartbeat younger than a lease (`lease`, seconds); returns `STARTED`.
START = (
    update(Upload)
    .where(
        Upload.id == bindparam("of_upload"),
        Upload.processing_status.not_in([UploadStatus.COMPLETED, UploadStatus.FAILED]),
        or_(Upload.owner_run_id.is_(None), Upload.owner_run_id == bindparam("of_run"), _EXPIRED),
        ~exists().where(
            UploadBatch.id == Upload.batch_id,
            UploadBatch.status.in_([BatchStatus.CANCELLED, BatchStatus.FAILED]),
        ),
    )
    .values(
        processing_status=UploadStatus.ANALYZING,
        owner_run_id=bindparam("of_run"),
        claim=Upload.claim + 1,
        heartbeat_at=func.now(),
        not_before=None,
        attempts=Upload.attempts + 1,
        retry_at=None,
        updated_at=func.now(),
    )
    .returning(*STARTED)
)
#: Lock an upload that `START` refused (`of_upload`, `lease`), and read why.
LOCK_REFUSED = (
    select(
        Upload.filename,
        Upload.batch_id,
        Upload.processing_status,
        Upload.owner_run_id,
        UploadBatch.status.label("batch_status"),
        _EXPIRED.label("expired"),
    )
    .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
    .where(Upload.id == bindparam("of_upload"))
    .with_for_update(of=Upload.__table__)
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


def _complete(**vector: Any) -> Select[Any]:
    ended = held_update(
        processing_status=UploadStatus.COMPLETED,
        owner_run_id=None,
        deaths=0,
        redo=_NO_STAGES,
        error_kind=None,
        error_message=None,
        retries=0,
        stage_seconds=_ADD_SECONDS,
        **vector,
    ).cte("ended")
    counted = count_ends(ended.c.batch_id, successful=1, failed=0).cte("counted")
    return select(*ended.c, *counted.c).select_from(ended.outerjoin(counted, true()))


#: End an upload well and count it; returns `ANNOUNCED` and then `PROGRESS`, whose columns are null
#: if there is no batch. The upload is locked first, as everywhere: `counted` reads `ended`.
COMPLETE = _complete()
COMPLETE_WITH_VECTOR = _complete(
    embedding_local=bindparam("vector", type_=Upload.embedding_local.type),
    embedding_model=bindparam("model"),
)
