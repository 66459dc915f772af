"""A bounded buffer whose contents are written in groups, in their order, by a background thread.

What is written and how, its owner says (`grouped_event_log`). Only the background thread writes:
no signal interrupts it between a write and the note that it was done. Nothing that was put in is
dropped: a group that cannot be written now is tried again until the process ends, and whoever puts
or flushes meanwhile waits, or is told after a while.

Who stops whom: `stop` waits until all is written, then ends the thread. A process that ends without
it does the same at exit; what could not be written by then is counted in its log.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

#: For how long items are gathered before they are written (seconds): the UI looks four times a
#: second for what is new in a log. A group costs some 8 ms whatever its size, under many threads.
GATHER_SECONDS = 0.25
#: Most items of a group, and most that wait: whoever would put in one more waits, too.
MAX_GROUP, MAX_WAITING = 500, 1000
#: For how long an outage may hold up whoever puts or flushes (seconds); a restart of PostgreSQL
#: takes less.
PATIENCE_SECONDS = 60.0
#: Pauses between attempts: the first, doubled up to the last (seconds).
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class GroupWriter(Generic[T]):
    """Writes items in groups; safe under threads.

    Args:
        write: Writes a group, all of it or nothing. Its second argument says that the attempt
            before may have succeeded without our knowing.
        is_outage: Tells from an error of `write` whether the same may succeed later.
        patience: See `PATIENCE_SECONDS`.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T], bool], None],
        is_outage: Callable[[Exception], bool],
        *,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._write = write
        self._is_outage = is_outage
        self._patience = patience
        #: Guards all below; notified when something is to be written, was written, or could not be.
        self._changed = threading.Condition()
        self._waiting: deque[T] = deque()
        self._put_in = 0
        self._written = 0
        #: How many of all items somebody waits for: up to there nothing is gathered.
        self._wanted = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        #: Attempts that failed after patience had run out, and why the last one did.
        self._failures = 0
        self._failure: Exception | None = None
        self._refused: Exception | None = None

    def put(self, item: T) -> None:
        """Add an item; waits while too many do.

        Raises:
            Exception: of `write`: an outage lasts longer than one is patient. The item was not
                added.
        """
        with self._changed:
            self._start()
            if len(self._waiting) >= MAX_WAITING:
                self._wanted = max(self._wanted, self._written + 1)
                self._await(lambda: len(self._waiting) < MAX_WAITING)
            self._waiting.append(item)
            self._put_in += 1
            if len(self._waiting) in {1, MAX_GROUP}:
                self._changed.notify_all()

    def flush(self) -> None:
        """Return when everything is written that was put in before.

        Raises:
            Exception: of `write`: an outage lasts longer than one is patient (all items still
                wait), or an item was refused.
        """
        with self._changed:
            target = self._put_in
            if self._written < target:
                self._wanted = max(self._wanted, target)
                self._changed.notify_all()
                self._await(lambda: self._written >= target)
            refused, self._refused = self._refused, None
        if refused is not None:
            raise refused

    def stop(self) -> None:
        """Write what is left, and end the background thread; a later `put` starts another.

        Raises:
            Exception: as `flush` does.
        """
        self.flush()
        with self._changed:
            thread = self._thread
            self._stopping = True
            self._changed.notify_all()
        if thread is not None:
            thread.join()
            atexit.unregister(self._stop_at_exit)

    def _start(self) -> None:
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._work, name="event-writer", daemon=True)
            self._thread.start()
            atexit.register(self._stop_at_exit)

    def _await(self, is_done: Callable[[], bool]) -> None:
        failures = self._failures
        self._changed.wait_for(lambda: is_done() or self._failures > failures)
        if not is_done() and self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while group := self._next_group():
            try:
                self._write_patiently(group)
            except Exception:
                # One of them spoils the group: the others are written without it.
                for item in group:
                    self._write_or_refuse(item)
            with self._changed:
                for _ in group:
                    self._waiting.popleft()
                self._written += len(group)
                self._changed.notify_all()

    def _next_group(self) -> list[T]:
        """Wait for items and gather more; nothing to write means that the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            self._changed.wait_for(
                lambda: (
                    self._stopping
                    or self._wanted > self._written
                    or len(self._waiting) >= MAX_GROUP
                ),
                timeout=GATHER_SECONDS,
            )
            if not self._waiting:
                self._thread = None  # from here on a `put` starts another one, not earlier
            return list(islice(self._waiting, MAX_GROUP))

    def _write_patiently(self, group: Sequence[T]) -> None:
        tried, failing_since, pause = False, time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                self._write(group, tried)
            except Exception as error:
                if not self._is_outage(error):
                    raise
                if not tried:
                    log.warning("events cannot be written now, trying again: %s", error)
                if time.monotonic() - failing_since >= self._patience:
                    with self._changed:
                        self._failures += 1
                        self._failure = error
                        self._changed.notify_all()
                tried = True
                time.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
            else:
                return

    def _write_or_refuse(self, item: T) -> None:
        try:
            self._write_patiently([item])
        except Exception as error:
            log.exception("an event cannot be written: %s", item)
            with self._changed:
                self._refused = error

    def _stop_at_exit(self) -> None:
        try:
            self.stop()
        except Exception:
            log.exception("%s events were not written", self._put_in - self._written)
