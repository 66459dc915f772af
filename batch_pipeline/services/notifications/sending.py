"""Sends the deliveries in the outbox to the targets that the settings name.

The sensor `notifications` calls `send_due`. It sends all deliveries that it takes together at the
same time, so a target that does not answer does not delay the others.
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from batch_pipeline.database.session import Database
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.masking import masked
from batch_pipeline.services.notifications import outbox
from batch_pipeline.services.notifications.outbox import Delivery
from batch_pipeline.services.notifications.own_thread import in_own_thread
from batch_pipeline.services.notifications.webhooks import NotDeliveredError, post
from batch_pipeline.settings import Settings
from batch_pipeline.visible_text import visible_line
from batch_pipeline.webhook_secrets import secret_key
from batch_pipeline.wording import how_to_install

#: After this time a round takes no more deliveries (seconds). A code server that is stopped waits
#: for the round, and Compose kills it after 30 s. The last delivery may take `TOLD_WITHIN_SECONDS`.
ROUND_SECONDS = 8.0

#: How long Apprise may take for one delivery (seconds). Its connections have time-outs, but a URL
#: may need many of them. Shorter than `outbox.LEASE_SECONDS`.
TOLD_WITHIN_SECONDS = 20.0

log = logging.getLogger(__name__)

#: Messages that Apprise is still sending after its time limit, by event and target. The next
#: attempt uses their result, because a new start would send the message twice.
_unfinished: dict[tuple[uuid.UUID, str], "Future[str]"] = {}


@dataclass(frozen=True)
class Target:
    """A receiver of notifications."""

    id: str
    """Digest of the URL."""
    name: str
    """Scheme and host of the URL, the part that may be shown."""
    url: str
    is_webhook: bool


@dataclass(frozen=True)
class Answer:
    """Result of an attempt."""

    target: str
    delivered: bool
    detail: str


def targets_of(settings: Settings) -> Sequence[Target]:
    """List the targets that the settings name."""
    return [
        *(_target(url, is_webhook=True) for url in settings.webhook_url_list),
        *(_target(url, is_webhook=False) for url in settings.notify_url_list),
    ]


def _target(url: str, *, is_webhook: bool) -> Target:
    parts = urlsplit(url)
    # URLs of chats may contain a token in place of the host.
    name = f"{parts.scheme}://{parts.hostname}" if is_webhook else f"{parts.scheme}://…"
    return Target(hashlib.sha256(url.encode()).hexdigest()[:16], name, url, is_webhook)


def send_due(database: Database, settings: Settings) -> tuple[int, int]:
    """Send deliveries that are due; returns how many were delivered and how many failed.

    Raises:
        ServiceDownError: the database cannot be reached. Deliveries that were taken are taken again
            later.
    """
    targets = {target.id: target for target in targets_of(settings)}
    outbox.end_outages(database)
    outbox.address(database, targets)
    delivered = failed = 0
    deadline = time.monotonic() + ROUND_SECONDS
    while targets and time.monotonic() < deadline:
        taken = outbox.take_due(database, targets)
        if not taken:
            break
        for delivery, (answer, final) in zip(
            taken, asyncio.run(_send_all(taken, targets, settings)), strict=True
        ):
            outbox.note_answer(
                database, delivery, answer.detail, delivered=answer.delivered, final=final
            )
            delivered += answer.delivered
            failed += not answer.delivered
            if not answer.delivered:
                said = (delivery.type, answer.target, answer.detail)
                log.warning("%s not delivered to %s: %s", *said)
    outbox.prune(database, targets)
    return delivered, failed


def send_test(settings: Settings) -> Sequence[Answer]:
    """Send a test event to all targets at the same time; nothing is stored."""
    targets = {target.id: target for target in targets_of(settings)}
    deliveries = [
        Delivery(uuid.uuid4(), id_, "notification.test", {}, datetime.now(UTC), 1)
        for id_ in targets
    ]
    return [answer for answer, _ in asyncio.run(_send_all(deliveries, targets, settings))]


async def _send_all(
    deliveries: Sequence[Delivery], targets: Mapping[str, Target], settings: Settings
) -> Sequence[tuple[Answer, bool]]:
    return await asyncio.gather(
        *(_send(delivery, targets[delivery.target], settings) for delivery in deliveries)
    )


async def _send(delivery: Delivery, target: Target, settings: Settings) -> tuple[Answer, bool]:
    try:
        if target.is_webhook:
            key = secret_key(settings.webhook_secret.get_secret_value())
            allow_private = settings.webhook_allow_private
            said = await post(target.url, delivery, key, allow_private=allow_private)
        else:
            said = await _told(target.url, delivery)
    except NotDeliveredError as error:
        return Answer(target.name, False, masked(str(error))), error.final
    except Exception as error:  # an error of one target must not affect the others
        said = masked(f"{type(error).__name__}: {error}")
        return Answer(target.name, False, said), False
    return Answer(target.name, True, said), False


async def _told(url: str, delivery: Delivery) -> str:
    """Tell people, or continue to wait for an earlier attempt that had too little time."""
    key = (delivery.id, delivery.target)
    sent = _unfinished.pop(key, None) or in_own_thread(partial(_tell_people, url, delivery))
    try:
        async with asyncio.timeout(TOLD_WITHIN_SECONDS):
            return await asyncio.wrap_future(sent)
    except TimeoutError as error:
        if sent.done():
            raise  # Apprise's own
        _unfinished[key] = sent
        raise NotDeliveredError(
            f"apprise was not done within {TOLD_WITHIN_SECONDS:g} s; the next attempt waits for it "
            "again"
        ) from error


def _tell_people(url: str, delivery: Delivery) -> str:
    apprise = require_apprise()
    people = apprise.Apprise()
    if not people.add(url):
        raise NotDeliveredError("not a URL that apprise knows")
    # Without the format, mail and chats would read names of files as HTML or Markdown.
    if not people.notify(**_words(delivery), body_format=apprise.NotifyFormat.TEXT):
        raise NotDeliveredError("apprise could not send it; its log says why")
    return "sent"


def require_apprise() -> Any:
    """Import the client for chats and mail.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    try:
        import apprise  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigurationError(
            "BATCH_PIPELINE_NOTIFY_URLS is set, but the extra `notify` is not installed: "
            f"{how_to_install('notify')}"
        ) from error
    return apprise


def _words(delivery: Delivery) -> dict[str, str]:
    """Return an event as title and body for a person."""
    data = {name: visible_line(value) for name, value in delivery.data.items() if value is not None}
    about = data.get("name") or data.get("filename") or data.get("kind") or ""
    lines = [f"{name}: {value}" for name, value in data.items() if value]
    return {
        "title": f"{delivery.type} {about}".strip(),
        "body": "\n".join(lines) or "This is a test.",
    }
