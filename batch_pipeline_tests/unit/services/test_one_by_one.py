"""A bad item is skipped and reported; the others are processed."""

import pytest

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.services.one_by_one import LeftOut, one_by_one


def halves(numbers, left_out):
    def half(number):
        if number % 2:
            raise ValueError(f"{number} is odd\nand more")
        return number // 2

    return one_by_one(numbers, half, left_out, named=lambda number: f"number {number}")


def test_a_failed_item_is_left_out_with_the_first_line_of_its_reason():
    left_out = LeftOut()
    assert halves([2, 3, 4], left_out) == [1, 2]
    assert str(left_out) == "left out: number 3 (3 is odd)"


def test_many_failed_items_are_counted_not_listed():
    left_out = LeftOut()
    halves(range(1, 21, 2), left_out)
    assert len(left_out) == 10
    assert str(left_out).endswith("number 5 (5 is odd); and 7 more")


def test_the_report_without_failures_is_empty():
    left_out = LeftOut()
    assert halves([2], left_out) == [1]
    assert not left_out
    assert str(left_out) == ""


def test_an_outage_is_raised_and_no_item_is_blamed():
    def down(_):
        raise ServiceDownError("storage_down", "away")

    with pytest.raises(ServiceDownError):
        one_by_one([1, 2], down, LeftOut(), named=str)


def test_text_of_strangers_cannot_reorder_the_line():
    left_out = LeftOut()
    left_out.note("run 1", "a\u202eb")
    assert "\u202e" not in str(left_out)
