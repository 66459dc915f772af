import uuid

from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.services.shared_call_slots import Claimant, fair_shares

CLAIMANTS = st.lists(
    st.builds(
        Claimant,
        holder=st.uuids(),
        wanted=st.integers(0, 20),
        held=st.integers(0, 8),
        seconds=st.floats(0, 100),
    ),
    max_size=12,
    unique_by=lambda claimant: claimant.holder,
)


def claimant(wanted: int, held: int = 0, seconds: float = 0.0) -> Claimant:
    return Claimant(uuid.uuid4(), wanted, held, seconds)


def shares(limit: int, *claimants: Claimant) -> list[int]:
    found = fair_shares(limit, claimants)
    return [found[each.holder] for each in claimants]


@given(st.integers(1, 40), CLAIMANTS)
def test_every_slot_that_somebody_wants_is_given_and_no_more(
    limit: int, claimants: list[Claimant]
) -> None:
    given_out = fair_shares(limit, claimants)

    assert sum(given_out.values()) == min(limit, sum(each.wanted for each in claimants))
    assert all(given_out[each.holder] <= each.wanted for each in claimants)


@given(st.integers(1, 40), CLAIMANTS)
def test_a_process_that_lacks_slots_has_at_most_one_less_than_any_other(
    limit: int, claimants: list[Claimant]
) -> None:
    given_out = fair_shares(limit, claimants)

    for each in claimants:
        if given_out[each.holder] < each.wanted:
            assert given_out[each.holder] >= max(given_out.values()) - 1


def test_a_process_that_wants_few_slots_gets_all_of_them() -> None:
    assert shares(16, claimant(16, held=16, seconds=60), claimant(3)) == [13, 3]


def test_when_there_are_more_processes_than_slots_the_oldest_holder_makes_room_for_a_turn() -> None:
    old, young = claimant(4, held=1, seconds=60), claimant(4, held=1, seconds=30)
    first, second = claimant(4, seconds=20), claimant(4, seconds=10)

    assert shares(2, old, young, first, second) == [0, 0, 1, 1]
    assert shares(3, old, young, first, second) == [0, 1, 1, 1]


def test_a_turn_that_has_just_begun_is_not_taken_away() -> None:
    assert shares(1, claimant(4, held=1, seconds=0.2), claimant(4, seconds=20)) == [1, 0]
