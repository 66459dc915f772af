"""Shows progress in a browser: forwards the messages of a batch to a page over a WebSocket.

    python examples/progress_websocket/server.py          # then http://127.0.0.1:8765/?batch=<id>

It listens on Redis when BATCH_PIPELINE_REDIS_URL is set, else on PostgreSQL. Between that and the
clients stands a mailbox each: a client that is slower than the messages gets fewer and newer ones.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import redis.asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from batch_pipeline.database.libpq import libpq_url
from batch_pipeline.database.session import Database, open_database
from batch_pipeline.errors import PipelineError
from batch_pipeline.services.progress.publishing import CHANNEL, body_of
from batch_pipeline.services.reports.batch_status import batch_progress
from batch_pipeline.settings import Settings, load_settings

#: Time between two frames to a client, at least (seconds).
FRAME_SECONDS = 0.2
#: Files in one frame: of more, the latest.
FILES_PER_FRAME = 50
#: Time until the source of messages is tried again (seconds).
RECONNECT_SECONDS = 1.0

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
log = logging.getLogger("progress_websocket")


class Mailbox:
    """What a client has not been sent yet: the batch's latest state, and that of its latest files.

    However many messages come between two frames, a frame holds at most so many files and one
    batch; the last message about the batch is never replaced by an older one.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._files: dict[str, Any] = {}
        self._filled = asyncio.Event()
        self.heard_of_batch = 0
        """How many messages about the batch have come."""

    def put(self, message: Any) -> None:
        """Keep a message until the next frame."""
        if message["action"] == "batch_progress":
            self._batch = message
            self.heard_of_batch += 1
        else:
            upload_id = message["payload"]["upload_id"]
            self._files.pop(upload_id, None)
            self._files[upload_id] = message
            if len(self._files) > FILES_PER_FRAME:
                del self._files[next(iter(self._files))]
        self._filled.set()

    async def take(self) -> list[Any]:
        """Wait for messages and take them, the batch last."""
        await self._filled.wait()
        self._filled.clear()
        messages = [*self._files.values(), *([self._batch] if self._batch else [])]
        self._batch, self._files = None, {}
        return messages


class Hub:
    """Hands each message to the clients that look at its batch."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._clients: dict[str, set[Mailbox]] = {}

    @contextlib.asynccontextmanager
    async def client(self, batch_id: uuid.UUID) -> AsyncIterator[Mailbox]:
        """A mailbox that begins with the present state, for messages may have gone before."""
        mailbox = Mailbox()
        # First listen, then look: what happens in between arrives twice rather than never.
        self._clients.setdefault(str(batch_id), set()).add(mailbox)
        try:
            await self._put_present_state(batch_id)
            yield mailbox
        finally:
            mailboxes = self._clients[str(batch_id)]
            mailboxes.discard(mailbox)
            if not mailboxes:
                del self._clients[str(batch_id)]

    async def run(self) -> None:
        """Forward messages for ever; when the source is lost, find it again and catch up."""
        source = self._from_redis if self._settings.redis_url else self._from_postgres
        while True:
            try:
                async for body in source():
                    message = json.loads(body)
                    batch_id = message["payload"].get("batch_id")  # `doctor` sends one without
                    for mailbox in self._clients.get(str(batch_id), ()):
                        mailbox.put(message)
            except (redis.exceptions.RedisError, psycopg.Error, OSError) as error:
                log.warning("no messages, trying again: %s", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _put_present_state(self, batch_id: uuid.UUID) -> None:
        mailboxes = self._clients.get(str(batch_id), set())
        heard = {mailbox: mailbox.heard_of_batch for mailbox in mailboxes}
        try:
            progress = await asyncio.to_thread(batch_progress, self._database, batch_id)
        except PipelineError as error:
            log.warning("the batch cannot be read: %s", error)
            return
        if progress is None:
            return
        for mailbox, count in heard.items():
            # Whoever has heard of the batch meanwhile may know more than what was read.
            if mailbox.heard_of_batch == count:
                mailbox.put(json.loads(body_of(progress)))

    async def _catch_up(self) -> None:
        for batch_id in list(self._clients):
            await self._put_present_state(uuid.UUID(batch_id))

    async def _from_redis(self) -> AsyncIterator[bytes]:
        url = self._settings.redis_url
        async with redis.asyncio.from_url(url) as client, client.pubsub() as channel:
            await channel.psubscribe("batch_progress:*")
            async for message in channel.listen():
                if message["type"] == "psubscribe":
                    await self._catch_up()
                elif message["type"] == "pmessage":
                    yield message["data"]

    async def _from_postgres(self) -> AsyncIterator[str]:
        url = libpq_url(self._database.url.render_as_string(hide_password=False))
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            await self._catch_up()
            async for message in connection.notifies():
                yield message.payload


async def show_page(_: Request) -> HTMLResponse:
    """Serve the page, whose own script is the only one that a browser may run."""
    policy = "; ".join(
        ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
        + [f"{tag}-src '{_digest(tag)}'" for tag in ("script", "style")]
    )
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": policy})


def _digest(tag: str) -> str:
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


async def follow(socket: WebSocket) -> None:
    """Send a client the messages of a batch, a few frames a second, until it goes."""
    # Any page in the same browser can open this socket; only ours may read it.
    if socket.headers.get("origin") != f"http://{socket.headers.get('host')}":
        await socket.close(1008)
        return
    await socket.accept()
    hub: Hub = socket.app.state.hub
    async with hub.client(socket.path_params["batch_id"]) as mailbox:
        sender = asyncio.create_task(_send(socket, mailbox))
        try:
            while True:  # nothing is expected; this is how one learns that the client has gone
                await socket.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            sender.cancel()


async def _send(socket: WebSocket, mailbox: Mailbox) -> None:
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.send_json(await mailbox.take())
            await asyncio.sleep(FRAME_SECONDS)


def build_app(settings: Settings) -> Starlette:
    """Assemble the server."""

    @contextlib.asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        database = open_database(settings)
        app.state.hub = Hub(settings, database)
        task = asyncio.create_task(app.state.hub.run())
        yield
        task.cancel()
        database.close()

    routes = [Route("/", show_page), WebSocketRoute("/batches/{batch_id:uuid}", follow)]
    return Starlette(routes=routes, lifespan=running)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Show the progress of batches in a browser.")
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    uvicorn.run(build_app(load_settings()), host="127.0.0.1", port=arguments.port)
