"""The statements that every upload goes through, from its start to its end.

They are built once. Building the same statements again for each upload took 2 of the 7 ms that an
upload spends on our tables. Parameters and columns have different names, because SQLAlchemy
requires that. `upload_states` executes the statements and documents what they mean.
"""

from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Float,
    Integer,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert

from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.database.models import (
    OPEN_UPLOAD,
    SIDECAR_DATE,
    AnsweringSpace,
    BatchStatus,
    MadeThumbnail,
    Upload,
    UploadBatch,
    UploadStatus,
    UploadVector,
    Word,
)
from batch_pipeline.database.readings import (
    FACTS,
    FILENAME,
    IS_SHA256,
    PAUSED,
    SHA256,
    count,
    lease_expired,
    owner,
)
from batch_pipeline.services.progress.publishing import queue_counters, queue_file_message
from batch_pipeline.services.states.transitions import (
    ANNOUNCED,
    BEGUN,
    DESCRIPTION_STORED,
    ENDED_WELL,
    THUMBNAIL_STORED,
    count_ends,
)

#: Not ended, and no status that only an upload API uses.
_IS_OPEN = or_(*(Upload.processing_status == status for status in OPEN_UPLOAD))


def held_by(upload_id: Any, run_id: Any, token: Any) -> ColumnElement[bool]:
    """Condition: this claim still holds the upload, and no upload API has ended it."""
    return and_(
        Upload.id == upload_id,
        Upload.owner_run_id == run_id,
        Upload.claim_token == token,
        _IS_OPEN,
    )


#: The row of an upload that the claim (`of_upload`, `of_run`, `token`) holds.
_HELD = held_by(bindparam("of_upload"), bindparam("of_run"), bindparam("token"))
_NO_STAGES = cast([], ARRAY(Text))


def held_update(**values: Any) -> Update:
    """Change an upload under a claim and renew its heartbeat; the statement returns `ANNOUNCED`."""
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

#: The space that answers the user of an upload.
_ANSWERING = (
    select(AnsweringSpace.space_id)
    .where(AnsweringSpace.user_id == owner(Upload.user_id))
    .correlate(Upload)
    .scalar_subquery()
)
#: The columns of an upload that its processing needs.
STARTED = (
    *ANNOUNCED,
    Upload.file_path,
    Upload.file_size,
    Upload.claim_token,
    Upload.attempts,
    Upload.description_audit_score,
    Upload.vision_model,
    Upload.embedding_model,
    Upload.embedding_model.is_not(None).label("has_vector"),
    _ANSWERING.label("answering_space"),
    exists()
    .where(UploadVector.upload_id == Upload.id, UploadVector.space_id == _ANSWERING)
    .label("has_answering_vector"),
    Upload.redo,
    Upload.error_kind,
    Upload.server_deaths,
    FACTS[SIDECAR_DATE].astext.label(SIDECAR_DATE),
    Upload.vision_tags,
    Upload.visible_text,
    Upload.vision_fingerprint,
    SHA256,
)
_EXPIRED = lease_expired(bindparam("lease", type_=Float))
#: Claim an upload (`of_upload`) for a run (`of_run`) and announce it; returns `STARTED`. It claims
#: only an open upload of an open batch that is not paused, and only if no other run holds it with a
#: heartbeat younger than the lease (`lease`, seconds).
START = LoneStatement(
    update(Upload)
    .where(
        Upload.id == bindparam("of_upload"),
        _IS_OPEN,
        or_(Upload.owner_run_id.is_(None), Upload.owner_run_id == bindparam("of_run"), _EXPIRED),
        ~exists().where(
            UploadBatch.id == Upload.batch_id,
            or_(
                UploadBatch.status == BatchStatus.CANCELLED,
                UploadBatch.status == BatchStatus.FAILED,
                PAUSED,
            ),
        ),
    )
    .values(
        processing_status=UploadStatus.ANALYZING,
        owner_run_id=bindparam("of_run"),
        claim_token=Upload.claim_token + 1,
        heartbeat_at=func.now(),
        not_before=None,
        # The slice was for the run that takes the upload. If an upload API makes the upload pending
        # again later, it gets a new slice.
        slice=None,
        attempts=Upload.attempts + 1,
        retry_at=None,
        updated_at=func.now(),
    )
    .returning(*STARTED, queue_file_message(Upload, BEGUN, "processing").label("queued"))
)
#: Lock an upload that `START` refused (`of_upload`, `lease`), and read the reason.
LOCK_REFUSED = (
    select(
        FILENAME,
        Upload.batch_id,
        Upload.processing_status,
        Upload.owner_run_id,
        UploadBatch.status.label("batch_status"),
        _EXPIRED.label("expired"),
        PAUSED.label("paused"),
    )
    .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
    .where(Upload.id == bindparam("of_upload"))
    .with_for_update(of=Upload.__table__)
)
_TELL = bindparam("tell", type_=Boolean)


