"""Answers with fields: one call returns description, tags and visible text, if a server can do it.

A server that accepts a JSON schema holds its model to it. The answer is still untrusted text: it is
parsed here, cleaned for storing, and refused if it has no complete description.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from batch_pipeline.errors import TransientError
from batch_pipeline.model_servers.answers import (
    clean,
    clean_quotation,
    cut_short,
    usable_text,
)
from batch_pipeline.model_servers.base import Description

MOST_TAGS = 15
#: Longer tags are sentences and are dropped; longer visible text is cut (characters).
_LONGEST_TAG, _LONGEST_VISIBLE_TEXT = 50, 4000
#: Words that models write when there is no visible text.
_NOTHING = {"", "none", "n/a", "null", "no text", "no readable text", "no visible text", "empty"}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "description": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "visible_text": {"type": "string"},
    },
    "required": ["description", "tags", "visible_text"],
    "additionalProperties": False,
}


#: Separate tags that a model writes as one text.
_BETWEEN_TAGS = re.compile(r"[,;\n，、；]")  # noqa: RUF001
#: The beginning of an escape at the end of cut JSON; an even number of backslashes is none.
_HALF_AN_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?\Z")
#: What may be missing if JSON was cut within its last field: a text, or a list of lines.
_MISSING_ENDS = ('"}', '"]}', "}")
#: Visible text loops if it ends with the same piece this many times in a row, as in the audit, and
#: if the repetitions have at least this length (characters).
_ROUNDS_OF_A_LOOP, _SHORTEST_LOOP = 4, 100


def _texts(value: object) -> list[str]:
    """Return the texts of a field; models write lists for texts, texts for lists, and null."""
    values = value if isinstance(value, list) else [value]
    return [
        str(each)
        for each in values
        if isinstance(each, str | int | float) and not isinstance(each, bool)
    ]


def _list_of_tags(value: object) -> list[str]:
    return _BETWEEN_TAGS.split(value) if isinstance(value, str) else _texts(value)


def _lines(value: object) -> str:
    return "\n".join(_texts(value))


class _Fields(BaseModel):
    """A server that does not hold its model to the schema may send values of other types."""

    description: str
    tags: Annotated[list[str], BeforeValidator(_list_of_tags)] = []
    visible_text: Annotated[str, BeforeValidator(_lines)] = ""


#: Not strict: models break lines inside of a text.
_JSON = json.JSONDecoder(strict=False)


def description_in(answer: str, *, cut_by_length: bool = False) -> Description:
    """Parse an answer with fields; text before and after the JSON is left out.

    Args:
        answer: cleaned answer.
        cut_by_length: it reached the limit of tokens. If the cut is in the visible text, which is
            the last field, the other fields are complete, and the part before the cut is kept.

    Raises:
        TransientError: ``model_output_invalid``: the answer is not the expected JSON, has no
            description, or was cut elsewhere.
    """
    try:
        fields = _Fields.model_validate(_object_in(answer, cut_by_length=cut_by_length))
    except (ValueError, RecursionError) as error:
        raise TransientError(
            "model_output_invalid",
            f"the model's answer is not the JSON that was asked for ({_told(error)}); it begins: "
            f"{answer[:80]!r}",
        ) from error
    visible_text = _without_loop(clean_quotation(fields.visible_text))
    return Description(
        text=usable_text(fields.description, cut_by_length=False),
        tags=normalised_tags(fields.tags),
        visible_text=""
        if visible_text.lower().strip(".") in _NOTHING
        else visible_text[:_LONGEST_VISIBLE_TEXT].rstrip(),
    )


def _object_in(answer: str, *, cut_by_length: bool) -> Any:
    # Models write text around the object if their server does not hold them to the schema.
    begin = max(0, answer.find("{"))
    try:
        return _JSON.raw_decode(answer, begin)[0]
    except ValueError:
        if not cut_by_length:
            raise
    rest = _HALF_AN_ESCAPE.sub(r"\1", answer[begin:])
    for missing in _MISSING_ENDS:
        try:
            found, _ = _JSON.raw_decode(rest + missing)
        except ValueError:
            continue
        if isinstance(found, dict) and [*found][-1:] == ["visible_text"]:
            return found
    raise cut_short(answer)


def _without_loop(text: str) -> str:
    """Cut a text that loops to its end after the first round.

    A model that has begun to loop does not stop before the limit of tokens.
    """
    for length in range(1, len(text) // _ROUNDS_OF_A_LOOP + 1):
        again = max((_ROUNDS_OF_A_LOOP - 1) * length, _SHORTEST_LOOP)
        if text[-again:] == text[-again - length : -length]:
            end = len(text) - again
            while end > length and text[end - 1] == text[end - 1 - length]:
                end -= 1
            return text[:end]
    return text


def _told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"the whole: {error}"
    wrong = error.errors()[0]
    return f"{'.'.join(map(str, wrong['loc'])) or 'the whole'}: {wrong['msg']}"


def normalised_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags as stored and searched: lower case, no duplicates, `MOST_TAGS` at most."""
    return tuple(dict.fromkeys(filter(None, map(normalised_tag, tags))))[:MOST_TAGS]


def normalised_tag(tag: str) -> str:
    """Return a tag as it is stored; empty if nothing is left of it."""
    words = re.sub(r"[\s_]+", " ", clean(unicodedata.normalize("NFKC", tag))).lower()
    words = words.strip(" #.,;:!?*'\"-•")
    return words if len(words) <= _LONGEST_TAG else ""
