"""Costs of calls to models: stores each answered call at once, and sums up stored calls.

A call is stored separately from its result. The worker may die before the result is stored, or the
answer may be unusable, but the call has to be paid for. The id of a call is created here. So a call
counts once, even if storing it is tried several times.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from sqlalchemy import BigInteger, ColumnElement, Connection, Float, bindparam, cast, func, select
from sqlalchemy.dialects.postgresql import insert

from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.database.models import ModelCall
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.errors import PipelineError
from batch_pipeline.model_servers.base import CallKind, Spent, Usage

log = logging.getLogger(__name__)

_COLUMNS = [column for column in ModelCall.__table__.columns if column.key != "answered_at"]
_KEEP = LoneStatement(
    insert(ModelCall)
    .values({column.key: bindparam(f"of_{column.key}", type_=column.type) for column in _COLUMNS})
    .on_conflict_do_nothing()
    .returning(ModelCall.id)
)


class Account:
    """The model calls for one upload; calls that cannot be stored now wait for the next try.

    This is a context manager. At its end it tries to store waiting calls once more. If that fails,
    it drops them with a warning.
    """

    def __init__(self, database: Database, upload: AnyRow | None = None) -> None:
        self._database = database
        self._of = {
            "of_upload_id": upload.id if upload else None,
            "of_batch_id": upload.batch_id if upload else None,
            "of_user_id": upload.user_id if upload else None,
        }
        self._waiting: list[dict[str, Any]] = []
        self.total = Usage(calls=0)
        """Usage of all calls so far, stored or not."""

    def of(self, kind: CallKind, model: str) -> Spent:
        """Return the function to call after each answered call of a kind to a model."""

        def spent(usage: Usage) -> None:
            self.total += usage
            self._waiting.append(
                self._of
                | {
                    "of_id": uuid.uuid4(),
                    "of_kind": kind,
                    "of_model": model,
                    "of_tokens_in": usage.tokens_in,
                    "of_tokens_out": usage.tokens_out,
                    "of_seconds": usage.seconds,
                }
            )
            try:
                self.store_waiting()
            except PipelineError as error:
                log.warning("the cost of a call is stored later: %s", error)

        return spent

    def store_waiting(self) -> None:
        """Store the calls that wait.

        Raises:
            ServiceDownError: the database cannot be reached; the calls still wait.
        """
        while self._waiting:
            self._database.execute(_KEEP, self._waiting[0])
            self._waiting.pop(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.store_waiting()
        except PipelineError as reason:
            log.warning("the cost of %d model calls is not stored: %s", len(self._waiting), reason)


@dataclass(frozen=True)
class ModelCost:
    """Sums over the calls of a kind to one model."""

    kind: str
    """``vision`` or ``embedding``."""
    model: str
    calls: int
    tokens_in: int
    tokens_out: int
    seconds: float


@dataclass(frozen=True)
class UserCost:
    """Costs of one user's uploads with one model."""

    user_id: uuid.UUID | None
    """None: calls that the pipeline made for itself, not for an upload."""
    cost: ModelCost


_SUMS = (
    func.count().label("calls"),
    # The sum of bigint is a numeric, which JSON cannot hold.
    cast(func.coalesce(func.sum(ModelCall.tokens_in), 0), BigInteger).label("tokens_in"),
    cast(func.coalesce(func.sum(ModelCall.tokens_out), 0), BigInteger).label("tokens_out"),
    cast(func.coalesce(func.sum(ModelCall.seconds), 0), Float).label("seconds"),
)


def costs_by_model(connection: Connection, batch_id: uuid.UUID) -> list[ModelCost]:
    """Sum up the calls for a batch, by kind and model."""
    rows = connection.execute(
        select(ModelCall.kind, ModelCall.model, *_SUMS)
        .where(ModelCall.batch_id == batch_id)
        .group_by(ModelCall.kind, ModelCall.model)
        .order_by(ModelCall.kind.desc(), ModelCall.model)
    )
    return [ModelCost(*row) for row in rows]


def costs_by_user(database: Database, user_id: uuid.UUID | None = None) -> list[UserCost]:
    """Sum up all calls ever made, by user, kind and model; with `user_id` only of that user."""
    of_whom = (ModelCall.user_id, ModelCall.kind, ModelCall.model)
    statement = select(*of_whom, *_SUMS).group_by(*of_whom)
    if user_id is not None:
        statement = statement.where(ModelCall.user_id == user_id)
    statement = statement.order_by(
        ModelCall.user_id.nulls_last(), ModelCall.kind.desc(), ModelCall.model
    )
    with database.transaction() as connection:
        return [UserCost(row[0], ModelCost(*row[1:])) for row in connection.execute(statement)]


def costs_by_batch(
    connection: Connection, batch_ids: Sequence[uuid.UUID]
) -> Mapping[uuid.UUID, Usage]:
    """Sum up the calls for each batch; batches without calls are left out."""
    return _usages(connection, ModelCall.batch_id, ModelCall.batch_id.in_(batch_ids))


def costs_by_upload(connection: Connection, batch_id: uuid.UUID) -> Mapping[uuid.UUID, Usage]:
    """Sum up the calls for each upload of a batch; uploads without calls are left out."""
    return _usages(connection, ModelCall.upload_id, ModelCall.batch_id == batch_id)


def cost_of_upload(connection: Connection, upload_id: uuid.UUID) -> Usage | None:
    """Sum up the calls for an upload, whatever batch it was in; None if there are none."""
    usages = _usages(connection, ModelCall.upload_id, ModelCall.upload_id == upload_id)
    return usages.get(upload_id)


def total(costs: Iterable[ModelCost | Usage]) -> Usage:
    """Sum up costs or usages."""
    parts = (Usage(c.tokens_in, c.tokens_out, c.seconds, c.calls) for c in costs)
    return sum(parts, Usage(calls=0))


def _usages(
    connection: Connection, by: Any, condition: ColumnElement[bool]
) -> dict[uuid.UUID, Usage]:
    rows = connection.execute(select(by.label("of"), *_SUMS).where(condition).group_by(by))
    return {row.of: Usage(row.tokens_in, row.tokens_out, row.seconds, row.calls) for row in rows}
