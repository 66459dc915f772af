"""Keeps the claims of a run alive, and detects lost ones.

Each process has one such thread. Every second it checks which claims are still valid: a person may
have cancelled the batch, or a sweep may have given the upload to another run. Four times per
lease it renews their heartbeats, and those of reserved uploads that have not started. It also sends
progress messages that the rate limit held back.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from batch_pipeline.services.states.upload_states import Claim, UploadStates

#: How soon a cancelled batch stops its model calls (seconds).
CHECK_SECONDS = 1.0

log = logging.getLogger(__name__)


class HeldClaim:
    """A claim of an upload in progress; `lost` becomes true when the work is no longer wanted."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._lost = threading.Event()

    def lost(self) -> bool:
        """Return whether the batch was cancelled, or the upload taken over or deleted."""
        return self._lost.is_set()

    def mark_lost(self) -> None:
        """Signal the worker to stop."""
        self._lost.set()


class ClaimKeeper:
    """Heartbeat of one run in one process; thread-safe."""

    def __init__(self, states: UploadStates, run_id: str, *, lease_seconds: float) -> None:
        self._states = states
        self._run_id = run_id
        self._renew_seconds = lease_seconds / 4
        self._held: set[HeldClaim] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claim-keeper", daemon=True)

    def __enter__(self) -> "ClaimKeeper":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread and wait until its last statement has ended."""
        self._stop.set()
        self._thread.join()

    @contextmanager
    def hold(self, claim: Claim) -> Iterator[HeldClaim]:
        """Keep a claim alive while the block runs."""
        held = HeldClaim(claim)
        with self._lock:
            self._held.add(held)
        try:
            yield held
        finally:
            with self._lock:
                self._held.discard(held)

    def _keep(self) -> None:
        next_renewal = time.monotonic()
        warned = False
        while not self._stop.wait(min(CHECK_SECONDS, self._renew_seconds)):
            with self._lock:
                held = list(self._held)
            try:
                if held:
                    wanted = self._states.wanted([entry.claim for entry in held])
                    for entry in held:
                        if entry.claim not in wanted:
                            entry.mark_lost()
                self._states.catch_up_progress()
                if time.monotonic() >= next_renewal:
                    self._states.heartbeat(self._run_id, [entry.claim for entry in held])
                    next_renewal = time.monotonic() + self._renew_seconds
            except Exception as error:
                # Whatever the error is, the next try may succeed, and without this thread the
                # leases expire. The worker detects the outage itself. If the database comes back
                # too late, the claim token prevents writes of a lost claim.
                if not warned:
                    log.warning("heartbeat failed: %s", error)
                warned = True
            else:
                warned = False
