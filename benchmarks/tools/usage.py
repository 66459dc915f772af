"""Measures resources: processor time of a tree of processes, memory of run workers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


def tree_cpu_seconds(pid: int | None = None) -> float:
    """Return the processor time of a process and of all that it has started, running or ended."""
    root = psutil.Process(pid)
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            # Its own and that of ended children; user and system.
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


#: Parts of a stack, and words in the command lines of their processes. `dagster dev` starts two
#: processes for the code server: one passes calls on to the other, which it replaces at a reload.
_COMMANDS = {
    "UI": ("dagster_webserver",),
    "daemon": ("dagster._daemon",),
    "code server": ("code-server start", "api grpc"),
    "run workers": ("multiprocessing.forkserver",),
}
PARTS = (*_COMMANDS, "PostgreSQL")
#: Pause between two measurements of the memory of run workers (seconds). A measurement reads the
#: list of all processes and makes the kernel walk each worker's pages, so more of them would slow
#: the stack.
_MEMORY_PAUSE = 1.0


@dataclass
class WorkersMemory:
    """Highest memory of any run worker so far (MiB)."""

    private_mib: float = 0.0
    """Memory that is not shared with the process from which the worker was forked (MiB)."""
    resident_mib: float = 0.0


class StackUsage:
    """Measures the parts of the stack that this process has started."""

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time of each part since its start, including ended run workers."""
        found = dict.fromkeys(PARTS, 0.0)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if part := _part_of(process):
                    # Its own time, and that of ended children for which it has waited.
                    found[part] += sum(process.cpu_times()[:4])
        found["PostgreSQL"] = tree_cpu_seconds(self._server_pid)
        return found

    @contextmanager
    def watching_workers(self) -> Iterator[WorkersMemory]:
        memory, ended = WorkersMemory(), threading.Event()

        def watch() -> None:
            while not ended.wait(_MEMORY_PAUSE):
                for worker in run_workers():
                    with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                        private, resident = _memory_of(worker)
                        memory.private_mib = max(memory.private_mib, private)
                        memory.resident_mib = max(memory.resident_mib, resident)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield memory
        finally:
            ended.set()
            thread.join()


def _part_of(process: psutil.Process) -> str | None:
    command = " ".join(process.cmdline())
    parts = [part for part, words in _COMMANDS.items() if any(word in command for word in words)]
    return parts[-1] if parts else None


def run_workers() -> Iterator[psutil.Process]:
    """Return whether the fork server has forked the process: both have the same command line."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            parent = process.parent()
            if parent and _part_of(process) == _part_of(parent) == "run workers":
                yield process


def _memory_of(process: psutil.Process) -> tuple[float, float]:
    """Return private and resident memory (MiB)."""
    kibibytes = {
        words[0]: int(words[1])
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        if (words := line.split())
    }
    private = kibibytes["Private_Clean:"] + kibibytes["Private_Dirty:"]
    return private / 1024, kibibytes["Rss:"] / 1024
