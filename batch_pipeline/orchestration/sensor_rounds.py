"""Makes Dagster's daemon check every second which sensors are due, instead of every 5 s.

The sensor of `sensors.build_pending_batches` waits inside its tick until there is work. When it has
requested a run, its next tick should begin soon. Otherwise the next submission waits for up to 5 s.
Other sensors do not tick more often, because each has its own interval.
"""

from batch_pipeline.dagster_internals import daemon_loop

#: Time between two checks (seconds). A check that finds no sensor due costs 4 ms of processor time.
ROUND_SECONDS = 1


def shorten_rounds() -> None:
    """Shorten the time between two checks, if this process is the daemon."""
    if hasattr(daemon_loop, "MIN_INTERVAL_LOOP_TIME"):
        daemon_loop.MIN_INTERVAL_LOOP_TIME = ROUND_SECONDS
