"""Filters of a search: turns plain values into conditions of the SQL statement."""

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import ColumnElement, func, or_

from batch_pipeline.database.models import Upload
from batch_pipeline.database.readings import FACTS, HIDDEN, known, upload_owned_by
from batch_pipeline.errors import RefusedError
from batch_pipeline.media.acceptance import FORMATS
from batch_pipeline.model_servers.structured import normalised_tag
from batch_pipeline.services.search.words import UNREADABLE

_DAY = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")
#: Stored formats by other names for them. HEIC is a HEIF file with a certain codec.
_STORED = {"jpg": ("jpeg",), "heif": ("heif", "heic"), "tif": ("tiff",)}


@dataclass(frozen=True)
class Filters:
    """Selects uploads that meet all of these conditions; None means any value."""

    user_id: uuid.UUID | None = None
    batch_id: uuid.UUID | None = None
    file_type: str | None = None
    """``image`` or ``video``."""
    format: str | None = None
    """The format as it is stored or a common name of it: ``jpeg``, ``jpg``, ``mp4``."""
    camera: str | None = None
    """Part of the camera's name; case does not matter."""
    since: str | None = None
    """First day, month or year in which it was taken: ``2024-05-17``, ``2024-05`` or ``2024``. If
    the time of capture is unknown, the time of the upload counts."""
    until: str | None = None
    """Last day, month or year, in the same form."""
    has_text: bool = False
    """Only uploads with readable text in the picture, or a quotation in the description."""
    vision_model: str | None = None
    """The model that made the description."""
    least_similarity: float | None = None
    """Lowest cosine similarity, -1 to 1; uploads without a similarity are left out, too."""
    tags: Sequence[str] = ()
    """Only uploads with all of these tags; case does not matter."""

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """Yield the SQL conditions of these filters.

        Raises:
            RefusedError: an id, a date, a file type, a format, a tag, a similarity or a text is not
                valid, or since is later than until.
        """
        _require_storable(self.format, self.camera, self.vision_model)
        require_ids(user_id=self.user_id, batch_id=self.batch_id)
        yield ~HIDDEN
        if self.user_id is not None:
            yield upload_owned_by(self.user_id)
        if self.batch_id is not None:
            yield Upload.batch_id == self.batch_id
        if self.file_type is not None:
            if self.file_type not in {"image", "video"}:
                raise RefusedError(f"the kind is {self.file_type!r}: expected image or video")
            yield Upload.file_type == self.file_type
        if self.format is not None:
            yield FACTS["format"].astext.in_(_stored_formats(self.format))
        if self.camera is not None:
            yield func.lower(FACTS["camera"].astext).contains(self.camera.lower(), autoescape=True)
        if self.since is not None:
            yield _when() >= _period(self.since)[0].isoformat()
        if self.until is not None:
            yield _when() < _period(self.until)[1].isoformat()
        if self.since and self.until and _period(self.since)[0] >= _period(self.until)[1]:
            raise RefusedError(f"since {self.since} is later than until {self.until}")
        if self.has_text:
            quoted = Upload.description.regexp_match('[“"][^“”"]{2,}[”"]')
            yield or_(Upload.visible_text.is_not(None), quoted)
        yield from self._tagged()
        if self.vision_model is not None:
            yield Upload.vision_model == self.vision_model
        if self.least_similarity is not None and not -1 <= self.least_similarity <= 1:
            raise RefusedError(
                f"the least similarity is {self.least_similarity:g}: expected -1 to 1"
            )

    def _tagged(self) -> Iterator[ColumnElement[bool]]:
        wanted = [normalised_tag(tag) for tag in self.tags]
        if not all(wanted):
            raise RefusedError(f"{list(self.tags)} are not tags: expected words or short names")
        if wanted:
            yield Upload.vision_tags.contains(wanted)
            yield Upload.embedding_model.is_not(None)  # so that the partial index can be used


def _stored_formats(name: str) -> Sequence[str]:
    stored = _STORED.get(name.lower(), (name.lower(),))
    if not {*stored} <= {*FORMATS}:
        raise RefusedError(f"{name!r} is not a format: expected one of {', '.join(FORMATS)}")
    return stored


def require_ids(**named: object) -> None:
    """Raise `RefusedError` if a value is not an id; web applications get ids as text."""
    for name, value in named.items():
        try:
            if value is not None:
                uuid.UUID(str(value))
        except ValueError:
            raise RefusedError(f"{name} is {value!r}: expected an id (a UUID)") from None


def _require_storable(*texts: str | None) -> None:
    for text in texts:
        if text and UNREADABLE.search(text):
            raise RefusedError(f"{text!r} has characters that no stored text can have")


def _when() -> ColumnElement[str]:
    """Return the time of capture, or else of upload (UTC), as ISO text, which sorts by time."""
    uploaded = func.to_char(
        func.timezone("UTC", known(Upload.created_at)), 'YYYY-MM-DD"T"HH24:MI:SS'
    )
    taken: ColumnElement[str] = func.coalesce(FACTS["captured_at"].astext, uploaded)
    return taken.collate("C")


def _period(text: str) -> tuple[date, date]:
    """Return the first day of a day, month or year, and the first day after it."""
    found = _DAY.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        year, month, day = (int(part) if part else None for part in found.groups())
        first = date(year or 0, 1 if month is None else month, 1 if day is None else day)
        if day:
            return first, first + timedelta(days=1)
        if month:
            return first, (first.replace(day=28) + timedelta(days=4)).replace(day=1)
        return first, date(first.year + 1, 1, 1)
    except (ValueError, OverflowError):
        raise RefusedError(
            f"{text!r} is not a date: expected one such as 2024-05-17, 2024-05 or 2024"
        ) from None
