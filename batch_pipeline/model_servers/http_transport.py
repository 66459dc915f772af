"""Connections to model servers: which proxy they use, and how much of an answer is read.

Both client libraries (`ollama` on httpx, `openai` on httpx2) read an answer completely, without a
limit. The transports here stop reading when the answer is longer than any real one. The limit
applies after decompression.
"""

import ipaddress
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any, Final
from urllib.parse import urljoin, urlsplit, urlunsplit
from urllib.request import getproxies_environment

import httpx
import httpx2

from batch_pipeline.errors import ConfigurationError, ServiceDownError, TransientError
from batch_pipeline.model_servers.http_errors import Misread

#: 32 vectors of 4,000 numbers take 3 MB as JSON.
LONGEST_ANSWER_BYTES = 8 * 1024**2
#: An error page may be of any length; its beginning says what is wrong.
LONGEST_ERROR_BYTES = 64 * 1024
#: Value of `BATCH_PIPELINE_MODEL_PROXY`: use HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
ENVIRONMENT: Final = "environment"

_SCHEMES = ("http", "https", "socks5", "socks5h")
_EXCEPTION = re.compile(r"(\*\.?|\.)?[\w.-]+(:\d+)?|\*|\[[0-9a-fA-F:]+\](:\d+)?|[0-9a-fA-F:]+")

_PASSWORD = re.compile(r"//[^@/]*@")

#: Redirects that clients follow with a GET: what a POST sends would be lost.
_TO_A_GET = {301, 302, 303}

#: Headers of the answers that the current call has received; each call sets its own list.
heard: ContextVar[list[Mapping[str, str]]] = ContextVar("heard")
#: Errors of code that reads an answer whose values have other types than the protocol says.
_MISREAD = (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError)


@contextmanager
def reading_answer() -> Iterator[None]:
    """Surround code that reads an answer: the server is to blame for an error there.

    The clients do not check the types of all values. An error before there is an answer is our
    mistake, and is raised unchanged.

    Raises:
        Misread: the answer has values of other types than the protocol says.
    """
    try:
        yield
    except _MISREAD as error:
        if not heard.get([]):
            raise
        raise Misread(f"{type(error).__name__}: {error}") from error


class _Bounded:
    """The body of an answer, decompressed and limited in length."""

    def __init__(self, response: Any, where: str) -> None:
        self._stream = response.stream
        self._is_error = response.status_code >= 400
        self._left = LONGEST_ERROR_BYTES if self._is_error else LONGEST_ANSWER_BYTES
        self._where = where
        self._unpacker: Any = None
        self._unknown_encoding = ""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding in {"gzip", "x-gzip", "deflate"}:
            self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
            del response.headers["content-encoding"]
        elif encoding not in {"", "identity"}:
            self._unknown_encoding = encoding

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._unknown_encoding:
            # Not raised earlier: the client closes an answer only if reading it fails. If it stays
            # open, it keeps the only connection of its client for ever.
            raise self._invalid(
                f"packed its answer as {self._unknown_encoding!r}, which was not asked for"
            )
        async for chunk in self._stream:
            if self._unpacker:
                chunk = self._unpacked(chunk)  # noqa: PLW2901
            self._left -= len(chunk)
            if self._left >= 0:
                yield chunk
            elif self._is_error:
                yield chunk[: self._left]
                return
            else:
                raise self._invalid(
                    f"sent an answer of more than {LONGEST_ANSWER_BYTES // 1024**2} MB; "
                    "it was not read to its end"
                )

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _unpacked(self, chunk: bytes) -> bytes:
        try:
            # Decompress one byte more than the limit at most, since a few bytes may become many.
            return bytes(self._unpacker.decompress(chunk, self._left + 1))
        except zlib.error as error:
            raise self._invalid(f"sent data that cannot be unpacked: {error}") from error

    def _invalid(self, what: str) -> TransientError:
        return TransientError("model_output_invalid", f"model server {self._where} {what}")


class _BoundedStream(_Bounded, httpx.AsyncByteStream):
    """For httpx."""


class _BoundedStream2(_Bounded, httpx2.AsyncByteStream):
    """For httpx2."""


class Transport(httpx.AsyncHTTPTransport):
    """Transport of the client `ollama`."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the answer is bounded."""
        request.headers["accept-encoding"] = "identity"
        response = await super().handle_async_request(request)
        if moved := _moved(request, response):
            await response.aclose()
            raise moved
        _note(response.headers)
        response.stream = _BoundedStream(response, shown_address(str(request.url)))
        return response


