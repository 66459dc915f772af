"""How rows are read: one expression per rule. The rules allow empty columns of upload APIs.

``existing_tables.py`` defines which forms of existing tables can be read.
"""

import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BindParameter,
    Boolean,
    ColumnElement,
    Label,
    Text,
    Uuid,
    and_,
    any_,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect

from batch_pipeline.database.models import (
    IN_WORK,
    OPEN_BATCH,
    BatchStatus,
    PauseScope,
    Upload,
    UploadBatch,
    UploadStatus,
    WorkPause,
    sql_list,
)

#: Owner of uploads and batches without a user, submitted or written by an API.
LOCAL_USER = uuid.UUID(int=0)
#: Stands for unknown moments. It is long ago, so they never keep an upload from being processed.
_EVER: ColumnElement[Any] = literal_column("'-infinity'")


def interval(number: float | BindParameter[float]) -> Any:
    """Return a database interval of this many seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, number)


def one_of(column: Any, ids: Collection[uuid.UUID]) -> ColumnElement[bool]:
    """Condition: a column is one of these ids; there may be any number of them.

    All ids are one parameter. With ``in_`` each of them would be one, and a statement has at most
    65,535. Do not negate it: SQLAlchemy would write ``!= ANY``, which is true for nearly every row.
    """
    return column == any_(cast(list(ids), ARRAY(Uuid)))  # type: ignore[no-any-return]


def known(moment: Any) -> ColumnElement[Any]:
    """Return a moment; null if it is empty, ``infinity`` or ``-infinity``."""
    return func.nullif(func.nullif(moment, literal_column("'infinity'")), _EVER)


def newest_first(moment: Any) -> ColumnElement[Any]:
    """Order by a moment, the newest first and unknown ones last."""
    return known(moment).desc().nulls_last()


def since_or_unknown(moment: Any, since: datetime) -> ColumnElement[bool]:
    """Condition: a moment is not before `since`, or is unknown."""
    return or_(moment >= since, moment.is_(None), moment == _EVER)


def as_text(expression: ColumnElement[Any]) -> str:
    """Return an expression as SQL text."""
    dialect = PGDialect()  # type: ignore[no-untyped-call]
    return str(expression.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


#: An upload that no run has taken. The index `ix_uploads_waiting` contains only these rows.
WAITING = and_(Upload.processing_status == UploadStatus.PENDING, Upload.owner_run_id.is_(None))
WAITING_SQL = as_text(WAITING)

#: The same, and a run will take it: its batch was neither cancelled nor given up.
PENDING_WORK = and_(
    WAITING,
    literal_column(
        "NOT EXISTS (SELECT FROM upload_batches AS stopped WHERE stopped.id = uploads.batch_id "
        f"AND stopped.status IN ('{BatchStatus.CANCELLED}', '{BatchStatus.FAILED}'))",
        Boolean(),
    ),
)
PENDING_WORK_SQL = as_text(PENDING_WORK)

#: An upload that a run holds: it has an owner, or it is in progress (an upload API may have written
#: that status without an owner). The index `ix_uploads_held` contains only these rows.
HELD = or_(Upload.owner_run_id.is_not(None), Upload.processing_status.in_(IN_WORK))
HELD_SQL = f"({as_text(HELD)})"

#: A batch that has not ended.
OPEN_BATCH_SQL = as_text(UploadBatch.status.in_(OPEN_BATCH))

#: Last sign of life of an upload's worker. A worker without claims writes no heartbeat, so the
#: moment of its last write counts.
_LAST_SIGN = func.coalesce(Upload.heartbeat_at, known(Upload.updated_at), _EVER)


def _a_lease_ago(lease_seconds: Any) -> ColumnElement[Any]:
    moment: ColumnElement[Any] = func.now() - interval(lease_seconds)
    return moment


def lease_expired(lease_seconds: float | BindParameter[float]) -> ColumnElement[bool]:
    """Return whether an upload's worker has shown no sign of life for a lease (database clock)."""
    return _a_lease_ago(lease_seconds) > _LAST_SIGN


