"""Which messages pass at which pace; tests set the clock."""

import pytest

from batch_pipeline.services.progress.pace import Pace


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def pace(clock):
    return Pace(burst=3, per_second=2, clock=lambda: clock[0])


def passed(pace, key, tries):
    return sum(pace.admits(key) for _ in range(tries))


def test_a_burst_passes_and_then_a_limited_number_per_second(pace, clock):
    assert passed(pace, "a", 10) == 3
    clock[0] += 1
    assert passed(pace, "a", 10) == 2
    clock[0] += 1000
    assert passed(pace, "a", 10) == 3


def test_slow_events_always_pass(pace, clock):
    for _ in range(100):
        clock[0] += 0.5
        assert pace.admits("a")


def test_keys_do_not_wait_for_each_other(pace):
    assert passed(pace, "a", 10) == 3
    assert passed(pace, "b", 10) == 3
    assert passed(pace, "a", 10) == 0


def test_the_number_of_remembered_keys_is_limited(pace):
    assert passed(pace, "first", 10) == 3
    assert all(pace.admits(key) for key in range(Pace.MAX_KEYS))
    assert pace.admits("first")  # forgotten
    assert len(pace._tokens) <= Pace.MAX_KEYS


def test_keys_that_are_known_are_not_forgotten_for_each_other(pace):
    for key in range(Pace.MAX_KEYS):
        assert passed(pace, key, 10) == 3
    assert not any(pace.admits(key) for key in range(Pace.MAX_KEYS))


def test_time_without_admitted_events_counts_once(pace, clock):
    passed(pace, "a", 10)
    for _ in range(4):
        clock[0] += 0.125
        admitted = pace.admits("a")
    assert admitted  # half a second, at two a second
    assert not pace.admits("a")
