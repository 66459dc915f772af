"""Lists failed uploads of all batches by kind, with advice, and uploads that wait for a service."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, literal, or_, select

from batch_pipeline.database.models import ENDED, BatchStatus, Upload, UploadBatch, UploadStatus
from batch_pipeline.database.readings import (
    FILENAME,
    NAME,
    WAITING,
    known,
    newest_first,
    owned_by,
    since_or_unknown,
    upload_owned_by,
)
from batch_pipeline.database.session import Database
from batch_pipeline.services.error_kinds import BY_NAME, OUTAGES, SAME_AGAIN

#: Kind of failed uploads whose row has none, as an upload API may write it.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class FailureFilter:
    """Which failures to list; an empty field restricts nothing."""

    since: datetime | None = None
    """Only uploads that failed from this time on, or at an unknown time; uploads that wait now are
    always included."""
    kinds: Sequence[str] = ()
    user_id: uuid.UUID | None = None
    batch_id: uuid.UUID | None = None


@dataclass
class FailureGroup:
    """Uploads that failed or wait because of one kind of error."""

    error_kind: str
    state: str
    """``failed``, or ``waiting``: a service is down, and the uploads wait until it works again."""
    count: int
    batches: int
    newest_at: datetime | None
    means: str
    advice: str
    same_again: bool
    """Whether a retry fails in the same way unless the cause is fixed first."""
    uploads: list[Mapping[str, Any]] = field(default_factory=list)
    """The newest uploads."""


@dataclass(frozen=True)
class Failures:
    """All failures, the most frequent kind first."""

    groups: Sequence[FailureGroup]
    batches: Sequence[Mapping[str, Any]]
    """Batches that could not be processed at all."""


_KIND = func.coalesce(Upload.error_kind, UNKNOWN).label("error_kind")
_FAILED = Upload.processing_status == UploadStatus.FAILED
_STATE = case((_FAILED, literal("failed")), else_=literal("waiting")).label("state")


def failures(database: Database, chosen: FailureFilter, *, shown: int = 5) -> Failures:
    """Read the failures, with at most `shown` of the newest uploads of each kind."""
    with database.transaction() as connection:
        groups = {
            (row.error_kind, row.state): _group(row._asdict())
            for row in connection.execute(_counts(chosen))
        }
        for row in connection.execute(_newest(chosen, shown)).mappings():
            upload = dict(row)
            group = groups.get((upload.pop("error_kind"), upload.pop("state")))
            if group is not None:
                group.uploads.append(upload)
        batches = [dict(row) for row in connection.execute(_batches(chosen)).mappings()]
    return Failures(list(groups.values()), batches)


def _group(values: dict[str, Any]) -> FailureGroup:
    kind = BY_NAME.get(values["error_kind"])
    return FailureGroup(
        **values,
        means=kind.plain_means if kind else "",
        advice=kind.plain_advice if kind else "",
        same_again=values["error_kind"] in SAME_AGAIN,
    )


def is_stored(database: Database, kind: str) -> bool:
    """Return whether an upload has failed with this kind of error."""
    with database.transaction() as connection:
        failed = has_failed(FailureFilter(kinds=[kind]))
        return bool(connection.scalar(select(exists().where(failed))))


def has_failed(chosen: FailureFilter) -> ColumnElement[bool]:
    """Return the condition for failed uploads that match a filter."""
    return and_(_failed_since(chosen), *_narrowed(chosen))


def _failed_since(chosen: FailureFilter) -> ColumnElement[bool]:
    # `ENDED` is repeated here, because the partial index of ended uploads has this condition.
    failed = and_(Upload.processing_status.in_(ENDED), _FAILED)
    if chosen.since is None:
        return failed
    return and_(failed, since_or_unknown(Upload.updated_at, chosen.since))


def _conditions(chosen: FailureFilter) -> list[ColumnElement[bool]]:
    waits = and_(WAITING, Upload.error_kind.in_(OUTAGES))
    return [or_(_failed_since(chosen), waits), *_narrowed(chosen)]


def _narrowed(chosen: FailureFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if chosen.kinds:
        conditions.append(_KIND.element.in_(chosen.kinds))
    if chosen.user_id is not None:
        conditions.append(upload_owned_by(chosen.user_id))
    if chosen.batch_id is not None:
        conditions.append(Upload.batch_id == chosen.batch_id)
    return conditions


def _counts(chosen: FailureFilter) -> Select[*tuple[Any, ...]]:
    count = func.count().label("count")
    return (
        select(
            _KIND,
            _STATE,
            count,
            func.count(Upload.batch_id.distinct()).label("batches"),
            func.max(known(Upload.updated_at)).label("newest_at"),
        )
        .where(*_conditions(chosen))
        .group_by(_KIND, _STATE)
        .order_by(_STATE, count.desc(), _KIND)
    )


def _newest(chosen: FailureFilter, shown: int) -> Select[*tuple[Any, ...]]:
    numbered = (
        select(
            _KIND,
            _STATE,
            Upload.id.label("upload_id"),
            Upload.batch_id,
            NAME.label("batch_name"),
            FILENAME,
            Upload.error_message,
            Upload.updated_at.label("failed_at"),
            func.row_number()
            .over(
                partition_by=(_KIND.element, _STATE.element),
                order_by=(newest_first(Upload.updated_at), Upload.id),
            )
            .label("number"),
        )
        .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
        .where(*_conditions(chosen))
        .subquery()
    )
    columns = [column for column in numbered.c if column.key != "number"]
    return select(*columns).where(numbered.c.number <= shown).order_by(numbered.c.number)


def _batches(chosen: FailureFilter) -> Select[*tuple[Any, ...]]:
    """Select batches that were given up; none if kinds are chosen, which only uploads have."""
    query: Select[*tuple[Any, ...]] = select(
        UploadBatch.id.label("batch_id"),
        NAME,
        UploadBatch.error_message,
        UploadBatch.updated_at.label("failed_at"),
    ).where(UploadBatch.status == BatchStatus.FAILED)
    if chosen.kinds:
        query = query.where(literal(False))
    if chosen.since is not None:
        query = query.where(since_or_unknown(UploadBatch.updated_at, chosen.since))
    if chosen.user_id is not None:
        query = query.where(owned_by(UploadBatch.user_id, chosen.user_id))
    if chosen.batch_id is not None:
        query = query.where(UploadBatch.id == chosen.batch_id)
    return query.order_by(newest_first(UploadBatch.updated_at), UploadBatch.id)
