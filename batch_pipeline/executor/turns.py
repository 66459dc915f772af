"""How many steps of a run work at a time, while any number of them wait for something outside.

Threads share the lock of the interpreter. Threads that compute take it from each other at every
call that releases it. This costs more than working at the same time gains: a step of 12 ms takes
14 ms of processor time with eight such threads, and 18 ms with forty. So a step takes a turn to
work, and gives it up while it waits:

    with others_may_work():
        answer = ask_the_server()
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: A thread that has waited this long for a turn (seconds) goes on without one, because the others
#: may be stuck.
PATIENCE_SECONDS = 1.0


class Turns:
    """Limits the threads inside `taken` to `at_once`, not counting those in `others_may_work`.

    Args:
        at_once: the limit; 0 means no limit.
    """

    def __init__(self, at_once: int) -> None:
        self._free = threading.Semaphore(at_once) if at_once else None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a turn and hold it while the context is open."""
        turn = _Turn(self._free)
        turn.take()
        token = _current.set(turn)
        try:
            yield
        finally:
            _current.reset(token)
            turn.give_up()


class _Turn:
    """The turn of one thread."""

    def __init__(self, free: threading.Semaphore | None) -> None:
        self._free = free
        self._has = False

    def take(self) -> None:
        if self._free and not self._has:  # an inner wait may have taken it again
            self._has = self._free.acquire(timeout=PATIENCE_SECONDS)

    def give_up(self) -> None:
        if self._free and self._has:
            self._has = False
            self._free.release()


_current: ContextVar[_Turn] = ContextVar("batch_pipeline_executor_turn")


@contextmanager
def others_may_work() -> Iterator[None]:
    """Give up the turn of the calling step while it waits for something outside this process.

    This does nothing outside the threaded executor, or if the executor has no limit.
    """
    turn = _current.get(None)
    if turn is None:
        yield
        return
    turn.give_up()
    try:
        yield
    finally:
        turn.take()
