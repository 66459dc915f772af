"""Cleans a model's answer so that it can be stored. An answer is untrusted data.

Only the form is repaired here. The audit sees the cleaned text and judges whether the description
is good (loops, control tokens of the model's template, refusals).
"""

import math
import re
import unicodedata
from collections.abc import Sequence

from batch_pipeline.errors import ServiceDownError, TransientError

_NAMES_OF_THOUGHTS = "think(?:ing)?|thought|reasoning"
#: The spellings of most models, of Kimi-VL, and of Magistral.
_BEGINNING_OF_THOUGHT = re.compile(rf"<(?:{_NAMES_OF_THOUGHTS})>|◁think▷|\[THINK\]", re.IGNORECASE)
_END_OF_THOUGHT = re.compile(rf"</(?:{_NAMES_OF_THOUGHTS})>|◁/think▷|\[/THINK\]", re.IGNORECASE)
#: What models put around an answer after a thought.
_WRAPPERS = (("<answer>", "</answer>"), ("<|begin_of_box|>", "<|end_of_box|>"))
_FENCE = re.compile(r"```[\w-]*[ \t]*\n")
_BEGINNING_OF_JSON = re.compile(r"(?:<answer>|<\|begin_of_box\|>|```[\w-]*|\s)*\{")
#: Languages differ in which mark opens and which closes.
_QUOTATION_MARKS = ('"', "`", "“”„", "«»")
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "„": "“"}
_LINE_BREAKS = re.compile(r"\r\n?|[\u2028\u2029\x85]")
_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")
#: Format characters that ordinary text needs: they join emoji and letters of some scripts.
_JOINERS = "\u200c\u200d"
_UNWANTED_CATEGORIES = {"Cc", "Cf", "Cs"}


#: The largest number of a stored vector, which has four bytes per number.
_LARGEST_NUMBER = 3.4e38
#: Vectors that are shorter or longer are stored with length 1 (Euclidean length).
_SHORTEST_VECTOR, _LONGEST_VECTOR = 0.1, 10_000.0
#: Longer than any description we ask for (characters). A server without a limit of tokens would
#: never stop writing.
LONGEST_ANSWER = 50_000


def shows_thought(answer: str, *, cut_by_length: bool) -> bool:
    """Return whether a model thought: the answer shows that, or a hidden thought left none."""
    if not answer.strip():
        return cut_by_length
    text = _printable(answer)
    return _without_thoughts(text) != text


def is_prose(answer: str) -> bool:
    """Return whether a model wrote sentences instead of JSON; then its server ignores the schema.

    Broken or cut JSON is not prose, and neither is an empty answer.
    """
    text = clean(answer)
    return bool(text) and "{" not in text


def usable_text(answer: str, *, cut_by_length: bool) -> str:
    """Clean an answer, or raise an error that says why it cannot be stored.

    Args:
        answer: text as the model wrote it.
        cut_by_length: the server reports that the answer reached the limit of tokens.

    Returns:
        Plain text, never empty.

    Raises:
        TransientError: ``model_output_invalid``: cut by length, far too long, or nothing is left.
    """
    if len(answer) > LONGEST_ANSWER:
        raise TransientError(
            "model_output_invalid",
            f"the model's answer has {len(answer):,} characters; expected at most "
            f"{LONGEST_ANSWER:,}; it begins: {answer[:80]!r}",
        )
    text = clean(answer)
    if cut_by_length:
        raise cut_short(text)
    if not text:
        found = f"only {answer[:80]!r}" if answer.strip() else "an empty answer"
        raise TransientError("model_output_invalid", f"the model gave {found}")
    return text


def cut_short(text: str) -> TransientError:
    """Return the error for an answer that cannot be stored because the limit of tokens cut it."""
    return TransientError(
        "model_output_invalid", f"the model's answer was cut by length and ends: …{text[-80:]!r}"
    )


def clean(answer: str) -> str:
    """Remove thoughts, control and direction characters, and marks around the whole text."""
    return _unwrapped(_without_thoughts(_printable(answer)))


def clean_quotation(text: str) -> str:
    """Clean text that a model read in a picture: there, marks of thoughts belong to the text."""
    return _unwrapped(_printable(text))


