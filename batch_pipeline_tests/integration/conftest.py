"""Fixtures of integration tests: a real Redis, a real browser."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from playwright.sync_api import Browser, sync_playwright

from batch_pipeline.demo import free_port
from batch_pipeline_tests.patience import wait_until

from .console import Console


def program(name: str) -> str:
    """Find a program of the system; if it is missing, the test is skipped, but fails in CI."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: scripts/install_test_system.sh installs it")
        pytest.skip(f"{name} is not installed: scripts/install_test_system.sh")
    return found


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path, port = program("redis-server"), free_port()
    folder = tmp_path_factory.mktemp("redis")
    command = [path, "--port", str(port), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            wait_until(lambda: _answers(client), "Redis answers", 20)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(20)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


# At most for a module: while it is open, its thread has an event loop, and no other can run there.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = program("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def console(database_url: str, tmp_path: Path) -> Console:
    """The installed command, on the database of the test."""
    (tmp_path / "home").mkdir()  # so that the message about a new home is not printed
    return Console(
        {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
            "BATCH_PIPELINE_DATABASE_URL": database_url,
        },
        tmp_path,
    )
