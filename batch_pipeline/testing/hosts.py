"""Hosts for tests on one machine: processes with their own network and disk.

They are network namespaces on a bridge. They can reach only this process, at one address, and they
cannot see the content of one of our folders. If namespaces cannot be made (no root, no `ip`), a
host is a process with its own home folder on loopback.
"""

import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

#: Variables that a process needs from the environment of its parent.
_INHERITED = ("PATH", "LANG", "VIRTUAL_ENV")


class Network:
    """Hosts that can reach each other, and this process at `address`; a context manager.

    Args:
        hidden: folder whose content the hosts cannot see.
    """

    def __init__(self, hidden: Path) -> None:
        self._hidden = hidden
        number = random.randrange(1 << 16)
        self._name = f"bp{number:04x}"
        # Reserved for tests of networks: no real host has such an address.
        self._subnet = f"198.{18 + (number >> 15)}.{(number >> 7) & 255}"
        self._hosts: list[Host] = []
        self.is_isolated = False
        """False: no namespaces can be made here."""
        self.address = "127.0.0.1"

    def host(self, name: str) -> "Host":
        """Add a host."""
        prefix: list[str] = []
        if self.is_isolated:
            prefix = self._isolated(len(self._hosts) + 2)
        self._hosts.append(Host(name, prefix))
        return self._hosts[-1]

    def __enter__(self) -> Self:
        """Make the bridge."""
        try:
            _ip(f"link add {self._name} type bridge")
            _ip(f"addr add {self._subnet}.1/24 dev {self._name}")
            _ip(f"link set {self._name} up")
            _ip(f"netns add {self._name}")
            _ip(f"netns exec {self._name} mount -t tmpfs none {shlex.quote(str(self._hidden))}")
        except (OSError, subprocess.CalledProcessError):
            self._remove()
            return self
        self.is_isolated, self.address = True, f"{self._subnet}.1"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process on the hosts, and remove them."""
        for host in self._hosts:
            host.close()
        self._remove()

    def _isolated(self, number: int) -> list[str]:
        name = f"{self._name}-{number}"
        _ip(f"netns add {name}")
        _ip(f"link add {name} type veth peer name eth0 netns {name}")
        _ip(f"link set {name} master {self._name} up")
        _ip(f"-n {name} addr add {self._subnet}.{number}/24 dev eth0")
        _ip(f"-n {name} link set eth0 up")
        _ip(f"-n {name} link set lo up")
        hide = f"mount -t tmpfs none {shlex.quote(str(self._hidden))}"
        return ["ip", "netns", "exec", name, "sh", "-c", f'{hide} && exec "$@"', "sh"]

    def _remove(self) -> None:
        names = [self._name, *(f"{self._name}-{n + 2}" for n in range(len(self._hosts)))]
        with contextlib.suppress(OSError):
            for name in names:
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", self._name], check=False, capture_output=True)


class Host:
    """One host; it shares only its home folder with the test."""

    def __init__(self, name: str, prefix: Sequence[str]) -> None:
        self.name = name
        self.home = Path(tempfile.mkdtemp(prefix=f"batch_pipeline_{name}_"))
        self._prefix = prefix
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start a process that writes to `log`."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        with self.log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [*self._prefix, *command],
                    env={
                        **inherited,
                        "HOME": str(self.home),
                        "TMPDIR": str(self.home),
                        **variables,
                    },
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    @property
    def log(self) -> Path:
        """Return the file that the processes write to."""
        return self.home / "log"

    def files(self, folder: Path) -> list[Path]:
        """List the files that the host sees in a folder, relative to it."""
        root = Path(f"/proc/{self._processes[-1].pid}/root{folder}")
        return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())

    def lose_power(self) -> None:
        """Kill every process, children too."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()

    def close(self) -> None:
        """End the host for good."""
        self.lose_power()
        shutil.rmtree(self.home, ignore_errors=True)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *shlex.split(arguments)], check=True, capture_output=True)
