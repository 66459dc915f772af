"""Answers in fields: one call gives description, tags and visible text, where a server can do that.

A server that takes a JSON schema holds its model to it. What comes is a stranger's text all the
same: it is read here, made fit to be stored, and refused if it is not what was asked for.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from batch_pipeline.errors import TransientError
from batch_pipeline.model_servers.answers import clean, usable_text
from batch_pipeline.model_servers.base import Description

MOST_TAGS = 15
#: Longer tags are sentences; a longer visible text is cut (characters).
_LONGEST_TAG, _LONGEST_VISIBLE_TEXT = 50, 4000
#: What models write where there is nothing to quote.
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


class _Fields(BaseModel):
    description: str
    tags: list[str]
    visible_text: str


def description_in(answer: str) -> Description:
    """Read an answer in fields.

    Raises:
        TransientError: ``model_output_invalid``: it is not the JSON that was asked for, or there is
            no description in it.
    """
    try:
        fields = _Fields.model_validate_json(answer)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"])) or "the whole"
        raise TransientError(
            "model_output_invalid",
            f"the model's answer is not the JSON that was asked for ({field}: {wrong['msg']}); it "
            f"begins: {answer[:80]!r}",
        ) from error
    visible_text = clean(fields.visible_text)
    return Description(
        text=usable_text(fields.description, cut_by_length=False),
        tags=normalised_tags(fields.tags),
        visible_text=""
        if visible_text.lower().strip(".") in _NOTHING
        else visible_text[:_LONGEST_VISIBLE_TEXT].rstrip(),
    )


def normalised_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as they are stored and searched: small letters, each once, `MOST_TAGS` at most."""
    return tuple(dict.fromkeys(filter(None, map(normalised_tag, tags))))[:MOST_TAGS]


def normalised_tag(tag: str) -> str:
    """One tag in the form in which it is stored; empty if nothing is left of it."""
    words = re.sub(r"[\s_]+", " ", clean(unicodedata.normalize("NFKC", tag))).lower()
    words = words.strip(" #.,;:!?*'\"-•")
    return words if len(words) <= _LONGEST_TAG else ""
