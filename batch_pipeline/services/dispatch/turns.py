"""Decides which of the waiting slices get the runs that are free now.

The functions are pure. ``slices.py`` finds the waiting slices, the sensor counts the runs in
flight, and the sensor's cursor keeps the turns taken so far. The rule:

1. **Users take turns.** The next run goes to the user who has waited longest. The wait of a
   user begins when its last run was launched, or when its oldest waiting upload began to wait, if
   that was later. So a user with 10,000 files gets one run, then every other waiting user gets one.
2. **Then batches of that user take turns**, by the same rule. A batch of high priority counts as if
   it had waited half an hour longer, a batch of low priority as if it had waited half an hour less.
   Priorities do not change the turns of users.
3. **Within a batch, the oldest uploads go first.** An upload that was lost with its run keeps its
   age, so it is next in its batch. An upload that a person or the sweep reopened (`retry`,
   `reprocess`) begins to wait at that moment, so it does not go before newer submissions.
4. **A run in flight counts as ten minutes.** Each run in flight of a user (or a batch) moves the
   start of its wait ten minutes later. So a user without runs goes before a user with many runs who
   came shortly before.
5. No user gets more than ``MAX_RUNS_PER_USER`` runs in flight.
6. A batch that is **paused** gets no run. It keeps its place.
7. Runs hold no more than ``MAX_UPLOADS_PER_USER`` uploads of one user. A slice takes as many
   uploads as there is room for, but it is not opened before half of the limit is free. Otherwise a
   run would be launched for each upload that ends. A user without room keeps its place, and other
   users get the runs.

New work, retries and rescues are treated alike: only age counts.

The wait is bounded. A user or batch has a place in the order: the moment at which its wait began by
rules 1 and 4. A later arrival does not go before it, and each earlier one goes before it once. For
B open batches of a user and U users with open batches, this means:

- The oldest slice of a batch (for example one that was lost with its run) is launched within
  **B x U turns** of its place. New submissions do not change this.
- If its user has nothing else in flight, its place is not in the future.
- If its user has batches of high priority, the count begins half an hour later for a batch of
  normal priority, and an hour later for a batch of low priority. After that time, every new batch
  and every batch that has had a turn has a later place.

``unit/services/test_turns.py`` tests this with arrivals of all kinds.
"""

import heapq
import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Self

from batch_pipeline.database.models import Priority
from batch_pipeline.services.short_ids import batch_label
from batch_pipeline.wording import counted, listed

#: Reason of a slice whose uploads were never taken before.
NEW = "new"
#: A run in flight moves the start of the wait this much later (seconds).
SECONDS_PER_RUN_IN_FLIGHT = 600.0
#: A batch counts as waiting this much longer than other batches of its user (seconds).
EARLIER_SECONDS: Mapping[str, float] = {Priority.LOW: -1800.0, Priority.HIGH: 1800.0}
#: How many users and how many batches the cursor remembers. Those that wait come first, then those
#: with the newest turns.
MAX_REMEMBERED = 1000
#: Turns of users and batches that do not wait are forgotten after this time (seconds). Their next
#: work is newer than the turn, and users and batches that were deleted must not be named for ever.
REMEMBERED_SECONDS = 86400.0


class WaitingSlice(NamedTuple):
    """Uploads of one batch that one run will take."""

    batch_id: uuid.UUID
    user_id: uuid.UUID
    waits_since: float
    """When its oldest upload began to wait (seconds since 1970)."""
    number: int | None = None
    """Its number within its batch; None: it gets one when its turn comes."""
    reason: str = NEW
    """Why it was opened: new, retry, rescue or reprocess."""
    uploads: int = 0
    """How many uploads it has. For a slice without a number: how many it may get; 0 means as many
    as a run takes."""
    is_paused: bool = False
    """A person has paused the batch, its user or everything."""
    priority: str = Priority.NORMAL
    """The priority of its batch; an unknown word counts as normal."""
    batch_name: str | None = None

    @property
    def label(self) -> str:
        """The name of its batch in a message."""
        return batch_label(self.batch_id, self.batch_name)

    @property
    def key(self) -> str:
        """A key that is unique over all batches and times; only for a slice that has a number."""
        return f"{self.batch_id}/{self.number}"


@dataclass(frozen=True)
class InFlight:
    """Runs that are queued or running."""

    total: int = 0
    """Includes runs of unknown batches."""
    of_user: Mapping[uuid.UUID, int] = field(default_factory=dict)
    of_batch: Mapping[uuid.UUID, int] = field(default_factory=dict)

    def and_(self, slices: Iterable[WaitingSlice]) -> Self:
        """Return a copy with one more run for each of these slices."""
        slices = list(slices)
        return type(self)(
            self.total + len(slices),
            Counter(self.of_user) + Counter(slice_.user_id for slice_ in slices),
            Counter(self.of_batch) + Counter(slice_.batch_id for slice_ in slices),
        )


class Why(StrEnum):
    """What a slice waits for, as the message of a tick says it."""

    LAUNCHED = "already launched"
    PAUSED = "paused"
    USER_LIMIT = "behind runs of the same user"
    UPLOAD_LIMIT = "behind uploads of the same user"
    NO_ROOM = "behind other runs"


