"""Rate limits that servers report, and the pace that follows from them."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from batch_pipeline.model_servers.rate_limits import (
    LONGEST_PAUSE_SECONDS,
    Pace,
    Room,
    asked_wait,
    rooms,
)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "60"}, 60),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "1m30s"}, 90),
        ({"retry-after": "20s"}, 20),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 01 Jan 99999999999 00:00:00 GMT"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0.5s"}, 60.5),
        ({"x-ratelimit-remaining-requests": "7", "x-ratelimit-reset-requests": "12s"}, None),
    ],
)
def test_the_pause_after_a_refused_call_is_read_from_the_headers(headers, seconds):
    assert asked_wait(headers) == seconds


def test_a_wait_may_be_named_as_a_date():
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert asked_wait({"retry-after": at}) == pytest.approx(90, abs=3)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=90), usegmt=True)
    assert asked_wait({"retry-after": past}) == 0
    assert asked_wait({"retry-after": f"{time.time() + 90:.0f}"}) == pytest.approx(90, abs=3)


def in_ten_seconds() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=10)


@pytest.mark.parametrize(
    ("headers", "of_tokens"),
    [
        (
            lambda: {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "12",
                "x-ratelimit-reset-requests": "10s",
            },
            False,
        ),
        (
            lambda: {
                "x-ratelimit-limit-tokens": "60",
                "x-ratelimit-remaining-tokens": "12",
                "x-ratelimit-reset-tokens": "10s",
            },
            True,
        ),
        (
            lambda: {
                "anthropic-ratelimit-requests-limit": "60",
                "anthropic-ratelimit-requests-remaining": "12",
                "anthropic-ratelimit-requests-reset": in_ten_seconds().isoformat(),
            },
            False,
        ),
        (
            lambda: {
                "anthropic-ratelimit-input-tokens-limit": "60",
                "anthropic-ratelimit-input-tokens-remaining": "12",
                "anthropic-ratelimit-input-tokens-reset": in_ten_seconds().isoformat(),
            },
            True,
        ),
        (
            lambda: {
                "X-RateLimit-Limit": "60",
                "X-RateLimit-Remaining": "12",
                "X-RateLimit-Reset": str(int((time.time() + 10) * 1000)),
            },
            False,
        ),
        (
            lambda: {
                "ratelimit-limit": "60",
                "ratelimit-remaining": "12",
                "ratelimit-reset": "10",
            },
            False,
        ),
    ],
)
def test_the_headers_of_common_services_are_read(headers, of_tokens):
    [room] = rooms(headers())
    assert (room.left, room.limit, room.of_tokens) == (12, 60, of_tokens)
    assert room.reset_seconds == pytest.approx(10, abs=1.5)


def test_headers_that_make_no_sense_are_ignored():
    assert (
        rooms({"x-ratelimit-remaining-requests": "many", "x-ratelimit-reset-requests": "?"}) == []
    )
    assert rooms({"x-ratelimit-remaining-requests": "4"}) == []
    assert rooms({"content-type": "application/json"}) == []


def answered(pace: Pace, now: float, left: float, reset: float, *, share: float = 1.0) -> None:
    room = Room(left, 60, reset, of_tokens=False)
    pace.answered(now, [room], in_flight=3, share=share, tokens=0)


def test_no_call_waits_while_much_of_the_limit_remains():
    pace = Pace()
    answered(pace, 100, left=40, reset=50)
    assert pace.not_before <= 100


def test_the_remaining_limit_is_spread_over_the_time_until_it_is_renewed():
    pace = Pace()
    answered(pace, 100, left=7, reset=50)
    assert pace.not_before == pytest.approx(100 + 50 / 5)  # 3 of the 7 are in flight


def test_calls_that_wait_for_the_remaining_limit_begin_one_after_the_other():
    pace = Pace()
    answered(pace, 100, left=7, reset=50)
    pace.begin(110)
    assert pace.not_before == pytest.approx(110 + 50 / 5)

    answered(pace, 121, left=59, reset=60)
    pace.begin(121)
    assert pace.not_before <= 121


def test_a_process_takes_its_share_of_the_remaining_limit():
    pace = Pace()
    answered(pace, 100, left=7, reset=50, share=0.5)
    assert pace.not_before == pytest.approx(100 + 2 * 50 / 5)


def test_when_the_remaining_limit_is_in_flight_all_wait_until_it_is_renewed():
    pace = Pace()
    answered(pace, 100, left=3, reset=50)
    assert pace.not_before == 150


def test_remaining_tokens_count_as_the_calls_for_which_they_suffice():
    pace = Pace()
    few = Room(6_000, 1_000_000, 60, of_tokens=True)
    for _ in range(30):
        pace.answered(0, [], in_flight=0, share=1, tokens=2_000)
    pace.answered(100, [few], in_flight=0, share=1, tokens=2_000)
    assert pace.not_before == pytest.approx(100 + 60 / 4, rel=0.01)


def test_a_server_that_refuses_without_headers_is_called_as_fast_as_it_accepted_before():
    pace = Pace()
    for second in range(30):
        pace.answered(second, [], in_flight=0, share=1, tokens=0)
    pace.pause(30, 30, "too many")
    pace.refused()
    assert pace.not_before == 60

    pace.begin(61)
    assert pace.not_before == pytest.approx(61 + 60 / 30)


def test_a_pause_of_a_day_is_not_believed_for_longer_than_a_quarter_of_an_hour():
    pace = Pace()
    pace.pause(0, 86_400, "daily limit")
    assert pace.not_before == LONGEST_PAUSE_SECONDS


def test_the_remaining_limit_of_a_month_is_not_spread_over_the_month():
    pace = Pace()
    answered(pace, 100, left=5, reset=30 * 86_400)
    assert pace.not_before == 100 + LONGEST_PAUSE_SECONDS
