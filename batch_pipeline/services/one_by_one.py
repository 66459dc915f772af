"""Work on many things, of which one may be bad: it is left out and named, the others go on.

For whatever a sensor, a schedule or a sweep goes through: rows, files, runs and their tags were
written by others, too. What went wrong with one of them is said in the tick; nothing is swallowed.
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

#: Things that are named in a line, and characters of each reason.
_MAX_NAMED, _MAX_REASON = 3, 200


class LeftOut:
    """What could not be handled, with the reasons; as text one line, empty if there is nothing."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        """By the name of the thing."""

    def note(self, what: str, reason: object) -> None:
        """Leave a thing out, for an error or another reason."""
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
    """Work each item, and return the results of those that could be.

    Args:
        items: handled in this order.
        work: raises whatever it likes for an item that is bad.
        left_out: notes those.
        named: what an item is called in a tick.

    Raises:
        ServiceDownError: which the others would meet, too.
    """
    results = []
    for item in items:
        try:
            results.append(work(item))
        except ServiceDownError:
            raise
        except (
            Exception
        ) as error:  # whatever is wrong with this one, it is not wrong with the others
            left_out.note(named(item), error)
    return results


def short_reason(reason: object) -> str:
    """The first line of what an error says; of one of the database without its statement."""
    cause = reason.orig if isinstance(reason, DBAPIError) else reason
    first, *_ = str(cause).strip().splitlines() or [""]
    said = visible_line(first)[:_MAX_REASON]
    return said or type(cause).__name__
