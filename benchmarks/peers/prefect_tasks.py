"""Prefect 3: a flow with a mapped task for each upload, in threads; its server uses SQLite.

SQLite is the server's default. On PostgreSQL it needs the extension pg_trgm, which the embedded
server does not have. The server's processor time counts, because nobody else uses it.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from work import assignment, host

START_SECONDS = 120


@contextmanager
def server() -> Iterator[str]:
    """Start a separate server, and yield its address as soon as it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/api"
    with (Path(assignment().folder) / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{url}/health"):
            assert process.poll() is None, "the server of Prefect ended"
            assert time.monotonic() < deadline, "the server of Prefect does not answer"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def main() -> None:
    import prefect_flow  # noqa: PLC0415 - reads its settings when it is imported

    host(prefect_flow.batch, prefect_flow.recorded)


if __name__ == "__main__":
    os.environ |= {
        "PREFECT_HOME": assignment().folder,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
    }
    with server() as api:
        os.environ["PREFECT_API_URL"] = api
        main()
