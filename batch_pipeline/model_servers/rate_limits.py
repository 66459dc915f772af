"""Reads the rate limits of servers, and decides when the next call may begin.

Services count calls and tokens, and report the rest in headers; each service names them a little
differently. This module reads the headers and keeps to the limits (`Pace`). Waiting is in
`call_slots`; `services.shared_call_slots` passes pauses to other processes.
"""

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: A service that asks for a longer pause is called again after this one: its limit may be raised.
LONGEST_PAUSE_SECONDS = 900.0

#: ``x-ratelimit-remaining-requests``, ``anthropic-ratelimit-input-tokens-reset``, …
_RATE_HEADER = re.compile(
    r"^(?:x-|anthropic-)?ratelimit-(?=.*\b(?P<what>limit|remaining|reset)\b)(?P<rest>[a-z-]+)$"
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
#: A larger number is a Unix time, not a pause (seconds).
_EPOCH_SECONDS = 1e9


@dataclass(frozen=True)
class Room:
    """The rest of a server's limit, until the limit is renewed."""

    left: float
    """Calls, or tokens."""
    limit: float | None
    """What may be used between two renewals; None: not reported."""
    reset_seconds: float
    """Time until the whole limit is available again."""
    of_tokens: bool


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return how long a server that refused a call asks us to wait (seconds); None: not given."""
    if (text := headers.get("retry-after-ms")) is not None and _is_number(text):
        return max(0.0, float(text) / 1000)
    if (text := headers.get("retry-after")) is not None:
        if (seconds := _seconds_until(text)) is not None:
            return seconds
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            pass
        else:
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    used_up = [room.reset_seconds for room in rooms(headers) if room.left <= 0]
    return max(used_up) if used_up else None


def rooms(headers: Mapping[str, str]) -> list[Room]:
    """Return the rest of each limit that the headers of an answer name."""
    told: dict[str, dict[str, str]] = {}
    for name, value in headers.items():
        if found := _RATE_HEADER.match(name.lower()):
            what = found["what"]
            subject = re.sub(rf"-?\b{what}\b-?", "", found["rest"])
            told.setdefault(subject, {})[what] = value
    found_rooms = []
    for subject, values in told.items():
        left, limit = values.get("remaining", ""), values.get("limit", "")
        seconds = _seconds_until(values.get("reset", ""))
        if _is_number(left) and seconds is not None:
            found_rooms.append(
                Room(
                    float(left),
                    float(limit) if _is_number(limit) else None,
                    seconds,
                    of_tokens="token" in subject,
                )
            )
    return found_rooms


def _seconds_until(text: str) -> float | None:
    """Read ``6m0s``, ``12``, a Unix time in seconds or milliseconds, or an ISO date."""
    text = text.strip()
    if _is_number(text):
        number = float(text)
        if number > _EPOCH_SECONDS * 1000:
            number /= 1000
        return max(0.0, number - time.time() if number > _EPOCH_SECONDS else number)
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*\d+(\.\d+)?\s*", text) is not None


class Pace:
    """When the next call of this process to one server may begin.

    If the server reports no limit, the call may begin at once. If little is left of a limit, calls
    spread over the time until the limit is renewed. If the server refuses a call, no call begins
    until the pause is over; after it, calls begin at the rate that the server accepted before. All
    moments are monotonic seconds.
    """

    #: Number of windows for which a pace learnt from a refusal is valid. Services change limits,
    #: and one refusal in such a long time costs little.
    _WINDOWS_REMEMBERED = 10
    #: Time over which answers are counted to learn it: two windows of the most common length.
    _COUNTED_SECONDS = 120.0
    #: Below this share of a limit, the rest is spread over time.
    _LITTLE_LEFT = 0.1
    _TOKENS_OF_A_CALL = 1500.0

    def __init__(self) -> None:
        self.not_before = 0.0
        self.reason = ""
        #: Time between the beginnings of two calls: learnt from a refusal, and reported by the
        #: server; each is valid until some moment.
        self._learnt_interval, self._learnt_until = 0.0, 0.0
        self._told_interval, self._told_until = 0.0, 0.0
        self._answered_at: deque[float] = deque(maxlen=1000)
        self._tokens_of_a_call = self._TOKENS_OF_A_CALL

    def begin(self, now: float) -> None:
        """Note that a call begins."""
        learnt = self._learnt_interval if now < self._learnt_until else 0.0
        told = self._told_interval if now < self._told_until else 0.0
        self.not_before = max(self.not_before, now + max(learnt, told))

    def pause(self, now: float, seconds: float, reason: str) -> None:
        """Allow no calls for a while: the server asked this or another process for a pause."""
        self.reason = reason
        self.not_before = max(self.not_before, now + min(seconds, LONGEST_PAUSE_SECONDS))

    def refused(self) -> None:
        """Learn the pace from a refused call of this process; call `pause` first.

        Assumes that in the time from the first recent answer to the end of the pause, the server
        accepts as many calls as it has answered.
        """
        while self._answered_at and self.not_before - self._answered_at[0] > self._COUNTED_SECONDS:
            self._answered_at.popleft()
        if self._answered_at:
            window = self.not_before - self._answered_at[0]
            self._learnt_interval = window / len(self._answered_at)
            self._learnt_until = self.not_before + self._WINDOWS_REMEMBERED * window

    def answered(
        self, now: float, told: Sequence[Room], *, in_flight: int, share: float, tokens: float
    ) -> None:
        """Note an answered call, and what its answer says is left.

        Args:
            now: monotonic seconds.
            told: the rest of each limit.
            in_flight: calls of all processes that the server may not have counted yet.
            share: this process's part of all calls, from 0 to 1.
            tokens: tokens that the call used; 0: not reported.
        """
        self._answered_at.append(now)
        if tokens:
            self._tokens_of_a_call += 0.2 * (tokens - self._tokens_of_a_call)
        self._told_interval = 0.0
        for room in told:
            of_a_call = self._tokens_of_a_call if room.of_tokens else 1.0
            left = room.left / of_a_call - in_flight
            little = max(in_flight + 1, self._LITTLE_LEFT * (room.limit or 0) / of_a_call)
            if left > little or not room.reset_seconds:
                continue
            if left < 1:
                self.pause(now, room.reset_seconds, "its rate limit leaves no further call")
                continue
            wait = min(
                room.reset_seconds / (left + 1) / max(share, 0.01),
                room.reset_seconds,
                LONGEST_PAUSE_SECONDS,
            )
            if wait > self._told_interval:
                self._told_interval, self._told_until = wait, now + room.reset_seconds
        self.not_before = max(self.not_before, now + self._told_interval)
