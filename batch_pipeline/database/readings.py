"""How rows are read: one expression per rule, also where an upload API leaves a column empty.

What an existing table may look like, and what cannot be read, stands in ``existing_tables.py``.
"""

import uuid
from typing import Any

from sqlalchemy import (
    BindParameter,
    Boolean,
    ColumnElement,
    Text,
    Uuid,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect

from batch_pipeline.database.models import (
    BatchStatus,
    PauseScope,
    Upload,
    UploadBatch,
    UploadStatus,
    WorkPause,
)

#: Owner of what is submitted, or was written by an API, without naming a user.
LOCAL_USER = uuid.UUID(int=0)
#: Long ago: a moment that nobody knows never keeps an upload from being processed.
_EVER: ColumnElement[Any] = literal_column("'-infinity'")


def interval(number: float | BindParameter[float]) -> Any:
    """An interval of the database, of so many seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, number)


def known(moment: Any) -> ColumnElement[Any]:
    """A moment; null if it is empty, or ``infinity`` in either direction."""
    return func.nullif(func.nullif(moment, literal_column("'infinity'")), _EVER)


def as_text(expression: ColumnElement[Any]) -> str:
    """An expression for statements that are written as text."""
    dialect = PGDialect()  # type: ignore[no-untyped-call]
    return str(expression.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


#: Waits for a run: nobody has taken it. The index `ix_uploads_waiting` holds these rows alone.
WAITING = and_(Upload.processing_status == UploadStatus.PENDING, Upload.owner_run_id.is_(None))
WAITING_SQL = as_text(WAITING)

#: The same, and a run will come for it: its batch was not cancelled, nor given up.
PENDING_WORK = and_(
    WAITING,
    literal_column(
        "NOT EXISTS (SELECT FROM upload_batches AS stopped WHERE stopped.id = uploads.batch_id "
        f"AND stopped.status IN ('{BatchStatus.CANCELLED}', '{BatchStatus.FAILED}'))",
        Boolean(),
    ),
)
PENDING_WORK_SQL = as_text(PENDING_WORK)

#: Last sign of life of an upload's worker. One that knows no claims has no heartbeat, only
#: the moment of its last write.
_LAST_SIGN = func.coalesce(Upload.heartbeat_at, known(Upload.updated_at), _EVER)


def _a_lease_ago(lease_seconds: Any) -> ColumnElement[Any]:
    moment: ColumnElement[Any] = func.now() - interval(lease_seconds)
    return moment


def lease_expired(lease_seconds: float | BindParameter[float]) -> ColumnElement[bool]:
    """Whether the worker of an upload has shown no life for a lease, on the database's clock."""
    return _a_lease_ago(lease_seconds) > _LAST_SIGN


def lease_lives(lease_seconds: float | BindParameter[float]) -> ColumnElement[bool]:
    """The opposite of `lease_expired`."""
    return _a_lease_ago(lease_seconds) <= _LAST_SIGN


_UPLOAD_KNOWN = func.coalesce(known(Upload.created_at), known(Upload.updated_at))
#: When an upload, or a batch, came.
UPLOAD_CAME = func.coalesce(_UPLOAD_KNOWN, _EVER)
BATCH_CAME = func.coalesce(known(UploadBatch.created_at), known(UploadBatch.updated_at), _EVER)
#: Since when an upload waits: since it came, or since somebody asked for it again; null if nobody
#: knows. What was lost with its run is as old as before.
WAITING_SINCE = case(
    (Upload.dispatch_reason.in_(["retry", "reprocess"]), known(Upload.updated_at)),
    else_=_UPLOAD_KNOWN,
)
#: When a batch ended; a cancelled or failed one has changed last when it did.
BATCH_ENDED = func.coalesce(
    known(UploadBatch.completed_at),
    known(UploadBatch.updated_at),
    known(UploadBatch.created_at),
    literal_column("'epoch'::timestamptz"),
)

#: Shown to nobody. An API that says nothing has not hidden it.
HIDDEN = Upload.hidden.is_(True)
#: What is known of the file; JSON's own null, which some libraries write, says no more than none.
FACTS = func.coalesce(
    func.nullif(cast(Upload.facts, JSONB), literal_column("'null'::jsonb")),
    literal_column("'{}'::jsonb"),
    type_=JSONB,
)
#: For those who show it.
FILENAME = func.coalesce(Upload.filename, literal_column("''")).label("filename")
#: Characters of a batch's name that are kept and shown.
MAX_NAME = 100
NAME = func.left(cast(UploadBatch.name, Text), literal_column(str(MAX_NAME))).label("name")
#: As stored; whoever reads it takes an unknown word for normal.
PRIORITY = cast(UploadBatch.priority, Text).label("priority")
FILE_SIZE = func.coalesce(Upload.file_size, literal_column("0")).label("file_size")


def owner(column: Any) -> Any:
    """The user of an upload or a batch; one that has none is the local user's, see `LOCAL_USER`."""
    return func.coalesce(column, literal(LOCAL_USER, Uuid())).label("user_id")


def word(column: Any) -> Any:
    """A status for those who show it, under its own name; ``none`` if it is empty."""
    return func.coalesce(cast(column, Text), literal_column("'none'")).label(column.key)


def count(column: Any) -> Any:
    """A counter of a batch, under its own name; one that is empty counts nothing."""
    return func.coalesce(column, literal_column("0")).label(column.key)


_PAUSED_USER = cast(owner(UploadBatch.user_id).element, Text)
#: Whether a row of `WorkPause` holds a batch. One of a server holds calls to it instead, see
#: ``services/pauses.py``.
HOLDS_BATCH = or_(
    WorkPause.scope == PauseScope.EVERYTHING,
    and_(WorkPause.scope == PauseScope.USER, WorkPause.target == _PAUSED_USER),
    and_(WorkPause.scope == PauseScope.BATCH, WorkPause.target == cast(UploadBatch.id, Text)),
)
#: Whether a batch, its user or everything is paused; of a statement that reads ``upload_batches``.
PAUSED_SQL = f"EXISTS (SELECT FROM work_pauses WHERE {as_text(HOLDS_BATCH)})"
PAUSED: ColumnElement[bool] = literal_column(PAUSED_SQL, Boolean())
#: Whether an upload is of no paused batch; those are listed once, however many uploads are asked.
NOT_PAUSED_SQL = (
    "(uploads.batch_id IS NULL OR uploads.batch_id NOT IN (SELECT id FROM upload_batches WHERE "  # noqa: S608
    f"status IN ('{BatchStatus.PENDING}', '{BatchStatus.PROCESSING}') AND {PAUSED_SQL}))"
)
NOT_PAUSED: ColumnElement[bool] = literal_column(NOT_PAUSED_SQL, Boolean())
