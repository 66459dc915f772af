"""A group of servers with the same model: chooses a server for each call, and handles failures.

A call goes to the least loaded server that is available. If a server is down or does not have the
model, its calls go to the others. It is an outage only when no server is left. If a server asks to
be called later, all callers wait; waiting does not use up an attempt of an upload.

An outage affects all calls. A refusal or an error that a single picture may cause counts as an
outage only if no other call was answered in the meantime and the server also fails to answer a
question with a known answer.

`http_calls` makes one call to one server; `call_slots` limits their number and pace.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from batch_pipeline.errors import (
    KindedError,
    ServiceDownError,
    TransientError,
    WorkCancelledError,
    WorkPausedError,
)
from batch_pipeline.model_servers.base import (
    WORK_PAUSED,
    Caller,
    CallSlots,
    CancelledCheck,
    HealthCheck,
    PausedCheck,
    Spent,
    told_here,
)
from batch_pipeline.model_servers.evidence import Evidence
from batch_pipeline.model_servers.http_calls import (
    Answer,
    Answered,
    ServerCalls,
    jittered,
    sleep,
)
from batch_pipeline.model_servers.http_errors import (
    DOUBTFUL,
    Busy,
    about_all_calls,
    about_this_call,
)
from batch_pipeline.model_servers.model_server import ModelServer

_log = logging.getLogger(__name__)

#: A server that lacks the model or refuses the key gets no calls for this time, while others can
#: serve. Otherwise it would attract calls, because it is idle.
_SET_ASIDE_SECONDS = 30.0
#: Tries if a busy server does not say how long to wait. The waits double: about 1, 2, 4 s.
_BUSY_TRIES = 4
_BUSY_WAIT_SECONDS = 1.0
#: Tries of the question with a known answer at a server that is busy or answers 5xx. If a server
#: fails 4 calls in 10 by chance, a call and all these tries fail in 2.6 % of cases.
_KNOWN_TRIES = 3
#: Longest wait between two tries if a server limits the rate and does not say how long to wait.
_LONGEST_OWN_WAIT = 60.0

#: How long the digest of a model is cached (seconds). A process that runs for weeks must notice a
#: new model: otherwise it would count results of the new model as stale, again and again.
DIGEST_SECONDS = 60.0

#: How long a server may stay silent after another one has answered the same question (seconds). A
#: server that is switched off stays silent for as long as a connection may take.
_SILENCE_SECONDS = 2.0


@dataclass(frozen=True)
class _Wait:
    """How long a refused call waits."""

    seconds: float
    by_all: bool
    """True: all calls to that server wait; false: only this one."""


_NO_WAIT = _Wait(0, by_all=False)


class _TurnedAway:
    """Counts how often servers ask to repeat a call later, and decides how long it waits."""

    def __init__(self) -> None:
        self._times = 0
        self.began_at = math.inf
        """Moment of the first refusal (monotonic seconds); the wait for a slot is not counted."""

    def wait(self, busy: Busy, server: ServerCalls) -> _Wait:
        """Return how long the call waits until it is repeated.

        Raises:
            ServiceDownError: ``model_rate_limited``: the server refused it for as long as a call
                may take.
            TransientError: ``model_server_busy``: the server was busy each time, and named no time.
        """
        self._times += 1
        self.began_at = min(self.began_at, time.monotonic())
        if busy.wait_seconds is None and not busy.rate_limited:
            if self._times == _BUSY_TRIES:
                raise TransientError(
                    "model_server_busy",
                    f"model server {server.name} was busy {self._times} times: {busy}",
                ) from busy
            return _Wait(_growing(self._times), by_all=False)
        if time.monotonic() - self.began_at > server.longest_call:
            raise ServiceDownError(
                "model_rate_limited",
                f"model server {server.name} has refused a call {self._times} times: {busy}",
            ) from busy
        if busy.wait_seconds is None:
            return _Wait(_growing(self._times), by_all=True)
        # A server that repeatedly names too short a time is called less often.
        least = _growing(self._times - _BUSY_TRIES) if self._times > _BUSY_TRIES else 0
        return _Wait(max(busy.wait_seconds, least), by_all=True)


def _growing(times: int) -> float:
    return jittered(min(_BUSY_WAIT_SECONDS * 2 ** (times - 1), _LONGEST_OWN_WAIT))


class _Race:
    """Ends the wait for servers that are silent, some time after another one has answered."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._ends_at = math.inf

    def answered(self) -> None:
        self._ends_at = min(self._ends_at, time.monotonic() + self._patience)

    def is_over(self) -> bool:
        return time.monotonic() >= self._ends_at


