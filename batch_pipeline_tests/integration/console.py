"""The command in a separate process: it prints to a file, or in a terminal of 80 columns."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_pipeline_tests.integration.warm_commands import WarmCommands
from batch_pipeline_tests.patience import DEADLINE

COMMAND = str(Path(sys.executable).parent / "batch-pipeline")
_WARM = WarmCommands()
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Console:
    """Runs `batch-pipeline` with only these variables set."""

    environment: Mapping[str, str]
    folder: Path

    def __call__(
        self, *arguments: object, seconds: float = 2 * DEADLINE, **variables: str
    ) -> Answer:
        code, out, err = _WARM.run(
            [*map(str, arguments)],
            environment={**self.environment, **variables},
            folder=self.folder,
            seconds=seconds,
        )
        return Answer(code, out, err)

    @contextmanager
    def in_terminal(self, *arguments: object, **variables: str) -> Iterator["Terminal"]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            env={**self.environment, "TERM": "xterm-256color", **variables},
            cwd=self.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_as_for_a_person,  # noqa: PLW1509
        )
        os.close(theirs)
        try:
            yield Terminal(ours, process)
        finally:
            process.kill()
            process.wait()
            os.close(ours)


def _as_for_a_person() -> None:
    """Let Ctrl-C reach the process, by its controlling terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # In a script's background job, tests inherit that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A terminal with a command in it."""

    def __init__(self, descriptor: int, process: "subprocess.Popen[bytes]") -> None:
        self._descriptor = descriptor
        self._process = process
        self._bytes = b""

    @property
    def raw(self) -> str:
        return self._bytes.decode(errors="replace")

    @property
    def text(self) -> str:
        """Return everything that was shown, without control sequences."""
        return _CONTROL.sub("", self.raw)

    def wait_until(self, seen: Callable[[str], bool], seconds: float = DEADLINE) -> None:
        deadline = time.monotonic() + seconds
        while not seen(self.text):
            assert self._read(deadline - time.monotonic()), f"not seen in:\n{self.text}"

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C like a person: the terminal sends SIGINT to its whole foreground group."""
        os.write(self._descriptor, b"\x03")

    def enter(self, line: str) -> None:
        os.write(self._descriptor, f"{line}\r".encode())

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float = DEADLINE) -> int:
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        return self._process.wait(max(1.0, deadline - time.monotonic()))

    def read_for(self, seconds: float) -> None:
        """Read output for a while; if nobody reads a terminal, the writing process stops."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass

    def _read(self, seconds: float) -> bool:
        """Read the available output; return false at the end, or when the time is over."""
        if seconds <= 0 or not select.select([self._descriptor], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # Linux raises it if the other side was closed
            return False
        self._bytes += data
        return bool(data)
