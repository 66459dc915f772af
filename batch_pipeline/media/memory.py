"""How much memory decoding in many threads takes, and how that memory is returned.

Measured with 8 threads that decode JPEGs of 12 megapixels on 2 cores (`benchmarks/README.md`): one
decode takes about 52 MiB. The peak is 489 MiB if all eight decode at once, and 255 MiB if only two
do, as many as there are cores. If large blocks are also returned to the system as soon as they are
freed, the peak is 159 MiB.
"""

import ctypes
import os
import sys
import threading
from functools import cache

#: Blocks of this size or more are mapped separately, and unmapped when they are freed (bytes).
#: Pictures have such blocks, Python's objects do not.
_MAPPED_FROM = 1_000_000
#: Memory that decoding one picture may use by default (bytes).
DEFAULT_DECODE_BYTES = 512 * 1024**2
#: Number of this parameter in glibc's `malloc.h`.
_M_MMAP_THRESHOLD = -3
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


#: Files that are decoded at a time: more files than cores would only take more memory.
AT_ONCE = _usable_cores()
#: Held while a file is decoded.
DECODES = threading.BoundedSemaphore(AT_ONCE)


def use_huge_pages() -> None:
    """Make the processes that this one starts ask Linux for huge pages.

    A photo of 12 megapixels fills 85 MB of fresh memory while it is decoded. In pages of 4 KiB that
    costs 50 of 140 ms of processor time, in huge pages 23 ms, with the same peak
    (``benchmarks/README.md``). glibc reads the variable when a process starts; other C libraries
    ignore it.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if _HUGE_PAGES not in tunables:  # a person's choice counts
        os.environ[_TUNABLES] = ":".join(filter(None, [tunables, f"{_HUGE_PAGES}=1"]))


@cache
def return_large_blocks() -> None:
    """Make glibc return large blocks to the system; other C libraries have no such setting."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
