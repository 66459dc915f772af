"""Whether a model server is worth calling: shared by all threads, one per server.

Only connection failures count here, in a row and over all threads; what a server answers, be it an
error, proves that it is there. How calls use this lives in `http_calls`.
"""

import threading
import time
from collections.abc import Callable


class Circuit:
    """Opens after consecutive connection failures; then one caller at a time may look again.

    Args:
        failures_to_open: connection failures in a row after which no call is made.
        pause_seconds: time between two looks at a server that is down.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        failures_to_open: int = 3,
        pause_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures_to_open = failures_to_open
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._look_again_at = 0.0
        self._reason = ""

    @property
    def is_open(self) -> bool:
        """True while calls must not be made."""
        with self._lock:
            return self._failures >= self._failures_to_open

    @property
    def reason(self) -> str:
        """What the latest connection failure said."""
        with self._lock:
            return self._reason

    @property
    def probe_is_due(self) -> bool:
        """True when somebody should see whether the server is back."""
        with self._lock:
            return self._clock() >= self._look_again_at

    def claim_probe(self) -> bool:
        """True for the one caller that should see now whether the server is back."""
        with self._lock:
            if self._clock() < self._look_again_at:
                return False
            self._look_again_at = self._clock() + self._pause_seconds
            return True

    def failed(self, reason: str) -> None:
        """Count a connection failure."""
        with self._lock:
            self._failures += 1
            self._reason = reason
            self._look_again_at = self._clock() + self._pause_seconds

    def answered(self) -> None:
        """The server answered something: calls may be made."""
        with self._lock:
            self._failures = 0
