"""The choice of the next turn: a pure function, tested by cases and with generated arrivals."""

import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.database.models import Priority
from batch_pipeline.services.dispatch import turns as turns_module
from batch_pipeline.services.dispatch.turns import (
    EARLIER_SECONDS,
    MAX_REMEMBERED,
    REMEMBERED_SECONDS,
    SECONDS_PER_RUN_IN_FLIGHT,
    InFlight,
    Turns,
    UploadLimit,
    WaitingSlice,
    Why,
    choose_slices,
)
from batch_pipeline.services.short_ids import short

NOON = 1_800_000_000.0
BATCHES = [uuid.UUID(int=number) for number in range(1, 6)]
ANNA, BERT, CARL = (uuid.UUID(int=number) for number in range(11, 14))


def slices(batch, count, *, user=ANNA, since=None, numbered=True, **values):
    """Return slices of a batch; it is `place` minutes younger than the first batch."""
    since = NOON + 60 * BATCHES.index(batch) if since is None else since
    return [
        WaitingSlice(batch, user, since, number if numbered else None, **values)
        for number in range(1, count + 1)
    ]


def choose(waiting, **values):
    """The choice an hour after the first batch came."""
    given_ = {
        "launched": (),
        "in_flight": InFlight(),
        "max_in_flight": 4,
        "max_per_user": 1000,
        "turns": Turns(),
        "now": NOON + 3600,
    }
    return choose_slices(waiting, **(given_ | values))


def chosen(waiting, **values):
    return choose(waiting, **values).chosen


def running(batch, count, user=ANNA):
    return InFlight(count, {user: count}, {batch: count})


def test_one_user_with_ten_thousand_files_does_not_delay_anothers_three():
    ten_thousand = slices(BATCHES[0], 40)
    three = slices(BATCHES[1], 1, user=BERT, since=NOON + 3599)
    assert chosen([*ten_thousand, *three], max_in_flight=1) == ten_thousand[:1], "it was first"
    turns = Turns({ANNA: NOON + 3500}, {BATCHES[0]: NOON + 3500})
    busy = {"in_flight": running(BATCHES[0], 3), "turns": turns}
    assert chosen([*ten_thousand, *three], **busy) == three


def test_many_batches_of_one_file_do_not_delay_another_user():
    many = [slices(batch, 1)[0] for batch in BATCHES[:4]]
    three = slices(BATCHES[4], 1, user=BERT)
    assert chosen([*many, *three], max_in_flight=2) == [many[0], *three]
    turns = Turns({ANNA: NOON + 600}, {})
    assert chosen([*many, *three], max_in_flight=1, turns=turns) == three


def test_a_batch_of_a_thousand_files_does_not_keep_one_of_three_waiting():
    large, small = slices(BATCHES[0], 4), slices(BATCHES[1], 1)
    assert chosen([*large, *small], max_in_flight=2) == [large[0], small[0]]


@pytest.mark.parametrize("user", [ANNA, BERT])
def test_a_new_user_goes_before_the_second_run_of_a_user_that_has_waited_long(user):
    large = slices(BATCHES[0], 4)
    small = slices(BATCHES[1], 1, user=user, since=NOON + 3590)
    assert chosen([*large, *small], max_in_flight=3) == [large[0], *small, large[1]]


def test_a_batch_with_runs_in_flight_waits_for_one_that_has_none():
    large, small = slices(BATCHES[0], 4), slices(BATCHES[1], 1)
    assert chosen([*large, *small], in_flight=running(BATCHES[0], 3)) == small


def test_the_wait_of_a_batch_begins_at_its_last_launch():
    first, second = slices(BATCHES[0], 9), slices(BATCHES[1], 9)
    turns = Turns({}, {BATCHES[0]: NOON + 100, BATCHES[1]: NOON + 50})
    assert chosen([*first, *second], max_in_flight=1, turns=turns) == second[:1]


def test_a_lost_slice_goes_first_in_its_batch_and_in_its_turn_among_the_others():
    lost = slices(BATCHES[0], 1)[0]._replace(number=41, reason="rescue", waits_since=NOON - 1)
    rest = slices(BATCHES[0], 40)
    later = [slices(batch, 1, since=NOON + 900)[0] for batch in BATCHES[1:]]
    turns = Turns({ANNA: NOON + 800}, {BATCHES[0]: NOON + 800})
    assert chosen([*later, *rest, lost], max_in_flight=1, turns=turns) == [lost]


def test_the_wait_of_a_retried_upload_begins_at_the_retry():
    retried = slices(BATCHES[0], 1, reason="retry", since=NOON + 900)
    new = slices(BATCHES[1], 1)
    assert chosen([*retried, *new], max_in_flight=1) == new


