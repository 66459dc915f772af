"""The interface of vision and embedding models; the rest of the package uses only this.

All threads of a run share both objects of an `Analyzer`, so both must be thread-safe. They raise
the errors of `batch_pipeline.errors`: `TransientError` if a retry may help, `PermanentError` if it
cannot, `ServiceDownError` if a server cannot be reached or does not have the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from batch_pipeline.errors import WorkPausedError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers.rate_limits import Room
from batch_pipeline.model_servers.text_prefixes import TextPrefixes


@dataclass(frozen=True)
class Usage:
    """Tokens and time that calls to a model used."""

    tokens_in: int = 0
    """As the server counts them; 0 if it does not report them."""
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


#: Called with the usage of each answered call, even if the answer cannot be used. It runs in the
#: calling thread, before that thread gets a result or an error. It must not raise.
Spent = Callable[[Usage], None]


def not_counted(usage: Usage) -> None:
    """Ignore the usage, for callers that do not record it."""


@contextmanager
def told_here(spent: Spent) -> Iterator[Spent]:
    """Yield a collector for code that makes calls; report its usage in this thread at the end."""
    collected: list[Usage] = []
    try:
        yield collected.append
    finally:
        for usage in collected:
            spent(usage)


@dataclass(frozen=True)
class Description:
    """A vision model's description of a picture or a video."""

    text: str
    """Plain text, never empty."""
    tags: tuple[str, ...] = ()
    """Lower case, without duplicates; empty if the model was not held to a JSON schema."""
    visible_text: str = ""
    """Text in the picture, word for word; empty if there is none or the model was not asked."""


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
    """Kind of the error that was found, if it has one."""


#: Kind of a `HealthCheck` of a server that was not asked because a person has paused it.
WORK_PAUSED = "work_paused"


class CancelledCheck(Protocol):
    """Called between and during calls; returns true if the work is no longer wanted."""

    def __call__(self) -> bool:  # noqa: D102
        ...


def never_cancelled() -> bool:
    """Return false: the caller's work is always wanted."""
    return False


#: Called right before each call, with the address of its server (empty for an embedded model).
#: Returns the reason if a person has paused this call, or "" if it may begin. A call in flight
#: continues.
PausedCheck = Callable[[str], str]


def never_paused(server: str) -> str:
    """Return "": calls of this caller are never paused."""
    del server
    return ""


def require_unpaused(paused: PausedCheck, server: str = "") -> None:
    """Raise `WorkPausedError` if the call may not begin."""
    if reason := paused(server):
        raise WorkPausedError(reason)


@dataclass(frozen=True)
class Caller:
    """Tells whether a call is still wanted and may begin, and records what it used."""

    cancelled: CancelledCheck = never_cancelled
    """Called at least twice a second while a call waits for its turn or its answer."""
    paused: PausedCheck = never_paused
    """Called right before each call; a server for which it returns a reason is not called."""
    spent: Spent = not_counted
    """Called with the usage of each answered call."""


#: Kinds of calls; each kind has its own cap. A suspect is a call that may bring the server down: it
#: takes a slot of this kind in addition to its usual slot.
CallKind = Literal["vision", "embedding", "suspect"]


class CallSlots(Protocol):
    """Cap on the calls of one kind that are in flight to each server."""

    def taken(
        self, servers: Callable[[], Sequence[str]], cancelled: CancelledCheck
    ) -> AbstractContextManager[str]:
        """Wait for a slot of the least loaded server and hold it; yield the server's address.

        Args:
            servers: returns the addresses that the call may go to now. It is called repeatedly
                while waiting, since servers go down and come back.
            cancelled: called at least twice a second while waiting.

        Raises:
            WorkCancelledError: `cancelled` returned true while waiting.
            ServiceDownError: the database that shares the slots cannot be reached, or every server
                asked for a long pause.
        """
        ...

    def pause(self, server: str, seconds: float, reason: str) -> None:
        """Stop all calls to a server that refused a call, until the pause is over."""
        ...

    def answered(self, server: str, rooms: Sequence[Room], tokens: float) -> None:
        """Note that a server answered, and what is left of its limits; the slot is still held.

        `tokens` is what the call used; 0 if the server did not report it.
        """
        ...


#: Makes the slots for calls of one kind. Arguments: the kind, the limit per server, and the limits
#: of servers that have their own.
MakeCallSlots = Callable[[CallKind, int, Mapping[str, int]], CallSlots]


