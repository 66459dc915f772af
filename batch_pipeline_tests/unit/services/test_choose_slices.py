"""The sensor's decision: a pure function from rows to what is launched now."""

import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.services.dispatch.slices import NEW, WaitingSlice, choose_slices

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
IDS = [uuid.UUID(int=number) for number in range(1, 6)]


def slices(batch, count, reason=NEW, first=1, has_head_start=False):
    created = NOON + timedelta(minutes=IDS.index(batch))
    return [
        WaitingSlice(batch, uuid.UUID(int=9), created, number, reason, 10, has_head_start)
        for number in range(first, first + count)
    ]


def choose(waiting, launched=(), in_flight=None, max_in_flight=4):
    return choose_slices(
        waiting,
        launched=launched,
        in_flight=Counter(in_flight or {}),
        max_in_flight=max_in_flight,
    )


@st.composite
def situations(draw):
    waiting = []
    for batch in IDS:
        news = draw(st.integers(0, 6))
        has_head_start = draw(st.booleans())
        waiting += slices(batch, news, has_head_start=has_head_start)
        waiting += slices(
            batch,
            draw(st.integers(0, 3)),
            draw(st.sampled_from(["retry", "rescue"])),
            first=news + 1,
            has_head_start=has_head_start,
        )
    keys = [slice_.key for slice_ in waiting]
    return {
        "waiting": waiting,
        "launched": set(draw(st.lists(st.sampled_from(keys)))) if keys else set(),
        "in_flight": draw(st.dictionaries(st.sampled_from(IDS), st.integers(0, 3))),
        "max_in_flight": draw(st.integers(1, 12)),
    }


def test_a_batch_of_a_thousand_files_does_not_keep_one_of_three_waiting():
    large, small = slices(IDS[0], 4), slices(IDS[1], 1)
    assert choose([*large, *small], max_in_flight=2) == [large[0], small[0]]


def test_a_batch_with_runs_in_flight_waits_for_one_that_has_none():
    large, small = slices(IDS[0], 4), slices(IDS[1], 1)
    assert choose([*large, *small], in_flight={IDS[0]: 3})[:1] == small


def test_the_first_run_of_a_large_batch_has_a_head_start():
    large, small = slices(IDS[0], 40, has_head_start=True), slices(IDS[1], 1, has_head_start=True)
    assert choose([*large, *small]) == [large[0], *small]
    assert choose(large[1:], in_flight={IDS[0]: 1}) == []


def test_the_older_batch_goes_first_on_a_tie():
    assert choose([*slices(IDS[0], 1), *slices(IDS[1], 1)], max_in_flight=1) == slices(IDS[0], 1)


def test_new_work_goes_before_retries_and_rescues():
    waiting = [*slices(IDS[0], 2, "retry"), *slices(IDS[1], 1, "rescue"), *slices(IDS[2], 1)]
    assert choose(waiting, max_in_flight=1) == slices(IDS[2], 1)


@given(situations())
def test_what_was_launched_is_never_launched_again_and_nothing_twice(situation):
    chosen = choose(**situation)
    keys = [slice_.key for slice_ in chosen]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & situation["launched"]
    assert set(chosen) <= set(situation["waiting"])


def candidates_of(situation):
    """What may be launched, were there no limit: one slice of a batch that has a head start."""
    left = [s for s in situation["waiting"] if s.key not in situation["launched"]]
    found = [s for s in left if not s.has_head_start]
    for batch in IDS:
        of_batch = [s for s in left if s.has_head_start and s.batch_id == batch]
        if not situation["in_flight"].get(batch):
            found += sorted(of_batch, key=lambda s: s.reason != NEW)[:1]
    return found


@given(situations())
def test_the_limit_holds_and_is_used_up(situation):
    free = max(0, situation["max_in_flight"] - sum(situation["in_flight"].values()))
    assert len(choose(**situation)) == min(free, len(candidates_of(situation)))


@given(situations())
def test_no_batch_gets_further_ahead_than_by_one_run_of_one_that_still_waits(situation):
    chosen = Counter(s.batch_id for s in choose(**situation) if s.reason == NEW)
    wanted = Counter(s.batch_id for s in candidates_of(situation) if s.reason == NEW)
    load = Counter(situation["in_flight"]) + chosen
    waiting = [batch for batch in wanted if chosen[batch] < wanted[batch]]
    for served in chosen:
        for batch in waiting:
            assert load[served] <= load[batch] + 1


@given(situations())
def test_nothing_is_retried_while_new_work_waits(situation):
    chosen = choose(**situation)
    if any(slice_.reason != NEW for slice_ in chosen):
        assert {s for s in candidates_of(situation) if s.reason == NEW} <= set(chosen)
