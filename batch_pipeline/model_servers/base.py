"""The interface of every describer and embedder; the rest of the package knows only this.

Both objects of an `Analyzer` are shared by all threads of a run and must be safe under threads.
They raise the errors of `batch_pipeline.errors`: `TransientError` for what may pass,
`PermanentError` for what cannot, `ServiceDownError` for a server that cannot be reached or has no
such model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from batch_pipeline.errors import WorkPausedError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers.rate_limits import Room
from batch_pipeline.model_servers.text_prefixes import TextPrefixes


@dataclass(frozen=True)
class Usage:
    """What calls to a model took."""

    tokens_in: int = 0
    """As the server counts them; 0: it does not tell."""
    tokens_out: int = 0
    seconds: float = 0.0
    """From the request to the end of the answer."""
    calls: int = 1

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.seconds + other.seconds,
            self.calls + other.calls,
        )


#: Told what each answered call took, also if the answer turns out to be of no use; called in the
#: thread that asked, before it gets a result or an error. Must not raise.
Spent = Callable[[Usage], None]


def not_counted(usage: Usage) -> None:
    """For callers who keep no account."""


@contextmanager
def told_here(spent: Spent) -> Iterator[Spent]:
    """Give a collector to whatever makes the calls, and tell what it collected in this thread."""
    collected: list[Usage] = []
    try:
        yield collected.append
    finally:
        for usage in collected:
            spent(usage)


@dataclass(frozen=True)
class Description:
    """What a vision model says of a picture or a video."""

    text: str
    """Plain text, never empty."""
    tags: tuple[str, ...] = ()
    """Small letters, each once; none if the model was not held to fields."""
    visible_text: str = ""
    """What can be read in it, word for word; empty: nothing, or the model was not asked apart."""


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


#: Kind of a `HealthCheck` of a server that was not asked, as a person has paused it.
WORK_PAUSED = "work_paused"


class CancelledCheck(Protocol):
    """Asked between and during calls; true when the work is no longer wanted."""

    def __call__(self) -> bool:  # noqa: D102
        ...


def never_cancelled() -> bool:
    """Answer for callers whose work is always wanted."""
    return False


#: Asked right before each call begins, with the address of its server (empty: an embedded model):
#: why the call may not begin, as a person has paused it; empty: it may. A call in flight goes on.
PausedCheck = Callable[[str], str]


def never_paused(server: str) -> str:
    """Answer for callers whose calls nobody pauses."""
    del server
    return ""


def require_unpaused(paused: PausedCheck, server: str = "") -> None:
    """Raise `WorkPausedError` if the call may not begin."""
    if reason := paused(server):
        raise WorkPausedError(reason)


#: What a call asks of a server; each kind has a cap of its own. A suspect is a call that may bring
#: the server down: it takes a slot of this kind beside the other one.
CallKind = Literal["vision", "embedding", "suspect"]


class CallSlots(Protocol):
    """Cap on the calls of one kind that are in flight to each server."""

    def taken(
        self, servers: Callable[[], Sequence[str]], cancelled: CancelledCheck
    ) -> AbstractContextManager[str]:
        """Wait for a slot of the least loaded of some servers and hold it; gives the server.

        Args:
            servers: addresses of those that the call may go to now; asked again and again while
                waiting, since servers go down and come back.
            cancelled: asked at least twice a second while waiting.

        Raises:
            WorkCancelledError: `cancelled` answered true while waiting.
            ServiceDownError: whoever gives out the slots cannot be reached, or every server asked
                for a long pause.
        """
        ...

    def pause(self, server: str, seconds: float, reason: str) -> None:
        """A server turned the caller away: nobody calls it until the pause is over."""
        ...

    def answered(self, server: str, rooms: Sequence[Room], tokens: float) -> None:
        """A server answered the caller, who still holds the slot, and told what is left.

        `tokens` is what the call used; 0: not told.
        """
        ...


#: Makes the slots for the calls of one kind: so many to each server, and to some their own number.
MakeCallSlots = Callable[[CallKind, int, Mapping[str, int]], CallSlots]


class VisionModel(Protocol):
    """Describes pictures."""

    name: str

    def fingerprint(self) -> str:
        """What a description depends on beside its file, see `fingerprints`.

        Raises:
            ServiceDownError: no server can be asked which model it has.
        """
        ...

    def describe(
        self,
        facts: MediaFacts,
        frames: Sequence[Frame],
        *,
        attempt: int = 1,
        cancelled: CancelledCheck = never_cancelled,
        paused: PausedCheck = never_paused,
        spent: Spent = not_counted,
    ) -> Description:
        """Describe one picture, or a video by its frames in the order of time.

        Args:
            facts: what the file says about itself.
            frames: one for an image, one or more for a video.
            attempt: 1 for the first; later ones vary seed and temperature, so that a bad answer
                is not asked for again.
            cancelled: asked at least twice a second while a call is waited for.
            paused: asked right before each call; a server that it names a reason for is not called.
            spent: told what each answered call took.

        Raises:
            TransientError: time-out, 5xx, reset connection, an empty or cut answer.
            PermanentError: the server refuses this very input for good.
            ServiceDownError: the server cannot be reached, or has no such model.
            WorkCancelledError: `cancelled` answered true.
            WorkPausedError: `paused` gave a reason for every server.
        """
        ...

    def check(self, *, paused: PausedCheck = never_paused) -> list[HealthCheck]:
        """Ask whether a call could succeed now; never raises.

        A server for which `paused` gives a reason is not asked: `WORK_PAUSED`.
        """
        ...

    def try_out(
        self,
        cancelled: CancelledCheck = never_cancelled,
        paused: PausedCheck = never_paused,
    ) -> list[HealthCheck]:
        """Make one real call whose answer is known; raises `WorkCancelledError` alone.

        A server for which `paused` gives a reason is not asked: `WORK_PAUSED`.
        """
        ...


class EmbeddingModel(Protocol):
    """Turns text into vectors."""

    name: str
    dimensions: int
    prefixes: TextPrefixes
    """Sent in front of texts."""

    def fingerprint(self) -> str:
        """What a vector depends on beside its text, see `fingerprints`.

        Raises:
            ServiceDownError: no server can be asked which model it has.
        """
        ...

    def embed(
        self,
        texts: Sequence[str],
        *,
        as_questions: bool = False,
        cancelled: CancelledCheck = never_cancelled,
        paused: PausedCheck = never_paused,
        spent: Spent = not_counted,
    ) -> list[list[float]]:
        """Embed each text; vectors have `dimensions` finite numbers and are not all zero.

        Args:
            texts: descriptions, or what people ask for.
            as_questions: they are what people ask for.
            cancelled: asked at least twice a second while a call is waited for.
            paused: asked right before each call; a server that it names a reason for is not called.
            spent: told what each answered call took.

        Raises:
            TransientError: time-out, 5xx, reset connection, a vector that is not usable.
            ServiceDownError: the server cannot be reached, or has no such model.
            WorkCancelledError: `cancelled` answered true.
            WorkPausedError: `paused` gave a reason for every server.
        """
        ...

    def check(
        self, *, spent: Spent = not_counted, paused: PausedCheck = never_paused
    ) -> list[HealthCheck]:
        """Ask whether a call could succeed now; see `VisionModel.check`."""
        ...

    def try_out(
        self,
        cancelled: CancelledCheck = never_cancelled,
        paused: PausedCheck = never_paused,
    ) -> list[HealthCheck]:
        """Make one real call whose answer is known; see `VisionModel.try_out`."""
        ...


@dataclass(frozen=True)
class Analyzer:
    """Who describes and who embeds; often the same server."""

    vision: VisionModel
    embedding: EmbeddingModel

    def check(self) -> list[HealthCheck]:
        """Health of both."""
        return [*self.vision.check(), *self.embedding.check()]

    def try_out(self) -> list[HealthCheck]:
        """Whether both answer a question with a known answer."""
        return [*self.vision.try_out(), *self.embedding.try_out()]

    def outages(
        self, spent: Spent = not_counted, paused: PausedCheck = never_paused
    ) -> list[HealthCheck]:
        """Why no upload could be processed now: what fails of a model that no server has.

        `spent` is told of calls to the embedding model; to look at the vision model takes none.
        """
        found: list[HealthCheck] = []
        for checks in (
            self.vision.check(paused=paused),
            self.embedding.check(spent=spent, paused=paused),
        ):
            if not any(check.ok for check in checks):
                found += checks
        return found
