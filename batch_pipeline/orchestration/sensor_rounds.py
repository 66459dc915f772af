"""How often Dagster's daemon looks which sensors are due: more often than the 5 s it has built in.

A sensor of ours waits inside its tick until there is work (`sensors.build_pending_batches`). When
it has asked for a run, it is to be asked again soon, or what is submitted next waits for the rest
of the 5 s. No other sensor ticks more often for it: each has an interval of its own.
"""

from batch_pipeline.dagster_internals import daemon_loop

#: A round that finds no sensor due costs 4 ms of processor time (seconds).
ROUND_SECONDS = 1


def shorten_rounds() -> None:
    """Shorten the rounds of this process, if it is the daemon; no other has any."""
    if hasattr(daemon_loop, "MIN_INTERVAL_LOOP_TIME"):
        daemon_loop.MIN_INTERVAL_LOOP_TIME = ROUND_SECONDS
