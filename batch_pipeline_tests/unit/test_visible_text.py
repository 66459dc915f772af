"""Untrusted text on a screen."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.visible_text import visible, visible_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photo\u202egpj.exe", "photo\ufffdgpj.exe"),
        ("\x1b[31mred", "\ufffd[31mred"),
        ("two\r\nlines\tand a tab", "two lines and a tab"),
        ("nul\0", "nul\ufffd"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # Persian, with its joiner
        ("👨\u200d👩\u200d👧 żółw", "👨\u200d👩\u200d👧 żółw"),
        ("\U0001fa77 \U0001fa8e.jpg", "\U0001fa77 \U0001fa8e.jpg"),  # of Unicode 15 and 17
    ],
)
def test_characters_that_move_the_cursor_or_reorder_a_line_are_replaced(text, shown):
    assert visible_line(text) == shown


def test_paragraphs_of_a_description_stay():
    assert visible("one\r\n\r\ntwo") == "one\n\ntwo"


@given(st.text())
def test_a_line_is_one_line_without_controls(text):
    shown = visible_line(text)
    assert len(shown.splitlines()) <= 1 or {"\u2028", "\u2029"} & set(shown)
    assert not any(unicodedata.category(character) in {"Cc", "Cs"} for character in shown)
