"""Turns batches of uploaded photos and videos into searchable knowledge, on Dagster.

Importing the package loads nothing else. Its public names are loaded when they are first used,
because their imports take a second. Applications use `search` and `Filters`. Other Dagster projects
use `BatchPipelineComponent`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_pipeline.component import BatchPipelineComponent
    from batch_pipeline.services.application import search
    from batch_pipeline.services.search.filters import Filters

__all__ = ["BatchPipelineComponent", "Filters", "search"]

_HOMES = {
    "BatchPipelineComponent": "batch_pipeline.component",
    "Filters": "batch_pipeline.services.search.filters",
    "search": "batch_pipeline.services.application",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
