"""Within one process: which server a call goes to, and when."""

import time
from contextlib import ExitStack

from batch_pipeline.model_servers.base import never_cancelled
from batch_pipeline.model_servers.call_slots import CallGate

FAST, SLOW = "http://fast", "http://slow"


def taken(gate: CallGate, *servers: str):
    return gate.taken(lambda: servers, never_cancelled)


def test_calls_go_where_the_fewest_seconds_of_work_are_in_flight():
    gate = CallGate(4)
    with taken(gate, SLOW):
        time.sleep(0.3)
    with taken(gate, FAST):
        pass

    with ExitStack() as held:
        chosen = [held.enter_context(taken(gate, FAST, SLOW)) for _ in range(8)]

    assert chosen == [FAST] * 4 + [SLOW] * 4


def test_while_durations_are_unknown_servers_get_the_same_number_of_calls():
    gate = CallGate(4)

    with ExitStack() as held:
        chosen = [held.enter_context(taken(gate, FAST, SLOW)) for _ in range(6)]

    assert chosen.count(FAST) == chosen.count(SLOW) == 3


def test_a_server_may_take_another_number_of_calls():
    gate = CallGate(1, {SLOW: 3})

    with ExitStack() as held:
        chosen = [held.enter_context(taken(gate, FAST, SLOW)) for _ in range(4)]

    assert chosen.count(SLOW) == 3