def test_a_user_gets_no_more_runs_than_it_may_and_leaves_a_place_free():
    hers = slices(BATCHES[0], 40)
    choice = choose(hers, max_per_user=3)
    assert choice.chosen == hers[:3]
    assert choice.waiting[Why.USER_LIMIT] == [BATCHES[0]]
    others = slices(BATCHES[1], 1, user=BERT)
    assert chosen([*hers, *others], in_flight=running(BATCHES[0], 3), max_per_user=3) == others


def test_a_slice_gets_the_uploads_for_which_there_is_room_and_other_users_go():
    hers, his = slices(BATCHES[0], 9, numbered=False), slices(BATCHES[1], 1, user=BERT)
    choice = choose([*hers, *his], upload_limit=UploadLimit(100, 60, {}))
    assert [(s.user_id, s.uploads) for s in choice.chosen] == [(ANNA, 60), (BERT, 0)]
    assert choice.waiting[Why.UPLOAD_LIMIT] == [BATCHES[0]], "40 are less than half"
    choice = choose(hers, upload_limit=UploadLimit(100, 60, {ANNA: 50}))
    assert [s.uploads for s in choice.chosen] == [50]
    choice = choose(hers, upload_limit=UploadLimit(100, 60, {ANNA: 51}))
    assert (choice.chosen, choice.needs_a_run_to_end) == ([], True)
    assert str(choice).endswith(f"1 behind uploads of the same user [{short(BATCHES[0])}]")


def test_a_slice_that_has_its_number_is_launched_because_it_is_already_counted():
    older = slices(BATCHES[0], 1, numbered=False)
    numbered = slices(BATCHES[0], 1, since=NOON + 60, uploads=10)
    choice = choose([*older, *numbered], upload_limit=UploadLimit(10, 10, {ANNA: 10}))
    assert choice.chosen == numbered
    assert choice.waiting[Why.UPLOAD_LIMIT] == [BATCHES[0]]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_a_user_with_nothing_in_flight_has_room(limit):
    [taken] = chosen(slices(BATCHES[0], 1, numbered=False), upload_limit=UploadLimit(limit, 5, {}))
    assert taken.uploads == min(limit, 5)


def test_each_slice_without_a_number_may_be_chosen():
    waiting = slices(BATCHES[0], 3, numbered=False)
    assert len(chosen(waiting)) == 3


def test_the_message_names_waiting_batches_with_their_reasons():
    rome = slices(BATCHES[0], 3, batch_name="Rome")
    launched, behind = rome[:1], rome[1:]
    choice = choose(
        [*launched, *behind],
        launched={launched[0].key},
        in_flight=running(BATCHES[0], 1),
        max_per_user=1,
    )
    assert str(choice) == (
        f"1 batch waits: 1 already launched [Rome ({short(BATCHES[0])})], "
        f"1 behind runs of the same user [Rome ({short(BATCHES[0])})]"
    )
    full = choose([slices(batch, 1)[0] for batch in BATCHES], max_in_flight=0)
    named = ", ".join(map(short, BATCHES[:3]))
    assert str(full) == f"5 batches wait: 5 behind other runs [{named} and 2 more]"
    assert str(choose(slices(BATCHES[0], 1))) == ""


def test_turns_are_kept_to_the_millisecond():
    moments = {ANNA: 1_800_000_000.12345}, {BATCHES[0]: 1_800_000_000.98765}
    rounded = {ANNA: 1_800_000_000.123}, {BATCHES[0]: 1_800_000_000.988}
    assert Turns.parse(str(Turns(*moments))) == Turns(*rounded)


def test_runs_that_were_just_asked_for_are_in_flight_too():
    before = InFlight(3, {ANNA: 2}, {BATCHES[0]: 2})
    asked = [*slices(BATCHES[0], 1), *slices(BATCHES[1], 2, user=BERT)]
    assert before.and_(asked) == InFlight(6, {ANNA: 3, BERT: 2}, {BATCHES[0]: 3, BATCHES[1]: 2})


def test_turns_are_kept_as_text_and_an_invalid_text_counts_as_none():
    taken = slices(BATCHES[0], 1)
    turns = Turns().and_(taken, taken, NOON)
    assert Turns.parse(str(turns)) == turns == Turns({ANNA: NOON}, {BATCHES[0]: NOON})
    for spoilt in (None, "", "null", "[]", '{"users": 5}', '{"users": {"x": 1}, "batches": {}}'):
        assert Turns.parse(spoilt) == Turns()


