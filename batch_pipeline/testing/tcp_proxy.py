"""A TCP proxy between a client and its server that loses replies, or holds requests, on command."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self


class TcpProxy:
    """Passes bytes on; a context manager that listens on a free port.

    Args:
        socket_path: the server's Unix socket.
        address: the server's host and port, if it has no such socket.
        host: where to listen, if not on loopback.
    """

    def __init__(
        self,
        *,
        socket_path: str | None = None,
        address: tuple[str, int] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self._socket_path = socket_path
        self._address = address
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._fatal = self._before = b""
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.dropped = threading.Event()
        """Set when a reply was lost."""
        self._may_pass = threading.Event()
        self._may_pass.set()
        self.held = threading.Event()
        """Set when a request waits."""

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold requests back until the context ends."""
        self.held.clear()
        self._may_pass.clear()
        try:
            yield
        finally:
            self._may_pass.set()

    def lose_the_reply_to(self, request: bytes, *, after: bytes = b"") -> None:
        """Pass the next request with these bytes on, and cut the connection before its reply.

        With `after`, use the next one that comes after another request with those bytes.
        """
        with self._lock:
            self.dropped.clear()
            self._fatal, self._before = request, after

    def __enter__(self) -> Self:
        """Start to listen."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut()

    def cut(self) -> None:
        """Cut every connection, and refuse others from now on."""
        self._may_pass.set()
        self._listener.close()
        with self._lock:
            for line in self._open:
                _cut(line)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                with self._lock:
                    self._open += [client, server]
                cut = threading.Event()
                for source, target in ((client, server), (server, client)):
                    threading.Thread(
                        target=self._pass_on, args=(source, target, cut, source is client)
                    ).start()

    def _connect(self) -> socket.socket:
        if self._address:
            return socket.create_connection(self._address)
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._socket_path or "")
        return server

    def _pass_on(
        self, source: socket.socket, target: socket.socket, cut: threading.Event, is_client: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_client:
                    if not self._may_pass.is_set():
                        self.held.set()
                        self._may_pass.wait()
                    with self._lock:
                        if self._before:
                            if self._before in data:
                                self._before = b""
                        elif self._fatal and self._fatal in data:
                            self._fatal = b""
                            cut.set()
                elif cut.is_set():  # the server has executed the request, but its reply is lost
                    self.dropped.set()
                    break
                target.sendall(data)
        _cut(source)
        _cut(target)


def _cut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()
