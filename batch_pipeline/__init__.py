"""Turns batches of uploaded photos and videos into searchable knowledge, on Dagster.

For applications: `search` and its `Filters`. They are loaded when they are asked for, as what they
stand on takes a second that importing a part of the package should not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_pipeline.services.application import search
    from batch_pipeline.services.search_filters import Filters

__all__ = ["Filters", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from batch_pipeline.services import application  # noqa: PLC0415

        return getattr(application, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
