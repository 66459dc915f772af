"""Shows progress in a browser: forwards the messages of a batch to a page over a WebSocket.

    python examples/progress_websocket/server.py          # then http://127.0.0.1:8765/?batch=<id>

It listens on Redis if BATCH_PIPELINE_REDIS_URL is set, otherwise on PostgreSQL. Each client has a
mailbox: if the client is slower than the messages, it gets only the newest ones.
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
from batch_pipeline.services.reports.batch_status import progress_of
from batch_pipeline.settings import Settings, load_settings

#: Minimum time between two frames to a client (seconds).
FRAME_SECONDS = 0.2
#: Maximum number of files in one frame; the latest ones are sent.
FILES_PER_FRAME = 50
#: Time before the server connects to the source of messages again (seconds).
RECONNECT_SECONDS = 1.0

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
log = logging.getLogger("progress_websocket")


class Mailbox:
    """Messages that were not sent to a client yet: the latest about the batch and about its files.

    It holds at most one message about the batch and `FILES_PER_FRAME` about files, no matter how
    many messages arrive between two frames. An older message about the batch never replaces a newer
    one.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._files: dict[str, Any] = {}
        self._filled = asyncio.Event()
        self.heard_of_batch = 0
        """How many messages about the batch have arrived."""

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
        """Wait for messages and take them. The message about the batch comes last."""
        await self._filled.wait()
        self._filled.clear()
        messages = [*self._files.values(), *([self._batch] if self._batch else [])]
        self._batch, self._files = None, {}
        return messages


class Hub:
    """Gives each message to the clients that follow its batch."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._clients: dict[str, set[Mailbox]] = {}

    @contextlib.asynccontextmanager
    async def client(self, batch_id: uuid.UUID) -> AsyncIterator[Mailbox]:
        """A mailbox that begins with the current state: earlier messages may have been missed."""
        mailbox = Mailbox()
        # Listen first, then read: a change in between arrives twice, but is never lost.
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
        """Forward messages for ever. If the source is lost, connect again and catch up."""
        source = self._from_redis if self._settings.redis_url else self._from_postgres
        while True:
            try:
                async for body in source():
                    message = json.loads(body)
                    batch_id = message["payload"].get("batch_id")  # a message of `doctor` has none
                    for mailbox in self._clients.get(str(batch_id), ()):
                        mailbox.put(message)
            except (redis.exceptions.RedisError, psycopg.Error, OSError) as error:
                log.warning("no messages, trying again: %s", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _put_present_state(self, batch_id: uuid.UUID) -> None:
        mailboxes = self._clients.get(str(batch_id), set())
        heard = {mailbox: mailbox.heard_of_batch for mailbox in mailboxes}
        try:
            progress = await asyncio.to_thread(progress_of, self._database, batch_id)
        except PipelineError as error:
            log.warning("the batch cannot be read: %s", error)
            return
        if progress is None:
            return
        for mailbox, count in heard.items():
            # A mailbox that got a message meanwhile may have a newer state than what was read.
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
    """Serve the page. Its policy lets the browser run no script except the page's own."""
    policy = "; ".join(
        ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
        + [f"{tag}-src '{_digest(tag)}'" for tag in ("script", "style")]
    )
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": policy})


def _digest(tag: str) -> str:
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


async def follow(socket: WebSocket) -> None:
    """Send a client the messages of a batch, a few frames a second, until it disconnects."""
    # Any page in the same browser can open this socket, but only ours may read it.
    if socket.headers.get("origin") != f"http://{socket.headers.get('host')}":
        await socket.close(1008)
        return
    await socket.accept()
    hub: Hub = socket.app.state.hub
    async with hub.client(socket.path_params["batch_id"]) as mailbox:
        sender = asyncio.create_task(_send(socket, mailbox))
        try:
            while True:  # the client sends nothing; this only notices that it has disconnected
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
    """Build the server."""

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
