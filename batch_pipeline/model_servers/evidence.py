"""What speaks for a server that has refused a call: an outage is what others feel too.

Kept by a process for each server and model; used by `server_group`, which asks the known question.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from batch_pipeline.model_servers.base import CancelledCheck
from batch_pipeline.model_servers.http_calls import require_wanted

#: How often a caller that waits for another's finding asks whether its call is still wanted.
_POLL_SECONDS = 0.5
#: A question with a known answer that was refused is not asked again at once.
_REFUSAL_HOLDS_SECONDS = 5.0


class Evidence:
    """When one server last answered a call for the model, and when it last refused a known one."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._answered_at = self._refused_at = -math.inf

    @contextmanager
    def asked_by_one(self, cancelled: CancelledCheck) -> Iterator[None]:
        """Wait until nobody else asks the server something known; raises `WorkCancelledError`."""
        while not self._asking.acquire(timeout=_POLL_SECONDS):
            require_wanted(cancelled)
        try:
            yield
        finally:
            self._asking.release()

    def answered(self) -> None:
        """A call was answered."""
        self._answered_at = time.monotonic()

    def refused(self) -> None:
        """A question with a known answer was refused."""
        self._refused_at = time.monotonic()

    def since(self, moment: float) -> bool | None:
        """Whether the server has served since then; None: nothing happened that would tell."""
        if self._answered_at >= max(moment, self._refused_at):
            return True
        if self._refused_at >= moment - _REFUSAL_HOLDS_SECONDS:
            return False
        return None
