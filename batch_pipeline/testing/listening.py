"""Hears all progress messages that were sent so far, without a guess at how long they travel."""

import uuid

import psycopg

from batch_pipeline.services.progress.publishing import CHANNEL

#: A message is lost when it takes longer (seconds).
_LOST_AFTER_SECONDS = 60.0


def messages_until_now(listener: psycopg.Connection) -> list[str]:
    """Return what came since the last time; on a connection that listens, in autocommit.

    PostgreSQL delivers in the order of the commits: what was sent before our own mark has come
    when the mark comes.
    """
    mark = str(uuid.uuid4())
    messages: list[str] = []
    listener.execute("SELECT pg_notify(%s, %s)", [CHANNEL, mark])
    for message in listener.notifies(timeout=_LOST_AFTER_SECONDS):
        if message.payload == mark:
            return messages
        messages.append(message.payload)
    raise TimeoutError(f"our own message did not come within {_LOST_AFTER_SECONDS:g} s")
