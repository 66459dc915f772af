"""What a dialect of HTTP must offer: the interface that `ollama` and `openai_compatible` implement.

Who asks the questions lives in `remote`, which server is asked in `server_group`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from batch_pipeline.model_servers.http_calls import ServerCalls

#: Context window asked for where the server lets the caller choose (tokens).
CONTEXT_TOKENS = 8192


@dataclass(frozen=True)
class ChatRequest:
    """One question to a vision model, with a picture or with text alone."""

    prompt: str
    jpeg: bytes | None
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class ChatAnswer:
    """What the model wrote, and whether it was stopped by the limit of tokens."""

    text: str
    cut_by_length: bool


class ModelServer(ABC):
    """One dialect of HTTP, bound to one address; its coroutines run on the loop of `http_calls`.

    The coroutines raise whatever the client library raises; `http_calls` names it.
    """

    kind: str
    """Name of the kind of server, for messages."""
    calls: ServerCalls

    @abstractmethod
    async def chat(self, model: str, request: ChatRequest) -> ChatAnswer:
        """Ask a vision model one question."""

    @abstractmethod
    async def embed(self, model: str, texts: Sequence[str]) -> Sequence[Sequence[float | None]]:
        """Embed texts; refuses one that is longer than the context rather than cutting it."""

    @abstractmethod
    def hint(self, kind: str, model: str) -> str:
        """What to do about an error of this kind when it concerns this model; empty: nothing."""

    @abstractmethod
    async def check_vision(self, model: str) -> str:
        """Say what was found; raises a `KindedError` if the model is missing or unsuitable."""

    @abstractmethod
    async def check_embedding(self, model: str, dimensions: int) -> str:
        """Say what was found; raises a `KindedError` if vectors of this length cannot be had."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections; no call may follow."""
