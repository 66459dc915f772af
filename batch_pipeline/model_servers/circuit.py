"""A circuit breaker for a model server: one per server, shared by all threads.

It counts only consecutive connection failures, over all threads, and it opens at once if the server
is silent while another one answers. Any answer, even an error, proves that the server is there.
`http_calls` uses it for each call.
"""

import threading
import time
from collections.abc import Callable


class Circuit:
    """Opens after consecutive connection failures; then one caller at a time may probe again.

    Args:
        failures_to_open: consecutive connection failures after which no call is made.
        pause_seconds: time between two probes of a server that is down.
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
        """Return whether calls must not be made."""
        with self._lock:
            return self._failures >= self._failures_to_open

    @property
    def reason(self) -> str:
        """Return the message of the latest connection failure."""
        with self._lock:
            return self._reason

    @property
    def probe_is_due(self) -> bool:
        """Return whether it is time to probe the server."""
        with self._lock:
            return self._clock() >= self._look_again_at

    def claim_probe(self) -> bool:
        """Return true to the one caller that should probe the server now."""
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

    def silent(self, reason: str) -> None:
        """Open, because the server did not answer while another one did."""
        with self._lock:
            self._failures = max(self._failures, self._failures_to_open)
            self._reason = reason
            self._look_again_at = self._clock() + self._pause_seconds

    def answered(self) -> None:
        """Note that the server answered: calls may be made."""
        with self._lock:
            self._failures = 0
