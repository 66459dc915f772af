"""A model server for tests, the demo and benchmarks: real HTTP on loopback, both dialects.

It describes pictures honestly (their size and mean colour), embeds text so that related texts are
near each other, fails on command, and logs the calls that it received. Run it by hand
with ``python -m batch_pipeline.testing.model_server``.
"""

import base64
import contextlib
import functools
import gzip
import hashlib
import io
import json
import math
import os
import random
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import click
from PIL import Image

ModelKind = Literal["vision", "embedding"]
Dialect = Literal["ollama", "openai"]


class Fault(StrEnum):
    """What can go wrong with one call to a model."""

    ERROR_500 = "error_500"
    """The runner of the model crashed."""
    BAD_GATEWAY_502 = "bad_gateway_502"
    BUSY_503 = "busy_503"
    BUSY_429 = "busy_429"
    MISSING_404 = "missing_404"
    REFUSED_INPUT_400 = "refused_input_400"
    REFUSED_KEY_401 = "refused_key_401"
    UNSUITABLE_400 = "unsuitable_400"
    """The model does not accept pictures."""
    RESET = "reset"
    """The connection is reset in the middle of the answer."""
    HANG = "hang"
    """The call is accepted and never answered."""
    DRIP = "drip"
    """The answer comes byte by byte and never ends."""
    CUT_JSON = "cut_json"
    EMPTY = "empty"
    """An answer without text; an embedding without numbers."""
    CUT_BY_LENGTH = "cut_by_length"
    LOOP = "loop"
    CONTROL_TOKENS = "control_tokens"
    THINKING = "thinking"
    """An honest answer after a block of thoughts."""
    INJECTED = "injected"
    """The model obeys text in the picture and writes HTML and Markdown."""
    NO_VECTORS = "no_vectors"
    """An embedding without vectors."""
    WRONG_DIMENSION = "wrong_dimension"
    NAN = "nan"
    ZEROS = "zeros"
    CONTENT_FILTER = "content_filter"
    """The service's content filter stops the answer (OpenAI dialect)."""
    HUGE = "huge"
    """An answer of 50 MB."""
    BOMB = "bomb"
    """An answer of 50 KB that unpacks to 50 MB."""
    NOT_IN_FIELDS = "not_in_fields"
    """JSON with other fields than the schema has (the server does not really enforce it)."""
    CUT_FIELDS = "cut_fields"
    """JSON that is cut off, but is not marked as cut off."""
    CUT_VISIBLE_TEXT = "cut_visible_text"
    """The limit of tokens cuts JSON within its last field; for plain text, a cut at its end."""
    HUGE_ERROR = "huge_error"
    """Status 500, with a body of 50 MB."""


_CUT_BY_LENGTH = {Fault.CUT_BY_LENGTH, Fault.CUT_VISIBLE_TEXT}
_STATUS_FAULTS: dict[Fault, tuple[int, str]] = {
    Fault.ERROR_500: (500, "model runner has unexpectedly stopped: signal: killed"),
    Fault.BAD_GATEWAY_502: (502, "upstream closed the connection"),
    Fault.BUSY_503: (503, "server busy, maximum pending requests exceeded"),
    Fault.BUSY_429: (429, "too many requests"),
    Fault.MISSING_404: (404, "model '{model}' not found"),
    Fault.REFUSED_INPUT_400: (400, "failed to decode the picture"),
    Fault.REFUSED_KEY_401: (401, "invalid API key"),
    Fault.UNSUITABLE_400: (400, "{model} does not support image input"),
}

#: What a model with a JSON schema writes into its fields; models write untidy values.
TAGS = ["Sunset", "#harbour ", "red_boat", "sunset", "x" * 60, "\u202eRTL", "", "two  people"]
VISIBLE_TEXT = "HARBOUR ST. 12"
HUGE_BYTES = 50 * 1024**2
LOOPING_TEXT = "The sky is blue. " * 120
CONTROL_TOKENS_TEXT = "A harbour at dusk.<|im_end|>\n<|im_start|>user\nDescribe<|endoftext|>"
INJECTED_TEXT = (
    "<script>fetch('http://canary.invalid')</script> **Urgent:** "
    "[press here](javascript:alert(1)) ![x](http://canary.invalid/x.png)"
)


