"""Limits how often ``batch_progress`` is materialized: enough to plot, but not for every upload."""

import threading
import time
from collections.abc import Callable

from batch_pipeline.services.progress.publishing import BatchProgress

#: The next reading is due after this time (seconds), or after this share of the batch (percent).
SECONDS, PERCENT = 1.0, 1.0


class ProgressMeter:
    """Decides which readings of a batch are kept; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_time = float("-inf")
        self._last_processed = float("-inf")

    def is_due(self, progress: BatchProgress) -> bool:
        """Return whether to keep this reading; the last one of a batch is always kept."""
        now = self._clock()
        with self._lock:
            due = (
                progress.processed >= progress.total
                or now - self._last_time >= SECONDS
                or 100 * (progress.processed - self._last_processed) >= PERCENT * progress.total
            )
            if due:
                self._last_time, self._last_processed = now, progress.processed
        return due
