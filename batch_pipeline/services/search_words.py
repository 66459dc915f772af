"""Search by words: quoted phrases, file names, and pictures in which all words of a question are.

Words help where meaning has nothing to hold on to: names of files and cameras, numbers, text in
pictures. A word that hundreds of pictures have tells none of them apart: there meaning decides.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

from sqlalchemy import ColumnElement, and_, false, func, literal_column, or_
from sqlalchemy.dialects.postgresql import TSVECTOR

from batch_pipeline.database.models import UPLOAD_WORDS, Upload

#: Longer questions are read up to here (characters).
_LONGEST = 2000
_QUOTED = re.compile('["“„«]([^"“”„«»]+)["”“»]')
#: What PostgreSQL's text cannot hold.
_UNREADABLE = re.compile("[\x00\ud800-\udfff]")

_words = literal_column(UPLOAD_WORDS, TSVECTOR)
#: Says that the indexes of words and names may be used.
_indexed = Upload.embedding_model.is_not(None)


@dataclass(frozen=True)
class Question:
    """What a person asks for, in words."""

    asked: str

    @cached_property
    def text(self) -> str:
        """As PostgreSQL can hold it."""
        return _UNREADABLE.sub(" ", self.asked[:_LONGEST]).strip()

    @cached_property
    def phrases(self) -> list[str]:
        """What stands in quotation marks."""
        return [phrase.strip() for phrase in _QUOTED.findall(self.text) if phrase.strip()]

    @cached_property
    def _name(self) -> str:
        return self.text.strip('"“”„«» ').lower()

    def names(self, filename: str) -> bool:
        """Tell whether this is the name of a file, with or without what stands behind its dot."""
        name = filename.lower()
        return self._name in {name, PurePath(name).stem}

    @property
    def has_name(self) -> ColumnElement[bool]:
        """Files of exactly this name."""
        return and_(_indexed, func.lower(Upload.filename) == self._name)

    @property
    def has_phrases(self) -> ColumnElement[bool]:
        """Uploads in which all quoted phrases stand word for word."""
        if not self.phrases:
            return false()
        found = (_words.op("@@")(func.phraseto_tsquery("simple", p)) for p in self.phrases)
        return and_(_indexed, *found)

    @property
    def has_all_words(self) -> ColumnElement[bool]:
        """Uploads in which all words of the question stand, whatever their English endings."""
        asked = [
            func.plainto_tsquery("english", self.text),
            func.plainto_tsquery("simple", self.text),
        ]
        if not self.text.split()[1:]:  # a name may hold signs that the index has taken apart
            asked.append(func.plainto_tsquery("simple", re.sub(r"[\W_]+", " ", self.text)))
        return and_(_indexed, or_(*(_words.op("@@")(query) for query in asked)))
