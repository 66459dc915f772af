"""The outbox: stores events, their deliveries to each target, and the result of each delivery.

Triggers write the events. A sender takes deliveries for `LEASE_SECONDS`. If it dies, other senders
may take them again after that time. A killed sender may have sent the message before it died, so a
message can arrive twice, with the same id.
"""

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from batch_pipeline.database.models import (
    ModelCall,
    Notification,
    NotificationDelivery,
    Outage,
    Upload,
    UploadStatus,
)
from batch_pipeline.database.readings import PENDING_WORK, interval
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.errors import PipelineError, ServiceDownError
from batch_pipeline.masking import masked
from batch_pipeline.visible_text import visible

#: Delay after each failed attempt (seconds), together 23 hours. After the last one the delivery is
#: given up.
RETRY_SECONDS = (10, 60, 300, 900, 1800, 3600, 7200, 14400, 21600, 32400)
#: Each delay is extended by a random part, up to this share, so that a receiver does not get all
#: retries at once.
_JITTER = 0.1
#: How long only one sender may send a delivery; longer than any attempt takes (seconds).
LEASE_SECONDS = 60.0
#: Number of deliveries to each target that a sender takes and sends at the same time. So a target
#: that does not answer does not delay the others, however many events wait for it.
TAKEN_AT_ONCE = 20
#: An event that no sender has read for this time is not sent any more.
FORGOTTEN_AFTER = timedelta(days=1)
#: How long delivered events and given-up ones are kept.
KEEP_DELIVERED, KEEP_GIVEN_UP = timedelta(days=7), timedelta(days=90)
#: An outage is over when no upload has met it for this time, and uploads complete again or none
#: waits for it (seconds).
OUTAGE_QUIET_SECONDS = 60.0
_ADDRESSED_AT_ONCE = 500


@dataclass(frozen=True)
class Delivery:
    """One event for one target."""

    id: uuid.UUID
    """Id of the event."""
    target: str
    type: str
    data: dict[str, Any]
    occurred_at: datetime
    attempts: int
    """Number of attempts, including this one."""


def note_outage(connection: Connection, reason: PipelineError | None) -> None:
    """Record that uploads wait for a service, in the transaction that makes them wait."""
    if not isinstance(reason, ServiceDownError):
        return
    said = visible(masked(str(reason)))
    connection.execute(
        insert(Outage)
        .values(kind=reason.kind, reason=said)
        .on_conflict_do_update(
            index_elements=[Outage.kind], set_={"seen_at": func.clock_timestamp()}
        )
    )


def end_outages(database: Database, quiet_seconds: float = OUTAGE_QUIET_SECONDS) -> int:
    """Remove outages that are over; returns how many."""
    completed = and_(
        Upload.processing_status == UploadStatus.COMPLETED,
        Upload.updated_at > Outage.seen_at,
        Upload.updated_at < literal_column("'infinity'"),
    )
    # A copy of known results completes without a model, and so does a new thumbnail.
    asked_a_model = and_(ModelCall.upload_id == Upload.id, ModelCall.answered_at > Outage.seen_at)
    needs_none = or_(
        ~Outage.kind.regexp_match("^(model|embedding)_"),
        Upload.vision_model.startswith("embedded-"),  # its calls are not stored
    )
    works_again = or_(
        exists().where(completed, asked_a_model), exists().where(completed, needs_none)
    )
    waits = exists().where(PENDING_WORK, Upload.error_kind == Outage.kind)
    over = and_(Outage.seen_at < func.now() - interval(quiet_seconds), or_(works_again, ~waits))
    with database.transaction() as connection:
        return connection.execute(delete(Outage).where(over)).rowcount


def address(database: Database, targets: Collection[str]) -> None:
    """Create a delivery of each new event for each target; without targets delete the events."""
    new = Notification.addressed_at.is_(None)
    with database.transaction() as connection:
        if not targets:
            connection.execute(delete(Notification).where(new))
            return
        old = Notification.occurred_at < func.now() - FORGOTTEN_AFTER
        connection.execute(delete(Notification).where(new, old))
        ids = connection.scalars(
            select(Notification.id)
            .where(new)
            .order_by(Notification.occurred_at)
            .limit(_ADDRESSED_AT_ONCE)
            .with_for_update(skip_locked=True)
        ).all()
        if not ids:
            return
        connection.execute(
            insert(NotificationDelivery).on_conflict_do_nothing(),
            [{"notification_id": id_, "target": target} for id_ in ids for target in targets],
        )
        connection.execute(
            update(Notification).where(Notification.id.in_(ids)).values(addressed_at=func.now())
        )


