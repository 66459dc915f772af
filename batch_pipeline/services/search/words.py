"""Search by words: quoted phrases, file names, and uploads that contain all words of a question.

Words help where a search by meaning is weak: names of files and cameras, numbers, text in pictures.
A word that hundreds of uploads contain does not help to rank them, so meaning decides there.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from sqlalchemy import ColumnElement, and_, false, func, literal_column, or_
from sqlalchemy.dialects.postgresql import TSVECTOR

from batch_pipeline.database.models import UPLOAD_WORDS, Upload

#: Longer questions are cut off here (characters).
_LONGEST = 2000
_QUOTED = re.compile('["“„«]([^"“”„«»]+)["”“»]')
#: Characters that PostgreSQL text cannot hold.
UNREADABLE = re.compile("[\x00\ud800-\udfff]")

_words = literal_column(UPLOAD_WORDS, TSVECTOR)
#: This condition lets PostgreSQL use the partial indexes of words and names.
_indexed = Upload.embedding_model.is_not(None)


@dataclass(frozen=True)
class Question:
    """The search text of a person."""

    asked: str

    @cached_property
    def text(self) -> str:
        """The search text with composed accents, without characters that PostgreSQL cannot hold."""
        return unicodedata.normalize("NFC", UNREADABLE.sub(" ", self.asked[:_LONGEST])).strip()

    @cached_property
    def phrases(self) -> list[str]:
        """The phrases in quotation marks."""
        return [phrase.strip() for phrase in _QUOTED.findall(self.text) if phrase.strip()]

    @cached_property
    def _name(self) -> str:
        return self.text.strip('"“”„«» ').lower()

    def names(self, filename: str) -> bool:
        """Return whether the question is this file name, with or without its extension."""
        name = unicodedata.normalize("NFC", filename).lower()
        return self._name in {name, PurePath(name).stem}

    @property
    def has_name(self) -> ColumnElement[bool]:
        """Condition: the upload has exactly this file name."""
        return and_(_indexed, func.lower(Upload.filename).in_(_spellings(self._name)))

    @property
    def has_stem(self) -> ColumnElement[bool]:
        """Condition: the upload has this file name, apart from the extension.

        It needs all words of the question, so that their index is used. `names` must check the
        result: an extension may contain a dot here.
        """
        name = func.lower(Upload.filename)
        stems = (name.startswith(f"{stem}.", autoescape=True) for stem in _spellings(self._name))
        return and_(self.has_all_words, or_(*stems))

    @property
    def has_phrases(self) -> ColumnElement[bool]:
        """Condition: the upload contains all quoted phrases word for word."""
        if not self.phrases:
            return false()
        return and_(_indexed, *(_contains(func.phraseto_tsquery, p) for p in self.phrases))

    @property
    def has_all_words(self) -> ColumnElement[bool]:
        """Condition: the upload contains all words of the question; English endings are ignored."""
        asked = [
            _contains(func.plainto_tsquery, self.text, "english"),
            _contains(func.plainto_tsquery, self.text),
        ]
        if not self.text.split()[1:]:  # one word: the index splits names at punctuation, too
            asked.append(_contains(func.plainto_tsquery, re.sub(r"[\W_]+", " ", self.text)))
        return and_(_indexed, or_(*asked))


def _contains(
    query: Callable[..., Any], text: str, language: str = "simple"
) -> ColumnElement[bool]:
    return or_(*(_words.op("@@")(query(language, spelling)) for spelling in _spellings(text)))


def _spellings(text: str) -> list[str]:
    """Return a text with composed accents, and with separate ones as in file names of macOS."""
    return list(dict.fromkeys(unicodedata.normalize(form, text) for form in ("NFC", "NFD")))