class Transport2(httpx2.AsyncHTTPTransport):
    """Transport of the client `openai`."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; the answer is bounded."""
        request.headers["accept-encoding"] = "identity"
        response = await super().handle_async_request(request)
        if moved := _moved(request, response):
            await response.aclose()
            raise moved
        _note(response.headers)
        response.stream = _BoundedStream2(response, shown_address(str(request.url)))
        return response


def _moved(request: Any, response: Any) -> ServiceDownError | None:
    """Return the error for a redirect that would turn a POST into a GET."""
    if request.method != "POST" or response.status_code not in _TO_A_GET:
        return None
    where = shown_address(str(request.url))
    target = shown_address(urljoin(where, response.headers.get("location", "")))
    return ServiceDownError(
        "model_address_wrong",
        f"{where} redirects the call to {target}, where it would arrive as a GET. Set the address "
        "of the model server itself; if a proxy asks for a sign-in, let calls to models pass",
    )


def _note(headers: Mapping[str, str]) -> None:
    with suppress(LookupError):  # a call outside of `http_calls`
        heard.get().append(headers)


@cache
def trusted() -> ssl.SSLContext:
    """Return the certificates that all clients trust; cached, as reading them takes 20 ms."""
    return httpx.create_ssl_context()


def proxy_for(url: str, setting: str) -> str:
    """Return the address of the proxy for a server; empty: none.

    Args:
        url: address of the server.
        setting: value of ``BATCH_PIPELINE_MODEL_PROXY``.

    Raises:
        ConfigurationError: an address is not valid, ``NO_PROXY`` cannot be read, or the package
            for a SOCKS proxy is missing.
    """
    if not setting:
        return ""
    if setting != ENVIRONMENT:
        return _usable_proxy(setting, "BATCH_PIPELINE_MODEL_PROXY")
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    proxies = getproxies_environment()
    # Checked for every server, so that a mistake is not found only by chance.
    exempt = [_exempts(entry, host, parts.port) for entry in _exceptions(proxies.pop("no", ""))]
    scheme = parts.scheme if parts.scheme in proxies else "all"
    if _is_loopback(host) or any(exempt) or scheme not in proxies:
        return ""
    return _usable_proxy(proxies[scheme], f"{scheme.upper()}_PROXY")


def proxy_variable_in_use(url: str) -> str:
    """Return the name of the variable that makes other programs use a proxy for this server."""
    parts = urlsplit(url)
    found = getproxies_environment()
    scheme = parts.scheme if parts.scheme in found else "all"
    return f"{scheme.upper()}_PROXY" if scheme in found else ""


def shown_address(url: str) -> str:
    """Return an address without the user's name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _usable_proxy(address: str, variable: str) -> str:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"{variable}={_PASSWORD.sub('//', address)!r} is not the address of a proxy; expected "
            "one such as http://proxy.example:3128, with one of the schemes " + ", ".join(_SCHEMES)
        )
    try:
        httpx.AsyncHTTPTransport(proxy=address, verify=trusted())
    except ImportError as error:
        raise ConfigurationError(
            f"{variable}={shown_address(address)} is a SOCKS proxy, and the package for those is "
            "not installed: run `pip install socksio`, or set the address of an HTTP proxy"
        ) from error
    return address


def _exceptions(no_proxy: str) -> list[str]:
    entries = [entry.strip() for entry in no_proxy.split(",") if entry.strip()]
    for entry in entries:
        if not _EXCEPTION.fullmatch(entry) and _network(entry) is None:
            raise ConfigurationError(
                f"NO_PROXY has an entry that cannot be read: {entry!r}; expected host names, "
                "domains such as .example.org, addresses, or networks such as 10.0.0.0/8, "
                "separated by commas, or *"
            )
    return entries


def _exempts(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    if network := _network(entry):
        try:
            return ipaddress.ip_address(host) in network
        except ValueError:
            return False
    has_port = entry.count(":") == 1 or "]:" in entry  # other colons belong to an IPv6 address
    name, _, of_port = entry.lower().rpartition(":") if has_port else (entry, "", "")
    if of_port and of_port != str(port):
        return False
    name = name.lower().strip("[]").lstrip("*").lstrip(".")
    return host == name or host.endswith(f".{name}")


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False) if "/" in entry else None
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
