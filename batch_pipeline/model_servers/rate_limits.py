"""What servers say about how fast they may be called, and when the next call may begin.

Services count calls and tokens, and tell what is left in headers that each names a little
differently. Reading them is one part of this module; keeping to them, the other (`Pace`). Who waits
for a pace lives in `call_slots`, how pauses reach other processes in `services.shared_call_slots`.
"""

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: A service that names a longer pause is asked again after this one: a limit may be raised.
LONGEST_PAUSE_SECONDS = 900.0

#: ``x-ratelimit-remaining-requests``, ``anthropic-ratelimit-input-tokens-reset``, …
_RATE_HEADER = re.compile(
    r"^(?:x-|anthropic-)?ratelimit-(?=.*\b(?P<what>limit|remaining|reset)\b)(?P<rest>[a-z-]+)$"
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
#: A larger number is a moment since 1970, not a pause (seconds).
_EPOCH_SECONDS = 1e9


@dataclass(frozen=True)
class Room:
    """What a server says is left of a limit until it is renewed."""

    left: float
    """Calls, or tokens."""
    limit: float | None
    """What may be used between two renewals; None: not told."""
    reset_seconds: float
    """Until everything is there again."""
    of_tokens: bool


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds until a server that turned a call away wants to be asked again; None: not told."""
    if (text := headers.get("retry-after-ms")) is not None and _is_number(text):
        return max(0.0, float(text) / 1000)
    if (text := headers.get("retry-after")) is not None:
        if _is_number(text):
            return max(0.0, float(text))
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            pass
        else:
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    used_up = [room.reset_seconds for room in rooms(headers) if room.left <= 0]
    return max(used_up) if used_up else None


def rooms(headers: Mapping[str, str]) -> list[Room]:
    """What is left of each limit that the headers of an answer tell of."""
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
    """Read ``6m0s``, ``12``, a moment since 1970 in seconds or milliseconds, or an ISO date."""
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

    Without a word from the server, at once. When it tells that little is left, what is left is
    spread over the time until it is renewed; when it turns a call away, nobody calls until the
    pause is over, and then as fast as it had let calls through before. All moments are monotonic
    seconds.
    """

    #: A pace that was learnt from a refusal holds for so many of its windows; services change
    #: limits, and one refusal in so long costs little.
    _WINDOWS_REMEMBERED = 10
    #: How far back answers are counted to learn it: two windows of the most common length.
    _COUNTED_SECONDS = 120.0
    #: Below this share of a limit, what is left is spread.
    _LITTLE_LEFT = 0.1
    _TOKENS_OF_A_CALL = 1500.0

    def __init__(self) -> None:
        self.not_before = 0.0
        self.reason = ""
        #: Between the beginnings of two calls, as learnt from a refusal and as told by the server;
        #: each until some moment.
        self._learnt_interval, self._learnt_until = 0.0, 0.0
        self._told_interval, self._told_until = 0.0, 0.0
        self._answered_at: deque[float] = deque(maxlen=1000)
        self._tokens_of_a_call = self._TOKENS_OF_A_CALL

    def begin(self, now: float) -> None:
        """A call begins."""
        learnt = self._learnt_interval if now < self._learnt_until else 0.0
        told = self._told_interval if now < self._told_until else 0.0
        self.not_before = max(self.not_before, now + max(learnt, told))

    def pause(self, now: float, seconds: float, reason: str) -> None:
        """The server, asked here or by somebody else, wants no call for a while."""
        self.reason = reason
        self.not_before = max(self.not_before, now + min(seconds, LONGEST_PAUSE_SECONDS))

    def refused(self) -> None:
        """A call of this process was turned away, and `pause` was called: learn how fast is fast.

        What was answered since long before is what fits into the time until the pause is over.
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
        """A call was answered, and the answer told what is left.

        Args:
            now: monotonic seconds.
            told: of each limit.
            in_flight: calls of all processes that the server may not have counted yet.
            share: this process' part of all calls, from 0 to 1.
            tokens: what the call used; 0: not told.
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
                self.pause(now, room.reset_seconds, "what is left of its limit is in use")
                continue
            wait = min(room.reset_seconds / (left + 1) / max(share, 0.01), room.reset_seconds)
            if wait > self._told_interval:
                self._told_interval, self._told_until = wait, now + room.reset_seconds
        self.not_before = max(self.not_before, now + self._told_interval)
