"""Decides which call begins next and at which server, within the cap and the pace of calls.

A `CallGate` by itself caps the calls of this process. When several processes share servers, each
has its own gate, and code outside of it sets how many slots the gate may use (`take_stock` and
`allow`). Within the process, slots then pass from call to call without any message. Pauses that
servers ask for are shared too: `pauses_to_tell` returns ours, `hear_pause` takes those of others.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from batch_pipeline.errors import ServiceDownError, WorkCancelledError
from batch_pipeline.model_servers.base import CancelledCheck
from batch_pipeline.model_servers.rate_limits import Pace, Room

_log = logging.getLogger(__name__)

#: How often a waiting caller asks whether its call is still wanted.
_POLL_SECONDS = 0.5
#: Weight of the latest call in the running mean of seconds per call.
_NEWEST_WEIGHT = 0.3
#: We do not wait for a longer pause: the uploads return to pending and are processed after it.
LONGEST_WAIT_SECONDS = 120.0


@dataclass
class _Lane:
    """The calls to one server."""

    allowed: int
    """Calls that this process may have in flight."""
    in_flight: int = 0
    elsewhere: int = 0
    """Slots that other processes hold, as last heard."""
    valid_until: float = float("inf")
    """When `allowed` expires unless it is renewed (monotonic seconds)."""
    pace: Pace = field(default_factory=Pace)
    seconds: float = 0.0
    """Mean duration of a call; the latest has the most weight. 0: no call has ended yet."""

    def ended_after(self, seconds: float) -> None:
        weight = _NEWEST_WEIGHT if self.seconds else 1
        self.seconds += weight * (seconds - self.seconds)

    def is_free(self, now: float) -> bool:
        return (
            self.in_flight < self.allowed and now < self.valid_until and now >= self.pace.not_before
        )


@dataclass(frozen=True)
class Pause:
    """A pause that a server asked for; other processes must learn of it."""

    until: float
    """Monotonic seconds."""
    reason: str


@dataclass(frozen=True)
class Demand:
    """Slots of a server that this process could use."""

    in_flight: int
    wanted: int
    """Slots, including those of calls in flight."""


class CallGate:
    """Implements `batch_pipeline.model_servers.base.CallSlots` for the threads of a process.

    Args:
        limit: calls in flight to each server.
        limits: the same, for servers that have their own number.
        shared: `allow` must grant slots before they can be used.
        changed: called when calls have begun to wait or have ended; must return at once.
        failure: called while waiting, with the seconds waited; returns why no slot is available,
            or None.
    """

    def __init__(
        self,
        limit: int,
        limits: Mapping[str, int] = MappingProxyType({}),
        *,
        shared: bool = False,
        changed: Callable[[], None] = lambda: None,
        failure: Callable[[float], ServiceDownError | None] = lambda _: None,
    ) -> None:
        self._limit = limit
        self._limits = limits
        self._shared = shared
        self._notify = changed
        self._failure = failure
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._usable: frozenset[str] = frozenset()
        self._to_tell: dict[str, Pause] = {}
        #: Waiting calls, in order of arrival; only the first is woken.
        self._waiting: deque[threading.Condition] = deque()

    @contextmanager
    def taken(
        self, servers: Callable[[], Sequence[str]], cancelled: CancelledCheck
    ) -> Iterator[str]:
        """Wait for a slot and hold it; see the protocol."""
        server, began = self._take(servers, cancelled), time.monotonic()
        try:
            yield server
        finally:
            with self._lock:
                lane = self._lanes[server]
                lane.in_flight -= 1
                lane.ended_after(time.monotonic() - began)
                self._wake_first()
            self._notify()

    def pause(self, server: str, seconds: float, reason: str) -> None:
        """Hold all calls to a server; see the protocol."""
        with self._lock:
            now, pace = time.monotonic(), self._lanes[server].pace
            known = pace.not_before > now + seconds / 2
            pace.pause(now, seconds, reason)
            pace.refused()
            if not known:
                self._to_tell[server] = Pause(pace.not_before, reason)
            left = pace.not_before - now
        if not known:
            _log.warning("calls to %s wait for %.1f s: %s", server, left, reason)
            self._notify()

    def answered(self, server: str, rooms: Sequence[Room], tokens: float) -> None:
        """Slow down before a limit is reached; see the protocol."""
        with self._lock:
            lane = self._lanes[server]
            everywhere = max(lane.elsewhere + lane.allowed, 1)
            lane.pace.answered(
                time.monotonic(),
                rooms,
                in_flight=lane.elsewhere + lane.in_flight - 1,
                share=max(lane.allowed, 1) / everywhere,
                tokens=tokens,
            )

    def pauses_to_tell(self) -> dict[str, Pause]:
        """Return the pauses that servers asked this process for since the last call."""
        with self._lock:
            told, self._to_tell = self._to_tell, {}
            return told

    @property
    def has_pauses_to_tell(self) -> bool:
        """Return whether `pauses_to_tell` would return any."""
        return bool(self._to_tell)

    def hear_pause(self, server: str, seconds: float, reason: str) -> None:
        """Hold calls to a server that asked another process for a pause."""
        with self._lock:
            self._lane(server).pace.pause(time.monotonic(), seconds, reason)

    def limit_of(self, server: str) -> int:
        """Return how many calls may be in flight to a server."""
        return self._limits.get(server, self._limit)

    def demand(self) -> dict[str, Demand]:
        """Return the slots in use and wanted, for each server that any call could go to."""
        with self._lock:
            return {server: self._demand(server) for server in self._lanes}

    def take_stock(self, servers: Sequence[str]) -> dict[str, Demand]:
        """Return the demand and freeze it: until `allow`, this process takes no further slots.

        This covers all servers at once. Otherwise, calls that come in the meantime would all go to
        the remaining servers.
        """
        with self._lock:
            demands = {server: self._demand(server) for server in servers}
            for server, demand in demands.items():
                lane = self._lanes[server]
                lane.allowed = min(lane.allowed, demand.in_flight)
            return demands

    def allow(self, agreed: dict[str, tuple[int, int]], valid_until: float) -> None:
        """Grant slots, for all servers at once so that calls spread over them.

        Args:
            agreed: by server: slots of this process, slots that others hold.
            valid_until: when the grant expires unless it is renewed (monotonic seconds).
        """
        with self._lock:
            for server, (allowed, elsewhere) in agreed.items():
                lane = self._lanes[server]
                lane.allowed, lane.elsewhere, lane.valid_until = allowed, elsewhere, valid_until
            self._wake_first()

    def _take(self, servers: Callable[[], Sequence[str]], cancelled: CancelledCheck) -> str:
        ticket, began = threading.Condition(self._lock), time.monotonic()
        with self._lock:
            self._waiting.append(ticket)
        told: Sequence[str] = ()
        try:
            while True:
                usable = servers()
                with self._lock:
                    if server := self._enter(ticket, usable):
                        return server
                    if usable == told:
                        ticket.wait(self._seconds_to_wait(usable))
                if usable != told:
                    self._notify()
                    told = usable
                    continue
                if cancelled():
                    raise WorkCancelledError(
                        "the model call was stopped: its upload is no longer wanted"
                    )
                waited = time.monotonic() - began
                if failure := self._failure(waited) or self._long_pause(usable):
                    raise failure
        finally:
            with self._lock:
                self._waiting.remove(ticket)
                self._wake_first()

    def _seconds_to_wait(self, usable: Sequence[str]) -> float:
        now = time.monotonic()
        lanes = [self._lanes[server] for server in usable if server in self._lanes]
        pauses = [lane.pace.not_before - now for lane in lanes]
        return min([_POLL_SECONDS, *(pause for pause in pauses if pause > 0)])

    def _long_pause(self, usable: Sequence[str]) -> ServiceDownError | None:
        with self._lock:
            now = time.monotonic()
            paces = [self._lanes[server].pace for server in usable if server in self._lanes]
        left = min((pace.not_before - now for pace in paces), default=0.0)
        if left <= LONGEST_WAIT_SECONDS:
            return None
        reasons = dict.fromkeys(pace.reason for pace in paces)
        return ServiceDownError(
            "model_rate_limited",
            f"no model server may be called for another {left:.0f} s: {'; '.join(reasons)}",
            resume_after_seconds=left,
        )

    def _lane(self, server: str) -> _Lane:
        if server not in self._lanes:
            self._lanes[server] = _Lane(0 if self._shared else self.limit_of(server))
        return self._lanes[server]

    def _wake_first(self) -> None:
        if self._waiting:
            self._waiting[0].notify()

    def _enter(self, ticket: threading.Condition, usable: Sequence[str]) -> str | None:
        if self._waiting[0] is not ticket:
            return None
        self._usable = frozenset(usable)
        for server in usable:
            self._lane(server)
        now = time.monotonic()
        free = [server for server in usable if self._lanes[server].is_free(now)]
        if not free:
            return None
        chosen = min(free, key=self._load)
        self._lanes[chosen].in_flight += 1
        self._lanes[chosen].pace.begin(now)
        return chosen

    def _load(self, server: str) -> tuple[float, float]:
        # Seconds of work, including this call: a slow server gets fewer calls than a fast one.
        lane = self._lanes[server]
        known = [each.seconds for each in self._lanes.values() if each.seconds]
        seconds = lane.seconds or (sum(known) / len(known) if known else 1.0)
        work = (lane.elsewhere + lane.in_flight + 1) * seconds
        # A random number breaks ties: otherwise every process would begin with the first server.
        return work, random.random()  # noqa: S311

    def _demand(self, server: str) -> Demand:
        in_flight, waiting = self._lanes[server].in_flight, len(self._waiting)
        wanted = in_flight
        if server in self._usable:
            # A fair part of all calls, even if the other servers could take them all, so that load
            # spreads to a server that has come back.
            everywhere = sum(lane.in_flight for lane in self._lanes.values()) + waiting
            part = -(-everywhere // len(self._usable))
            wanted = max(in_flight + waiting, part)
        return Demand(in_flight, min(wanted, max(self.limit_of(server), in_flight)))