def test_waiting_users_are_remembered_before_others():
    gone = {uuid.UUID(int=number): NOON + number for number in range(100, 100 + MAX_REMEMBERED)}
    turns = Turns(gone, gone).and_(slices(BATCHES[0], 1), slices(BATCHES[0], 2), NOON)
    assert ANNA in turns.users
    assert BATCHES[0] in turns.batches
    assert len(turns.users) == len(turns.batches) == MAX_REMEMBERED


def test_turns_are_forgotten_after_a_day_unless_somebody_waits():
    old = NOON - REMEMBERED_SECONDS - 1
    turns = Turns({ANNA: old, BERT: old}, {BATCHES[0]: old, BATCHES[1]: old})
    kept = turns.and_([], slices(BATCHES[0], 1), NOON)
    assert kept == Turns({ANNA: old}, {BATCHES[0]: old})


# Arrivals of all kinds


@st.composite
def situations(draw):
    waiting = []
    for batch in BATCHES:
        waiting += slices(
            batch,
            draw(st.integers(0, 6)),
            user=draw(st.sampled_from([ANNA, BERT])),
            since=NOON + draw(st.integers(0, 600)),
        )
    keys = [slice_.key for slice_ in waiting]
    of_batch = draw(st.dictionaries(st.sampled_from(BATCHES), st.integers(0, 3)))
    users = {slice_.batch_id: slice_.user_id for slice_ in waiting}
    of_user = Counter()
    for batch, runs in of_batch.items():
        of_user[users.get(batch, CARL)] += runs
    return {
        "waiting": draw(st.permutations(waiting)),
        "launched": set(draw(st.lists(st.sampled_from(keys)))) if keys else set(),
        "in_flight": InFlight(sum(of_batch.values()), of_user, of_batch),
        "max_in_flight": draw(st.integers(1, 12)),
        "max_per_user": draw(st.integers(1, 12)),
        "turns": Turns(
            draw(st.dictionaries(st.sampled_from([ANNA, BERT]), st.floats(NOON, NOON + 3600))),
            draw(st.dictionaries(st.sampled_from(BATCHES), st.floats(NOON, NOON + 3600))),
        ),
    }


@given(situations())
def test_no_slice_is_launched_twice(situation):
    found = chosen(**situation)
    keys = [slice_.key for slice_ in found]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & situation["launched"]
    assert set(found) <= set(situation["waiting"])


@given(situations())
def test_the_limits_hold_and_are_used_up(situation):
    choice = choose(**situation)
    of_user = Counter(situation["in_flight"].of_user)
    new = Counter(slice_.user_id for slice_ in choice.chosen)
    free = max(0, situation["max_in_flight"] - situation["in_flight"].total)
    assert len(choice.chosen) <= free
    for user, runs in new.items():
        assert of_user[user] + runs <= situation["max_per_user"]
    if choice.waiting[Why.NO_ROOM]:
        assert len(choice.chosen) == free


@given(situations())
def test_every_batch_that_waits_is_named_with_a_reason(situation):
    choice = choose(**situation)
    left = [slice_ for slice_ in situation["waiting"] if slice_ not in choice.chosen]
    named = {batch_id for ids in choice.waiting.values() for batch_id in ids}
    assert named == {slice_.batch_id for slice_ in left}


@dataclass
class Line:
    """Users, or batches of a user, that wait for a turn, and the order of their turns."""

    open_since: dict = field(default_factory=dict)
    place: dict = field(default_factory=dict)
    gone_before: dict = field(default_factory=lambda: defaultdict(Counter))

    def begins(self, who, place):
        self.place[who] = place
        self.gone_before[who].clear()

    def goes(self, who, now):
        """Take a turn; check that no waiter is passed twice, or by one that came later."""
        self.place.pop(who, None)
        for other, place in self.place.items():
            if now > place:
                self.gone_before[other][who] += 1
                assert self.gone_before[other][who] == 1, "twice before one that waits"
                assert self.open_since[who] <= place, "came later, went first"


