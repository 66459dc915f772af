"""Limits how long transactions wait for rows that another transaction has locked.

A sensor or a sweep must not wait until an upload API ends its transaction, which may take hours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from batch_pipeline.errors import PipelineError

#: After this time the wait for a lock is given up (milliseconds). Our own transactions hold a lock
#: for a few milliseconds.
LOCK_MILLISECONDS = 200

_are_short = ContextVar("lock_waits_are_short", default=False)


class LockedError(PipelineError):
    """Another transaction has locked a row for longer than `LOCK_MILLISECONDS`."""


@contextmanager
def short_lock_waits() -> Iterator[None]:
    """Let transactions that this thread begins in the block give up if a row is locked.

    `Database.transaction` then raises `LockedError`. So `one_by_one` leaves out only this item.
    """
    token = _are_short.set(True)
    try:
        yield
    finally:
        _are_short.reset(token)


def lock_waits_are_short() -> bool:
    """Return whether `short_lock_waits` applies."""
    return _are_short.get()
