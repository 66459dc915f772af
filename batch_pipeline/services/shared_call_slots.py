"""Limits the model calls in flight over all processes on all hosts that share a database.

Each process has a row per server and kind of call in ``model_call_slots``, with the number of slots
that it wants and holds. Through these rows the processes agree on fair shares, one after the other.
Within its share a process passes slots from call to call without asking the database (`CallGate`).
So a busy process queries the database a few times a minute, and more often only when shares change.
A pause that a server asks for (`Retry-After`) is sent to all processes by ``model_pauses`` and a
message.

One thread and one connection per process do this, beginning with the first call. A change wakes the
other processes by a message. No process depends on the message or on anything else that belongs to
a session, so a connection pooler may be used. If a process dies, its slots are free when its lease
ends, by the database's clock.
"""

import atexit
import logging
import random
import select
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

import psycopg
from sqlalchemy.engine import URL

from batch_pipeline.database.connection_setup import is_pooled, lift_time_limits
from batch_pipeline.database.libpq import libpq_url
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.masking import masked
from batch_pipeline.model_servers.base import CallKind, CallSlots
from batch_pipeline.model_servers.call_slots import CallGate, Demand

CHANNEL = "batch_pipeline_model_slots"
#: If a process has not renewed its row for this time, its slots are given to others (seconds).
LEASE_SECONDS = 15.0
#: Unused slots are given back after this time, or earlier if another process wants them (seconds).
_IDLE_SECONDS = 0.3
#: Time between two checks while other processes hold slots of our share (seconds).
_SHORT_SECONDS = 1.0
#: If there are more processes than slots, a process keeps a slot for this time before another one
#: gets a turn. Otherwise short calls would spend their time on passing slots (seconds).
_TURN_SECONDS = 1.0
#: Shortest time between two checks of one server (seconds).
_BREATH_SECONDS = 0.01
#: A process that stops in the middle of an agreement blocks the others for at most this time
#: (seconds), and for at most a third of the lease. After a whole lease the others would assume that
#: the database is down.
_STANDSTILL_SECONDS = 2.0
_LIMITS = """
    SELECT set_config('statement_timeout', '5s', true),
        set_config('idle_in_transaction_session_timeout', %(standstill)s, true)
"""
#: Separates a loopback address and its host in a name for all hosts.
_OF = " of "
#: First key of the advisory locks, one per server and kind, under which shares are agreed on.
_LOCK = 730_511

_REMOVE_DEAD = """
    DELETE FROM model_call_slots
    WHERE server = %(server)s AND kind = %(kind)s AND holder <> %(holder)s
        AND leased_until < clock_timestamp()
        -- While the database was down, no process could renew its lease.
        AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => %(lease)s)
"""
_ROWS = """
    SELECT holder, wanted, held, extract(epoch FROM clock_timestamp() - since)::float,
        extract(epoch FROM leased_until - clock_timestamp())::float
    FROM model_call_slots WHERE server = %(server)s AND kind = %(kind)s
"""
_WRITE = """
    INSERT INTO model_call_slots AS mine
        (server, kind, holder, wanted, held, since, leased_until)
    VALUES (%(server)s, %(kind)s, %(holder)s, %(wanted)s, %(held)s, clock_timestamp(),
        clock_timestamp() + make_interval(secs => %(lease)s))
    ON CONFLICT (server, kind, holder) DO UPDATE SET
        wanted = excluded.wanted, held = excluded.held, leased_until = excluded.leased_until,
        since = CASE WHEN (mine.held = 0) = (excluded.held = 0)
            THEN mine.since ELSE excluded.since END
"""
_PAUSE = """
    INSERT INTO model_pauses AS known (server, kind, not_before, reason)
    VALUES (%(server)s, %(kind)s,
        clock_timestamp() + make_interval(secs => %(seconds)s), %(reason)s)
    ON CONFLICT (server, kind) DO UPDATE
    SET not_before = excluded.not_before, reason = excluded.reason
    WHERE known.not_before < excluded.not_before
"""
_PAUSES = """
    SELECT extract(epoch FROM not_before - clock_timestamp())::float, reason FROM model_pauses
    WHERE server = %(server)s AND kind = %(kind)s AND not_before > clock_timestamp()
"""
_REMOVE = """
    DELETE FROM model_call_slots
    WHERE server = %(server)s AND kind = %(kind)s AND holder = %(holder)s
"""