@dataclass(frozen=True)
class UploadLimit:
    """Limit of the uploads of one user that runs may hold."""

    per_user: int
    per_run: int
    in_flight: Mapping[uuid.UUID, int]
    """Uploads of each user that are reserved, in progress or in a slice that has a number."""

    @property
    def least(self) -> int:
        """The room that is needed before another slice is opened."""
        return min(self.per_run, -(-self.per_user // 2))

    def room(self, user_id: uuid.UUID) -> int:
        """Return how many more uploads of a user runs may get."""
        return self.per_user - self.in_flight.get(user_id, 0)


@dataclass(frozen=True)
class Turns:
    """When users and batches had their last turn (seconds since 1970); stored as text."""

    users: Mapping[uuid.UUID, float] = field(default_factory=dict)
    batches: Mapping[uuid.UUID, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read what `__str__` wrote; any other text means that no turn was taken."""
        try:
            kept = json.loads(text or "")
            return cls(
                *(
                    {uuid.UUID(key): float(moment) for key, moment in kept[name].items()}
                    for name in ("users", "batches")
                )
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def __str__(self) -> str:
        """Return the turns as JSON text."""
        return json.dumps(
            {
                "users": {key.hex: round(moment, 3) for key, moment in self.users.items()},
                "batches": {key.hex: round(moment, 3) for key, moment in self.batches.items()},
            }
        )

    def until(self, now: float) -> Self:
        """Return a copy without turns in the future, which a clock that was ahead has recorded.

        Otherwise their users and batches would wait until that moment.
        """
        users, batches = (
            {key: moment for key, moment in moments.items() if moment <= now}
            for moments in (self.users, self.batches)
        )
        return type(self)(users, batches)

    def and_(
        self, taken: Iterable[WaitingSlice], waiting: Iterable[WaitingSlice], now: float
    ) -> Self:
        """Return a copy with the turns that were taken now, without those too old to matter."""
        users = dict(self.users)
        batches = dict(self.batches)
        for slice_ in taken:
            users[slice_.user_id] = batches[slice_.batch_id] = now
        waiting = list(waiting)
        return type(self)(
            _newest(users, {slice_.user_id for slice_ in waiting}, now),
            _newest(batches, {slice_.batch_id for slice_ in waiting}, now),
        )


@dataclass(frozen=True)
class Choice:
    """The slices to launch now, and why the others wait."""

    chosen: Sequence[WaitingSlice]
    """Slices in the order of their turns."""
    waiting: Mapping[Why, Collection[uuid.UUID]]
    """Batches that wait, by what they wait for; one batch may wait for several things."""
    labels: Mapping[uuid.UUID, str]
    """Names of the waiting batches in a message."""

    @property
    def needs_a_run_to_end(self) -> bool:
        """Whether a slice waits that is launched as soon as another run ends or starts."""
        others = (Why.LAUNCHED, Why.PAUSED)
        return any(ids for why, ids in self.waiting.items() if why not in others)

    def __str__(self) -> str:
        """Return one line about the waiting batches; empty if nothing waits."""
        batches = {batch_id for ids in self.waiting.values() for batch_id in ids}
        if not batches:
            return ""
        wait = counted(len(batches), "batch waits", "batches wait")
        said = [
            f"{len(ids)} {why} [{listed([self.labels[id_] for id_ in ids])}]"
            for why, ids in self.waiting.items()
            if ids
        ]
        return f"{wait}: {', '.join(said)}"


#: When the wait of a user or batch began. On a tie, fewer runs in flight go first, then older work.
_Place = tuple[float, int, float, uuid.UUID]


def _place(who: uuid.UUID, *, oldest: float, last_turn: float, runs: int) -> _Place:
    return max(oldest, last_turn) + SECONDS_PER_RUN_IN_FLIGHT * runs, runs, oldest, who


@dataclass
class _Batch:
    """Waiting slices of a batch, and its turns."""

    id: uuid.UUID
    user_id: uuid.UUID
    last_turn: float
    runs: int
    """In flight."""
    priority: str
    slices: list[WaitingSlice] = field(default_factory=list)
    """Oldest first."""
    has_no_room: bool = False
    """Other slices of the batch wait for uploads of the user to end."""

    @property
    def place(self) -> _Place:
        earlier = EARLIER_SECONDS.get(self.priority, 0.0)
        return _place(
            self.id,
            oldest=self.slices[0].waits_since - earlier,
            last_turn=self.last_turn - earlier,
            runs=self.runs,
        )


@dataclass
class _User:
    """Waiting batches of a user, and its turns."""

    id: uuid.UUID
    last_turn: float
    runs: int
    """In flight."""
    limit: UploadLimit | None
    room: int
    """How many more uploads runs may get, if there is a limit."""
    batches: list[_Batch] = field(default_factory=list)
    """Batches that may get a run."""

    @property
    def place(self) -> _Place:
        oldest = min(batch.slices[0].waits_since for batch in self.batches)
        return _place(self.id, oldest=oldest, last_turn=self.last_turn, runs=self.runs)

    def take_turn(self, now: float) -> WaitingSlice:
        batch = min(self.batches, key=lambda batch: batch.place)
        slice_ = batch.slices.pop(0)
        if self.limit and slice_.number is None:
            slice_ = slice_._replace(uploads=min(self.limit.per_run, self.room))
            self.room -= slice_.uploads
        batch.last_turn = self.last_turn = now
        batch.runs += 1
        self.runs += 1
        if not batch.slices:
            self.batches.remove(batch)
        self.keep_to_limit()
        return slice_

    def keep_to_limit(self) -> None:
        """Remove slices for which there is no room; a slice with a number has its room already."""
        if self.limit is None or self.room >= self.limit.least:
            return
        for batch in self.batches:
            numbered = [slice_ for slice_ in batch.slices if slice_.number is not None]
            batch.has_no_room = len(numbered) < len(batch.slices)
            batch.slices = numbered
        self.batches = [batch for batch in self.batches if batch.slices]


def choose_slices(
    waiting: Iterable[WaitingSlice],
    *,
    launched: Collection[str],
    in_flight: InFlight,
    max_in_flight: int,
    max_per_user: int,
    turns: Turns,
    now: float,
    upload_limit: UploadLimit | None = None,
) -> Choice:
    """Choose the slices to launch now, by the rule in the docstring of this module.

    Args:
        waiting: every slice with uploads to take. For slices without a number: as many entries for
            each batch as may be launched.
        launched: keys for which a run was launched before, however it ended.
        in_flight: runs queued or running.
        max_in_flight: maximum number of runs in flight.
        max_per_user: maximum number of runs in flight of one user.
        turns: when users and batches had their last turn.
        now: seconds since 1970.
        upload_limit: maximum number of uploads of one user that runs may hold; None: no limit.
    """
    waiting = list(waiting)
    paused = dict.fromkeys(slice_.batch_id for slice_ in waiting if slice_.is_paused)
    offered = [slice_ for slice_ in waiting if not slice_.is_paused]
    batches, already_launched = _by_batch(offered, launched, in_flight, turns)
    users: dict[uuid.UUID, _User] = {}
    for batch in batches:
        if batch.user_id not in users:
            last_turn = turns.users.get(batch.user_id, 0)
            runs = in_flight.of_user.get(batch.user_id, 0)
            room = upload_limit.room(batch.user_id) if upload_limit else 0
            users[batch.user_id] = _User(batch.user_id, last_turn, runs, upload_limit, room)
        users[batch.user_id].batches.append(batch)
    for user in users.values():
        user.keep_to_limit()

    chosen: list[WaitingSlice] = []
    line = [(user.place, user) for user in users.values() if user.batches]
    heapq.heapify(line)
    while line and len(chosen) < max_in_flight - in_flight.total:
        _, user = heapq.heappop(line)
        if user.runs >= max_per_user:
            continue
        chosen.append(user.take_turn(now))
        if user.batches:
            heapq.heappush(line, (user.place, user))

    waits: dict[Why, list[uuid.UUID]] = {why: [] for why in Why}
    waits[Why.LAUNCHED], waits[Why.PAUSED] = already_launched, list(paused)
    for batch in batches:
        if batch.has_no_room:
            waits[Why.UPLOAD_LIMIT].append(batch.id)
        if batch.slices:
            has_its_runs = users[batch.user_id].runs >= max_per_user
            waits[Why.USER_LIMIT if has_its_runs else Why.NO_ROOM].append(batch.id)
    return Choice(chosen, waits, {slice_.batch_id: slice_.label for slice_ in waiting})


def _by_batch(
    waiting: Iterable[WaitingSlice],
    launched: Collection[str],
    in_flight: InFlight,
    turns: Turns,
) -> tuple[list[_Batch], list[uuid.UUID]]:
    """Group the slices that may be launched by batch.

    Also returns the batches with a slice that waits for its launched run.
    """
    batches: dict[uuid.UUID, _Batch] = {}
    already_launched: dict[uuid.UUID, None] = {}
    for slice_ in waiting:
        batch_id = slice_.batch_id
        if slice_.number is not None and slice_.key in launched:
            already_launched[batch_id] = None
            continue
        if batch_id not in batches:
            last_turn = turns.batches.get(batch_id, 0)
            runs = in_flight.of_batch.get(batch_id, 0)
            priority = slice_.priority
            batches[batch_id] = _Batch(batch_id, slice_.user_id, last_turn, runs, priority)
        batches[batch_id].slices.append(slice_)
    for batch in batches.values():
        batch.slices.sort(key=lambda slice_: (slice_.waits_since, slice_.reason == NEW))
    return list(batches.values()), list(already_launched)


def _newest(
    moments: dict[uuid.UUID, float], waiting: Collection[uuid.UUID], now: float
) -> Mapping[uuid.UUID, float]:
    since = now - REMEMBERED_SECONDS
    recent = [key for key, moment in moments.items() if key in waiting or moment > since]
    kept = sorted(recent, key=lambda key: (key in waiting, moments[key]), reverse=True)
    return {key: moments[key] for key in kept[:MAX_REMEMBERED]}
