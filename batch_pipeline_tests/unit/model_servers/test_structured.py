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


@pytest.mark.parametrize(
    ("tags", "read"),
    [
        ("dog, beach; sea\nsky", ("dog", "beach", "sea", "sky")),
        ("狗，海滩、海", ("狗", "海滩", "海")),  # noqa: RUF001
        ("", ()),
        (None, ()),
        (["rock, paper", None, 1984, True, {"name": "dog"}], ("rock, paper", "1984")),
        ({"main": "dog"}, ()),
        (7.5, ("7.5",)),
    ],
)
def test_tags_of_another_type_do_not_cost_the_description(tags, read):
    found = description_in(answer(tags=tags))

    assert (found.text, found.tags) == (TEXT, read)


@pytest.mark.parametrize(
    ("shown", "read"),
    [
        (["HARBOUR", "12", None], "HARBOUR\n12"),
        (12, "12"),
        ([], ""),
        (["none"], ""),
        (False, ""),
        ({"sign": "HARBOUR"}, ""),
    ],
)
def test_visible_text_of_another_type_does_not_cost_the_description(shown, read):
    found = description_in(answer(visible_text=shown))

    assert (found.text, found.visible_text) == (TEXT, read)


def test_fields_may_be_missing_except_the_description():
    found = description_in(json.dumps({"description": TEXT}))

    assert (found.text, found.tags, found.visible_text) == (TEXT, (), "")


PAGE = 'Chapter 1\nThe "sea" is deep \\ blue \\\\ and 海 \U0001f600 wide'


@pytest.mark.parametrize("as_ascii", [True, False])
def test_visible_text_may_be_cut_anywhere(as_ascii):
    said = json.dumps(
        {"description": TEXT, "tags": ["boat"], "visible_text": PAGE}, ensure_ascii=as_ascii
    )
    begin = said.index('"visible_text": "') + len('"visible_text": "')
    lengths = []

    for end in range(begin, len(said) + 1):
        read = description_in(said[:end], cut_by_length=True)
        assert (read.text, read.tags) == (TEXT, ("boat",))
        assert PAGE.startswith(read.visible_text)
        lengths.append(len(read.visible_text))

    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (0, len(PAGE))


def test_a_list_of_visible_lines_may_be_cut():
    said = answer(visible_text=["HARBOUR", "Pier 12"]).removesuffix(' 12"]}')

    assert description_in(said, cut_by_length=True).visible_text == "HARBOUR\nPier"


@pytest.mark.parametrize(
    "said",
    [
        '{"description": "A red bo',
        '{"description": "A red boat.", "tags": ["boat", "be',
        '{"description": "A red boat.", "tags": "boat, be',
        '{"visible_text": "HARBOUR", "tags": ["boat"], "description": "A red bo',
        '{"visible_text": "HARB',
        '{"tags": ["boat"], "visible_text": "HARB',
        '"A red boat',
        "[",
    ],
)
def test_a_cut_description_or_tag_is_refused(said):
    with pytest.raises(TransientError) as refused:
        description_in(said, cut_by_length=True)

    assert refused.value.kind == "model_output_invalid"


def test_a_refused_cut_is_called_a_cut():
    with pytest.raises(TransientError, match=r"was cut by length and ends: ….*A red bo"):
        description_in('{"description": "A red bo', cut_by_length=True)


@pytest.mark.parametrize(
    ("shown", "kept"),
    [
        ("MENU\n" + "Soup 4.50\n" * 60 + "Sou", "MENU\nSoup 4.50"),
        ("MENU " + "0" * 3000, "MENU 0"),
        ("菜单：" + "汤和面包" * 60, "菜单：汤和面包"),  # noqa: RUF001
        ("MENU " + "-" * 60, "MENU " + "-" * 60),
        ("Ha ha ha ha!", "Ha ha ha ha!"),
        ("SALE " * 200 + "ends today", "SALE " * 200 + "ends today"),
    ],
)
def test_visible_text_that_loops_at_its_end_is_kept_once(shown, kept):
    said = answer(visible_text=shown)

    assert description_in(said).visible_text == kept
    assert description_in(said[:-2], cut_by_length=True).visible_text == kept


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
