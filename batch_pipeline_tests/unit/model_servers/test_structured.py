"""Answers with fields: what is read from them, and what is refused."""

import json

import pytest

from batch_pipeline.errors import TransientError
from batch_pipeline.model_servers.answers import is_prose, usable_text
from batch_pipeline.model_servers.structured import (
    MOST_TAGS,
    description_in,
    normalised_tag,
    normalised_tags,
)

TEXT = "A red boat lies on the beach."


def answer(**fields):
    return json.dumps({"description": TEXT, "tags": ["boat"], "visible_text": ""} | fields)


def test_an_answer_in_fields_is_read():
    read = description_in(answer(visible_text="HARBOUR\n12"))

    assert (read.text, read.tags, read.visible_text) == (TEXT, ("boat",), "HARBOUR\n12")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        "null",
        TEXT,
        answer()[:-10],
        "[" * 100_000,
        '{"description": ' + "9" * 5000 + "}",
        json.dumps({"caption": TEXT}),
        answer(description=""),
        answer(description=None),
        answer(description=" \u202e "),
        answer(tags="boat"),
        answer(tags=[1, 2]),
        answer(visible_text=["a"]),
    ],
)
def test_an_answer_that_is_not_the_requested_json_is_refused(said):
    with pytest.raises(TransientError) as refused:
        description_in(said)

    assert refused.value.kind == "model_output_invalid"


@pytest.mark.parametrize(
    "said",
    [
        answer() + "}",
        f"{answer()}\n{answer(description='Another one.')}",
        f"Here is the JSON:\n\n```json\n{answer()}\n```\nI hope this helps!",
        f"[{answer()}]",
    ],
)
def test_text_around_the_json_is_left_out(said):
    read = description_in(usable_text(said, cut_by_length=False))

    assert (read.text, read.tags) == (TEXT, ("boat",))


@pytest.mark.parametrize("line_break", ["\n", "\u2028", "\x85"])
def test_a_line_may_be_broken_inside_of_a_text(line_break):
    said = answer(visible_text="HARBOUR#12").replace("#", line_break)

    assert description_in(usable_text(said, cut_by_length=False)).visible_text == "HARBOUR\n12"


def test_half_a_character_is_left_out():
    said = answer(visible_text="HARBOUR#").replace("#", r"\ud83d")

    assert description_in(said).visible_text == "HARBOUR"


def test_fields_that_nobody_asked_for_are_left_out():
    assert description_in(answer(mood="calm")).text == TEXT


def test_thoughts_and_control_characters_in_fields_are_removed():
    read = description_in(
        answer(description=f"<think>hm</think>{TEXT}\u202e\u0000", visible_text="a\u202eb\x1b[31m")
    )

    assert read.text == TEXT
    assert read.visible_text == "ab[31m"


@pytest.mark.parametrize("shown", ["<think> 2 + 2? </think> 4", "</think>\nx", "<think>"])
def test_marks_of_thoughts_that_a_picture_shows_are_visible_text(shown):
    said = answer(visible_text=shown)

    assert description_in(usable_text(said, cut_by_length=False)).visible_text == shown


@pytest.mark.parametrize("said", [None, "", "None", "none.", "N/A", "No readable text", " \n"])
def test_no_visible_text_is_empty_however_a_model_says_it(said):
    assert description_in(answer(visible_text=said)).visible_text == ""


def test_a_long_visible_text_is_cut():
    assert len(description_in(answer(visible_text="word " * 5000)).visible_text) <= 4000


@pytest.mark.parametrize(
    ("tag", "normal"),
    [
        ("Sunset", "sunset"),
        (" #Harbour. ", "harbour"),
        ("red_boat", "red boat"),
        ("two   people", "two people"),
        ("ＦＵＬＬ", "full"),  # noqa: RUF001
        ("Straße", "straße"),
        ("夕焼け", "夕焼け"),
        ("rock'n'roll", "rock'n'roll"),
        ("a\u202eb", "ab"),
        ("x" * 51, ""),
        ("#", ""),
        ("", ""),
    ],
)
def test_a_tag_has_one_form(tag, normal):
    assert normalised_tag(tag) == normal
    assert normalised_tag(normal) == normal


def test_tags_are_distinct_and_limited():
    assert normalised_tags(["Sea", "sea", "#sea", "", "sky"]) == ("sea", "sky")
    assert len(normalised_tags(str(number) for number in range(40))) == MOST_TAGS


@pytest.mark.parametrize(
    ("said", "prose"),
    [(TEXT, True), ("", False), ('{"description": "A b', False), ('```json\n{"a": 1}\n```', False)],
)
def test_sentences_and_json_are_distinguished(said, prose):
    assert is_prose(said) == prose
