"""The servers that have one model: which of them a call goes to, and what if one cannot serve.

A call goes to the least loaded server that is there; one that turns out to be down, or not fit for
the model, leaves its calls to the others. Only when none is left is that an outage. How one call
is made to one server lives in `http_calls`, how many there may be in `call_slots`.
"""

import logging
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from batch_pipeline.errors import KindedError, ServiceDownError
from batch_pipeline.model_servers.base import CallSlots, CancelledCheck, HealthCheck
from batch_pipeline.model_servers.http_calls import Answer
from batch_pipeline.model_servers.model_server import ModelServer

_log = logging.getLogger(__name__)

#: A server that answers but lacks the model, or refuses the key, is left alone for so long while
#: others can serve; it would otherwise draw calls, being idle.
_SET_ASIDE_SECONDS = 30.0


class ServerGroup:
    """Servers with the same model, called as if they were one.

    Args:
        servers: at least one.
        model: name of the model, with its tag.
        slots: cap on the calls in flight.
    """

    def __init__(self, servers: Sequence[ModelServer], model: str, slots: CallSlots) -> None:
        self.model = model
        self._servers = {server.calls.url: server for server in servers}
        self._slots = slots
        self._set_aside_until: dict[str, float] = {}

    def run(
        self,
        call: Callable[[ModelServer], Coroutine[Any, Any, Answer]],
        cancelled: CancelledCheck,
    ) -> Answer:
        """Make one call to a server that can serve it.

        Raises:
            ServiceDownError: no server can; the message says of each why.
            KindedError: as `batch_pipeline.model_servers.http_calls.ServerCalls.run`.
        """
        failed: dict[str, ServiceDownError] = {}
        while len(failed) < len(self._servers):
            with self._slots.taken(lambda: self._usable(failed), cancelled) as url:
                server = self._servers[url]
                try:
                    return server.calls.run(partial(call, server), cancelled=cancelled)
                except ServiceDownError as error:
                    failed[url] = self._with_hint(server, error)
                    if error.kind != "model_server_down":
                        self._set_aside_until[url] = time.monotonic() + _SET_ASIDE_SECONDS
            if len(failed) < len(self._servers):
                _log.warning("%s; the call goes to another server", failed[url])
        errors = list(failed.values())
        if len(errors) == 1:
            raise errors[0]
        raise ServiceDownError(errors[0].kind, "; ".join(map(str, errors))) from errors[0]

    def check(
        self, role: str, look: Callable[[ModelServer], Coroutine[Any, Any, str]]
    ) -> list[HealthCheck]:
        """Ask every server, all at the same time, whether it has the model; never raises."""
        with ThreadPoolExecutor(len(self._servers)) as threads:
            return list(threads.map(lambda s: self._check(s, role, look), self._servers.values()))

    def _usable(self, failed: Collection[str]) -> list[str]:
        left = [url for url in self._servers if url not in failed]
        now = time.monotonic()
        return [
            url
            for url in left
            if self._servers[url].calls.can_be_tried and now >= self._set_aside_until.get(url, 0)
        ] or left

    def _with_hint(self, server: ModelServer, error: ServiceDownError) -> ServiceDownError:
        hint = server.hint(error.kind, self.model)
        if not hint:
            return error
        hinted = ServiceDownError(error.kind, f"{error}. {hint}")
        hinted.__cause__ = error
        return hinted

    def _check(
        self,
        server: ModelServer,
        role: str,
        look: Callable[[ModelServer], Coroutine[Any, Any, str]],
    ) -> HealthCheck:
        name = f"{role} model {self.model}"
        if len(self._servers) > 1:
            name += f" at {server.calls.url}"
        try:
            found = server.calls.ask(partial(look, server))
        except KindedError as error:
            hint = server.hint(error.kind, self.model)
            return HealthCheck(name, False, str(error), hint, error.kind)
        return HealthCheck(name, True, f"{server.kind} at {server.calls.url}: {found}")
