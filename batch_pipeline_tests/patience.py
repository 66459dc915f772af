"""How long tests wait for what happens by itself: an event mostly, sometimes a promised time."""

import os
from pathlib import Path

#: Longest wait for what takes no time on a quiet machine; no test takes longer for it (seconds).
DEADLINE = 60.0


def promised(seconds: float) -> float:
    """The longest that a promise of so many seconds may take here and now.

    As promised on a quiet machine. Where more processes want to run than there are processors,
    each gets its share of the time only, and in turns.
    """
    averages, running = os.getloadavg(), Path("/proc/loadavg")
    now = int(running.read_text().split()[3].partition("/")[0]) if running.exists() else 0
    return seconds * max(1.0, 3 * max(averages[0], now) / (os.cpu_count() or 1))
