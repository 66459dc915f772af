"""Embeds text without a model: signed feature hashing of words, their n-grams and pairs.

This module computes the vectors; `embedded` contains the interface to the pipeline. Each word
hashes to its own small sparse vector (the whole word, and n-grams that a typo or an ending does not
change). A text is the weighted sum of its distinct words and of its pairs of neighbours ("bright
blue" is not "bright yellow with light blue"), scaled to length 1.

Source: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009 (the
sign, taken from the hash, makes collisions cancel on average instead of adding up).
"""

import math
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

#: Weight of a whole word relative to all its n-grams together: a word with a typo must still match
#: a little, and a shared ending ("-ing") must not outweigh a different word.
WORD_WEIGHT = 1.0
GRAMS_WEIGHT = 0.6
PAIR_WEIGHT = 0.7
#: Weight of words that say little: common words, and numbers, which every description contains.
COMMON_WORD_WEIGHT = 0.1
NUMBER_WEIGHT = 0.4
#: Longer runs of letters are cut into pieces, so that hostile text is not expensive and does not
#: fill the cache with long keys (characters).
LONGEST_WORD = 64

#: Words without their own meaning, and words that every description of a picture contains.
_COMMON = """
    a about all an and any are as at be been but by can did do does for from had has have he her
    his how i if in into is it its me more most my no not of on or our out she so some such than
    that the their them then there these they this to under up very was we were what when where
    which while who will with you your
    image images part parts photo photos picture pictures pixel pixels show shows
"""
COMMON_WORDS = frozenset(_COMMON.split())

_SPACED_GRAMS = (3, 4, 5)
#: Shorter n-grams for scripts without spaces, in which words have one or two characters.
_IDEOGRAPHIC_GRAMS = (1, 2, 3)
_IDEOGRAPHIC = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_PIECES = re.compile(f".{{1,{LONGEST_WORD}}}")


def hash_text(text: str, dimensions: int) -> NDArray[np.float64]:
    """Embed a text; returns the same vector in every process and on every machine.

    Args:
        text: any text. A text without letters or digits has nothing to hash: it gets a fixed unit
            vector, so that it can be stored, and no search finds it.
        dimensions: length of the vector, at least 1.

    Returns:
        Shape ``(dimensions,)``, finite, of Euclidean length 1.
    """
    words = _words(text)
    slots: list[NDArray[np.intp]] = [np.zeros(1, dtype=np.intp)]
    values: list[NDArray[np.float64]] = [np.zeros(1)]
    for word, count in Counter(words).items():
        word_slots, word_values = _word_features(word, dimensions)
        slots.append(word_slots)
        values.append(_weight(word) * _damped(count) * word_values)
    for (first, second), count in Counter(pairwise(words)).items():
        if _weight(first) == _weight(second) == 1.0:
            slot, sign = _hash(f"p:{first} {second}", dimensions)
            slots.append(np.array([slot], dtype=np.intp))
            values.append(np.array([sign * PAIR_WEIGHT * _damped(count)]))
    vector = np.zeros(dimensions)
    vector += np.bincount(np.concatenate(slots), np.concatenate(values), minlength=dimensions)
    length = float(np.linalg.norm(vector))
    # With very few dimensions, opposite signs may cancel to rounding errors.
    if length < 1e-9:
        slot, sign = _hash("", dimensions)
        vector[:] = 0.0
        vector[slot] = sign
        return vector
    return vector / length


def _weight(word: str) -> float:
    if word in COMMON_WORDS:
        return COMMON_WORD_WEIGHT
    return NUMBER_WEIGHT if word.isdecimal() else 1.0


def _damped(count: int) -> float:
    """Sublinear term frequency: the tenth "blue" says less than the first."""
    return 1.0 + math.log(count)


def _words(text: str) -> list[str]:
    """Split into runs of letters, digits and marks, in lower case and one normal form."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    between = {c for c in set(normal) if not _is_word_character(c)}
    runs = normal.translate(dict.fromkeys(map(ord, between), " ")).split()
    return [piece for run in runs for piece in _PIECES.findall(run)]


@lru_cache(maxsize=4096)
def _is_word_character(character: str) -> bool:
    # Marks (M) are vowel signs in Hindi or Thai: without them, words would be split.
    return unicodedata.category(character)[0] in "LMN"


@lru_cache(maxsize=8192)
def _word_features(word: str, dimensions: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return slots and signed weights of one word."""
    if _IDEOGRAPHIC.search(word):
        framed, lengths = word, _IDEOGRAPHIC_GRAMS
    else:
        # The frame makes beginnings and endings into separate features.
        framed, lengths = f"<{word}>", _SPACED_GRAMS
    grams = [framed[i : i + n] for n in lengths for i in range(len(framed) - n + 1)]
    gram_weight = GRAMS_WEIGHT / math.sqrt(len(grams)) if grams else 0.0
    hashed = [_hash(f"w:{word}", dimensions), *(_hash(f"g:{g}", dimensions) for g in grams)]
    slots = np.array([slot for slot, _ in hashed], dtype=np.intp)
    values = np.array([sign for _, sign in hashed]) * gram_weight
    values[0] = hashed[0][1] * WORD_WEIGHT
    return slots, values


def _hash(feature: str, dimensions: int) -> tuple[int, float]:
    """Return slot and sign of a feature; Python's `hash` would differ between processes."""
    digest = blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return (number >> 1) % dimensions, 1.0 if number & 1 else -1.0
