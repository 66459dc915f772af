"""How long tests wait: usually for an event, sometimes for a promised time."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: Longest wait for something that is immediate on an idle machine (seconds).
DEADLINE = 60.0
#: Longest wait for something that first needs the start of one or more processes (seconds).
WAIT_SECONDS = 150.0
#: Longest pause between two checks of a condition (seconds).
_LONGEST_PAUSE = 0.2


def wait_until(condition: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Wait until `condition` returns something true, and return that.

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
    """Return how long something that is promised within `seconds` may take on this machine now.

    On an idle machine this is the promise itself. If more processes want to run than there are
    processors, each gets only its share of the time, in turns.
    """
    averages, running = os.getloadavg(), Path("/proc/loadavg")
    now = int(running.read_text().split()[3].partition("/")[0]) if running.exists() else 0
    return seconds * max(1.0, 3 * max(averages[0], now) / (os.cpu_count() or 1))
