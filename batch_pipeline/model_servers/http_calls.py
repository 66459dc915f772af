"""Makes every HTTP call to a model server: deadlines, cancelling, and named errors.

Callers are ordinary threads. Each call runs as a task of one event loop in a background thread,
through the asynchronous client of the server's own library. Cancelling a task closes its connection
at any point (look-up, connect, send, silence, slow answer); no time-out of a blocking client does
that. The caller waits for the task, and checks while waiting that the call is still wanted.

`remote` and the module of each kind of server contain the requests and read the answers;
`server_group` decides which server is called, and when.
"""

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import httpx
import httpx2
import pydantic

from batch_pipeline.errors import (
    KindedError,
    ServiceDownError,
    TransientError,
    WorkCancelledError,
)
from batch_pipeline.model_servers.base import (
    CancelledCheck,
    PausedCheck,
    never_cancelled,
    never_paused,
    require_unpaused,
)
from batch_pipeline.model_servers.circuit import Circuit
from batch_pipeline.model_servers.http_errors import (
    Busy,
    Disconnected,
    Misread,
    Unreachable,
    chain,
    error_for_status,
    is_timeout,
    root_reason,
)
from batch_pipeline.model_servers.http_transport import (
    Transport,
    Transport2,
    heard,
    proxy_variable_in_use,
    shown_address,
    trusted,
)
from batch_pipeline.model_servers.rate_limits import Room, rooms

Answer = TypeVar("Answer")
Call = Callable[[], Coroutine[Any, Any, Answer]]

#: Interval at which a waiting caller checks that its call is still wanted.
_POLL_SECONDS = 0.5
#: Tries to reach the server within one call; enough for a restart of a server behind a proxy.
_CONNECTION_TRIES = 3
_CONNECTION_WAIT_SECONDS = 0.3
#: Time limit of a probe.
_PROBE_SECONDS = 5.0
#: Idle connections are closed before the server does it: uvicorn, under vLLM, waits for 5 s. A
#: connection that the server closes while a call is sent on it would look like a crash.
_KEEP_ALIVE_SECONDS = 4.0
#: For each client, see `client_pool`.
_ONE_CONNECTION: dict[str, Any] = {
    "max_connections": 1,
    "max_keepalive_connections": 1,
    "keepalive_expiry": _KEEP_ALIVE_SECONDS,
}


@dataclass(frozen=True)
class CallLimits:
    """Time-outs of one call (seconds)."""

    connect: float = 10
    read: float = 300
    """Longest silence of the server."""
    write: float = 60
    total: float = 600
    """For the whole call, including its tries, whatever the server sends."""

    proxy: str = ""
    """Address of the proxy through which the server is called; empty: none."""

    def client_options(self) -> dict[str, Any]:
        """Arguments for the client of `ollama`, which is built on httpx."""
        return {
            "timeout": httpx.Timeout(**self._timeouts()),
            "transport": Transport(
                limits=httpx.Limits(**_ONE_CONNECTION), verify=trusted(), proxy=self.proxy or None
            ),
        }

    def client2_options(self) -> dict[str, Any]:
        """Arguments for the client of `openai`, which is built on httpx2."""
        return {
            "timeout": httpx2.Timeout(**self._timeouts()),
            "transport": Transport2(
                limits=httpx2.Limits(**_ONE_CONNECTION), verify=trusted(), proxy=self.proxy or None
            ),
        }

    def _timeouts(self) -> dict[str, float]:
        return {
            "connect": self.connect,
            "read": self.read,
            "write": self.write,
            "pool": self.connect,
        }


@dataclass(frozen=True)
class Answered(Generic[Answer]):
    """The answer to a call, and what its headers say about the next calls."""

    value: Answer
    rooms: list[Room]


