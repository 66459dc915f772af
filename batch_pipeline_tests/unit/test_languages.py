# ruff: noqa: RUF001 - texts in many scripts, some of them wider than they are long
"""Languages of descriptions: the right language is never refused, a wrong one is detected."""

import pytest

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.languages import canonical_tag, language_name, other_language
from batch_pipeline.settings import load_settings
from batch_pipeline_tests.unit.services.test_description_audit import HONEST

TAGS = {
    "English": "en", "German": "de", "French": "fr", "Spanish": "es", "Portuguese": "pt",
    "Italian": "it", "Dutch": "nl", "Swedish": "sv", "Finnish": "fi", "Polish": "pl",
    "Czech": "cs", "Croatian": "hr", "Hungarian": "hu", "Romanian": "ro", "Turkish": "tr",
    "Vietnamese": "vi", "Indonesian": "id", "Swahili": "sw", "Welsh": "cy", "Hawaiian": "haw",
    "Russian": "ru", "Ukrainian": "uk", "Greek": "el", "Hebrew": "he", "Arabic": "ar",
    "Persian": "fa", "Hindi": "hi", "Bengali": "bn", "Tamil": "ta", "Georgian": "ka",
    "Amharic": "am", "Chinese": "zh", "Japanese": "ja", "Korean": "ko", "Thai": "th",
    "Khmer": "km", "Burmese": "my",
}  # fmt: skip


def tag_of(name: str) -> str:
    return TAGS[name.partition(",")[0]]


@pytest.mark.parametrize("name", HONEST)
def test_a_text_in_the_language_that_is_asked_for_is_never_refused(name):
    assert other_language(HONEST[name], tag_of(name)) is None


@pytest.mark.parametrize("name", HONEST)
def test_a_text_in_another_language_is_detected(name):
    others = {tag for tag in TAGS.values() if tag not in {tag_of(name), "haw"}}

    assert [tag for tag in others if other_language(HONEST[name], tag) is None] == []


def test_a_long_text_is_not_refused_for_its_length():
    for name in ("German", "Croatian", "Chinese", "Indonesian"):
        assert other_language(" ".join([HONEST[name]] * 20), tag_of(name)) is None


def test_quotations_may_be_in_any_language():
    text = 'Ein Schild am Hafen sagt: "{}" Daneben liegt ein rotes Boot im Wasser.'

    assert other_language(text.format(HONEST["English"]), "de") is None
    assert other_language(text.format(""), "en") == "German"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("de-CH", HONEST["German"]),
        ("pt-BR", HONEST["Portuguese"]),
        (
            "zh-Hant-TW",
            "一位老人坐在公園的長椅上看報紙，旁邊有一隻棕色的小狗。遠處的湖面上有幾隻白天鵝。",
        ),
        ("nb", "En rød hytte ved en innsjø i skumringen. På bryggen sitter to personer og ser på."),
        (
            "da",
            "En rød hytte ved en sø i skumringen. På broen sidder to personer og kigger på vand.",
        ),
        ("sr-Latn", HONEST["Croatian"]),
        ("ms", HONEST["Indonesian"]),
        ("haw", HONEST["English"]),  # nobody can tell
    ],
)
def test_close_relatives_and_variants_of_a_language_are_not_refused(asked, text):
    assert other_language(text, asked) is None


def test_the_language_of_too_little_text_is_unknown():
    assert other_language("OK", "de") is None
    assert other_language("12.50 €", "de") is None


@pytest.mark.parametrize(
    ("tag", "usual", "name"),
    [
        ("DE", "de", "German"),
        ("pt_br", "pt-BR", "Portuguese (pt-BR)"),
        ("zh-hant-tw", "zh-Hant-TW", "Chinese (zh-Hant-TW)"),
        ("haw", "haw", "(in the language with the tag haw)"),
    ],
)
def test_a_tag_is_read_and_named(tag, usual, name):
    assert canonical_tag(tag) == usual
    assert language_name(usual) == name


@pytest.mark.parametrize(
    ("tag", "expected"),
    [("german", "de is German; expected one such as de"), ("xx", "expected one such as"),
     ("!", "expected one such as")],
)  # fmt: skip
def test_an_invalid_language_tag_is_refused_at_start_with_a_suggestion(monkeypatch, tag, expected):
    monkeypatch.setenv("BATCH_PIPELINE_ANALYZER", "ollama")
    monkeypatch.setenv("BATCH_PIPELINE_LANGUAGE", tag)

    with pytest.raises(ConfigurationError, match="BATCH_PIPELINE_LANGUAGE") as refused:
        load_settings()

    assert expected in str(refused.value)


def test_the_embedded_analyzer_cannot_be_asked_for_another_language(monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_LANGUAGE", "de")

    with pytest.raises(ConfigurationError, match="the embedded analyzer writes English only"):
        load_settings()

    monkeypatch.setenv("BATCH_PIPELINE_LANGUAGE", "en-GB")
    assert load_settings().language == "en-GB"