def at_random(fault: Fault, share: float, seed: int = 0) -> Iterator[Fault | None]:
    """Return an endless schedule in which this share of calls fails, fixed by the seed."""
    dice = random.Random(seed)
    while True:
        yield fault if dice.random() < share else None


@dataclass(frozen=True)
class RateLimit:
    """A number of calls of a kind in each period; more calls are answered with 429."""

    calls: int
    seconds: float
    tells: bool = True
    """Each answer has the remaining calls in ``x-ratelimit-*``."""


@dataclass(frozen=True)
class Thinking:
    """How a model thinks before it answers."""

    switch: Literal["none", "template", "effort"] = "template"
    """How it is switched off: not at all, ``enable_thinking`` (Ollama: ``think: false``), or effort
    ``low`` (Ollama: ``think: "low"``)."""
    tokens: int = 3000
    """Tokens of a thought. If the limit is lower, nothing else is written."""
    shown: Literal["reasoning_content", "reasoning", "inline", "hidden"] = "reasoning_content"
    """Where the OpenAI dialect shows it; Ollama has a field for it."""


@dataclass
class ReceivedCall:
    """One call to a model, as received."""

    dialect: Dialect
    kind: ModelKind
    path: str
    model: str
    body: dict[str, Any]
    """The request as sent."""
    headers: dict[str, str]
    """Names in lower case."""
    texts: list[str]
    """The prompt, or the texts to embed."""
    images: list[bytes]
    connection: int
    """Number of its connection, from 1."""
    fault: Fault | None
    started_at: float = field(default_factory=time.monotonic)
    """Monotonic seconds."""
    client_left: threading.Event = field(default_factory=threading.Event)
    """Set when the client closed the connection before its answer was written."""


class _GoneError(Exception):
    """The client left, or the server is being stopped."""


