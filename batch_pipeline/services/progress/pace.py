"""Says when something has happened often enough for now: a token bucket per key."""

import threading
import time
from collections.abc import Callable, Hashable


class Pace:
    """Lets so many of a key pass at once, and so many a second from then on; safe under threads."""

    #: Keys that are remembered; a process that has seen more forgets them all, and lets more pass.
    MAX_KEYS = 1000

    def __init__(
        self, *, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[Hashable, tuple[float, float]] = {}

    def admits(self, key: Hashable) -> bool:
        """Tell whether one more may pass now, and count it if it may."""
        with self._lock:
            now = self._clock()
            if len(self._tokens) >= self.MAX_KEYS and key not in self._tokens:
                self._tokens.clear()
            left, counted_at = self._tokens.get(key, (self._burst, now))
            left = min(self._burst, left + (now - counted_at) * self._per_second)
            admitted = left >= 1
            self._tokens[key] = (left - admitted, now)
        return admitted
