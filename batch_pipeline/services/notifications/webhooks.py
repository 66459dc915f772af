"""One attempt to deliver a webhook: signed, limited in time and size, to no private address.

Signatures follow the Standard Webhooks specification. The connection is made to the IP address that
was checked, because the name might resolve to another address later. Redirects are not followed,
and no proxy is used.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from batch_pipeline.services.notifications.outbox import Delivery
from batch_pipeline.services.notifications.own_thread import in_own_thread

#: Timeout of a whole attempt: name resolution, connection, request and response (seconds).
TIMEOUT_SECONDS = 15.0
#: Only the status of a response counts. No more than this of its body is read (bytes).
LONGEST_ANSWER_BYTES = 64 * 1024
#: IPv6 networks whose addresses contain an IPv4 address, and its offset in the 16 bytes.
_EMBEDDING = {
    ipaddress.IPv6Network("::/96"): 12,
    ipaddress.IPv6Network("::ffff:0:0/96"): 12,
    ipaddress.IPv6Network("64:ff9b::/96"): 12,
    ipaddress.IPv6Network("2002::/16"): 2,
}
#: IPv6 networks that lead into a private network, which not every version of Python knows: NAT64
#: with local prefixes (RFC 8215), IPv4-translated (RFC 2765), site-local (RFC 3879).
_PRIVATE = tuple(map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "::ffff:0:0:0/96", "fec0::/10")))


class NotDeliveredError(Exception):
    """An attempt failed; the message is written for people."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final
        """The receiver wants no more messages."""


def body_of(delivery: Delivery) -> bytes:
    """Return an event as the bytes that are sent; they are the same in every attempt."""
    moment = delivery.occurred_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    message = {"type": delivery.type, "timestamp": moment, "data": delivery.data}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def signed_headers(delivery: Delivery, body: bytes, key: bytes, now: datetime) -> dict[str, str]:
    """Return the three headers of the specification."""
    message_id, timestamp = f"msg_{delivery.id.hex}", str(int(now.timestamp()))
    content = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
    }


async def post(url: str, delivery: Delivery, key: bytes, *, allow_private: bool) -> str:
    """Send an event once; returns the status of the response as text.

    Raises:
        NotDeliveredError: the receiver did not accept it, or could not be reached.
    """
    body = body_of(delivery)
    headers = {
        "content-type": "application/json",
        "user-agent": "batch-pipeline",
        "connection": "close",
        **signed_headers(delivery, body, key, datetime.now(UTC)),
    }
    status = 0
    try:
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            httpcore.AsyncConnectionPool(
                ssl_context=_tls(), network_backend=_PinnedBackend(allow_private=allow_private)
            ) as pool,
            pool.stream("POST", url, headers=_with_host(headers, url), content=body) as response,
        ):
            status = response.status
            await _read_some(response)
    except TimeoutError as error:
        if not status:
            raise NotDeliveredError(f"no answer within {TIMEOUT_SECONDS:g} s") from error
    except (OSError, httpcore.NetworkError, httpcore.ProtocolError) as error:
        if not status:
            raise NotDeliveredError(str(error) or type(error).__name__) from error
    if 200 <= status < 300:
        return f"HTTP {status}"
    if 300 <= status < 400:
        raise NotDeliveredError(f"HTTP {status}: redirects are not followed; set the new address")
    raise NotDeliveredError(f"HTTP {status}", final=status == 410)


async def _read_some(response: httpcore.Response) -> None:
    left = LONGEST_ANSWER_BYTES
    async for chunk in response.aiter_stream():
        left -= len(chunk)
        if left <= 0:
            return


def _with_host(headers: dict[str, str], url: str) -> list[tuple[str, str]]:
    return [("host", urlsplit(url).netloc), *headers.items()]


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class _PinnedBackend(httpcore.AnyIOBackend):
    """Connects only to addresses that were checked."""

    def __init__(self, *, allow_private: bool) -> None:
        super().__init__()
        self._allow_private = allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._addresses(host, port)
        for number, address in enumerate(addresses, 1):
            is_last = number == len(addresses)
            # An address that never answers must leave time for the others.
            patience = timeout if is_last else TIMEOUT_SECONDS / (len(addresses) + 1)
            try:
                return await super().connect_tcp(
                    address, port, patience, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if is_last:
                    raise
        raise NotDeliveredError(f"{host} has no address")

    async def _addresses(self, host: str, port: int) -> list[str]:
        # A name server that is silent must not delay the look-ups of other deliveries.
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.wrap_future(in_own_thread(look_up))
        except OSError as error:
            raise NotDeliveredError(f"{host} cannot be resolved: {error.strerror}") from error
        addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
        allowed = [one for one in addresses if self._allow_private or is_public(one)]
        if addresses and not allowed:
            raise NotDeliveredError(
                f"{host} is at {', '.join(addresses)}, which is not public: set "
                "BATCH_PIPELINE_WEBHOOK_ALLOW_PRIVATE=true if it is yours"
            )
        return allowed


def is_public(address: str) -> bool:
    """Return whether an IPv4 or IPv6 address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _PRIVATE):
            return False
        for network, offset in _EMBEDDING.items():
            if ip in network:
                return is_public(str(ipaddress.IPv4Address(ip.packed[offset : offset + 4])))
    return ip.is_global and not ip.is_multicast
