"""What something takes: wall time, processor time of a tree of processes, peak of memory."""

import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil

#: Process id of PostgreSQL, whose processor time is measured beside one's own.
SERVER_PID_VARIABLE = "BENCHMARK_SERVER_PID"


def tree_cpu_seconds(pid: int | None = None) -> float:
    """Processor time of a process and all that it has started, living or ended."""
    root = psutil.Process(pid)
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])  # own and of ended children, user and system
        except psutil.NoSuchProcess:
            continue
    return total


def peak_mib() -> float:
    """Highest resident memory of this process so far."""
    # Not ru_maxrss: that of a child begins with the size of its parent.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM; memory is measured on Linux only")


class Usage(AbstractContextManager["Usage"]):
    """Measures what happens inside ``with``; `figures` afterwards."""

    figures: dict[str, float]

    def __enter__(self) -> "Usage":
        self._server_pid = int(os.environ.get(SERVER_PID_VARIABLE, "0"))
        self._before = self._cpu()
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        seconds = time.perf_counter() - self._begun
        own, server = (
            after - before for after, before in zip(self._cpu(), self._before, strict=True)
        )
        self.figures = {
            "seconds": seconds,
            "cpu_seconds": own,
            "database_cpu_seconds": server,
        }

    def _cpu(self) -> tuple[float, float]:
        server = tree_cpu_seconds(self._server_pid) if self._server_pid else 0.0
        return tree_cpu_seconds(), server
