"""What a dialect of HTTP must offer: the interface that `ollama` and `openai_compatible` implement.

Who asks the questions lives in `remote`, which server is asked in `server_group`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batch_pipeline.model_servers.base import Spent, Usage
from batch_pipeline.model_servers.http_calls import ServerCalls

#: Context window asked for where the server lets the caller choose (tokens).
CONTEXT_TOKENS = 8192


@dataclass(frozen=True)
class AnswerForm:
    """The fields that an answer is to have, for servers that hold a model to them."""

    schema: Mapping[str, Any]
    wording: str
    """Added to the prompt."""
    more_tokens: int
    """Beside those of the request."""


@dataclass(frozen=True)
class ChatRequest:
    """One question to a vision model, with a picture or with text alone."""

    prompt: str
    jpeg: bytes | None
    max_tokens: int
    temperature: float
    seed: int
    form: AnswerForm | None = None
    """Asked for where the server takes it; else the answer is plain."""

    def question(self, *, in_form: bool) -> str:
        """What the model is asked."""
        return f"{self.prompt}\n\n{self.form.wording}" if self.form and in_form else self.prompt

    def room(self, budget: int, *, in_form: bool) -> int:
        """Tokens that the answer may have, with room for thoughts: so many times the usual."""
        more = self.form.more_tokens if self.form and in_form else 0
        return self.max_tokens * budget + more


@dataclass(frozen=True)
class ChatAnswer:
    """What the model wrote, whether it was stopped by the limit of tokens, and what it took."""

    text: str
    cut_by_length: bool
    usage: Usage
    in_form: bool = False
    """The fields that were asked for; else plain text."""


@dataclass(frozen=True)
class EmbedAnswer:
    """The vectors of the texts, in their order, and what they took."""

    vectors: list[list[float]]
    """As the server sent them: a number may be None where JSON has no word for it."""
    usage: Usage


@dataclass(frozen=True)
class ModelOptions:
    """What people set for the requests to the models of a server."""

    vision: Mapping[str, Any] = field(default_factory=dict)
    embedding: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""
    """How closely a picture is looked at, where the protocol has a word for it."""


def counted(told: object) -> int:
    """Tokens as a server tells them, which may be nothing or nonsense; 0 then."""
    return told if isinstance(told, int) and 0 <= told < 2**31 else 0


class ModelServer(ABC):
    """One dialect of HTTP, bound to one address; its coroutines run on the loop of `http_calls`.

    The coroutines raise whatever the client library raises; `http_calls` names it.
    """

    kind: str
    """Name of the kind of server, for messages."""
    calls: ServerCalls

    @abstractmethod
    async def chat(self, model: str, request: ChatRequest, spent: Spent) -> ChatAnswer:
        """Ask a vision model one question; may take several calls, each of which is told."""

    @abstractmethod
    async def embed(
        self, model: str, texts: Sequence[str], dimensions: int, spent: Spent
    ) -> EmbedAnswer:
        """Embed texts; refuses one that is longer than the context rather than cutting it.

        `dimensions` is the length to ask for; a server that takes no such wish gives its own.
        """

    @abstractmethod
    async def digest(self, model: str) -> str:
        """What tells this model from others of its name; empty: the protocol does not say.

        Raises a `KindedError` if the model is missing.
        """

    @abstractmethod
    def learnt(self, model: str) -> str:
        """What calls have found out about how the model is to be called; empty: nothing."""

    @abstractmethod
    def hint(self, kind: str, model: str) -> str:
        """What to do about an error of this kind when it concerns this model; empty: nothing."""

    @abstractmethod
    async def check_vision(self, model: str) -> str:
        """Say what was found; raises a `KindedError` if the model is missing or unsuitable."""

    @abstractmethod
    async def check_embedding(self, model: str, dimensions: int, spent: Spent) -> str:
        """Say what was found; raises a `KindedError` if vectors of this length cannot be had."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections; no call may follow."""