def lease_lives(lease_seconds: float | BindParameter[float]) -> ColumnElement[bool]:
    """Return the opposite of `lease_expired`."""
    return _a_lease_ago(lease_seconds) <= _LAST_SIGN


_UPLOAD_KNOWN = func.coalesce(known(Upload.created_at), known(Upload.updated_at))
#: When an upload or a batch was created, as far as known.
UPLOAD_CAME = func.coalesce(_UPLOAD_KNOWN, _EVER)
BATCH_CAME = func.coalesce(known(UploadBatch.created_at), known(UploadBatch.updated_at), _EVER)
#: Since when an upload has waited: since it was created, or since a person asked to process it
#: again; null if that is unknown. For an upload that was lost with its run, it does not change.
WAITING_SINCE = case(
    (Upload.dispatch_reason.in_(["retry", "reprocess"]), known(Upload.updated_at)),
    else_=_UPLOAD_KNOWN,
)
#: When a batch ended. For a cancelled or failed batch, this is its last change.
BATCH_ENDED = func.coalesce(
    known(UploadBatch.completed_at),
    known(UploadBatch.updated_at),
    known(UploadBatch.created_at),
    literal_column("'epoch'::timestamptz"),
)

#: Hidden uploads are never shown. If the API leaves the column empty, the upload is not hidden.
HIDDEN = Upload.hidden.is_(True)
#: Facts about the file. Some libraries write a JSON null, which counts as empty.
#: `first_release.words` explains the function.
FACTS = func.coalesce(
    func.nullif(func.upload_facts(Upload.facts), literal_column("'null'::jsonb")),
    literal_column("'{}'::jsonb"),
    type_=JSONB,
)
#: Whether a checksum is a SHA-256 as we write it. An upload API may have filled the column with
#: another hash.
IS_SHA256: ColumnElement[bool] = Upload.checksum.regexp_match("^[0-9a-f]{64}$")
#: The SHA-256 of an upload, null if the row has none.
SHA256 = case((IS_SHA256, Upload.checksum)).label("checksum")
#: The file's name, for display.
FILENAME = func.coalesce(Upload.filename, literal_column("''")).label("filename")
#: How many characters of a batch's name are kept and shown.
MAX_NAME = 100


def name_of(batch: type[UploadBatch]) -> Label[str | None]:
    """Return the name of a batch, as far as it is shown."""
    shown: ColumnElement[str | None] = func.left(
        cast(batch.name, Text), literal_column(str(MAX_NAME))
    )
    return shown.label("name")


NAME = name_of(UploadBatch)
#: The priority as it is stored. Code that reads it treats an unknown word as normal.
PRIORITY = cast(UploadBatch.priority, Text).label("priority")
FILE_SIZE = func.coalesce(Upload.file_size, literal_column("0")).label("file_size")


def owner(column: Any) -> Any:
    """Return the user in the row of an upload or a batch; `LOCAL_USER` if there is none.

    For a batch this is its owner. For an upload it is only the user under which the pipeline
    stores things (paths, model calls, the answering space), which must not change with the batch.
    The owner of an upload is `UPLOAD_OWNER`.
    """
    return func.coalesce(column, literal(LOCAL_USER, Uuid())).label("user_id")


_BATCH_USER: ColumnElement[uuid.UUID] = literal_column(
    "(SELECT of_it.user_id FROM upload_batches AS of_it WHERE of_it.id = uploads.batch_id)", Uuid()
)
#: The owner of an upload: its user, else the user of its batch, else `LOCAL_USER`.
UPLOAD_OWNER: ColumnElement[uuid.UUID] = func.coalesce(
    Upload.user_id, _BATCH_USER, literal(LOCAL_USER, Uuid())
).label("user_id")
UPLOAD_OWNER_SQL = as_text(UPLOAD_OWNER.element)