def _stored(percentage: int, **values: Any) -> Update:
    """Store the result of a stage; announce it if `tell` is true."""
    message = queue_file_message(Upload, percentage, "processing", if_=_TELL).label("queued")
    return held_update(stage_seconds=_ADD_SECONDS, **values).returning(message)


def _store_thumbnail() -> LoneStatement:
    """Store the path, and record that we made the file; the record outlives the upload."""
    stored = _stored(
        THUMBNAIL_STORED,
        thumbnail_path=bindparam("path"),
    ).cte("stored")
    noted = (
        insert(MadeThumbnail)
        .from_select(["upload_id", "user_id"], select(stored.c.id, stored.c.user_id))
        .on_conflict_do_nothing()
        .cte("noted")
    )
    return LoneStatement(select(*stored.c).add_cte(noted))


STORE_THUMBNAIL = _store_thumbnail()
#: What an API in PHP writes for an empty object.
_NO_FACTS: ColumnElement[Any] = literal_column("'[]'::jsonb")
_NULL_FACT: ColumnElement[Any] = literal_column("'null'::jsonb")
#: Facts that not every file has. Those of an earlier description may be facts of an older file that
#: had the same path.
_OPTIONAL_FACTS = ("frame_count", "duration_seconds", "frame_rate", "clip", "warnings")
_DATE_FACTS = ("captured_at", "date_source")


def _facts() -> ColumnElement[Any]:
    """Return the metadata with the facts ``found``.

    Facts replace an API's values of the same keys, because the filters of a search read them. Tags
    and visible text do not: they are also in our own columns.
    """
    api = case(
        (func.jsonb_typeof(FACTS) == "object", FACTS),
        (FACTS == _NO_FACTS, literal_column("'{}'::jsonb")),
        else_=func.jsonb_build_object("metadata", FACTS),
    )
    outdated = case(
        (Upload.vision_fingerprint.is_(None), cast([], ARRAY(Text))),
        # A date with its source is ours.
        (FACTS["date_source"].is_not(None), cast([*_OPTIONAL_FACTS, *_DATE_FACTS], ARRAY(Text))),
        else_=cast([*_OPTIONAL_FACTS], ARRAY(Text)),
    )
    ours = (("tags", Upload.vision_tags), ("visible_text", Upload.visible_text))
    facts: ColumnElement[Any] = api.op("-", return_type=JSONB())(outdated)
    facts = facts.op("-", return_type=JSONB())(cast([name for name, _ in ours], ARRAY(Text)))
    facts = facts.concat(bindparam("found", type_=JSONB))
    for name, column in ours:
        value = func.nullif(FACTS[name], _NULL_FACT)
        is_theirs = and_(value.is_not(None), value.is_distinct_from(func.to_jsonb(column)))
        theirs = func.jsonb_build_object(name, value, type_=JSONB)
        facts = facts.concat(case((is_theirs, theirs), else_=literal_column("'{}'::jsonb")))
    return facts


_REGENERATED = bindparam("regenerated", type_=Integer)
_DESCRIPTION_STORED = _stored(
    DESCRIPTION_STORED,
    processing_status=UploadStatus.EMBEDDING,
    description=bindparam("words"),
    vision_tags=bindparam("tags", type_=ARRAY(Text)),
    visible_text=bindparam("readable", type_=Text),
    description_audit_score=bindparam("score"),
    vision_model=bindparam("model"),
    vision_fingerprint=bindparam("made_with"),
    checksum=case(
        (
            or_(Upload.checksum.is_(None), IS_SHA256),
            func.coalesce(bindparam("content", type_=Text), Upload.checksum),
        ),
        else_=Upload.checksum,  # another hash of an upload API
    ),
    # The old vector belongs to the old description. If another run takes over here, it has to
    # embed again.
    redo=func.array_append(_without(Upload.redo, "description", "embedding"), "embedding"),
    regeneration_count=count(Upload.regeneration_count) + _REGENERATED,
    last_regenerated_at=case((_REGENERATED > 0, func.now()), else_=Upload.last_regenerated_at),
    facts=_facts(),
    # The type comes from the content. The program that wrote the row may have derived it from the
    # file name.
    file_type=func.coalesce(bindparam("true_file_type", type_=Word()), Upload.file_type),
    mime_type=func.coalesce(bindparam("true_mime_type", type_=Text), Upload.mime_type),
    video_codec=bindparam("codec"),
)


