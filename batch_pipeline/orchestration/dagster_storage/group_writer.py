"""A bounded buffer of items. A background thread writes them in groups and in their order.

The owner of the buffer decides what is written and how (`grouped_event_log`). Only the background
thread writes: no signal interrupts it between a write and the note that the write is done. No item
is dropped: a group that cannot be written now is tried again until the process ends. Meanwhile
`put` and `flush` wait, and raise an error after a while.

How the thread stops: `stop` waits until all items are written, then ends the thread. A process that
ends without `stop` does the same at exit, and logs how many items could not be written.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

#: How long items are gathered before they are written (seconds). The UI looks for new lines of a
#: log four times a second. With many threads, a group of any size costs about 8 ms.
GATHER_SECONDS = 0.25
#: Maximum number of items in a group, and in the buffer: a `put` into a full buffer waits.
MAX_GROUP, MAX_WAITING = 500, 1000
#: How long `put` and `flush` wait during an outage (seconds); a restart of PostgreSQL takes less.
PATIENCE_SECONDS = 60.0
#: Pauses between attempts: the first, doubled up to the last (seconds).
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class GroupWriter(Generic[T]):
    """Writes items in groups; thread-safe.

    Args:
        write: Writes a group, all of it or nothing. Its second argument is true if the attempt
            before may have succeeded although it raised an error.
        is_outage: Returns whether the same write may succeed later, judged by an error of `write`.
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
        #: Guards everything below. It is notified when items wait, were written, or failed.
        self._changed = threading.Condition()
        self._waiting: deque[T] = deque()
        self._put_in = 0
        self._written = 0
        #: Number of items for which a thread waits. Up to this number, items are written at once.
        self._wanted = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        #: Number of attempts that failed after the patience had run out, and the last error.
        self._failures = 0
        self._failure: Exception | None = None
        self._refused: Exception | None = None

    def put(self, item: T) -> None:
        """Add an item; wait while the buffer is full.

        Raises:
            Exception: an error of `write`: an outage lasts longer than the patience. The item was
                not added.
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
        """Wait until every item that was put in before is written.

        Raises:
            Exception: an error of `write`: an outage lasts longer than the patience (all items
                still wait), or an item was refused.
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
        """Write the remaining items and end the background thread; a later `put` starts another.

        Raises:
            Exception: the same errors as `flush`.
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
                # One item makes the group fail: write the others without it.
                for item in group:
                    self._write_or_refuse(item)
            with self._changed:
                for _ in group:
                    self._waiting.popleft()
                self._written += len(group)
                self._changed.notify_all()

    def _next_group(self) -> list[T]:
        """Wait for items and gather more. An empty group means that the thread should end."""
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
                self._thread = None  # a `put` starts another thread from here on, not earlier
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