_log = logging.getLogger(__name__)


@dataclass
class Claimant:
    """A process that wants or holds slots of a server; the contents of its row."""

    holder: uuid.UUID
    wanted: int
    held: int
    seconds: float = 0.0
    """How long it has waited if it holds no slot, otherwise how long it has held some."""
    lease_left: float = 0.0

    @property
    def precedence(self) -> tuple[int, float]:
        """Sort key: processes that wait come before those that have had their turn.

        The longest wait comes first; among holders the latest one comes first. So if there are more
        processes than slots, the one that has held for longest yields to the one that has waited
        for longest, and they take turns.
        """
        if not self.held:
            return 1, -self.seconds
        return (0 if self.seconds < _TURN_SECONDS else 2), self.seconds


def fair_shares(limit: int, claimants: Sequence[Claimant]) -> dict[uuid.UUID, int]:
    """Divide the slots fairly; no process gets more than it wants.

    Processes that want more than their share get equal shares. If slots remain that cannot be
    divided evenly, `Claimant.precedence` decides who gets one more.
    """
    shares = {claimant.holder: 0 for claimant in claimants}
    in_turn = sorted(claimants, key=lambda claimant: claimant.precedence)
    left = min(limit, sum(claimant.wanted for claimant in claimants))
    while left:
        for claimant in in_turn:
            if left and shares[claimant.holder] < claimant.wanted:
                shares[claimant.holder] += 1
                left -= 1
    return shares


@dataclass
class _SharedLane:
    """The last agreement about the calls of one kind to one server."""

    gate: CallGate
    kind: CallKind
    server: str
    holder: uuid.UUID
    name: str = field(init=False)
    wanted: int = 0
    held: int = 0
    share: int = 0
    others_lack: bool = False
    agreed_at: float = 0.0
    look_after: float = 0.0
    """Seconds after `agreed_at` until the next check, at the latest."""
    heard: bool = False
    """A message said that something has changed."""

    def __post_init__(self) -> None:
        self.name = name_for_all_hosts(self.server)

    @property
    def topic(self) -> str:
        return f"{self.kind} {self.name}"

    def look_in(self, demand: Demand, now: float) -> float:
        """Return the seconds until the next agreement is needed; 0 or less: now."""
        if not (self.held or self.wanted or demand.wanted):
            return float("inf")
        needed = max(demand.in_flight, min(self.share, demand.wanted))
        breath = self.agreed_at + _BREATH_SECONDS - now
        if self.heard or demand.wanted > max(self.wanted, self.held):
            return breath
        if self.others_lack and self.held > needed:
            return breath
        after = self.look_after if demand.wanted else min(self.look_after, _IDLE_SECONDS)
        return self.agreed_at + after - now


