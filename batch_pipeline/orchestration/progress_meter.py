"""How often ``batch_progress`` is materialized: enough to plot, not a row for every upload."""

import threading
import time
from collections.abc import Callable

from batch_pipeline.services.progress.publishing import BatchProgress

#: A reading is due when this much time has passed or this share of the batch was done since.
SECONDS, PERCENT = 1.0, 1.0


class ProgressMeter:
    """Decides which readings of a batch are kept; safe under threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_time = float("-inf")
        self._last_processed = float("-inf")

    def is_due(self, progress: BatchProgress) -> bool:
        """Tell whether to keep this reading; the last one of a batch always is."""
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