class World:
    """A sensor that ticks once a second, and runs that end or are lost."""

    def __init__(self, places, *, prioritized=False):
        self.prioritized = prioritized
        self.places, self.now, self.turns = places, NOON, Turns()
        self.waiting, self.in_flight = [], []
        self.users, self.batches = Line(), defaultdict(Line)
        self.launches = 0
        self.last_user, self.last_batch = {}, {}
        self.numbers = iter(range(1, 100_000))
        self.lost = {}
        """By number of a lost slice: launches that it may wait for, and launches so far."""

    def arrive(self, user, batch, count, priority=Priority.NORMAL):
        batch_id = uuid.uuid5(user, f"{batch}{priority}")
        for _ in range(count):
            came = self.now - 0.5
            self.put(WaitingSlice(batch_id, user, came, next(self.numbers), priority=priority))

    def put(self, slice_, *, lost=()):
        user, batch = slice_.user_id, slice_.batch_id
        open_ = [*self.waiting, *self.in_flight, *lost]
        if not any(s.user_id == user for s in open_):
            self.users.open_since[user] = self.now - 0.5
        if not any(s.batch_id == batch for s in open_):
            self.batches[user].open_since[batch] = self.now - 0.5
        self.waiting.append(slice_)
        if user not in self.users.place:
            self.users.begins(user, self.place(slice_.waits_since, user=user))
        if batch not in self.batches[user].place:
            self.batches[user].begins(batch, self.counts_from(slice_, slice_.waits_since))

    def place(self, oldest, *, user=None, batch=None):
        last = self.last_user.get(user, 0) if user else self.last_batch.get(batch, 0)
        runs = sum(user == s.user_id or batch == s.batch_id for s in self.in_flight)
        return max(oldest, last) + SECONDS_PER_RUN_IN_FLIGHT * runs

    def counts_from(self, slice_, oldest):
        """Return the time from which no batch passes this one twice, and no later one passes it."""
        place = self.place(oldest, batch=slice_.batch_id)
        if not self.prioritized:
            return place
        most = EARLIER_SECONDS[Priority.HIGH]
        return place + most - EARLIER_SECONDS.get(slice_.priority, 0)

    def end_run(self, index, *, lost):
        if not self.in_flight:
            return
        slice_ = self.in_flight.pop(index % len(self.in_flight))
        if lost:
            again = slice_._replace(number=next(self.numbers), reason="rescue")
            self.put(again, lost=[slice_])
            open_ = [*self.waiting, *self.in_flight]
            batches = {s.batch_id for s in open_ if s.user_id == slice_.user_id}
            before = [
                s
                for s in self.waiting
                if s.batch_id == slice_.batch_id
                and (s.waits_since, s.reason == "new") <= (slice_.waits_since, False)
            ]
            self.lost[again.number] = [len(before) * len(batches), 0, 0]

    def tick(self):
        in_flight = InFlight(
            len(self.in_flight),
            Counter(s.user_id for s in self.in_flight),
            Counter(s.batch_id for s in self.in_flight),
        )
        found = chosen(
            self.waiting,
            in_flight=in_flight,
            max_in_flight=self.places,
            turns=self.turns,
            now=self.now,
        )
        self.turns = Turns.parse(str(self.turns.and_(found, self.waiting, self.now)))
        users = {s.user_id for s in [*self.waiting, *self.in_flight]}
        for slice_ in found:
            self.launch(slice_, users)
        self.now += 1

    def launch(self, slice_, users):
        user, batch = slice_.user_id, slice_.batch_id
        for lost in self.lost.values():
            batch_turns, most_users, launches = lost
            lost[:] = batch_turns, max(most_users, len(users)), launches + 1
            assert self.places > 1 or lost[2] <= lost[0] * lost[1], "a lost slice waits too long"
        self.lost.pop(slice_.number, None)
        self.waiting.remove(slice_)
        self.in_flight.append(slice_)
        self.last_user[user] = self.last_batch[batch] = self.now
        self.users.goes(user, self.now)
        self.batches[user].goes(batch, self.now)
        if any(s.user_id == user for s in self.waiting):
            self.users.begins(user, self.place(0, user=user))
        if any(s.batch_id == batch for s in self.waiting):
            self.batches[user].begins(batch, self.counts_from(slice_, 0))


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("arrive"),
            st.sampled_from([ANNA, BERT, CARL]),
            st.integers(1, 12),
            st.integers(1, 4),
        ),
        st.tuples(st.just("end"), st.integers(0, 7)),
        st.tuples(st.just("lose"), st.integers(0, 7)),
        st.tuples(st.just("pass"), st.integers(1, 900)),
    ),
    max_size=120,
)


PRIORITIES = [Priority.LOW, Priority.NORMAL, Priority.HIGH]


def play(world, steps):
    for step in steps:
        match step:
            case ("arrive", user, batch, count):
                priority = PRIORITIES[batch % 3] if world.prioritized else Priority.NORMAL
                world.arrive(user, batch, count, priority)
            case ("end", index):
                world.end_run(index, lost=False)
            case ("lose", index):
                world.end_run(index, lost=True)
            case ("pass", seconds):
                world.now += seconds
        world.tick()


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_a_lost_slice_is_launched_again_within_as_many_turns_as_users_times_batches(steps):
    """New batches arrive all the time. One run at a time, so that every launch is counted."""
    play(World(places=1), steps)


