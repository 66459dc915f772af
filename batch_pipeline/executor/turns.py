"""How many steps of a run work at a time, while any number of them wait for something outside.

Threads share one interpreter. Those that do not wait take its lock from each other with every call
that releases it, which costs more than their work gains: a step of 12 ms takes 14 ms of processor
time with eight of them, and 18 ms with forty. So a step works in its turn, and gives it up around
what it waits for:

    with others_may_work():
        answer = ask_the_server()
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Who has waited so long for a turn goes on without (seconds): those who have one may be stuck.
PATIENCE_SECONDS = 1.0


class Turns:
    """At most `at_once` threads inside `taken`, except those that `others_may_work` lets out.

    Args:
        at_once: how many; 0: any number.
    """

    def __init__(self, at_once: int) -> None:
        self._free = threading.Semaphore(at_once) if at_once else None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Work in a turn; waits for one."""
        turn = _Turn(self._free)
        turn.take()
        token = _current.set(turn)
        try:
            yield
        finally:
            _current.reset(token)
            turn.give_up()


class _Turn:
    """That of one thread."""

    def __init__(self, free: threading.Semaphore | None) -> None:
        self._free = free
        self._has = False

    def take(self) -> None:
        if self._free:
            self._has = self._free.acquire(timeout=PATIENCE_SECONDS)

    def give_up(self) -> None:
        if self._free and self._has:
            self._has = False
            self._free.release()


_current: ContextVar[_Turn] = ContextVar("batch_pipeline_executor_turn")


@contextmanager
def others_may_work() -> Iterator[None]:
    """Give up the turn of the calling step while it waits for something outside this process.

    Outside the threaded executor, or where it lets all steps work at a time, this does nothing.
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
