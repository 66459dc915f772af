"""The services of ``deploy/compose.yaml``, and of a second host, as Compose reads them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from batch_pipeline_tests.integration.conftest import program

DEPLOY = Path(__file__).parents[3] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
FIRST_HOST, SECOND_HOST = DEPLOY / "first_host.yaml", DEPLOY / "second_host.yaml"
#: Longest wait for one condition (seconds); the machine of the tests may be busy.
WAIT_SECONDS = 240


class RefusedByComposeError(Exception):
    """Compose does not accept a configuration; the message is what it printed."""


def read_as_compose_does(folder: Path, *files: Path, **settings: str) -> dict[str, dict[str, Any]]:
    """Follow the quickstart in a copy of the folder, and return the configuration.

    Raises:
        RefusedByComposeError: Compose does not accept it.
    """
    copied = folder / "deploy"
    shutil.copytree(DEPLOY, copied)
    lines = [f"{name}={value}\n" for name, value in settings.items()]
    (copied / ".env").write_text((copied / ".env.example").read_text() + "".join(lines))
    # The `docker-compose` of Debian 12 is older than the key `name`; newer versions accept both.
    chosen = [copied / file.name for file in files or (COMPOSE,)]
    for file in chosen:
        file.write_text(re.sub("^name:.*$", "", file.read_text(), flags=re.MULTILINE))
    read = subprocess.run(
        [program("docker-compose"), *(f"--file={file}" for file in chosen), "config"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if read.returncode:
        raise RefusedByComposeError(read.stderr)
    services: dict[str, dict[str, Any]] = yaml.safe_load(read.stdout)["services"]
    return services


class ComposedProcesses:
    """Services as processes of this host, with their own commands, environments and checks.

    `places` names the differences: words of the Compose file, and their replacements here.
    """

    def __init__(
        self, services: Mapping[str, Mapping[str, Any]], folder: Path, places: Mapping[str, str]
    ) -> None:
        self._services = services
        self._folder = folder
        self._places = places
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for volume in yaml.safe_load(COMPOSE.read_text())["x-app"]["volumes"]:
            source, target, *_ = volume.split(":")
            place = Path(self._here(target))
            if source.startswith("./"):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(self._here((DEPLOY / source).read_text()))
            else:
                place.mkdir(parents=True, exist_ok=True)

    def environment(self, service: str) -> dict[str, str]:
        """Return the service's environment; from this process it has only `PATH`."""
        given = self._services[service]["environment"]
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self._folder),
            **{name: self._here(str(value)) for name, value in given.items()},
        }

    def execute(self, service: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command next to a service, like ``docker compose exec``."""
        return subprocess.run(
            list(command),
            env=self.environment(service),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )

    def start(
        self, service: str, *, name: str = "", moved: Mapping[str, str] | None = None
    ) -> None:
        """Start a service; `moved` has replacements for a second process of the same service."""
        command = [self._here(str(word), moved) for word in self._services[service]["command"]]
        with self.log_file(name or service).open("ab") as log:
            self._running[name or service] = subprocess.Popen(
                command,
                env=self.environment(service),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_for_the_end(self, service: str) -> int:
        """Wait for the end of a service that should end; return its exit code."""
        return self._running.pop(service).wait(WAIT_SECONDS)

    def wait_until_healthy(
        self, service: str, *, name: str = "", moved: Mapping[str, str] | None = None
    ) -> None:
        """Repeat the service's own health check until it succeeds."""
        kind, *check = self._services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        command = [self._here(word, moved) for word in check]
        deadline = time.monotonic() + WAIT_SECONDS
        while (answer := self.execute(service, *command)).returncode:
            assert self._running[name or service].poll() is None, self._last_words(name or service)
            assert time.monotonic() < deadline, answer.stderr + self._last_words(name or service)

    def kill(self, name: str) -> None:
        """Send SIGKILL to a service and its children, if the service runs."""
        if process := self._running.pop(name, None):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """Stop all services like Compose: SIGTERM, then wait."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log_file(self, name: str) -> Path:
        """Return the log file of a service."""
        return self._folder / f"{name}.log"

    def _here(self, text: str, moved: Mapping[str, str] | None = None) -> str:
        for there, here in {**self._places, **(moved or {})}.items():
            text = text.replace(there, here)
        return text

    def _last_words(self, name: str) -> str:
        return f"{name}:\n{self.log_file(name).read_text(errors='replace')[-3000:]}"