class ServerGroup:
    """Servers with the same model, called as if they were one.

    Args:
        servers: at least one.
        model: name of the model, with its tag.
        slots: cap on the calls in flight.
        known_call: asks a server a question that it can answer if it serves the model; raises a
            `KindedError` or `Busy`.
    """

    def __init__(
        self,
        servers: Sequence[ModelServer],
        model: str,
        slots: CallSlots,
        known_call: Callable[[ModelServer, Spent], Coroutine[Any, Any, object]],
    ) -> None:
        self.model = model
        self._known_call = known_call
        self._evidence = {server.calls.url: Evidence() for server in servers}
        self._servers = {server.calls.url: server for server in servers}
        self._slots = slots
        self._set_aside_until: dict[str, float] = {}
        #: Latest digest of each server, even of one that is down now.
        self._digests: dict[str, str] = {}
        self._digests_asked_at = -math.inf
        self._asking_digests = threading.Lock()

    def run(
        self,
        call: Callable[[ModelServer, Spent], Coroutine[Any, Any, Answer]],
        caller: Caller,
        *,
        tokens_of: Callable[[Answer], float] = lambda _: 0,
    ) -> Answer:
        """Make one call to a server that can serve it; `tokens_of` returns the tokens of an answer.

        This includes calls that find out whether a refusal concerns only this call.

        Raises:
            ServiceDownError: no server can serve it; the message gives the reason for each.
            TransientError: also ``model_server_busy``, and ``model_refused_call``: the server
                refuses this call and answers others.
            WorkPausedError: a person has paused every server for this call.
            KindedError: as `batch_pipeline.model_servers.http_calls.ServerCalls.run`.
        """
        with told_here(caller.spent) as noted:
            return self._run(call, replace(caller, spent=noted), tokens_of)

    def digests(self) -> frozenset[str]:
        """Return the digests of the model on its servers; cached for `DIGEST_SECONDS`.

        Raises:
            ServiceDownError: no server has ever answered.
        """
        with self._asking_digests:
            if time.monotonic() - self._digests_asked_at > DIGEST_SECONDS:
                self._ask_digests()
                self._digests_asked_at = time.monotonic()
            return frozenset(self._digests.values())

    def check(
        self,
        role: str,
        look: Callable[[ModelServer], Coroutine[Any, Any, str]],
        paused: PausedCheck,
        *,
        patient: bool = True,
    ) -> list[HealthCheck]:
        """Check in parallel that every server has the model; never raises.

        Without `patient`, it does not wait for a silent server that another one can replace, and
        does not ask it while it is down.
        """
        name = f"{role} model {self.model}"
        race = _Race(math.inf if patient else _SILENCE_SECONDS)
        checks: list[HealthCheck] = []
        for servers in [[*self._servers.values()]] if patient else self._likeliest_first():
            checks += self._of_each(
                name, lambda server: self._check(server, name, look, race), paused, servers
            )
            if any(check.ok for check in checks):
                break
        return checks

    def try_out(
        self,
        role: str,
        call: Callable[[ModelServer], Coroutine[Any, Any, str]],
        caller: Caller,
    ) -> list[HealthCheck]:
        """Make one real call to each server; return a check of each.

        Raises only `WorkCancelledError`.
        """
        name = f"a call to the {role} model"
        return self._of_each(
            name,
            lambda server: self._try(server, name, call, caller.cancelled),
            caller.paused,
            [*self._servers.values()],
        )

    def _of_each(
        self,
        name: str,
        look: Callable[[ModelServer], HealthCheck],
        paused: PausedCheck,
        servers: Sequence[ModelServer],
    ) -> list[HealthCheck]:
        def of_one(server: ModelServer) -> HealthCheck:
            if reason := paused(server.calls.url):
                return HealthCheck(self._name(server, name), False, reason, kind=WORK_PAUSED)
            return look(server)

        with ThreadPoolExecutor(len(servers)) as threads:
            return list(threads.map(of_one, servers))

    def _likeliest_first(self) -> list[list[ModelServer]]:
        """Return the servers that are not down, then the others; leaves out an empty list."""
        parts: tuple[list[ModelServer], list[ModelServer]] = ([], [])
        for server in self._servers.values():
            parts[server.calls.is_down].append(server)
        return [servers for servers in parts if servers]

    def _ask(
        self,
        server: ModelServer,
        question: Callable[[ModelServer], Coroutine[Any, Any, str]],
        race: _Race,
    ) -> str:
        """Ask a quick question; raises `KindedError` if there is no answer when the race ends."""
        try:
            answer = server.calls.ask(partial(question, server), race.is_over)
        except WorkCancelledError as error:
            raise ServiceDownError("model_server_down", server.calls.note_silence()) from error
        race.answered()
        return answer

    def _run(
        self,
        call: Callable[[ModelServer, Spent], Coroutine[Any, Any, Answer]],
        caller: Caller,
        tokens_of: Callable[[Answer], float],
    ) -> Answer:
        failed: dict[str, ServiceDownError] = {}
        turned_away = _TurnedAway()
        while len(failed) < len(self._servers):
            with self._slots.taken(
                lambda: self._usable(failed, caller.paused), caller.cancelled
            ) as url:
                server, began = self._servers[url], time.monotonic()
                try:
                    answered = self._answered(
                        server, partial(call, server, caller.spent), caller, turned_away
                    )
                except KindedError as error:
                    since = turned_away.began_at if error.kind == "model_server_busy" else began
                    outage = self._outage_behind(error, server, since, caller)
                    failed[url] = self._with_hint(server, outage)
                    if outage.kind != "model_server_down":
                        self._set_aside_until[url] = time.monotonic() + _SET_ASIDE_SECONDS
                    wait = _NO_WAIT
                else:
                    if isinstance(answered, Answered):
                        self._evidence[url].answered()
                        self._slots.answered(url, answered.rooms, tokens_of(answered.value))
                        return answered.value
                    wait = answered
            if not wait.by_all:
                sleep(wait.seconds, caller.cancelled)
            if failed and len(failed) < len(self._servers):
                _log.warning("%s; the call goes to another server", [*failed.values()][-1])
        raise _outage(failed.values())

    def _answered(
        self,
        server: ModelServer,
        call: Callable[[], Coroutine[Any, Any, Answer]],
        caller: Caller,
        turned_away: _TurnedAway,
    ) -> Answered[Answer] | _Wait:
        """Return the answer to a call, or how long it waits until it is repeated."""
        try:
            return server.calls.run(call, cancelled=caller.cancelled, paused=caller.paused)
        except Busy as busy:
            wait = turned_away.wait(busy, server.calls)
            if wait.by_all:
                self._slots.pause(server.calls.url, wait.seconds, str(busy))
            return wait

    def _outage_behind(
        self, error: KindedError, server: ModelServer, since: float, caller: Caller
    ) -> ServiceDownError:
        """Return the outage that a failed call shows.

        Raises:
            UploadError: only this call has failed; the server answers others.
        """
        if error.kind not in DOUBTFUL:
            if isinstance(error, ServiceDownError):
                return error
            raise error
        if self._serves_others(server, since, caller):
            raise about_this_call(error) from error
        return about_all_calls(error)

    def _ask_digests(self) -> None:
        errors = []

        def ask(server: ModelServer, race: _Race) -> None:
            try:
                digest = self._ask(server, lambda one: one.digest(self.model), race)
            except KindedError as error:
                errors.append(error)
            else:
                self._digests[server.calls.url] = digest

        # All threads wait here. A server that is down gets no calls, so its last digest is still
        # valid.
        for servers in self._likeliest_first():
            if self._digests and all(server.calls.is_down for server in servers):
                break
            with ThreadPoolExecutor(len(servers)) as threads:
                list(threads.map(partial(ask, race=_Race(_SILENCE_SECONDS)), servers))
        if not self._digests:
            raise ServiceDownError(errors[0].kind, str(errors[0])) from errors[0]

    def _usable(self, failed: Mapping[str, ServiceDownError], paused: PausedCheck) -> list[str]:
        """Return the servers that the call may go to now; called right before it begins.

        Raises:
            WorkPausedError: a person has paused all servers for this call.
            ServiceDownError: all servers that are not paused have failed.
        """
        reasons = {url: paused(url) for url in self._servers if url not in failed}
        left = [url for url, reason in reasons.items() if not reason]
        if not left and failed:
            raise _outage(failed.values())
        if not left:
            raise WorkPausedError(next(iter(reasons.values())))
        now = time.monotonic()
        calls = {
            url: self._servers[url].calls
            for url in left
            if now >= self._set_aside_until.get(url, 0)
        }
        up = [url for url, of_server in calls.items() if not of_server.is_down]
        if up:  # calls do not wait for the probes of other servers
            for of_server in calls.values():
                of_server.look_again_if_down()
        return up or [url for url, of_server in calls.items() if of_server.can_be_tried] or left

    def _serves_others(self, server: ModelServer, since: float, caller: Caller) -> bool:
        """Return whether a server that failed a call, begun at `since`, answers other calls."""
        evidence = self._evidence[server.calls.url]
        # One caller asks, the others wait for the result.
        with evidence.asked_by_one(caller.cancelled):
            if (known := evidence.since(since)) is not None:
                return known
            for number in range(1, _KNOWN_TRIES + 1):
                try:
                    server.calls.run(
                        partial(self._known_call, server, caller.spent),
                        cancelled=caller.cancelled,
                        paused=caller.paused,
                    )
                except Busy as busy:
                    if not busy.may_be_of_a_proxy:
                        return True  # it can serve, but later
                except KindedError as error:
                    if error.kind != "model_server_error":
                        break
                else:
                    evidence.answered()
                    return True
                if number < _KNOWN_TRIES:
                    sleep(_growing(number), caller.cancelled)
            evidence.refused()
            return False

    def _with_hint(self, server: ModelServer, error: ServiceDownError) -> ServiceDownError:
        hint = server.hint(error.kind, self.model)
        if not hint:
            return error
        hinted = ServiceDownError(
            error.kind, f"{str(error).rstrip('.')}. {hint}", if_alone=error.if_alone
        )
        hinted.__cause__ = error
        return hinted

    def _check(
        self,
        server: ModelServer,
        what: str,
        look: Callable[[ModelServer], Coroutine[Any, Any, str]],
        race: _Race,
    ) -> HealthCheck:
        name = self._name(server, what)
        try:
            found = self._ask(server, look, race)
        except KindedError as error:
            if error.kind == "model_server_busy":  # it runs, but cannot be checked further now
                return HealthCheck(name, True, str(error))
            hint = server.hint(error.kind, self.model)
            return HealthCheck(name, False, str(error), hint, error.kind)
        return HealthCheck(name, True, f"{server.kind} at {server.calls.url}: {found}")

    def _try(
        self,
        server: ModelServer,
        what: str,
        call: Callable[[ModelServer], Coroutine[Any, Any, str]],
        cancelled: CancelledCheck,
    ) -> HealthCheck:
        name = self._name(server, what)
        try:
            found = server.calls.run(partial(call, server), cancelled=cancelled).value
        except Busy as busy:
            return HealthCheck(name, True, f"not tried, it is busy: {busy}")
        except KindedError as error:
            hint = server.hint(error.kind, self.model)
            return HealthCheck(name, False, str(error), hint, error.kind)
        if learnt := server.learnt(self.model):
            found += f"; learnt: {learnt}"
        return HealthCheck(name, True, found)

    def _name(self, server: ModelServer, what: str) -> str:
        return f"{what} at {server.calls.url}" if len(self._servers) > 1 else what


def _outage(of_servers: Iterable[ServiceDownError]) -> ServiceDownError:
    """Return the error that gives each tried server's reason for not serving a call."""
    errors = list(of_servers)
    if len(errors) == 1:
        return errors[0]
    if_alone = next((error.if_alone for error in errors if error.if_alone), None)
    outage = ServiceDownError(errors[0].kind, "; ".join(map(str, errors)), if_alone=if_alone)
    outage.__cause__ = errors[0]
    return outage
