"""Processes many items; an item that raises an error is left out, the others are processed.

Sensors, schedules and the sweep use this for rows, files, runs and their tags, because other
programs write these, too. The tick reports every item that was left out and its error.
"""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.visible_text import visible_line

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Number of items that a line names, and number of characters of each reason.
_MAX_NAMED, _MAX_REASON = 3, 200


class LeftOut:
    """Items that could not be processed, with the reasons.

    As text it is one line; the text is empty if nothing was left out.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        """Reasons by the name of the item."""

    def note(self, what: str, reason: object) -> None:
        """Record an item as left out, with an error or another reason."""
        self.reasons[what] = short_reason(reason)
        log.debug("left out: %s", what, exc_info=isinstance(reason, Exception) and reason)

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __len__(self) -> int:
        return len(self.reasons)

    def __str__(self) -> str:
        if not self.reasons:
            return ""
        named = [f"{what} ({reason})" for what, reason in self.reasons.items()][:_MAX_NAMED]
        more = len(self.reasons) - len(named)
        return "left out: " + "; ".join(named) + (f"; and {more} more" if more else "")


def one_by_one(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    left_out: LeftOut,
    *,
    named: Callable[[Item], str],
) -> list[Result]:
    """Process each item, and return the results of those that raised no error.

    Args:
        items: the items, processed in this order.
        work: processes one item; may raise any error.
        left_out: records the items that raised an error.
        named: returns the name of an item for the tick.

    Raises:
        ServiceDownError: a service is down, so the other items would fail, too.
    """
    results = []
    for item in items:
        try:
            results.append(work(item))
        except ServiceDownError:
            raise
        except Exception as error:  # an error of one item must not stop the others
            left_out.note(named(item), error)
    return results


def short_reason(reason: object) -> str:
    """Return the first line of an error's message; a database error without its statement."""
    cause = reason.orig if isinstance(reason, DBAPIError) else reason
    first, *_ = str(cause).strip().splitlines() or [""]
    said = visible_line(first)[:_MAX_REASON]
    return said or type(cause).__name__
