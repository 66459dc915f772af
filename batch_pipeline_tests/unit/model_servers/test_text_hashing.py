"""Vectors by words: the same on every machine, never degenerate, close for similar texts."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.model_servers.text_hashing import hash_text

SEA = "A bright, blue landscape photo. It is mostly bright blue with some beige."
FOREST = "A green landscape picture. It is almost entirely green with a little yellow."


def similarity(first: str, second: str) -> float:
    return float(hash_text(first, 1024) @ hash_text(second, 1024))


def test_the_same_text_gives_the_same_vector_in_every_process() -> None:
    script = (
        "from batch_pipeline.model_servers.text_hashing import hash_text\n"
        f"print(hash_text({SEA!r}, 64).tobytes().hex())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]

    assert outputs == [hash_text(SEA, 64).tobytes().hex()] * 2


@pytest.mark.slow
@given(st.text(), st.sampled_from([1, 2, 16, 1024]))
def test_any_text_gives_a_finite_vector_of_length_one(text: str, dimensions: int) -> None:
    vector = hash_text(text, dimensions)

    assert vector.shape == (dimensions,)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_text_without_letters_or_digits_gets_one_fixed_vector() -> None:
    assert np.array_equal(hash_text("", 1024), hash_text("?! … ---", 1024))


def test_case_punctuation_and_unicode_form_do_not_matter() -> None:
    assert similarity("Café, BLUE sea!", "cafe\u0301 blue sea") == pytest.approx(1)


@pytest.mark.parametrize(
    ("query", "near", "far"),
    [
        ("bright blue landscape", SEA, FOREST),
        ("green landscape", FOREST, SEA),
        ("brigt bluee lanscape", SEA, FOREST),  # typos
        ("greenish pictures", FOREST, SEA),  # other endings
        ("夕日と海", "海に沈む夕日の写真です。", "緑の森の中の小道です。"),
        ("नीला समुद्र", "यह नीले समुद्र का चित्र है।", "यह हरे जंगल का चित्र है।"),
    ],
)
def test_similar_texts_are_nearer(query: str, near: str, far: str) -> None:
    assert similarity(query, near) > similarity(query, far) + 0.05


def test_neighbouring_words_count_together() -> None:
    query = "bright blue"

    assert similarity(query, "bright blue and light yellow") > similarity(
        query, "light blue and bright yellow"
    )


def test_common_words_hardly_count() -> None:
    assert similarity("the picture with the sea", "the sea") > 0.9


def test_a_word_repeated_ten_times_does_not_drown_the_others() -> None:
    assert similarity("blue " * 10 + "boat", "boat") > 0.2


def test_very_long_words_are_cut_so_that_their_cost_is_bounded() -> None:
    assert similarity("a" * 64 + "b" * 64, "a" * 64) > 0.4