class ServerCalls:
    """Makes calls to one server, for any number of threads.

    Args:
        url: address of the server, for messages.
        limits: time-outs.
        probe: a cheap request that every running server answers.
        circuit: shared knowledge of whether the server is there.
    """

    def __init__(
        self,
        url: str,
        limits: CallLimits,
        *,
        probe: Call[object],
        circuit: Circuit | None = None,
    ) -> None:
        self.url = shown_address(url)
        #: For messages.
        self.name = self.url
        if limits.proxy:
            self.name += f" (through the proxy {shown_address(limits.proxy)})"
        self._limits = limits
        self._probe = probe
        self._circuit = circuit or Circuit()

    @property
    def is_down(self) -> bool:
        """Return whether the server could not be reached several times in a row, or was silent."""
        return self._circuit.is_open

    @property
    def can_be_tried(self) -> bool:
        """Return whether the server is not down, or may be probed again now."""
        return not self._circuit.is_open or self._circuit.probe_is_due

    def look_again_if_down(self) -> None:
        """Probe a server that is down, if it is time to; nobody waits for the result."""
        if self._circuit.is_open and self._circuit.claim_probe():
            threading.Thread(target=self._is_there, args=(never_cancelled,), daemon=True).start()

    def note_silence(self) -> str:
        """Make no calls before a probe has succeeded; return the reason."""
        reason = f"model server {self.name} was silent while another one answered"
        self._circuit.silent(reason)
        return reason

    @property
    def longest_call(self) -> float:
        """Return how long one call may take, including its tries (seconds)."""
        return self._limits.total

    def run(
        self,
        call: Call[Answer],
        *,
        cancelled: CancelledCheck,
        paused: PausedCheck = never_paused,
    ) -> Answered[Answer]:
        """Make one call; retries it only if the server cannot be reached.

        Raises:
            TransientError: ``model_timeout``, ``model_server_error`` or ``model_output_invalid``
                (the answer does not follow the protocol).
            PermanentError: ``model_refused_input``.
            ServiceDownError: ``model_server_down``, with `if_alone` if the server went down during
                this call; or an error of `error_for_status`.
            Busy: the server asks to be called later.
            WorkCancelledError: `cancelled` returned true; the connection was closed.
            WorkPausedError: `paused` returned a reason before a try.
        """
        ends_at = time.monotonic() + self._limits.total
        unreachable, died = 0, False
        reason: Exception
        while True:
            self._require_server(cancelled)
            require_unpaused(paused, self.url)
            try:
                return self._once(call, ends_at - time.monotonic(), cancelled)
            except (Unreachable, Disconnected) as error:
                # A server that dies resets all its calls; the uploads did not cause that. If the
                # server still answers, only this call has failed.
                if isinstance(error, Disconnected):
                    if self._is_there(cancelled):
                        raise TransientError(
                            "model_server_error",
                            f"model server {self.name} broke off its answer: {error}",
                        ) from error
                    died = True
                reason = error
            except Busy as error:
                if not error.may_be_of_a_proxy or self._is_there(cancelled):
                    raise
                reason = error
            unreachable += 1
            if unreachable == _CONNECTION_TRIES or self._circuit.is_open:
                raise self._down(str(reason), died=died) from reason
            sleep(jittered(_CONNECTION_WAIT_SECONDS * unreachable), cancelled)

    def ask(self, call: Call[Answer], cancelled: CancelledCheck = never_cancelled) -> Answer:
        """Make one quick call for a health check, even if the circuit is open.

        Raises:
            KindedError: as `run`, without a retry.
            WorkCancelledError: `cancelled` returned true.
        """
        try:
            return self._once(call, self._limits.connect + _PROBE_SECONDS, cancelled).value
        except (Unreachable, Disconnected) as error:
            raise self._down(str(error)) from error
        except Busy as error:
            if error.may_be_of_a_proxy:
                raise self._down(str(error)) from error
            raise TransientError("model_server_busy", str(error)) from error

    def _once(
        self, call: Call[Answer], seconds: float, cancelled: CancelledCheck
    ) -> Answered[Answer]:
        require_wanted(cancelled)
        future = asyncio.run_coroutine_threadsafe(self._translated(call, seconds), _event_loop())
        try:
            while not wait([future], timeout=_POLL_SECONDS).done:
                require_wanted(cancelled)
            answer = future.result()
        except Unreachable as error:
            self._circuit.failed(str(error))
            raise
        except (KindedError, Busy) as error:
            unserved = isinstance(error, Busy) and error.may_be_of_a_proxy
            if not (unserved or is_timeout(error)):
                self._circuit.answered()
            raise
        finally:
            future.cancel()
        self._circuit.answered()
        return answer

    async def _translated(self, call: Call[Answer], seconds: float) -> Answered[Answer]:
        headers: list[Mapping[str, str]] = []
        heard.set(headers)
        try:
            async with asyncio.timeout(max(seconds, 0)):
                value = await call()
                return Answered(value, rooms(headers[-1]) if headers else [])
        except TimeoutError as error:
            raise TransientError(
                "model_timeout",
                f"model server {self.name} gave no complete answer within {seconds:.3g} s",
            ) from error
        except Exception as error:
            raise self._named(error) from error

    def _named(self, error: Exception) -> Exception:  # noqa: PLR0911 - a table of cases
        """Return our error for an error of a client library."""
        for cause in chain(error):
            match cause:
                case KindedError():
                    return cause
                case httpx.HTTPStatusError() | httpx2.HTTPStatusError():
                    response = cause.response
                    return error_for_status(
                        self.name, response.status_code, response.text, response.headers
                    )
                case httpx.ConnectTimeout() | httpx2.ConnectTimeout():
                    return Unreachable(f"no connection within {self._limits.connect:g} s")
                case (
                    httpx.ConnectError()
                    | httpx.ProxyError()
                    | httpx2.ConnectError()
                    | httpx2.ProxyError()
                ):
                    return Unreachable(root_reason(cause))
                case httpx.TimeoutException() | httpx2.TimeoutException():
                    return TransientError(
                        "model_timeout",
                        f"model server {self.name} was silent for too long "
                        f"({type(cause).__name__}; read {self._limits.read:g} s, "
                        f"write {self._limits.write:g} s)",
                    )
                case (
                    httpx.UnsupportedProtocol()
                    | httpx2.UnsupportedProtocol()
                    | httpx.InvalidURL()
                    | httpx2.InvalidURL()
                ):
                    return ServiceDownError("model_server_down", f"{self.url}: {cause}")
                case httpx.TooManyRedirects() | httpx2.TooManyRedirects():
                    return ServiceDownError(
                        "model_server_refused",
                        f"model server {self.name} keeps redirecting the call; often a proxy in "
                        "front of it is the cause",
                    )
                case UnicodeEncodeError():
                    return ServiceDownError(
                        "model_server_refused",
                        f"model server {self.name} cannot be called: its key or address has "
                        f"characters that are not allowed in a request: {cause}",
                    )
                case httpx.TransportError() | httpx2.TransportError():
                    return Disconnected(root_reason(cause))
                case json.JSONDecodeError() | pydantic.ValidationError() | UnicodeDecodeError():
                    return self._not_the_protocol(str(cause))
        return self._not_the_protocol(str(error)) if isinstance(error, Misread) else error

    def _not_the_protocol(self, reason: str) -> TransientError:
        return TransientError(
            "model_output_invalid",
            f"model server {self.name} sent something that is not an answer of its protocol: "
            f"{reason}",
        )

    def _require_server(self, cancelled: CancelledCheck) -> None:
        if not self._circuit.is_open:
            return
        if not (self._circuit.claim_probe() and self._is_there(cancelled)):
            raise self._down(self._circuit.reason)

    def _is_there(self, cancelled: CancelledCheck) -> bool:
        """Send the probe; an answer of a proxy without a server behind it does not count."""
        try:
            self._once(self._probe, _PROBE_SECONDS, cancelled)
        except Unreachable:
            return False
        except (Disconnected, KindedError, Busy) as error:
            unserved = isinstance(error, Busy) and error.may_be_of_a_proxy
            if unserved or isinstance(error, Disconnected) or is_timeout(error):
                self._circuit.failed(str(error))
                return False
        return True

    def _down(self, reason: str, *, died: bool = False) -> ServiceDownError:
        said = f"model server {self.name} cannot be reached: {reason}{self._proxy_left_out()}"
        crash = TransientError(
            "model_server_crash",
            f"model server {self.name} went down in the middle of this call, each time the call "
            f"was made: {reason}",
        )
        return ServiceDownError("model_server_down", said, if_alone=crash if died else None)

    def _proxy_left_out(self) -> str:
        variable = "" if self._limits.proxy else proxy_variable_in_use(self.url)
        if not variable:
            return ""
        return (
            f" ({variable} is set, but model servers are called without a proxy; "
            "BATCH_PIPELINE_MODEL_PROXY=environment changes that)"
        )


_starting_loop = threading.Lock()


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop for all calls of this process; the first call starts it."""
    with _starting_loop:
        return _started_loop()


@cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="model-calls", daemon=True).start()
    return loop


def run_on_loop(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a short coroutine on the loop of the calls, such as closing a client."""
    return asyncio.run_coroutine_threadsafe(work, _event_loop()).result(timeout=10)


def require_wanted(cancelled: CancelledCheck) -> None:
    """Raise `WorkCancelledError` if the call is no longer wanted."""
    if cancelled():
        raise WorkCancelledError("the model call was stopped: its upload is no longer wanted")


def sleep(seconds: float, cancelled: CancelledCheck) -> None:
    """Wait; raises `WorkCancelledError` when the call is no longer wanted."""
    ends_at = time.monotonic() + seconds
    while (left := ends_at - time.monotonic()) > 0:
        require_wanted(cancelled)
        time.sleep(min(left, _POLL_SECONDS))


def jittered(seconds: float) -> float:
    """Return a random wait near `seconds`, so that callers do not all return at the same time."""
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 - spreads callers, guards nothing
