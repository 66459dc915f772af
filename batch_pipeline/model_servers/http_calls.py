"""How every HTTP call to a model server is made: deadlines, cancelling, and named errors.

The calling threads stay plain threads. Each call runs as a task of one event loop in a background
thread, through the asynchronous client of the server's own library: cancelling a task closes its
connection at any point (look-up, connect, send, a silence, a drip), which no time-out of a
blocking client does. The caller waits for the task and asks meanwhile whether it is still wanted.

What is asked and how answers are read lives in `remote` and in the module of each kind of server;
which server is called, and when, in `server_group`.
"""

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx
import httpx2
import pydantic

from batch_pipeline.errors import (
    KindedError,
    PermanentError,
    ServiceDownError,
    TransientError,
    WorkCancelledError,
)
from batch_pipeline.model_servers.base import CancelledCheck, never_cancelled
from batch_pipeline.model_servers.circuit import Circuit
from batch_pipeline.model_servers.client_pool import trusted

Answer = TypeVar("Answer")
Call = Callable[[], Coroutine[Any, Any, Answer]]

#: How often a waiting caller asks whether its call is still wanted.
_POLL_SECONDS = 0.5
#: Tries to reach the server within one call; a restart of a server behind a proxy takes less.
_CONNECTION_TRIES = 3
_CONNECTION_WAIT_SECONDS = 0.3
#: Tries when the server says that it is busy; the waits double: about 1, 2, 4 s.
_BUSY_TRIES = 4
_BUSY_WAIT_SECONDS = 1.0
#: A server may ask for a longer pause than this (Retry-After); then the upload comes back later.
_LONGEST_BUSY_WAIT_SECONDS = 30.0
#: Time that a server has to show that it is there at all.
_PROBE_SECONDS = 5.0
#: Idle connections are closed before the server does it: uvicorn, under vLLM, waits for 5 s. A
#: connection that the server closes while a call is sent on it would look like a crash.
_KEEP_ALIVE_SECONDS = 4.0
#: Of each client, see `client_pool`.
_ONE_CONNECTION: dict[str, Any] = {
    "max_connections": 1,
    "max_keepalive_connections": 1,
    "keepalive_expiry": _KEEP_ALIVE_SECONDS,
}
_LONGEST_REASON = 2000


@dataclass(frozen=True)
class CallLimits:
    """Time-outs of one call (seconds)."""

    connect: float = 10
    read: float = 300
    """Longest silence of the server."""
    write: float = 60
    total: float = 600
    """For the whole call, its tries included, whatever the server sends."""

    def client_options(self) -> dict[str, Any]:
        """Arguments for the client of `ollama`, which is built on httpx."""
        return {
            "timeout": httpx.Timeout(**self._timeouts()),
            "limits": httpx.Limits(**_ONE_CONNECTION),
            "verify": trusted(),
        }

    def client2_options(self) -> dict[str, Any]:
        """Arguments for the client of `openai`, which is built on httpx2."""
        return {
            "timeout": httpx2.Timeout(**self._timeouts()),
            "limits": httpx2.Limits(**_ONE_CONNECTION),
            "verify": trusted(),
        }

    def _timeouts(self) -> dict[str, float]:
        return {
            "connect": self.connect,
            "read": self.read,
            "write": self.write,
            "pool": self.connect,
        }


class Unreachable(Exception):  # noqa: N818 - a finding that never leaves this package
    """No connection could be made."""


class Disconnected(Exception):  # noqa: N818
    """The connection ended before the answer was complete."""