class VisionModel(Protocol):
    """Describes pictures."""

    name: str

    def fingerprint(self) -> str:
        """Return what a description depends on besides its file, see `fingerprints`.

        Raises:
            ServiceDownError: no server can say which model it has.
        """
        ...

    def describe(
        self,
        facts: MediaFacts,
        frames: Sequence[Frame],
        *,
        attempt: int = 1,
        caller: Caller = Caller(),
    ) -> Description:
        """Describe one picture, or a video by its frames in order of time.

        Args:
            facts: metadata of the file.
            frames: one for an image, one or more for a video.
            attempt: 1 for the first; later attempts use another seed and temperature, so that
                they do not repeat a bad answer.
            caller: who makes the call.

        Raises:
            TransientError: time-out, 5xx, reset connection, an empty or cut answer.
            PermanentError: the server refuses this input; a retry does not help.
            ServiceDownError: the server cannot be reached, or does not have the model.
            WorkCancelledError: the caller's work is no longer wanted.
            WorkPausedError: a person has paused every server for this caller.
        """
        ...

    def check(
        self, *, paused: PausedCheck = never_paused, patient: bool = True
    ) -> list[HealthCheck]:
        """Check whether a call could succeed now; never raises.

        A server for which `paused` returns a reason is not asked: its check has the kind
        `WORK_PAUSED`. Without `patient`, the check does not wait for a switched-off server that
        another one can replace. The result may then lack that server.
        """
        ...

    def try_out(self, caller: Caller = Caller()) -> list[HealthCheck]:
        """Make one real call whose answer is known; raises only `WorkCancelledError`.

        A server that is paused for the caller is not asked: its check has the kind `WORK_PAUSED`.
        """
        ...


class EmbeddingModel(Protocol):
    """Turns text into vectors."""

    name: str
    dimensions: int
    prefixes: TextPrefixes
    """Prefixes that are sent in front of texts."""

    def fingerprint(self) -> str:
        """Return what a vector depends on besides its text, see `fingerprints`.

        Raises:
            ServiceDownError: no server can say which model it has.
        """
        ...

    def embed(
        self,
        texts: Sequence[str],
        *,
        as_questions: bool = False,
        caller: Caller = Caller(),
    ) -> list[list[float]]:
        """Embed each text; vectors have `dimensions` finite numbers and are not all zero.

        Args:
            texts: descriptions, or search queries.
            as_questions: the texts are search queries.
            caller: who makes the call.

        Raises:
            TransientError: time-out, 5xx, reset connection, a vector that cannot be used.
            ServiceDownError: the server cannot be reached, or does not have the model.
            WorkCancelledError: the caller's work is no longer wanted.
            WorkPausedError: a person has paused every server for this caller.
        """
        ...

    def check(
        self,
        *,
        spent: Spent = not_counted,
        paused: PausedCheck = never_paused,
        patient: bool = True,
    ) -> list[HealthCheck]:
        """Check whether a call could succeed now; see `VisionModel.check`."""
        ...

    def try_out(self, caller: Caller = Caller()) -> list[HealthCheck]:
        """Make one real call whose answer is known; see `VisionModel.try_out`."""
        ...


@dataclass(frozen=True)
class Analyzer:
    """A vision model and an embedding model; often on the same server."""

    vision: VisionModel
    embedding: EmbeddingModel

    def check(self) -> list[HealthCheck]:
        """Check the health of both."""
        return [*self.vision.check(), *self.embedding.check()]

    def try_out(self) -> list[HealthCheck]:
        """Check that both answer a question with a known answer correctly."""
        return [*self.vision.try_out(), *self.embedding.try_out()]

    def outages(
        self, spent: Spent = not_counted, paused: PausedCheck = never_paused
    ) -> list[HealthCheck]:
        """Return the failed checks of each model that no server can serve now.

        `spent` is called with the usage of embedding calls; checking the vision model needs none.
        """
        with ThreadPoolExecutor(1) as thread:
            of_vision = thread.submit(self.vision.check, paused=paused, patient=False)
            of_embedding = self.embedding.check(spent=spent, paused=paused, patient=False)
        found: list[HealthCheck] = []
        for checks in (of_vision.result(), of_embedding):
            if not any(check.ok for check in checks):
                found += checks
        return found
