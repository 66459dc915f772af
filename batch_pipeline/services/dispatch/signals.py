"""Hears when there is work to dispatch, so that nobody need look all the time.

Triggers of the tables speak (migration 0007), whoever writes the rows: uploads were added or became
pending again, or a batch was begun or reopened. What is heard is only a reason to look.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from batch_pipeline.database.listening import listening
from batch_pipeline.database.session import Database
from batch_pipeline.errors import ServiceDownError

#: Named by the triggers.
CHANNEL = "batch_pipeline_work"
#: Rows that are written one by one, each in a transaction, are to be one batch of work and not many
#: (seconds).
GATHER_SECONDS = 0.05

#: Waits so many seconds; True if there may be work before that.
Wait = Callable[[float], bool]


@contextmanager
def work_signals(database: Database) -> Iterator[Wait]:
    """Listen from now on; where nobody can, only time passes.

    Raises:
        ServiceDownError: the database goes away meanwhile.
    """
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(listening(database, CHANNEL))
        except ServiceDownError:  # no connection is to be had for this: whoever waits looks anyway
            yield _only_wait
            return

        def wait(seconds: float) -> bool:
            # To its end: a generator of notifications that is left locks the connection.
            heard = list(listener.notifies(timeout=seconds, stop_after=1))
            if heard:
                time.sleep(GATHER_SECONDS)
                list(listener.notifies(timeout=0))
            return bool(heard)

        yield wait


def _only_wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False
