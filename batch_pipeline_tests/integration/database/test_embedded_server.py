"""The embedded server runs as long as a living process uses it, and not longer."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import psycopg
import pytest

from batch_pipeline.database.embedded_server import (
    SERVER_VERSION,
    postgres_programs,
    server_is_running,
    server_users,
    stop_server,
)
from batch_pipeline.errors import RefusedError
from batch_pipeline_tests.patience import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
USER = """
import sys
from pathlib import Path
from batch_pipeline.database.embedded_server import embedded_server_url
print(embedded_server_url(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


class Users:
    """Processes that use the server until the test ends them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.url = ""
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", USER, str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        self.url = process.stdout.readline().strip()
        assert self.url
        return process

    def end(self) -> None:
        for process in self.processes:
            with process:
                process.kill()
        stop_server(self.home, although_used=True)


@pytest.fixture
def users(tmp_path) -> Iterator[Users]:
    users = Users(tmp_path)
    yield users
    users.end()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@needs_root
def test_other_users_cannot_connect_to_a_server_whose_socket_is_in_a_shared_folder(tmp_path):
    users = Users(tmp_path / ("long" * 25))
    try:
        users.start()
        [host] = parse_qs(urlsplit(users.url).query)["host"]
        assert not host.startswith(str(tmp_path)), "its path is too long for a socket"

        refused = subprocess.run(
            [postgres_programs() / "psql", "-h", host, "-U", "postgres", "-c", "SELECT 1"],
            user="nobody",
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

        assert refused.returncode == 2
        assert "Permission denied" in refused.stderr
        psycopg.connect(users.url).close()
        stop_server(users.home, although_used=True)
        users.start()
        assert stat.S_IMODE(Path(host, ".s.PGSQL.5432").stat().st_mode) == 0o700
    finally:
        users.end()


@needs_root
def test_private_folders_above_the_server_cannot_be_listed_by_others(tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    users = Users(private / "home")
    try:
        users.start()
        assert stat.S_IMODE(private.stat().st_mode) == 0o711
        stop_server(users.home, although_used=True)
        users.start()
        assert stat.S_IMODE(private.stat().st_mode) == 0o711
    finally:
        users.end()


def guards(home: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if {str(home / "postgres"), "-I"} <= set(process.info["cmdline"] or [])
    ]


def test_the_server_stops_when_its_last_user_was_killed(users):
    first, second = users.start(), users.start()
    assert [user.pid for user in server_users(users.home)] == sorted([first.pid, second.pid])
    assert len(guards(users.home)) == 1
    first.send_signal(signal.SIGKILL)
    first.wait()
    with psycopg.connect(users.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert [user.pid for user in server_users(users.home)] == [second.pid]
    second.send_signal(signal.SIGKILL)
    second.wait()
    wait_until(lambda: not server_is_running(users.home), "the server stops")
    wait_until(lambda: not guards(users.home), "the guard ends")


def test_a_user_that_comes_while_the_server_stops_finds_one_that_runs(users):
    for _ in range(3):
        last = users.start()
        with psycopg.connect(users.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        last.kill()
    last = users.start()
    last.communicate("")  # a normal end
    wait_until(lambda: not server_is_running(users.home), "the server stops")


def test_a_guard_that_was_killed_is_replaced_by_the_next_user(users):
    users.start()
    [guard] = guards(users.home)
    guard.kill()
    users.start()
    wait_until(lambda: len(guards(users.home)) == 1, "there is a guard")


def test_a_server_in_use_is_stopped_only_with_force(users):
    user = users.start()
    with pytest.raises(RefusedError, match=f"in use by python.* \\(process {user.pid}\\)"):
        stop_server(users.home)
    assert stop_server(users.home, although_used=True)
    assert not server_is_running(users.home)
    assert not stop_server(users.home)


def test_the_documents_name_the_version_that_runs(users):
    users.start()
    with psycopg.connect(users.url) as connection:
        assert connection.info.server_version // 10_000 == SERVER_VERSION
    for document in ("README.md", "docs/dependencies.md", "docs/deployment.md"):
        text = (ROOT / document).read_text()
        named = [word for word in text.split("PostgreSQL ")[1:] if word[:2].isdigit()]
        assert all(word.startswith(str(SERVER_VERSION)) for word in named), document