class SharedCallSlots:
    """Gives slots to the calls of this process, as agreed with all other processes.

    Args:
        database: the database through which the processes agree.
        lease_seconds: see `LEASE_SECONDS`.
    """

    def __init__(self, database: URL, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._gates: list[tuple[CallGate, CallKind, uuid.UUID]] = []
        self._lanes: dict[tuple[CallGate, str], _SharedLane] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._alarm: socket.socket | None = None
        self._alarm_is_set = threading.Event()
        self._closing = threading.Event()
        self._agreed_at = time.monotonic()
        self._reason = "no answer"

    def of(
        self, kind: CallKind, limit: int, limits: Mapping[str, int] = MappingProxyType({})
    ) -> CallSlots:
        """Return the slots for the calls of one kind.

        Over all processes there are at most `limit` calls to each server. `limits` contains servers
        with a limit of their own.
        """
        gate = CallGate(limit, limits, shared=True, changed=self._wake, failure=self._failure)
        with self._lock:
            self._gates.append((gate, kind, uuid.uuid4()))
        return gate

    def close(self) -> None:
        """Give all slots back and close the connection; no call may follow."""
        self._closing.set()
        with self._lock:
            if self._alarm is None or self._thread is None:
                return
            self._alarm.close()  # which wakes the thread
        self._thread.join(timeout=2)
        atexit.unregister(self.close)

    def _wake(self) -> None:
        if self._alarm_is_set.is_set() or self._closing.is_set():
            return
        with self._lock:
            if self._alarm is None:
                self._alarm = self._start()
            self._alarm_is_set.set()
            with suppress(OSError):  # `close` has just closed it
                self._alarm.send(b".")

    def _start(self) -> socket.socket:
        alarm, sleeper = socket.socketpair()
        sleeper.setblocking(False)
        self._thread = threading.Thread(
            target=self._work, args=(sleeper,), name="model-call-slots", daemon=True
        )
        # A process that ends gives its slots back at once. Otherwise they stay unused for a lease.
        atexit.register(self.close)
        self._thread.start()
        return alarm

    def _failure(self, waited: float) -> ServiceDownError | None:
        silence = time.monotonic() - self._agreed_at
        if min(waited, silence) < self._lease_seconds:
            return None
        return ServiceDownError(
            "database_down",
            "the database, which holds the number of model calls in flight, has not answered for "
            f"{silence:.0f} s: {self._reason}",
        )

    def _work(self, sleeper: socket.socket) -> None:
        with sleeper:
            self._keep_connected(sleeper)

    def _keep_connected(self, sleeper: socket.socket) -> None:
        url = libpq_url(self._database.render_as_string(hide_password=False))
        while not self._closing.is_set():
            try:
                with psycopg.connect(
                    url,
                    autocommit=True,
                    prepare_threshold=None,
                    application_name="batch_pipeline model slots",
                    connect_timeout=5,
                    keepalives_idle=5,
                    keepalives_interval=2,
                    keepalives_count=2,
                    tcp_user_timeout=10_000,
                ) as connection:
                    # A process that waited for the lock has to see what others wrote before.
                    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
                    if not is_pooled(connection):
                        lift_time_limits(connection)
                        connection.execute(f"LISTEN {CHANNEL}".encode())
                    self._serve(connection, sleeper)
            except psycopg.Error as error:
                self._reason = str(error).strip()
                _log.warning("model call slots: the database does not answer: %s", self._reason)
                self._closing.wait(random.uniform(0.2, 0.8))  # noqa: S311 - spreads processes

    def _serve(self, connection: psycopg.Connection, sleeper: socket.socket) -> None:
        for lane in self._lanes.values():
            lane.agreed_at = 0.0  # the last statements may not have been executed
        while not self._closing.is_set():
            self._tell_pauses(connection)
            for gate, lanes in self._due_lanes().items():
                self._agree(connection, gate, lanes)
            self._wait(connection, sleeper)
        for lane in self._lanes.values():
            if lane.held or lane.wanted:
                self._write(connection, lane, Demand(0, 0))

    def _tell_pauses(self, connection: psycopg.Connection) -> None:
        """Notify the other processes of servers that have asked this process for a pause."""
        with self._lock:
            gates = list(self._gates)
        for gate, kind, holder in gates:
            for server, pause in gate.pauses_to_tell().items():
                lane = _SharedLane(gate, kind, server, holder)
                seconds = pause.until - time.monotonic()
                connection.execute(
                    _PAUSE,
                    {"server": lane.name, "kind": kind, "seconds": seconds, "reason": pause.reason},
                )
                connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, lane.topic])

    def _due_lanes(self) -> dict[CallGate, list[_SharedLane]]:
        """Return the lanes that need an agreement now, with the other lanes of their gate."""
        with self._lock:
            gates = list(self._gates)
        due: dict[CallGate, list[_SharedLane]] = {}
        now = time.monotonic()
        for gate, kind, holder in gates:
            lanes, demands = [], gate.demand()
            for server in demands:
                key = gate, server
                if key not in self._lanes:
                    self._lanes[key] = _SharedLane(gate, kind, server, holder)
                lanes.append(self._lanes[key])
            if any(lane.look_in(demands[lane.server], now) <= 0 for lane in lanes):
                # All lanes together, so that calls that may use any server spread over all servers.
                due[gate] = [
                    lane
                    for lane in lanes
                    if lane.held or lane.wanted or demands[lane.server].wanted
                ]
        return due

    def _agree(
        self, connection: psycopg.Connection, gate: CallGate, lanes: Sequence[_SharedLane]
    ) -> None:
        valid_until = time.monotonic() + self._lease_seconds
        demands = gate.take_stock([lane.server for lane in lanes])
        agreed = {
            lane.server: self._write(connection, lane, demands[lane.server]) for lane in lanes
        }
        gate.allow(agreed, valid_until)
        self._agreed_at = time.monotonic()

    def _write(
        self, connection: psycopg.Connection, lane: _SharedLane, demand: Demand
    ) -> tuple[int, int]:
        """Agree on one lane; returns the number of our slots and of those that others hold."""
        heard, lane.heard = lane.heard, False
        me = Claimant(lane.holder, demand.wanted, 0)
        values = {
            "server": lane.name,
            "kind": lane.kind,
            "holder": lane.holder,
            "lease": self._lease_seconds,
        }
        standstill = min(_STANDSTILL_SECONDS, self._lease_seconds / 3)
        with connection.transaction():
            connection.execute(_LIMITS, {"standstill": f"{standstill * 1000:.0f}ms"})
            connection.execute(
                "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_LOCK, lane.topic]
            )
            connection.execute(_REMOVE_DEAD, values)
            for seconds, reason in connection.execute(_PAUSES, values).fetchall():
                lane.gate.hear_pause(lane.server, seconds, reason)
            rows = [Claimant(*row) for row in connection.execute(_ROWS, values).fetchall()]
            others = [row for row in rows if row.holder != lane.holder]
            before = next((row for row in rows if row.holder == lane.holder), me)
            me.held, me.seconds = before.held, before.seconds
            limit = lane.gate.limit_of(lane.server)
            share = fair_shares(limit, [*others, me])[lane.holder]
            elsewhere = sum(row.held for row in others)
            allowed = max(0, min(share, limit - elsewhere))
            held = max(demand.in_flight, allowed)
            if held or demand.wanted:
                connection.execute(_WRITE, values | {"wanted": demand.wanted, "held": held})
            else:
                connection.execute(_REMOVE, values)
            others_lack = any(row.held < row.wanted for row in others)
            gave = held < before.held and others_lack
            # A process that only reacts to a message sends none itself. Otherwise two processes
            # would notify each other for ever.
            lacks = demand.wanted > lane.wanted or (held < share and not heard)
            if gave or (others and held < demand.wanted and lacks):
                connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, lane.topic])
        lane.wanted, lane.held, lane.share = demand.wanted, held, share
        lane.others_lack, lane.agreed_at = others_lack, time.monotonic()
        lane.look_after = self._look_after(lane, others)
        return allowed, elsewhere

    def _look_after(self, lane: _SharedLane, others: Sequence[Claimant]) -> float:
        after = self._lease_seconds / 3
        if lane.held < max(lane.share, min(lane.wanted, 1)):
            after = min(after, _SHORT_SECONDS)
        if lane.held < lane.wanted and others:
            # A running process renews its lease long before the end of the lease. So after that
            # end, the process is dead, and its row can be removed.
            after = min(after, max(0.0, min(row.lease_left for row in others)) + 0.1)
        return after * random.uniform(0.8, 1.0)  # noqa: S311 - spreads processes

    def _wait(self, connection: psycopg.Connection, sleeper: socket.socket) -> None:
        """Wait until an agreement may be needed: because of a call, a message or the time."""
        with suppress(BlockingIOError):
            sleeper.recv(4096)
        # The flag is cleared after `recv` and before the checks below, so that no change is missed.
        self._alarm_is_set.clear()
        if self._hear(connection) or any(gate.has_pauses_to_tell for gate, _, _ in self._gates):
            return
        now = time.monotonic()
        demands = {gate: gate.demand() for gate, _, _ in self._gates}
        seconds = [self._lease_seconds]
        for gate, demand in demands.items():
            for server, wants in demand.items():
                lane = self._lanes.get((gate, server))
                seconds.append(lane.look_in(wants, now) if lane else 0)
        if (left := min(seconds)) > 0:
            select.select([connection.fileno(), sleeper.fileno()], [], [], left)
            self._hear(connection)

    def _hear(self, connection: psycopg.Connection) -> bool:
        topics = {
            message.payload
            for message in connection.notifies(timeout=0)
            if message.pid != connection.info.backend_pid
        }
        for lane in self._lanes.values():
            lane.heard = lane.heard or lane.topic in topics
        return bool(topics)


def name_for_all_hosts(server: str) -> str:
    """Return the name of a server in tables.

    A loopback address means a different server on each host, so the name of the host is added. A
    name that contains its host stays as it is.
    """
    server = masked(server).rstrip("/")
    is_local = (urlsplit(server).hostname or "") in {"localhost", "127.0.0.1", "::1"}
    return f"{server}{_OF}{socket.gethostname()}" if is_local and _OF not in server else server