class Busy(Exception):  # noqa: N818
    """The server is there and asks to come back later."""

    def __init__(self, reason: str, wait_seconds: float | None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class ServerCalls:
    """Makes calls to one server, for any number of threads.

    Args:
        url: address of the server, for messages.
        limits: time-outs.
        probe: a cheap request that any living server answers.
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
        self.url = _without_credentials(url)
        self._limits = limits
        self._probe = probe
        self._circuit = circuit or Circuit()

    @property
    def can_be_tried(self) -> bool:
        """Tell whether the server is there, or it is time to look whether it is back."""
        return not self._circuit.is_open or self._circuit.probe_is_due

    def run(self, call: Call[Answer], *, cancelled: CancelledCheck) -> Answer:
        """Make one call; tries again by itself only while the server is busy or out of reach.

        Raises:
            TransientError: ``model_timeout``, ``model_server_error``, ``model_server_busy`` or
                ``model_output_invalid`` (what came is not the protocol).
            PermanentError: ``model_refused_input``.
            ServiceDownError: ``model_server_down``, or what `error_for_status` names.
            WorkCancelledError: `cancelled` answered true; the connection was closed.
        """
        ends_at = time.monotonic() + self._limits.total
        unreachable = busy = 0
        while True:
            self._require_server(cancelled)
            try:
                return self._once(call, ends_at - time.monotonic(), cancelled)
            except (Unreachable, Disconnected) as error:
                # A server that dies resets its calls, which is no fault of the uploads. One
                # that still answers has failed on this call alone.
                if isinstance(error, Disconnected) and self._is_there(cancelled):
                    raise TransientError(
                        "model_server_error",
                        f"model server {self.url} broke off its answer: {error}",
                    ) from error
                unreachable += 1
                if unreachable == _CONNECTION_TRIES or self._circuit.is_open:
                    raise self._down(str(error)) from error
                seconds = _jittered(_CONNECTION_WAIT_SECONDS * unreachable)
            except Busy as error:
                busy += 1
                seconds = error.wait_seconds or _jittered(_BUSY_WAIT_SECONDS * 2 ** (busy - 1))
                if (
                    busy == _BUSY_TRIES
                    or seconds > _LONGEST_BUSY_WAIT_SECONDS
                    or time.monotonic() + seconds > ends_at
                ):
                    raise TransientError(
                        "model_server_busy",
                        f"model server {self.url} was busy {busy} times: {error}",
                    ) from error
            _sleep(seconds, cancelled)

    def ask(self, call: Call[Answer]) -> Answer:
        """Make one quick call for a health check, whatever is known about the server.

        Raises:
            KindedError: as `run`, without any second try.
        """
        try:
            return self._once(call, self._limits.connect + _PROBE_SECONDS, never_cancelled)
        except (Unreachable, Disconnected) as error:
            raise self._down(str(error)) from error
        except Busy as error:
            raise TransientError("model_server_busy", str(error)) from error

    def _once(self, call: Call[Answer], seconds: float, cancelled: CancelledCheck) -> Answer:
        _require_wanted(cancelled)
        future = asyncio.run_coroutine_threadsafe(self._translated(call, seconds), _event_loop())
        try:
            while not wait([future], timeout=_POLL_SECONDS).done:
                _require_wanted(cancelled)
            answer = future.result()
        except Unreachable as error:
            self._circuit.failed(str(error))
            raise
        except (KindedError, Busy) as error:
            if not _is_timeout(error):
                self._circuit.answered()
            raise
        finally:
            future.cancel()
        self._circuit.answered()
        return answer

    async def _translated(self, call: Call[Answer], seconds: float) -> Answer:
        try:
            async with asyncio.timeout(max(seconds, 0)):
                return await call()
        except TimeoutError as error:
            raise TransientError(
                "model_timeout",
                f"model server {self.url} gave no complete answer within {seconds:.3g} s",
            ) from error
        except Exception as error:
            raise self._named(error) from error

    def _named(self, error: Exception) -> Exception:  # noqa: PLR0911 - a table of cases
        """The error of ours that says what to do about an error of a client library."""
        for cause in _chain(error):
            match cause:
                case KindedError():
                    return cause
                case httpx.HTTPStatusError() | httpx2.HTTPStatusError():
                    response = cause.response
                    return error_for_status(
                        self.url, response.status_code, response.text, response.headers
                    )
                case (
                    httpx.ConnectError()
                    | httpx.ConnectTimeout()
                    | httpx.ProxyError()
                    | httpx2.ConnectError()
                    | httpx2.ConnectTimeout()
                    | httpx2.ProxyError()
                ):
                    return Unreachable(_root_reason(cause))
                case httpx.TimeoutException() | httpx2.TimeoutException():
                    return TransientError(
                        "model_timeout",
                        f"model server {self.url} was silent for too long "
                        f"({type(cause).__name__}; read {self._limits.read:g} s, "
                        f"write {self._limits.write:g} s)",
                    )
                case httpx.UnsupportedProtocol() | httpx2.UnsupportedProtocol():
                    return ServiceDownError("model_server_down", f"{self.url}: {cause}")
                case httpx.TransportError() | httpx2.TransportError():
                    return Disconnected(_root_reason(cause))
                case json.JSONDecodeError() | pydantic.ValidationError() | UnicodeDecodeError():
                    return TransientError(
                        "model_output_invalid",
                        f"model server {self.url} sent what is not an answer of its protocol: "
                        f"{cause}",
                    )
        return error

    def _require_server(self, cancelled: CancelledCheck) -> None:
        if not self._circuit.is_open:
            return
        if not (self._circuit.claim_probe() and self._is_there(cancelled)):
            raise self._down(self._circuit.reason)

    def _is_there(self, cancelled: CancelledCheck) -> bool:
        try:
            self._once(self._probe, _PROBE_SECONDS, cancelled)
        except Unreachable:
            return False
        except (Disconnected, KindedError, Busy) as error:
            if isinstance(error, Disconnected) or _is_timeout(error):
                self._circuit.failed(str(error))
                return False
        return True

    def _down(self, reason: str) -> ServiceDownError:
        return ServiceDownError(
            "model_server_down", f"model server {self.url} cannot be reached: {reason}"
        )


def error_for_status(  # noqa: PLR0911 - a table of cases
    url: str, status: int, body: str, headers: Mapping[str, str]
) -> Exception:
    """Name the error behind an HTTP status by what to do next.

    Settings that are wrong stop the work with `ServiceDownError` like an outage, because they
    would fail every upload alike: ``model_missing``, ``model_server_refused`` (key, quota, path)
    and ``model_unsuitable`` (the model cannot do what is asked).
    """
    reason = _server_reason(body)
    message = f"model server {url} answered {status}: {reason}"
    lowered = reason.lower()
    if status in {401, 402, 403, 407} or "insufficient_quota" in lowered:
        return ServiceDownError("model_server_refused", message)
    if status == 404:
        return ServiceDownError("model_missing", message)
    if status in {429, 503}:
        return Busy(message, _retry_after(headers))
    if status == 408:
        return TransientError("model_timeout", message)
    if "unsupported value: nan" in lowered:
        # Ollama cannot write such a number as JSON and answers 500.
        return TransientError("embedding_not_finite", message)
    if "not support" in lowered or "mmproj" in lowered:
        return ServiceDownError("model_unsuitable", message)
    if status >= 500:
        return TransientError("model_server_error", message)
    if status in {400, 413, 422}:
        return PermanentError("model_refused_input", message)
    return ServiceDownError("model_server_refused", message)


_starting_loop = threading.Lock()


def _event_loop() -> asyncio.AbstractEventLoop:
    """The loop that carries the calls of this process, started with the first of them."""
    with _starting_loop:
        return _started_loop()


@cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="model-calls", daemon=True).start()
    return loop


def run_on_loop(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run something short on the loop of the calls, such as closing a client."""
    return asyncio.run_coroutine_threadsafe(work, _event_loop()).result(timeout=10)


def _require_wanted(cancelled: CancelledCheck) -> None:
    if cancelled():
        raise WorkCancelledError("the model call was stopped: its upload is no longer wanted")


def _sleep(seconds: float, cancelled: CancelledCheck) -> None:
    ends_at = time.monotonic() + seconds
    while (left := ends_at - time.monotonic()) > 0:
        _require_wanted(cancelled)
        time.sleep(min(left, _POLL_SECONDS))


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 - spreads callers, guards nothing


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, TransientError) and error.kind == "model_timeout"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from; the client libraries hide causes with `from None`."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        inner = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else None
        seen = seen.__cause__ or seen.__context__ or inner


def _root_reason(error: BaseException) -> str:
    # The words of the operating system say more than those of the layers above it.
    said = [cause for cause in _chain(error) if str(cause)]
    system = [cause for cause in said if isinstance(cause, OSError) and cause.errno is not None]
    return str((system or said or [repr(error)])[-1])


def _server_reason(body: str) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        return body.strip()[:_LONGEST_REASON] or "no reason given"
    while isinstance(said, dict):
        inner = next((said[key] for key in ("error", "message", "detail") if said.get(key)), None)
        if inner is None:
            break
        said = inner
    return (said if isinstance(said, str) else json.dumps(said))[:_LONGEST_REASON]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None  # absent, or a date, which servers of models do not send


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