def _replace_description() -> LoneStatement:
    """Store a description, and delete vectors of the old one, so that no later search uses them.

    The vector in the space that answers the user stays until it is replaced. Until then, search
    finds the upload by it.
    """
    stored = _DESCRIPTION_STORED.cte("stored")
    answering = select(AnsweringSpace.space_id).where(AnsweringSpace.user_id == stored.c.user_id)
    outdated = (
        delete(UploadVector)
        .where(
            UploadVector.upload_id == stored.c.id,
            UploadVector.space_id.is_distinct_from(answering.scalar_subquery()),
        )
        .cte("outdated")
    )
    return LoneStatement(select(*stored.c).add_cte(outdated))


STORE_DESCRIPTION = LoneStatement(_DESCRIPTION_STORED)
#: The same for an upload that has a description already.
REPLACE_DESCRIPTION = _replace_description()


#: The new vector (`vector`); it goes into the space `space`.
_NUMBERS = cast(bindparam("vector", type_=UploadVector.vector.type), UploadVector.vector.type)
_VECTOR: dict[str, Any] = {
    # Upload APIs read the vector from this column.
    "embedding_local": case((bindparam("fits", type_=Boolean), _NUMBERS)),
    "embedding_model": bindparam("model"),
    "embedding_fingerprint": bindparam("made_with"),
}


def _ended(**vector: Any) -> Update:
    return held_update(
        processing_status=UploadStatus.COMPLETED,
        owner_run_id=None,
        deaths=0,
        server_deaths=0,
        redo=_NO_STAGES,
        error_kind=None,
        error_message=None,
        retries=0,
        stage_seconds=_ADD_SECONDS,
        **vector,
    )


def _with_vectors(completed: Select[Any], ended: CTE) -> Select[Any]:
    """Store the vectors of an upload that ends; their space answers a user who has none yet."""
    space, numbers = bindparam("space", type_=Integer), _NUMBERS
    other, other_numbers = (
        bindparam("other_space", type_=Integer),
        cast(bindparam("other_vector", type_=UploadVector.vector.type), UploadVector.vector.type),
    )
    vectors = union_all(
        select(ended.c.id, space, numbers),
        select(ended.c.id, other, other_numbers).where(other.is_not(None)),
    )
    insertion = insert(UploadVector).from_select(["upload_id", "space_id", "vector"], vectors)
    stored = insertion.on_conflict_do_update(
        index_elements=["upload_id", "space_id"], set_={"vector": insertion.excluded.vector}
    )
    answers = (
        insert(AnsweringSpace)
        .from_select(["user_id", "space_id"], select(ended.c.user_id, space))
        .on_conflict_do_nothing()
    )
    return completed.add_cte(stored.cte("stored"), answers.cte("answers"))


def _complete(*, with_vectors: bool = False) -> Select[Any]:
    ended = _ended(**(_VECTOR if with_vectors else {})).cte("ended")
    counted = count_ends(ended.c.batch_id, successful=1, failed=0).cte("counted")
    completed = select(*ended.c, *counted.c).select_from(ended.outerjoin(counted, true()))
    return _with_vectors(completed, ended) if with_vectors else completed


def _complete_within(*, with_vectors: bool = False) -> LoneStatement:
    """Do the same as `_complete` unless that may end the batch, and announce the upload.

    The counters are announced if `tell` is true. The batch is counted before the upload ends, since
    only the newest version of its row shows whether this is its last upload. The lock order is the
    same as everywhere: first the upload, then the batch.
    """
    held = select(Upload.id, Upload.batch_id).where(_HELD).with_for_update().cte("held")
    counted = (
        count_ends(held.c.batch_id, successful=1, failed=0)
        .where(
            UploadBatch.status == BatchStatus.PROCESSING,
            count(UploadBatch.processed_uploads) + 1 < count(UploadBatch.total_uploads),
        )
        .cte("counted")
    )
    ended = (
        _ended(**(_VECTOR if with_vectors else {}))
        .where(
            Upload.id == held.c.id,
            or_(held.c.batch_id.is_(None), exists(select(counted.c.id))),
        )
        .cte("ended")
    )
    completed = select(
        *ended.c,
        *counted.c,
        queue_file_message(ended.c, ENDED_WELL, "completed").label("file_queued"),
        queue_counters(counted.c, if_=and_(_TELL, counted.c.id.is_not(None))).label("queued"),
    ).select_from(ended.outerjoin(counted, true()))
    return LoneStatement(_with_vectors(completed, ended) if with_vectors else completed)


#: Complete an upload and count it; returns `ANNOUNCED` and then `PROGRESS`, whose columns are null
#: if there is no batch. The lock order is the same as everywhere, first the upload, then the batch,
#: because `counted` reads `ended`.
COMPLETE, COMPLETE_WITH_VECTOR = _complete(), _complete(with_vectors=True)
COMPLETE_WITHIN = _complete_within()
COMPLETE_WITHIN_WITH_VECTOR = _complete_within(with_vectors=True)
