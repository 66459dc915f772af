"""Celery brokers that tests can kill, fill up and empty."""

import os
import subprocess
from pathlib import Path
from typing import Any, Protocol

import redis
from kombu import Connection
from kombu.exceptions import ChannelError

from batch_pipeline.demo import free_port
from batch_pipeline_tests.integration.conftest import program
from batch_pipeline_tests.patience import wait_until

QUEUE = "dagster"


class Broker(Protocol):
    """Methods that both brokers have."""

    url: str
    port: int

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def waiting(self) -> int:
        """Return the steps that no worker has taken."""

    def lose_everything(self) -> None: ...
    def fill_up(self) -> None:
        """Make it refuse messages, as if its disk or memory were full."""

    def make_room(self) -> None: ...


class Redis:
    """A Redis that keeps nothing on disk."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address, self._folder, self.port = address, folder, free_port()
        self.url = f"redis://{address}:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(program("redis-server"), "--port", str(self.port), "--bind", self._address),
                *("--protected-mode", "no", "--save", "", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            try:
                return bool(self._client().ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, "the broker answers", 30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def waiting(self) -> int:
        with self._client() as client:
            return int(client.llen(QUEUE))

    def lose_everything(self) -> None:
        with self._client() as client:
            client.flushall()

    def fill_up(self) -> None:
        with self._client() as client:
            client.config_set("maxmemory", 1)

    def make_room(self) -> None:
        with self._client() as client:
            client.config_set("maxmemory", 0)

    def _client(self) -> Any:
        return redis.Redis.from_url(self.url)


class RabbitMq:
    """A separate RabbitMQ, with its own port mapper."""

    def __init__(self, address: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@{address}:{self.port}//"
        # Debian's wrapper supports only one server of one user.
        found, behind = Path(program("rabbitmq-server")).parent, Path("/usr/lib/rabbitmq/bin")
        self._programs = behind if behind.is_dir() else found
        self._folder = folder
        (folder / "plugins").write_text("[].")
        (folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 1MB\n")
        self._folder = folder
        self._environment = os.environ | {
            "HOME": str(folder),  # for the cookie that the server and its control program share
            "RABBITMQ_NODENAME": f"broker{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": address,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOGS": str(folder / "rabbitmq.log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            # One core, and no busy waiting: tests share the machine.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none",
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._programs / "rabbitmq-server"],
            cwd=self._environment["HOME"],  # when it crashes, it leaves a file there
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        def answers() -> bool:
            try:
                with Connection(self.url, connect_timeout=2) as line:
                    line.ensure_connection(max_retries=1)
            except Exception:
                return False
            return True

        wait_until(answers, "the broker answers", 90)

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
        self._process.wait()
        subprocess.run(["epmd", "-kill"], env=self._environment, check=False, capture_output=True)

    def waiting(self) -> int:
        with Connection(self.url) as line:
            try:
                return int(line.default_channel.queue_declare(QUEUE, passive=True).message_count)
            except ChannelError:
                return 0
            except line.channel_errors:  # no run has declared it yet
                return 0

    def lose_everything(self) -> None:
        with Connection(self.url) as line:
            line.default_channel.queue_purge(QUEUE)

    def fill_up(self) -> None:
        self._control("set_disk_free_limit", "999999GB")

    def make_room(self) -> None:
        self._control("set_disk_free_limit", "1MB")

    def _control(self, *arguments: str) -> None:
        command = [self._programs / "rabbitmqctl", *arguments]
        subprocess.run(command, env=self._environment, check=True, capture_output=True)