def take_due(database: Database, targets: Collection[str]) -> Sequence[Delivery]:
    """Take deliveries that are due; no other sender can take them for `LEASE_SECONDS`."""
    key = tuple_(NotificationDelivery.notification_id, NotificationDelivery.target)
    due = (
        select(NotificationDelivery.notification_id, NotificationDelivery.target)
        .where(NotificationDelivery.next_attempt_at <= func.clock_timestamp())
        .order_by(NotificationDelivery.next_attempt_at)
        .limit(TAKEN_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    with database.transaction() as connection:
        keys = [
            tuple(row)
            for target in targets
            for row in connection.execute(due.where(NotificationDelivery.target == target))
        ]
        rows = connection.execute(
            update(NotificationDelivery)
            .where(key.in_(keys), NotificationDelivery.notification_id == Notification.id)
            .values(
                attempts=NotificationDelivery.attempts + 1,
                next_attempt_at=func.clock_timestamp() + interval(LEASE_SECONDS),
            )
            .returning(
                Notification.id,
                NotificationDelivery.target,
                Notification.type,
                Notification.data,
                Notification.occurred_at,
                NotificationDelivery.attempts,
            )
        ).all()
    return [Delivery(*row) for row in rows]


def note_answer(
    database: Database, delivery: Delivery, answer: str, *, delivered: bool, final: bool = False
) -> None:
    """Store the result of an attempt, unless another sender has taken the delivery since.

    If ``final``, the delivery is not retried.
    """
    number = delivery.attempts - 1
    again: Any = None
    if not delivered and not final and number < len(RETRY_SECONDS):
        seconds = RETRY_SECONDS[number]
        again = func.clock_timestamp() + interval(seconds) * (1 + _JITTER * func.random())
    with database.transaction() as connection:
        connection.execute(
            update(NotificationDelivery)
            .where(
                NotificationDelivery.notification_id == delivery.id,
                NotificationDelivery.target == delivery.target,
                NotificationDelivery.attempts == delivery.attempts,
            )
            .values(
                answer=visible(masked(answer)),
                delivered_at=func.clock_timestamp() if delivered else None,
                next_attempt_at=again,
            )
        )


_GIVEN_UP = and_(
    NotificationDelivery.next_attempt_at.is_(None), NotificationDelivery.delivered_at.is_(None)
)


def prune(database: Database, targets: Collection[str]) -> None:
    """Delete old finished events, and give up deliveries to targets that are no longer set."""
    with database.transaction() as connection:
        connection.execute(
            update(NotificationDelivery)
            .where(
                NotificationDelivery.next_attempt_at < func.now() - FORGOTTEN_AFTER,
                NotificationDelivery.target.not_in(targets),
            )
            .values(next_attempt_at=None, answer="the target is not set any more")
        )
        of_it = NotificationDelivery.notification_id == Notification.id
        undelivered = exists().where(of_it, NotificationDelivery.delivered_at.is_(None))
        waits = exists().where(of_it, NotificationDelivery.next_attempt_at.is_not(None))
        connection.execute(
            delete(Notification).where(
                Notification.addressed_at < func.now() - KEEP_DELIVERED,
                or_(~undelivered, Notification.addressed_at < func.now() - KEEP_GIVEN_UP),
                ~waits,
            )
        )


def try_again(database: Database, targets: Collection[str]) -> int:
    """Make given-up deliveries to these targets due again, with all attempts; returns how many."""
    with database.transaction() as connection:
        return connection.execute(
            update(NotificationDelivery)
            .where(_GIVEN_UP, NotificationDelivery.target.in_(targets))
            .values(attempts=0, next_attempt_at=func.clock_timestamp())
        ).rowcount


def undelivered(database: Database) -> Sequence[AnyRow]:
    """List the events that were not delivered; given-up deliveries come first."""
    with database.transaction() as connection:
        return connection.execute(
            select(
                Notification.id,
                Notification.type,
                Notification.occurred_at,
                NotificationDelivery.target,
                NotificationDelivery.attempts,
                NotificationDelivery.next_attempt_at,
                NotificationDelivery.answer,
            )
            .join_from(Notification, NotificationDelivery)
            .where(NotificationDelivery.delivered_at.is_(None))
            .order_by(NotificationDelivery.next_attempt_at.nulls_first(), Notification.occurred_at)
        ).all()


def count_given_up(database: Database, targets: Collection[str]) -> int:
    """Count the deliveries to these targets that were given up and are still kept."""
    given_up = and_(_GIVEN_UP, NotificationDelivery.target.in_(targets))
    with database.transaction() as connection:
        return connection.execute(
            select(func.count()).select_from(NotificationDelivery).where(given_up)
        ).scalar_one()


def forget_events(connection: Connection, ids: Iterable[uuid.UUID]) -> None:
    """Remove every event that names one of these batches, uploads or users."""
    connection.execute(delete(Notification).where(_names(Notification.data, ids)))
    connection.execute(update(Outage).where(_names(Outage.reason, ids)).values(reason="deleted"))


def _names(said: Any, ids: Iterable[uuid.UUID]) -> ColumnElement[bool]:
    one = func.unnest(cast([str(id_) for id_ in ids], ARRAY(Text))).column_valued("one")
    return exists(select(one).where(func.strpos(cast(said, Text), one) > 0))
