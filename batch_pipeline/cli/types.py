"""Types of command-line arguments that click does not have: ids, lengths of time, moments, text."""

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_UNITS = {"s": "seconds", "min": "minutes", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=36500)


class Id(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """An id of a batch, an upload or a user: the whole id, or a unique beginning of it."""

    name = "id"

    def __init__(self, named: str) -> None:
        self._named = named

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> uuid.UUID:
        """Return the id; a shortened id is looked up. Called by click."""
        from batch_pipeline.services.short_ids import Named, digits_of, whole_id  # noqa: PLC0415

        if isinstance(value, uuid.UUID):
            return value
        digits = digits_of(value)
        if digits is None:
            self.fail(
                f"{value!r} is not an id; expected an id or its first characters, such as "
                "3f2a91c0.",
                param,
                ctx,
            )
        if len(digits) == 32:
            return uuid.UUID(digits)
        if ctx is None:
            raise ValueError("a beginning of an id is looked up in a database")
        return whole_id(ctx.obj.pipeline.database, Named(self._named), digits)


class Text(click.ParamType):  # type: ignore[type-arg]
    """A text in UTF-8. An argument may have other bytes, which no database or server accepts."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; called by click."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} is not text in UTF-8.", param, ctx)
        return str(value)


def _length(text: str) -> timedelta | None:
    """Read a length of time such as ``30min``; None if the text is something else."""
    found = re.fullmatch(r"(\d{1,9})\s*(s|min|m|h|d|w)", text.strip())
    return min(timedelta(**{_UNITS[found[2]]: int(found[1])}), _LONGEST) if found else None


class Length(click.ParamType):  # type: ignore[type-arg]
    """A length of time."""

    name = "length"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Read the length; called by click."""
        length = value if isinstance(value, timedelta) else _length(value)
        if length is None:
            self.fail(f"{value!r} is not a length of time; expected 30min, 24h, 7d.", param, ctx)
        return length


class Since(click.ParamType):  # type: ignore[type-arg]
    """A moment: a length of time before now (``24h``), or a day or moment in ISO 8601."""

    name = "since"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the moment with its time zone; by default that of this machine."""
        if isinstance(value, datetime):
            return value
        if (ago := _length(value)) is not None:
            return datetime.now(UTC) - ago
        try:
            return datetime.fromisoformat(value.strip()).astimezone()
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a point in time; expected how long ago (30min, 24h, 7d), or a "
                "day such as 2026-05-17.",
                param,
                ctx,
            )


BATCH, UPLOAD, USER = Id("batch"), Id("upload"), Id("user")
LENGTH, SINCE, TEXT = Length(), Since(), Text()
