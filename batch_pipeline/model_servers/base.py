"""The interface of every describer and embedder; the rest of the package knows only this.

Both objects of an `Analyzer` are shared by all threads of a run and must be safe under threads.
They raise the errors of `batch_pipeline.errors`: `TransientError` for what may pass,
`PermanentError` for what cannot, `ServiceDownError` for a server that cannot be reached or has no
such model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from batch_pipeline.media.content import Frame, MediaFacts


@dataclass(frozen=True)
class HealthCheck:
    """One line of a health report."""

    name: str
    ok: bool
    detail: str
    """What was found."""
    hint: str = ""
    """What to do when it is not ok."""
    kind: str = ""
    """Of the error that was found, if it has one."""


class CancelledCheck(Protocol):
    """Asked between and during calls; true when the work is no longer wanted."""

    def __call__(self) -> bool:  # noqa: D102
        ...


def never_cancelled() -> bool:
    """Answer for callers whose work is always wanted."""
    return False


class VisionModel(Protocol):
    """Describes pictures."""

    name: str

    def describe(
        self,
        facts: MediaFacts,
        frames: Sequence[Frame],
        *,
        attempt: int = 1,
        cancelled: CancelledCheck = never_cancelled,
    ) -> str:
        """Describe one picture, or a video by its frames in the order of time.

        Args:
            facts: what the file says about itself.
            frames: one for an image, one or more for a video.
            attempt: 1 for the first; later ones vary seed and temperature, so that a bad answer
                is not asked for again.
            cancelled: asked at least twice a second while a call is waited for.

        Returns:
            Plain text, never empty.

        Raises:
            TransientError: time-out, 5xx, reset connection, an empty or cut answer.
            PermanentError: the server refuses this very input for good.
            ServiceDownError: the server cannot be reached, or has no such model.
            ClaimLostError: `cancelled` answered true.
        """
        ...

    def check(self) -> list[HealthCheck]:
        """Ask whether a call could succeed now; never raises."""
        ...


class EmbeddingModel(Protocol):
    """Turns text into vectors."""

    name: str
    dimensions: int

    def embed(
        self, texts: Sequence[str], *, cancelled: CancelledCheck = never_cancelled
    ) -> list[list[float]]:
        """Embed each text; vectors have `dimensions` finite numbers and are not all zero.

        Raises:
            TransientError: time-out, 5xx, reset connection, a vector that is not usable.
            ServiceDownError: the server cannot be reached, or has no such model.
            ClaimLostError: `cancelled` answered true.
        """
        ...

    def check(self) -> list[HealthCheck]:
        """Ask whether a call could succeed now; never raises."""
        ...


@dataclass(frozen=True)
class Analyzer:
    """Who describes and who embeds; often the same server."""

    vision: VisionModel
    embedding: EmbeddingModel

    def check(self) -> list[HealthCheck]:
        """Health of both."""
        return [*self.vision.check(), *self.embedding.check()]