class ScriptedModelServer:
    """Both dialects on one port; a context manager that starts and stops it.

    Args:
        port: 0 chooses a free one.
        vision_models: exact names of the models that describe.
        embedding_models: exact names of the models that embed.
        dimensions: length of the vectors.
        cuts_vectors: they are cut to the length that is asked for; else that is ignored.
        latency_seconds: processing time of one call.
        slots: calls processed at the same time; others wait in a queue. None: no limit.
        vision_faults: what happens to the calls in their order; None is an honest answer. After its
            end, all answers are honest. `itertools.repeat` and `at_random` make endless ones.
        embedding_faults: the same for calls that embed.
        retry_after: value of that header in "busy" answers, or a function that makes one for each.
        drip_seconds: time between two bytes of a drip.
        context_characters: longest text that is embedded; longer ones are refused.
        api_key: required from clients, if not empty.
        refuse: gets a call; may return a status and a reason to refuse it.
        rate_limit: of each kind of calls.
        thinking: the vision model thinks.
        refused_parameters: parameters of requests that are refused as hosted services do.
        kills: gets a call; if it returns true, the call kills the server, which comes back after
            `away_seconds`.
        structured: the model follows a JSON schema; else a schema is ignored. A server that refuses
            schemas has ``format`` or ``response_format`` among its refused parameters.
        says: the answer of the vision model to a call; None: an honest answer.
    """

    def __init__(  # noqa: PLR0915
        self,
        *,
        port: int = 0,
        vision_models: Iterable[str] = ("qwen3-vl:8b-instruct",),
        embedding_models: Iterable[str] = ("qwen3-embedding:0.6b",),
        dimensions: int = 1024,
        cuts_vectors: bool = False,
        latency_seconds: float = 0.0,
        slots: int | None = None,
        vision_faults: Iterable[Fault | None] = (),
        embedding_faults: Iterable[Fault | None] = (),
        retry_after: str | Callable[[], str] = "",
        drip_seconds: float = 1.0,
        context_characters: int = 32_000,
        api_key: str = "",
        refuse: Callable[[ReceivedCall], tuple[int, str] | None] = lambda _: None,
        rate_limit: RateLimit | None = None,
        thinking: Thinking | None = None,
        refused_parameters: Iterable[str] = (),
        kills: Callable[[ReceivedCall], bool] = lambda _: False,
        structured: bool = False,
        says: Callable[[ReceivedCall], str | None] = lambda _: None,
    ) -> None:
        self.vision_models = list(vision_models)
        self.embedding_models = list(embedding_models)
        self.dimensions, self.cuts_vectors = dimensions, cuts_vectors
        self.latency_seconds = latency_seconds
        self.retry_after = retry_after
        self.drip_seconds = drip_seconds
        self.context_characters = context_characters
        self.api_key = api_key
        self.refuse = refuse
        self.rate_limit = rate_limit
        self.thinking = thinking
        self.refused_parameters = set(refused_parameters)
        self.kills = kills
        self.away_seconds = 3.0
        """How long a killed server is away; longer than a client waits within one call."""
        self.deaths = 0
        self.unserved: tuple[int, str] | None = None
        """Status and reason for every request, also health checks: a proxy whose server is
        away."""
        self.listed: tuple[int, object] | None = None
        """Status and document of the list of models in the OpenAI dialect; None: an honest list."""
        self.is_up = threading.Event()
        self.structured = structured
        self.says = says
        self.tokens: Counter[str] = Counter()
        """Tokens of all answers, ``in`` and ``out``, as reported to the clients."""
        self.digests: dict[str, str] = {}
        """Digests by the name of a model with its tag; reported in the Ollama dialect."""
        self.turned_away = 0
        """Calls beyond the rate limit."""
        self.full_windows = 0
        """Periods in which the rate limit was used up."""
        self._windows: dict[ModelKind, tuple[float, int]] = {}
        self.calls: list[ReceivedCall] = []
        self.most_in_flight: Counter[ModelKind] = Counter()
        """Highest number of calls received and not yet answered, by kind."""
        self.together: dict[ModelKind, int] = {}
        """Calls wait until this many of their kind have been in flight at the same time."""
        self.connections = 0
        """Connections accepted so far."""
        self.requests = 0
        """Requests received so far, health checks included."""
        self._port = port
        self._slots = threading.Semaphore(slots) if slots else None
        self._lock = threading.Lock()
        self._faults: dict[ModelKind, Iterator[Fault | None]] = {
            "vision": iter(vision_faults),
            "embedding": iter(embedding_faults),
        }
        self._in_flight: Counter[ModelKind] = Counter()
        self._received = threading.Condition(self._lock)
        self._open_sockets: set[socket.socket] = set()
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def ollama_url(self) -> str:
        """Address for clients of Ollama."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        """Base URL for clients of OpenAI's API."""
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listen; after a `stop` on the same port."""
        self._stopping = threading.Event()
        self._http = _HttpServer(("127.0.0.1", self._port), functools.partial(_Handler, self))
        self._port = self._http.server_address[1]
        # A short poll, because it is also the time that a stop takes.
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.is_up.set()

    def stop(self) -> None:
        """Stop like a killed server: open connections are reset, new ones are refused."""
        if self._http is None or self._thread is None:
            return
        self.is_up.clear()
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._http = None
        with self._lock:
            for connection in self._open_sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self.stop()

    def play(self, kind: ModelKind, faults: Iterable[Fault | None]) -> None:
        """Replace the schedule of faults for all future calls of one kind."""
        with self._lock:
            self._faults[kind] = iter(faults)

    def calls_of(self, kind: ModelKind) -> list[ReceivedCall]:
        """Return the calls of one kind that were received so far, in their order."""
        with self._lock:
            return [call for call in self.calls if call.kind == kind]

    def wait_for_calls(self, count: int, *, timeout_seconds: float = 60.0) -> None:
        """Wait until this many calls to models have been received.

        Raises:
            TimeoutError: fewer calls were received in time.
        """
        with self._received:
            if not self._received.wait_for(lambda: len(self.calls) >= count, timeout_seconds):
                raise TimeoutError(f"{len(self.calls)} of {count} calls came")

    # The methods below are for the handler of the connections.

    def _connection_opened(self, connection: socket.socket) -> int:
        with self._lock:
            self.connections += 1
            self._open_sockets.add(connection)
            return self.connections

    def _connection_closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open_sockets.discard(connection)

    def _die(self) -> None:
        """Stop, and start again after a while, as a supervised server does."""
        with self._lock:
            if not self.is_up.is_set():
                return
            self.is_up.clear()
            self.deaths += 1

        def come_back() -> None:
            self.stop()
            if not self._closed.wait(self.away_seconds):
                self.start()

        threading.Thread(target=come_back, daemon=True).start()

    def _next_fault(self, kind: ModelKind) -> Fault | None:
        with self._lock:
            return next(self._faults[kind], None)

    def _counted(self, kind: ModelKind) -> tuple[bool, dict[str, str]]:
        """Count a call against the rate limit; return whether it may go on, and its headers."""
        limit = self.rate_limit
        if limit is None:
            return True, {}
        with self._lock:
            now = time.monotonic()
            began, calls = self._windows.get(kind, (now, 0))
            if now - began >= limit.seconds:
                began, calls = now, 0
            may_go_on = calls < limit.calls
            calls += may_go_on
            self.full_windows += may_go_on and calls == limit.calls
            self.turned_away += not may_go_on
            self._windows[kind] = began, calls
            left = began + limit.seconds - now
        headers = {} if may_go_on else {"Retry-After": f"{left:.3f}"}
        if limit.tells:
            headers |= {
                "x-ratelimit-limit-requests": str(limit.calls),
                "x-ratelimit-remaining-requests": str(limit.calls - calls),
                "x-ratelimit-reset-requests": f"{left * 1000:.0f}ms",
            }
        return may_go_on, headers

    @contextlib.contextmanager
    def _processing(self, call: ReceivedCall, connection: socket.socket) -> Iterator[None]:
        """Record the call, then hold one of the slots for its processing time."""
        with self._received:
            self.calls.append(call)
            self._in_flight[call.kind] += 1
            self.most_in_flight[call.kind] = max(
                self.most_in_flight[call.kind], self._in_flight[call.kind]
            )
            self._received.notify_all()
        try:
            while self.most_in_flight[call.kind] < self.together.get(call.kind, 0):
                self._idle(connection, 0.02)
            with self._slot(connection):
                self._idle(connection, self.latency_seconds)
                yield
        except (_GoneError, OSError):
            call.client_left.set()
            raise
        finally:
            with self._lock:
                self._in_flight[call.kind] -= 1

    @contextlib.contextmanager
    def _slot(self, connection: socket.socket) -> Iterator[None]:
        if self._slots is None:
            yield
            return
        while not self._slots.acquire(timeout=0.02):
            self._idle(connection, 0)
        try:
            yield
        finally:
            self._slots.release()

    def _idle(self, connection: socket.socket, seconds: float) -> None:
        """Wait; raise `_GoneError` as soon as the client leaves or the server stops."""
        ends_at = time.monotonic() + seconds
        while True:
            left = ends_at - time.monotonic()
            readable, _, _ = select.select([connection], [], [], max(0.0, min(left, 0.02)))
            if self._stopping.is_set() or (readable and not connection.recv(1, socket.MSG_PEEK)):
                raise _GoneError
            if left <= 0:
                return
            if readable:  # it has the next request, and cannot show any more that the client left
                self._stopping.wait(min(left, 0.02))


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: clients that leave are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: Buffer of answers. An answer is sent after its call is no longer counted as in flight: the
    #: client may make the next call before this thread runs again.
    wbufsize = 1 << 20

    def __init__(self, server: ScriptedModelServer, *args: Any) -> None:
        self._server = server
        self._rate_headers: dict[str, str] = {}
        super().__init__(*args)

    def setup(self) -> None:
        super().setup()
        self._number = self._server._connection_opened(self.connection)

    def finish(self) -> None:
        self._server._connection_closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - name of the base class
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self._answer(json.loads(self.rfile.read(length) or b"{}"))

    def _answer(self, body: dict[str, Any]) -> None:
        server = self._server
        with server._lock:
            server.requests += 1
        if server.unserved:
            self._send_error(*server.unserved)
            return
        if server.api_key and self.headers.get("authorization") != f"Bearer {server.api_key}":
            self._send_error(401, "invalid API key")
            return
        routes: dict[str, Callable[[dict[str, Any]], None]] = {
            "/api/version": lambda _: self._send({"version": "0.0.0-scripted"}),
            "/api/tags": lambda _: self._send(_ollama_models(server)),
            "/api/show": self._show,
            "/api/chat": self._call_model,
            "/api/embed": self._call_model,
            "/v1/models": lambda _: self._send_bytes(*_openai_list(server)),
            "/v1/chat/completions": self._call_model,
            "/v1/embeddings": self._call_model,
        }
        route = routes.get(self.path.partition("?")[0])
        if route is None:
            self._send_error(404, f"no such path: {self.path}")
            return
        try:
            route(body)
        except (_GoneError, OSError):
            self.close_connection = True

    def _show(self, body: dict[str, Any]) -> None:
        server, model = self._server, body.get("model", "")
        if _has(server.vision_models, model):
            self._send({"capabilities": ["completion", "vision"], "model_info": {}})
        elif _has(server.embedding_models, model):
            facts = {"scripted.embedding_length": server.dimensions}
            self._send({"capabilities": ["embedding"], "model_info": facts})
        else:
            self._send_error(404, f"model '{model}' not found")

    def _call_model(self, body: dict[str, Any]) -> None:
        call = _read_call(self.path, body)
        call.headers = {name.lower(): value for name, value in self.headers.items()}
        call.connection = self._number
        call.fault = self._server._next_fault(call.kind)
        with self._server._processing(call, self.connection):
            self._act(call)

    def _act(self, call: ReceivedCall) -> None:
        server = self._server
        if server.kills(call):
            server._die()
            server._idle(self.connection, math.inf)
        if self._turns_away(call):
            return
        document = _answer_to(call, server)
        with server._lock:
            server.tokens += _tokens_told(document)
        data = json.dumps(document).encode()
        match call.fault:
            case Fault.RESET:
                self._send_head(200, len(data))
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self._reset()
            case Fault.DRIP:
                self._send_head(200, 1_000_000)
                while True:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    server._idle(self.connection, server.drip_seconds)
            case Fault.CUT_JSON:
                self._send_bytes(200, data[: len(data) // 2])
            case Fault.HUGE:
                self._send_bytes(200, data[:-1] + b" " * HUGE_BYTES + b"}")
            case Fault.BOMB:
                packed = gzip.compress(data[:-1] + b" " * HUGE_BYTES + b"}")
                self._send_head(200, len(packed), {"Content-Encoding": "gzip"})
                self.wfile.write(packed)
            case _:
                self._send_bytes(200, data)

    def _turns_away(self, call: ReceivedCall) -> bool:
        """Answer a call that is refused; return false if the call should be processed."""
        server, fault = self._server, call.fault
        models = server.vision_models if call.kind == "vision" else server.embedding_models
        longest = max((len(text) for text in call.texts), default=0)
        may_go_on, self._rate_headers = server._counted(call.kind)
        if not may_go_on:
            self._send_error(429, "rate limit reached: too many requests")
        elif refused := server.refuse(call):
            self._send_error(*refused)
        elif refused_names := server.refused_parameters & call.body.keys():
            self._send_parameter_error(min(refused_names))
        elif fault in _STATUS_FAULTS:
            status, reason = _STATUS_FAULTS[fault]
            self._send_error(status, reason.format(model=call.model))
        elif fault is Fault.HUGE_ERROR:
            self._send_bytes(500, b"the runner says: " + b"x" * HUGE_BYTES)
        elif fault is Fault.HANG:
            server._idle(self.connection, math.inf)
        elif not _has(models, call.model):
            self._send_error(404, f"model '{call.model}' not found")
        elif call.kind == "embedding" and longest > server.context_characters:
            self._send_error(400, "the input length exceeds the context length")
        else:
            return False
        return True

    def _reset(self) -> None:
        # With a linger of zero, closing sends a reset instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def _send(self, document: dict[str, Any]) -> None:
        self._send_bytes(200, json.dumps(document).encode())

    def _send_error(self, status: int, reason: str) -> None:
        error: Any = reason
        if self.path.startswith("/v1/"):
            error = {"message": reason, "type": "scripted", "code": status}
        self._send_bytes(status, json.dumps({"error": error}).encode())

    def _send_parameter_error(self, name: str) -> None:
        other = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
        reason = f"Unsupported parameter: '{name}' is not supported with this model.{other}"
        error: Any = reason
        if self.path.startswith("/v1/"):
            error = {
                "message": reason,
                "type": "invalid_request_error",
                "param": name,
                "code": "unsupported_parameter",
            }
        self._send_bytes(400, json.dumps({"error": error}).encode())

    def _send_bytes(self, status: int, data: bytes) -> None:
        self._send_head(status, len(data))
        self.wfile.write(data)

    def _send_head(
        self, status: int, length: int, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        if status in {429, 503} and (asked := self._server.retry_after):
            self.send_header("Retry-After", asked if isinstance(asked, str) else asked())
        for name, value in {**self._rate_headers, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _read_call(path: str, body: dict[str, Any]) -> ReceivedCall:
    dialect: Dialect = "openai" if path.startswith("/v1/") else "ollama"
    kind: ModelKind = "embedding" if "embed" in path else "vision"
    texts: list[str] = []
    images: list[bytes] = []
    if kind == "embedding":
        given = body.get("input", "")
        texts = [given] if isinstance(given, str) else list(given)
    for message in body.get("messages", ()):
        images += [base64.b64decode(image) for image in message.get("images") or ()]
        content = message.get("content", "")
        parts: list[dict[str, Any]]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                images.append(base64.b64decode(part["image_url"]["url"].partition("base64,")[2]))
    return ReceivedCall(
        dialect=dialect,
        kind=kind,
        path=path,
        model=body.get("model", ""),
        body=body,
        headers={},
        texts=texts,
        images=images,
        connection=0,
        fault=None,
    )


def _answer_to(call: ReceivedCall, server: ScriptedModelServer) -> dict[str, Any]:
    thinking = server.thinking
    tokens_in = sum(len(text.split()) for text in call.texts) + 256 * len(call.images)
    if call.kind == "embedding":
        length = server.dimensions
        if server.cuts_vectors:
            length = min(length, call.body.get("dimensions") or length)
        vectors = [_faulty_vector(call.fault, text, length) for text in call.texts]
        if call.fault is Fault.NO_VECTORS:
            vectors = []
        if call.dialect == "ollama":
            return {"model": call.model, "embeddings": vectors, "prompt_eval_count": tokens_in}
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens_in, "total_tokens": tokens_in}
        return {"object": "list", "model": call.model, "data": data, "usage": usage}
    text = _faulty_text(call, server.says(call))
    if server.structured and _asks_for_fields(call.body):
        text = _in_fields(call, text)
    reason = "length" if call.fault in _CUT_BY_LENGTH else "stop"
    if call.fault is Fault.CONTENT_FILTER:
        text, reason = "", "content_filter"
    message: dict[str, Any] = {"role": "assistant", "content": text}
    tokens_out = len(text.split())
    details = {"reasoning_tokens": 0}
    if thinking and _thinks(call, thinking):
        used = min(thinking.tokens, _limit_of_tokens(call.body))
        if used < thinking.tokens:
            text, reason = "", "length"
        tokens_out = used + len(text.split())
        details = {"reasoning_tokens": used}
        message = _thoughtful(call.dialect, thinking, text)
    if call.dialect == "ollama":
        return {
            "model": call.model,
            "message": message,
            "done": True,
            "done_reason": reason,
            "prompt_eval_count": tokens_in,
            "eval_count": tokens_out,
        }
    return {
        "id": "scripted",
        "object": "chat.completion",
        "created": 0,
        "model": call.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
            "completion_tokens_details": details,
        },
    }


def _tokens_told(document: dict[str, Any]) -> Counter[str]:
    usage = document.get("usage", document)
    return Counter(
        {
            "in": usage.get("prompt_tokens", usage.get("prompt_eval_count", 0)),
            "out": usage.get("completion_tokens", usage.get("eval_count", 0)),
        }
    )


def _limit_of_tokens(body: dict[str, Any]) -> int:
    limits = body.get("options", body)
    names = ("max_tokens", "max_completion_tokens", "num_predict")
    return min((int(limits[name]) for name in names if name in limits), default=1_000_000)


def _thinks(call: ReceivedCall, thinking: Thinking) -> bool:
    body = call.body
    template = body.get("chat_template_kwargs", {})
    match thinking.switch:
        case "template":
            return body.get("think") is not False and template.get("enable_thinking") is not False
        case "effort":
            return "low" not in {body.get("think"), body.get("reasoning_effort")}
        case _:
            return True


def _thoughtful(dialect: Dialect, thinking: Thinking, text: str) -> dict[str, Any]:
    thought = "Let me look at it closely."
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if dialect == "ollama":
        message["thinking"] = thought
    elif thinking.shown == "inline":
        message["content"] = f"<think>{thought}</think>{text}" if text else f"<think>{thought}"
    elif thinking.shown != "hidden":
        message[thinking.shown] = thought
    return message


def _asks_for_fields(body: Mapping[str, Any]) -> bool:
    return isinstance(body.get("format"), dict) or "response_format" in body


def _in_fields(call: ReceivedCall, text: str) -> str:
    if call.fault is Fault.NOT_IN_FIELDS:
        return json.dumps({"caption": text})
    if call.fault is Fault.CUT_FIELDS:
        return json.dumps({"description": text, "tags": TAGS})[:-20]
    if call.fault is Fault.CUT_BY_LENGTH:
        return json.dumps({"description": text})[:-2]
    fields = {"description": text, "tags": TAGS, "visible_text": VISIBLE_TEXT}
    whole = json.dumps(fields, ensure_ascii=False)
    return whole[:-8] if call.fault is Fault.CUT_VISIBLE_TEXT else whole


def _faulty_text(call: ReceivedCall, said: str | None) -> str:
    honest = said
    if honest is None:
        honest = describe_picture(call.images[0]) if call.images else _describe_video(call.texts)
    faulty = {
        Fault.EMPTY: "",
        Fault.LOOP: LOOPING_TEXT,
        Fault.CONTROL_TOKENS: CONTROL_TOKENS_TEXT,
        Fault.INJECTED: INJECTED_TEXT,
        Fault.CUT_BY_LENGTH: honest[: len(honest) // 2],
        Fault.THINKING: f"<think>\nLet me look at it closely.\n</think>\n\n{honest}",
    }
    return honest if call.fault is None else faulty.get(call.fault, honest)


def _faulty_vector(fault: Fault | None, text: str, dimensions: int) -> list[float]:
    match fault:
        case Fault.EMPTY:
            return []
        case Fault.WRONG_DIMENSION:
            return embed_text(text, 768 if dimensions != 768 else 767)
        case Fault.NAN:
            return [math.nan, *embed_text(text, dimensions)[1:]]
        case Fault.ZEROS:
            return [0.0] * dimensions
        case _:
            return embed_text(text, dimensions)


def describe_picture(jpeg: bytes) -> str:
    """Return the honest description of a picture: true statements on its size and mean colour."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        width, height = picture.size
        one_pixel = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX)
    red, green, blue = one_pixel.tobytes()
    shape = "square" if width == height else "wide" if width > height else "tall"
    light = "bright" if red + green + blue > 480 else "dark" if red + green + blue < 240 else "soft"
    return (
        f"A {shape} picture of {width} by {height} pixels in {light} light. Its mean colour is "
        f"{_colour_name(red, green, blue)} (#{red:02x}{green:02x}{blue:02x}), spread over the "
        "whole scene. The mood is calm and quiet, with no people and no readable text in view."
    )