@given(st.integers(2, 5), STEPS)
@settings(max_examples=100, deadline=None)
def test_nobody_passes_a_waiting_user_twice_and_no_later_user_goes_first(places, steps):
    play(World(places), steps)


#: A user with a few batches of all priorities, and another user.
PRIORITIZED_STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("arrive"),
            st.sampled_from([ANNA, ANNA, BERT]),
            st.integers(1, 3),
            st.integers(1, 4),
        ),
        st.tuples(st.just("end"), st.integers(0, 7)),
        st.tuples(st.just("pass"), st.integers(1, 900)),
    ),
    min_size=20,
    max_size=80,
)


@given(st.integers(1, 3), PRIORITIZED_STEPS)
@settings(max_examples=100, deadline=None)
def test_priorities_move_the_place_of_a_batch_by_an_hour_at_most_and_that_of_a_user_not_at_all(
    places, steps
):
    play(World(places, prioritized=True), steps)


def test_a_stream_of_urgent_batches_keeps_another_of_the_user_waiting_for_half_an_hour():
    world = World(places=1, prioritized=True)
    world.arrive(ANNA, "holiday", 1)
    for minute in range(1, 100):
        world.arrive(ANNA, minute, 1, Priority.HIGH)
        world.tick()
        world.end_run(0, lost=False)
        if not any(slice_.priority == Priority.NORMAL for slice_ in world.waiting):
            break
        world.now = NOON + 60 * minute
    assert 30 <= minute <= 32


def test_a_batch_of_high_priority_goes_before_those_of_its_user_that_wait_no_half_hour_longer():
    old, new = slices(BATCHES[0], 9), slices(BATCHES[1], 9, since=NOON + 1799)
    urgent = [slice_._replace(priority=Priority.HIGH) for slice_ in new]
    assert chosen([*old, *new], max_in_flight=1) == old[:1]
    assert chosen([*old, *urgent], max_in_flight=1) == urgent[:1]
    too_late = [slice_._replace(waits_since=NOON + 1801) for slice_ in urgent]
    assert chosen([*old, *too_late], max_in_flight=1) == old[:1]
    low = [slice_._replace(priority=Priority.LOW) for slice_ in old]
    assert chosen([*low, *new], max_in_flight=1) == new[:1]
    assert chosen([*low, *slices(BATCHES[1], 9, user=BERT)], max_in_flight=1) == low[:1]


def test_a_batch_of_high_priority_gets_more_runs_but_not_all():
    """A run in flight counts as ten minutes, and priority as thirty: three more runs."""
    urgent = [slice_._replace(priority=Priority.HIGH) for slice_ in slices(BATCHES[0], 40)]
    other = slices(BATCHES[1], 40)
    turns = Turns({}, dict.fromkeys(BATCHES, NOON + 3600))
    found = Counter(s.batch_id for s in chosen([*urgent, *other], max_in_flight=9, turns=turns))
    assert found == {BATCHES[0]: 6, BATCHES[1]: 3}


def test_an_unknown_priority_counts_as_normal():
    strange = [slice_._replace(priority="urgent!") for slice_ in slices(BATCHES[0], 1)]
    assert chosen([*slices(BATCHES[1], 1), *strange], max_in_flight=1) == strange


def test_a_stream_of_new_batches_does_not_keep_a_lost_slice_waiting():
    world = World(places=2)
    world.arrive(ANNA, "lost", 1)
    world.tick()
    world.end_run(0, lost=True)
    [number] = world.lost
    for submitted in range(1000):
        world.arrive(BERT, submitted, 1)
        world.arrive(CARL, submitted, 1)
        world.tick()
        if number not in world.lost:
            break
        world.end_run(0, lost=False)
    assert submitted <= 1


@pytest.mark.parametrize("forgets", [True, False])
def test_the_heaviest_user_would_go_first_for_ever_without_the_memory_of_turns(
    forgets, monkeypatch
):
    """The purpose of the cursor: with one place, no user has a run in flight when it gets free."""
    if forgets:
        monkeypatch.setattr(turns_module.Turns, "and_", lambda self, *_: self)
    world = World(places=1)
    world.arrive(ANNA, "ten thousand", 40)
    world.now += 1
    world.arrive(BERT, "three", 1)
    for _ in range(3):
        world.users.place.clear()  # its own checks are not tested here
        world.tick()
        world.end_run(0, lost=False)
    assert (BERT in {s.user_id for s in world.waiting}) is forgets
