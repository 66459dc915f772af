"""Receives all progress messages that were sent so far, without guessing how long they take."""

import uuid

import psycopg

from batch_pipeline.services.progress.publishing import CHANNEL

#: A message that takes longer counts as lost (seconds).
_LOST_AFTER_SECONDS = 60.0


def messages_until_now(listener: psycopg.Connection) -> list[str]:
    """Return the messages since the last call; the connection listens and is in autocommit.

    PostgreSQL delivers in the order of the commits: when our own mark arrives, all messages that
    were sent before it have arrived too.
    """
    mark = str(uuid.uuid4())
    messages: list[str] = []
    listener.execute("SELECT pg_notify(%s, %s)", [CHANNEL, mark])
    for message in listener.notifies(timeout=_LOST_AFTER_SECONDS):
        if message.payload == mark:
            return messages
        messages.append(message.payload)
    raise TimeoutError(f"our own message did not come within {_LOST_AFTER_SECONDS:g} s")