def _describe_video(prompts: list[str]) -> str:
    colours = re.findall(r"colour is (\w+) \(#", " ".join(prompts))
    course = ", then ".join(colours) if colours else "colours that nobody described"
    return (
        f"A quiet video of {len(colours)} scenes. It shows {course}, one after the other. "
        "The mood stays calm from beginning to end, and no readable text comes into view."
    )


def _colour_name(red: int, green: int, blue: int) -> str:
    if max(red, green, blue) - min(red, green, blue) < 32:
        return "grey"
    strongest = max(red, green, blue)
    return "red" if strongest == red else "green" if strongest == green else "blue"


def embed_text(text: str, dimensions: int) -> list[float]:
    """Return a unit vector of a text: each word adds to a few places, so shared words are near."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()) or ["empty"]:
        digest = hashlib.sha256(word.encode()).digest()
        for place in range(0, 32, 4):
            number = int.from_bytes(digest[place : place + 4], "big")
            vector[number % dimensions] += 1.0 if number & 0x80000000 else -1.0
    length = math.sqrt(sum(number * number for number in vector))
    if length == 0:
        return [1.0, *vector[1:]]
    return [number / length for number in vector]


def _has(models: Iterable[str], model: str) -> bool:
    return model in models or model.removesuffix(":latest") in models


def _ollama_models(server: ScriptedModelServer) -> dict[str, Any]:
    names = [*server.vision_models, *server.embedding_models]
    tagged = [name if ":" in name else f"{name}:latest" for name in names]
    return {
        "models": [
            {"name": name, "model": name, "digest": server.digests.get(name, "")} for name in tagged
        ]
    }


def _openai_list(server: ScriptedModelServer) -> tuple[int, bytes]:
    status, document = server.listed or (200, _openai_models(server))
    return status, json.dumps(document).encode()


def _openai_models(server: ScriptedModelServer) -> dict[str, Any]:
    names = [*server.vision_models, *server.embedding_models]
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "scripted"} for name in names]
    return {"object": "list", "data": data}


@click.command()
@click.option("--port", default=11434, show_default=True)
@click.option("--latency", default=0.0, show_default=True, help="Seconds of work per call.")
@click.option("--slots", type=int, help="Calls processed at the same time; default: all.")
@click.option("--dimensions", default=1024, show_default=True)
@click.option("--fault", type=click.Choice([fault.value for fault in Fault]))
@click.option("--share", default=1.0, show_default=True, help="Share of calls with the fault.")
@click.option("--calls-per-minute", type=int, help="More calls of a kind are answered 429.")
@click.option(
    "--thinks",
    "switch",
    type=click.Choice(["none", "template", "effort"]),
    help="How thinking is switched off.",
)
@click.option("--refuse-parameter", "refused", multiple=True, help="Name of a field; repeatable.")
@click.option("--of", "kind", type=click.Choice(["vision", "embedding"]), default="vision")
def main(  # noqa: PLR0917 - click passes them by name
    port: int,
    latency: float,
    slots: int | None,
    dimensions: int,
    fault: str | None,
    share: float,
    kind: ModelKind,
    calls_per_minute: int | None,
    switch: Literal["none", "template", "effort"] | None,
    refused: tuple[str, ...],
) -> None:
    """Serve both dialects until interrupted."""
    server = ScriptedModelServer(
        port=port,
        latency_seconds=latency,
        slots=slots,
        dimensions=dimensions,
        rate_limit=RateLimit(calls_per_minute, 60.0) if calls_per_minute else None,
        thinking=Thinking(switch) if switch else None,
        refused_parameters=refused,
    )
    if fault:
        server.play(kind, at_random(Fault(fault), share))
    with server:
        click.echo(f"Ollama: {server.ollama_url}   OpenAI: {server.openai_url}   Ctrl-C stops")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
