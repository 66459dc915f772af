"""Parts of sentences that several messages share."""

from collections.abc import Sequence

#: Maximum number of names that a message lists.
_MAX_NAMED = 3


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write ``1 file`` or ``2 files``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """List names; only the first ones if there are many."""
    named = names[:_MAX_NAMED]
    more = len(names) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def how_to_install(extra: str) -> str:
    """Say how to install an extra from a clone: this package's name on PyPI is not ours."""
    return f"run pip install '.[{extra}]' in the clone of batch_pipeline"
