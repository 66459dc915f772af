"""What decoding in many threads takes in memory, and how it is kept from staying there.

Measured with 8 threads that decode JPEGs of 12 megapixels on 2 cores (`benchmarks/README.md`): one
decode takes about 52 MiB. All eight at once peak at 489 MiB; two at once, as many as there are
cores, at 255 MiB; with large blocks returned to the system as soon as they are freed, at 159 MiB.
"""

import ctypes
import os
import sys
import threading
from functools import cache

#: Blocks from this size on are mapped by themselves, and unmapped when they are freed (bytes): of
#: pictures, not of Python's objects.
_MAPPED_FROM = 1_000_000
#: What the decode of one picture may take, unless it is set otherwise (bytes).
DEFAULT_DECODE_BYTES = 512 * 1024**2
#: Name of that parameter in glibc's `malloc.h`.
_M_MMAP_THRESHOLD = -3


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


#: Files that are decoded at a time: more than there are cores would only take their memory.
AT_ONCE = _usable_cores()
#: Held while a file is decoded.
DECODES = threading.BoundedSemaphore(AT_ONCE)


@cache
def return_large_blocks() -> None:
    """Let glibc give large blocks back to the system; elsewhere the C library does as it likes."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