def upload_owned_by(user_id: uuid.UUID) -> ColumnElement[bool]:
    """Condition: an upload belongs to a user; the same rule as `UPLOAD_OWNER`."""
    return or_(Upload.user_id == user_id, upload_owned_by_batch(user_id))


def upload_owned_by_batch(user_id: uuid.UUID) -> ColumnElement[bool]:
    """Condition: the row of an upload has no user, and this user owns the upload by its batch."""
    if user_id == LOCAL_USER:
        by_batch = func.coalesce(_BATCH_USER, literal(LOCAL_USER, Uuid())) == user_id
    else:
        # The batches are listed once per statement, so that the index of ``batch_id`` can be used.
        batches = select(UploadBatch.id).where(UploadBatch.user_id == user_id).correlate(None)
        by_batch = Upload.batch_id == any_(func.array(batches.scalar_subquery(), type_=ARRAY(Uuid)))
    return and_(Upload.user_id.is_(None), by_batch)


def owned_by(column: Any, user_id: uuid.UUID) -> ColumnElement[bool]:
    """Condition: `owner` of a column is a user."""
    # `owner` is not used here, because no index has its expression.
    if user_id == LOCAL_USER:
        return or_(column == user_id, column.is_(None))
    return column == user_id  # type: ignore[no-any-return]


def word(column: Any) -> Any:
    """Return a status for display, under its column's name; ``none`` if it is empty."""
    return func.coalesce(cast(column, Text), literal_column("'none'")).label(column.key)


def count(column: Any) -> Any:
    """Return a counter of a batch, under its column's name; 0 if it is empty."""
    return func.coalesce(column, literal_column("0")).label(column.key)


_PAUSED_USER = cast(owner(UploadBatch.user_id).element, Text)
#: Whether a row of `WorkPause` pauses a batch. A pause of a server only stops calls to that server
#: (``services/pauses.py``).
PAUSES_BATCH = or_(
    WorkPause.scope == PauseScope.EVERYTHING,
    and_(WorkPause.scope == PauseScope.USER, WorkPause.target == _PAUSED_USER),
    and_(WorkPause.scope == PauseScope.BATCH, WorkPause.target == cast(UploadBatch.id, Text)),
)
#: Whether a batch, its user or everything is paused; for statements that read ``upload_batches``.
PAUSED_SQL = f"EXISTS (SELECT FROM work_pauses WHERE {as_text(PAUSES_BATCH)})"
PAUSED: ColumnElement[bool] = literal_column(PAUSED_SQL, Boolean())
#: Whether the batch of an upload is not paused. The paused batches are listed once per statement,
#: not once per upload.
NOT_PAUSED_SQL = (
    "(uploads.batch_id IS NULL OR uploads.batch_id NOT IN (SELECT id FROM upload_batches WHERE "  # noqa: S608
    f"{OPEN_BATCH_SQL} AND {PAUSED_SQL}))"
)
NOT_PAUSED: ColumnElement[bool] = literal_column(NOT_PAUSED_SQL, Boolean())
#: The batch that a pause is about; null if it is about something else.
PAUSED_BATCH_ID = cast(case((WorkPause.scope == PauseScope.BATCH, WorkPause.target)), Uuid)
#: Whether a pause stops something, or may in future. The pause of a batch that has ended does not.
#: It is kept, because the batch may be reopened.
ACTIVE_PAUSE_SQL = (
    f"(work_pauses.scope <> '{PauseScope.BATCH}' OR EXISTS (SELECT FROM upload_batches AS of_pause "
    f"WHERE of_pause.id = {as_text(PAUSED_BATCH_ID)} "
    f"AND of_pause.status IN {sql_list(OPEN_BATCH)}))"
)
ACTIVE_PAUSE: ColumnElement[bool] = literal_column(ACTIVE_PAUSE_SQL, Boolean())
