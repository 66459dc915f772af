"""A broker of Celery that can be killed."""

import subprocess
from pathlib import Path

import redis

from batch_pipeline.demo import free_port
from batch_pipeline_tests.integration.conftest import program
from batch_pipeline_tests.patience import wait_until


class Broker:
    """A Redis that keeps nothing on disk."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address, self._folder, self._port = address, folder, free_port()
        self.url = f"redis://{address}:{self._port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(program("redis-server"), "--port", str(self._port), "--bind", self._address),
                *("--protected-mode", "no", "--save", "", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            try:
                return bool(redis.Redis.from_url(self.url).ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, "the broker answers", 30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
