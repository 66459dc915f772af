"""Signals new work to dispatch, so that the sensor does not have to poll.

Triggers on the tables notify when uploads were added or became pending again, or when a batch was
started or reopened. It does not matter which program wrote the rows. A resume notifies, too
(``services/pauses.py``). A signal only means that there may be work.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import Connection, func, select

from batch_pipeline.database.listening import listening
from batch_pipeline.database.session import Database
from batch_pipeline.errors import ServiceDownError

#: The channel that the triggers notify.
CHANNEL = "batch_pipeline_work"
#: Pause after a signal, so that rows written in single transactions are dispatched together
#: (seconds).
GATHER_SECONDS = 0.05

#: Waits for this many seconds at most; returns True if there may be work.
Wait = Callable[[float], bool]


def signal_work(connection: Connection) -> None:
    """Signal work at commit, for changes that no trigger reports."""
    connection.execute(select(func.pg_notify(CHANNEL, "")))


@contextmanager
def work_signals(database: Database) -> Iterator[Wait]:
    """Listen for signals. If LISTEN does not work, the wait always takes its full time.

    Raises:
        ServiceDownError: the database went down while listening.
    """
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(listening(database, CHANNEL))
        except ServiceDownError:  # no free connection; the caller looks again after the wait
            yield _only_wait
            return

        def wait(seconds: float) -> bool:
            # The generator is read to its end, because an unfinished one locks the connection.
            heard = list(listener.notifies(timeout=seconds, stop_after=1))
            if heard:
                time.sleep(GATHER_SECONDS)
                list(listener.notifies(timeout=0))
            return bool(heard)

        yield wait


def _only_wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False
