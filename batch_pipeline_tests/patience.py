"""How long tests wait for what happens by itself: an event mostly, sometimes a promised time."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: Longest wait for what takes no time on a quiet machine; no test takes longer for it (seconds).
DEADLINE = 60.0
#: Longest wait for what begins with the start of a process, or of several (seconds).
WAIT_SECONDS = 150.0
#: The longest pause before a condition is looked at again (seconds).
_LONGEST_PAUSE = 0.2


def wait_until(condition: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Return what `condition` gives, once that is true.

    Raises:
        AssertionError: it is not true within `seconds`.
    """
    deadline, pause = time.monotonic() + seconds, 0.001
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(pause)
        pause = min(1.5 * pause, _LONGEST_PAUSE)
    return result


def promised(seconds: float) -> float:
    """The longest that a promise of so many seconds may take here and now.

    As promised on a quiet machine. Where more processes want to run than there are processors,
    each gets its share of the time only, and in turns.
    """
    averages, running = os.getloadavg(), Path("/proc/loadavg")
    now = int(running.read_text().split()[3].partition("/")[0]) if running.exists() else 0
    return seconds * max(1.0, 3 * max(averages[0], now) / (os.cpu_count() or 1))
