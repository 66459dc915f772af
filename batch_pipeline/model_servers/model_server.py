"""What the HTTP dialects have in common; `ollama` and `openai_compatible` are the two.

`remote` asks the questions, `server_group` chooses the server.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from batch_pipeline.errors import TransientError
from batch_pipeline.model_servers.answers import checked_vector
from batch_pipeline.model_servers.base import CallKind, Spent, Usage
from batch_pipeline.model_servers.client_pool import ClientPool
from batch_pipeline.model_servers.http_calls import ServerCalls, run_on_loop
from batch_pipeline.model_servers.http_transport import reading_answer
from batch_pipeline.model_servers.learnt import Learnt, Stage

#: Context window that we ask for if the server lets the caller choose (tokens).
CONTEXT_TOKENS = 8192
#: Hosted services have hundreds of models.
_NAMES_SHOWN = 10


@dataclass(frozen=True)
class AnswerForm:
    """The fields that an answer should have, for servers that hold a model to a schema."""

    schema: Mapping[str, Any]
    wording: str
    """Added to the prompt."""
    max_tokens: int
    """Limit of an answer in this form, instead of that of the request."""


@dataclass(frozen=True)
class ChatRequest:
    """One question to a vision model, with a picture or with text only."""

    prompt: str
    jpeg: bytes | None
    max_tokens: int
    temperature: float
    seed: int
    form: AnswerForm | None = None
    """Sent if the server accepts it; otherwise the answer is plain text."""

    def question(self, *, in_form: bool) -> str:
        """Return the prompt for the model."""
        return f"{self.prompt}\n\n{self.form.wording}" if self.form and in_form else self.prompt

    def room(self, budget: int, *, in_form: bool) -> int:
        """Return the limit of tokens for an answer: `budget` times the usual, to allow thoughts.

        The room for a thought has room for fields, too. If both were added, an answer and a large
        picture would exceed a context of 8192 tokens, and some servers refuse that.
        """
        usual = self.max_tokens * budget
        return max(usual, self.form.max_tokens) if self.form and in_form else usual


@dataclass(frozen=True)
class ChatAnswer:
    """What the model wrote, whether the limit of tokens stopped it, and its usage."""

    text: str
    cut_by_length: bool
    usage: Usage
    in_form: bool = False
    """It contains the fields that were asked for; otherwise it is plain text."""


@dataclass(frozen=True)
class EmbedAnswer:
    """The vectors of the texts, in their order, and the usage."""

    vectors: list[list[float]]
    """As the server sent them; None for a number that JSON cannot express."""
    usage: Usage


@dataclass(frozen=True)
class ModelOptions:
    """What people have set for requests to the models of a server."""

    vision: Mapping[str, Any] = field(default_factory=dict)
    embedding: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""
    """Image detail, if the protocol has such a field."""


def counted(told: object) -> int:
    """Return the tokens that a server reports; 0 if the value is missing or not a number."""
    return told if isinstance(told, int) and 0 <= told < 2**31 else 0


def nearest_names(model: str, present: Iterable[str]) -> str:
    """Return the names of models for a message: at most ten, those most like `model` first."""
    names = sorted(present)
    near = get_close_matches(model, names, n=_NAMES_SHOWN, cutoff=0)
    more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
    return ", ".join(near) + more or "none"


class ModelServer(ABC):
    """One dialect of HTTP, bound to one address; its coroutines run on the loop of `http_calls`.

    The coroutines raise whatever the client library raises; `http_calls` names it.

    Args:
        options: what people set for the requests.
    """

    kind: str
    """Name of the kind of server, for messages."""
    stages: Sequence[Stage]
    """Ways to keep a vision model from thinking, in the order in which they are tried."""
    calls: ServerCalls
    _clients: ClientPool[Any]
    """Each dialect sets this and `calls`."""

    def __init__(self, options: ModelOptions) -> None:
        self._options = options
        self._learnt: dict[tuple[str, CallKind], Learnt] = {}
        self._embeds_well: set[tuple[str, int]] = set()
        """Models and dimensions for which `_require_vector` has succeeded."""

    @abstractmethod
    async def chat(self, model: str, request: ChatRequest, spent: Spent) -> ChatAnswer:
        """Ask a vision model one question; `spent` gets the usage of each call that this takes."""

    @abstractmethod
    async def embed(
        self, model: str, texts: Sequence[str], dimensions: int, spent: Spent
    ) -> EmbedAnswer:
        """Embed texts; refuses a text that is longer than the context instead of cutting it.

        `dimensions` is the length to ask for; some servers ignore it and return their own length.
        """

    @abstractmethod
    async def digest(self, model: str) -> str:
        """Return what identifies this version of the model; empty if the protocol has no digest.

        Raises a `KindedError` if the model is missing.
        """

    @abstractmethod
    def hint(self, kind: str, model: str) -> str:
        """Return what to do about an error of this kind for this model; empty: nothing."""

    @abstractmethod
    async def check_vision(self, model: str) -> str:
        """Return what was found; raises a `KindedError` if the model is missing or unsuitable."""

    @abstractmethod
    async def check_embedding(self, model: str, dimensions: int, spent: Spent) -> str:
        """Return what was found; raises a `KindedError` if such vectors are not possible."""

    def learnt(self, model: str) -> str:
        """Return what calls have learnt about how to call the model; empty: nothing."""
        found = [learnt.summary() for (of, _), learnt in self._learnt.items() if of == model]
        return "; ".join(filter(None, found))

    def close(self) -> None:
        """Close the connections; no calls may follow."""
        run_on_loop(self._clients.close())

    def _learnt_of(self, model: str, kind: CallKind) -> Learnt:
        if (model, kind) not in self._learnt:
            who = f"model {model} at {self.calls.name}"
            self._learnt[model, kind] = (
                Learnt(who, "BATCH_PIPELINE_VISION_OPTIONS", self._options.vision, self.stages)
                if kind == "vision"
                else Learnt(who, "BATCH_PIPELINE_EMBEDDING_OPTIONS", self._options.embedding)
            )
        return self._learnt[model, kind]

    async def _require_vector(self, model: str, dimensions: int, spent: Spent) -> None:
        """Embed a short text to check its vector; raises as `RemoteEmbedding.embed` does."""
        vectors = (await self.embed(model, ["check"], dimensions, spent)).vectors
        if len(vectors) != 1:
            raise TransientError(
                "embedding_empty" if not vectors else "model_output_invalid",
                f"{model} returned {len(vectors)} vectors for one text",
            )
        with reading_answer():
            checked_vector(vectors[0], model, dimensions)
        self._embeds_well.add((model, dimensions))
