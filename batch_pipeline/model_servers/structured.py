"""Answers with fields: one call returns description, tags and visible text, if a server can do it.

A server that accepts a JSON schema holds its model to it. The answer is still untrusted text: it is
parsed here, cleaned for storing, and refused if it does not have the fields.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from batch_pipeline.errors import TransientError
from batch_pipeline.model_servers.answers import clean, clean_quotation, usable_text
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


class _Fields(BaseModel):
    description: str
    tags: list[str]
    visible_text: str | None


#: Not strict: models break lines inside of a text.
_JSON = json.JSONDecoder(strict=False)


def description_in(answer: str) -> Description:
    """Parse an answer with fields; text before and after the JSON is left out.

    Raises:
        TransientError: ``model_output_invalid``: the answer is not the expected JSON, or has no
            description.
    """
    try:
        # Models write more around the object if their server does not hold them to the schema.
        found, _ = _JSON.raw_decode(answer, max(0, answer.find("{")))
        fields = _Fields.model_validate(found)
    except (ValueError, RecursionError) as error:
        raise TransientError(
            "model_output_invalid",
            f"the model's answer is not the JSON that was asked for ({_told(error)}); it begins: "
            f"{answer[:80]!r}",
        ) from error
    visible_text = clean_quotation(fields.visible_text or "")
    return Description(
        text=usable_text(fields.description, cut_by_length=False),
        tags=normalised_tags(fields.tags),
        visible_text=""
        if visible_text.lower().strip(".") in _NOTHING
        else visible_text[:_LONGEST_VISIBLE_TEXT].rstrip(),
    )


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
