"""Rate limit for events: a token bucket for each key."""

import threading
import time
from collections.abc import Callable, Hashable


class Pace:
    """Admits `burst` events of a key at once, then `per_second` events a second; thread-safe."""

    #: Maximum number of remembered keys. Beyond it all keys are forgotten, so more events pass.
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
        """Return whether one more event may pass now, and count it if it may."""
        with self._lock:
            now = self._clock()
            if len(self._tokens) >= self.MAX_KEYS and key not in self._tokens:
                self._tokens.clear()
            left, counted_at = self._tokens.get(key, (self._burst, now))
            left = min(self._burst, left + (now - counted_at) * self._per_second)
            admitted = left >= 1
            self._tokens[key] = (left - admitted, now)
        return admitted
