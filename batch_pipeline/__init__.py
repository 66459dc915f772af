"""Turns batches of uploaded photos and videos into searchable knowledge, on Dagster.

Importing the package does nothing; what it offers to others is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_pipeline.component import BatchPipelineComponent

__all__ = ["BatchPipelineComponent"]

_HOMES = {"BatchPipelineComponent": "batch_pipeline.component"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
