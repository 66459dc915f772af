"""Turns batches of uploaded photos and videos into searchable knowledge, on Dagster.

Importing the package does nothing: what it offers to others is loaded when it is first used, since
what that stands on takes a second. For applications `search` and its `Filters`, for other Dagster
projects `BatchPipelineComponent`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_pipeline.component import BatchPipelineComponent
    from batch_pipeline.services.application import search
    from batch_pipeline.services.search_filters import Filters

__all__ = ["BatchPipelineComponent", "Filters", "search"]

_HOMES = {
    "BatchPipelineComponent": "batch_pipeline.component",
    "Filters": "batch_pipeline.services.search_filters",
    "search": "batch_pipeline.services.application",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