def _printable(answer: str) -> str:
    text = _LINE_BREAKS.sub("\n", answer)
    if not text.isprintable():
        text = "".join(character for character in text if _is_wanted(character))
    return text.strip()


def _without_thoughts(text: str) -> str:
    """Remove thoughts from the beginning; elsewhere such marks are text in a picture."""
    while begun := _BEGINNING_OF_THOUGHT.match(text):
        ended = _END_OF_THOUGHT.search(text, begun.end())
        text = text[ended.end() :].lstrip() if ended else ""
    return text[_end_of_begun_thought(text) :].lstrip()


def _end_of_begun_thought(text: str) -> int:
    """Return the end of a thought that has only an end mark; 0: none.

    The model's template has written the beginning of such a thought.
    """
    if len(text) > LONGEST_ANSWER:  # it is refused anyway, and may have very many marks
        return 0
    begun = _BEGINNING_OF_THOUGHT.search(text)
    ends = _END_OF_THOUGHT.finditer(text, 0, begun.start() if begun else len(text))
    is_json = bool(_BEGINNING_OF_JSON.match(text))
    return max(
        (
            end.end()
            for end in ends
            if not _is_quoted(text[: end.start()], text[end.end() :], is_json=is_json)
        ),
        default=0,
    )


def _is_quoted(before: str, after: str, *, is_json: bool) -> bool:
    """Return whether JSON, or a quotation in one line, is open between two parts of a text.

    A thought may have a single mark, as in 27", or a line of code that opens a brace.
    """
    if is_json and before.count("{") > before.count("}"):
        return True
    # A quotation within a text of JSON has its marks escaped.
    opened = before.rpartition("\n")[2].replace('\\"', "")
    closed = after.partition("\n")[0].replace('\\"', "")
    return any(
        sum(map(opened.count, marks)) % 2 and sum(map(closed.count, marks)) % 2
        for marks in _QUOTATION_MARKS
    )


def _unwrapped(text: str) -> str:
    for opening, closing in _WRAPPERS:
        if text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    fence = _FENCE.match(text)
    # One pattern for the whole text would scan a long run of spaces again from each space.
    if fence and text.endswith("```") and fence.end() <= len(text) - 3:
        text = text[fence.end() : -3].strip()
    return _BLANK_LINES.sub("\n\n", _unquoted(text))


def _is_wanted(character: str) -> bool:
    return (
        character in "\n\t"
        or character in _JOINERS
        or unicodedata.category(character) not in _UNWANTED_CATEGORIES
    )


def _unquoted(text: str) -> str:
    if len(text) < 2 or _QUOTES.get(text[0]) != text[-1]:
        return text
    inner = text[1:-1]
    # If there are more quotes inside, the outer two may not be a pair: "Stop" and "Go".
    return text if text[0] in inner or text[-1] in inner else inner.strip()


def checked_vector(vector: Sequence[float | None], model: str, dimensions: int) -> list[float]:
    """Return a vector that can be stored and indexed; raises as `RemoteEmbedding.embed` does."""
    if not vector:
        raise TransientError("embedding_empty", f"{model} returned a vector of no numbers")
    if len(vector) != dimensions:
        raise wrong_length(model, len(vector), dimensions)
    # JSON cannot express NaN, so some servers write null.
    numbers = [math.nan if number is None else float(number) for number in vector]
    if not all(abs(number) <= _LARGEST_NUMBER for number in numbers):
        raise TransientError(
            "embedding_not_finite", f"{model} returned a vector with NaN or infinite numbers"
        )
    if not any(numbers):
        raise TransientError("embedding_zero", f"{model} returned a vector of zeros")
    # Only the direction counts. The index cannot hold numbers over 65,504, nor tiny ones exactly.
    length = math.hypot(*numbers)
    is_usual = _SHORTEST_VECTOR <= length <= _LONGEST_VECTOR
    return numbers if is_usual else [number / length for number in numbers]


def wrong_length(model: str, found: int, dimensions: int) -> ServiceDownError:
    """Return the error for a model whose vectors do not fit the column."""
    return ServiceDownError(
        "embedding_wrong_length",
        f"vectors of {model} have {found} numbers, {dimensions} are expected; set "
        f"BATCH_PIPELINE_EMBEDDING_DIMENSIONS={found}, or choose another "
        "BATCH_PIPELINE_EMBEDDING_MODEL",
    )
