"""Evidence that a server that has refused a call still serves others, so there is no outage.

A process keeps one `Evidence` for each server and model. `server_group` uses it and asks the
question with the known answer.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from batch_pipeline.model_servers.base import CancelledCheck
from batch_pipeline.model_servers.http_calls import require_wanted

#: Interval at which a caller that waits for the result of another checks that it is still wanted.
_POLL_SECONDS = 0.5
#: After a refusal, the question with a known answer is not repeated for this time.
_REFUSAL_HOLDS_SECONDS = 5.0


class Evidence:
    """When a server last answered a call for a model, and last refused the known question."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._answered_at = self._refused_at = -math.inf

    @contextmanager
    def asked_by_one(self, cancelled: CancelledCheck) -> Iterator[None]:
        """Let one caller at a time ask the known question; raises `WorkCancelledError`."""
        while not self._asking.acquire(timeout=_POLL_SECONDS):
            require_wanted(cancelled)
        try:
            yield
        finally:
            self._asking.release()

    def answered(self) -> None:
        """Note that a call was answered."""
        self._answered_at = time.monotonic()

    def refused(self) -> None:
        """Note that a question with a known answer was refused."""
        self._refused_at = time.monotonic()

    def since(self, moment: float) -> bool | None:
        """Return whether the server has answered since `moment`; None if that is not known."""
        if self._answered_at >= max(moment, self._refused_at):
            return True
        if self._refused_at >= moment - _REFUSAL_HOLDS_SECONDS:
            return False
        return None
