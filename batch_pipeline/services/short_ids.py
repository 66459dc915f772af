"""Short ids: any unambiguous beginning of an id is enough, as with commits in git."""

import re
import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import select

from batch_pipeline.database.models import Upload, UploadBatch
from batch_pipeline.database.readings import one_of, owner
from batch_pipeline.database.session import Database
from batch_pipeline.errors import NotFoundError, RefusedError
from batch_pipeline.visible_text import visible_line

#: Number of digits shown where there is no room for all 32.
SHOWN_DIGITS = 8
#: Number of ids that the error about an ambiguous beginning lists.
_LISTED = 5


class Named(StrEnum):
    """The kind of thing that an id names."""

    BATCH = "batch"
    UPLOAD = "upload"
    USER = "user"


_COLUMNS: dict[Named, Any] = {
    Named.BATCH: UploadBatch.id,
    Named.UPLOAD: Upload.id,
    Named.USER: owner(UploadBatch.user_id).element,
}
#: End of the message that there is no such thing.
_WHERE = {
    Named.BATCH: ": `batch-pipeline status` lists the newest ones",
    Named.UPLOAD: ": `batch-pipeline status BATCH` lists those of a batch",
    Named.USER: " that has submitted anything",
}


def short(whole: uuid.UUID | str) -> str:
    """Return the beginning of an id, which is unambiguous in most cases."""
    return str(whole)[:SHOWN_DIGITS]


def batch_label(batch_id: uuid.UUID | str, name: str | None) -> str:
    """Return the name of a batch for messages: its name, if it has one, and its short id."""
    return f"{visible_line(name)} ({short(batch_id)})" if name else short(batch_id)


def digits_of(text: str) -> str | None:
    """Return the hexadecimal digits of an id or of its beginning; None if the text is not one.

    Dashes and an ellipsis at the end, which people copy too, are removed.
    """
    digits = text.strip().rstrip("….").replace("-", "").lower()
    return digits if re.fullmatch("[0-9a-f]{1,32}", digits) else None


def no_such(named: Named, *ids: object) -> NotFoundError:
    """Return the error about ids that name nothing; every command says the same."""
    return NotFoundError(f"there is no {named} {', '.join(map(str, ids))}{_WHERE[named]}")


def require_existing(database: Database, named: Named, ids: Sequence[uuid.UUID]) -> None:
    """Raise `NotFoundError` if one of the ids names nothing."""
    column = _COLUMNS[named]
    with database.transaction() as connection:
        found = set(connection.scalars(select(column).where(one_of(column, ids))))
    if missing := set(ids) - found:
        raise no_such(named, *sorted(missing))


def whole_id(database: Database, named: Named, digits: str) -> uuid.UUID:
    """Find the one id that begins with these digits.

    Raises:
        NotFoundError: there is none.
        RefusedError: there are several; the message lists the first of them.
    """
    column = _COLUMNS[named]
    first, last = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
    query = select(column).distinct().where(column.between(first, last)).order_by(column)
    with database.transaction() as connection:
        found = connection.scalars(query.limit(_LISTED + 1)).all()
    if not found:
        raise no_such(named, f"{digits}…")
    if len(found) > 1:
        listed = ", ".join(map(str, found[:_LISTED]))
        more = " and more" if len(found) > _LISTED else ""
        raise RefusedError(f"{digits} begins several ids: {listed}{more}; type more digits")
    whole: uuid.UUID = found[0]
    return whole
