"""A separate Redis server for peers that use Redis as their broker."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from work import assignment

#: Redis listens here, and on no port.
SOCKET = Path(assignment().folder) / "redis.sock"


@contextmanager
def redis_server() -> Iterator[None]:
    command = ["redis-server", "--port", "0", "--unixsocket", str(SOCKET), "--save", ""]
    server = subprocess.Popen(
        command, cwd=assignment().folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)
