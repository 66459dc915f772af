"""The dialect of Ollama, through its own client."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import ollama

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.model_servers.answers import wrong_length
from batch_pipeline.model_servers.base import Spent, Usage
from batch_pipeline.model_servers.circuit import Circuit
from batch_pipeline.model_servers.client_pool import ClientPool
from batch_pipeline.model_servers.http_calls import CallLimits, ServerCalls
from batch_pipeline.model_servers.learnt import BUDGET_OF_A_THINKER, Stage
from batch_pipeline.model_servers.model_server import (
    CONTEXT_TOKENS,
    ChatAnswer,
    ChatRequest,
    EmbedAnswer,
    ModelOptions,
    ModelServer,
    counted,
    nearest_names,
)

#: Parameters outside of Ollama's `options`.
_OF_THE_REQUEST = {"think", "keep_alive", "format", "dimensions"}
#: A thought would use up the tokens of the answer, and it is discarded. Some models cannot stop
#: thinking, they can only think less.
_STAGES = (
    Stage({"think": False}),
    Stage({"think": "low"}),
    Stage({"think": "low"}, BUDGET_OF_A_THINKER),
)


class OllamaServer(ModelServer):
    """One Ollama server.

    Args:
        host: address, such as ``http://127.0.0.1:11434``.
        limits: time-outs.
        options: what people set for the requests.
        circuit: for tests that cannot wait for the usual pause.
    """

    kind = "Ollama"
    stages = _STAGES
    _clients: ClientPool[ollama.AsyncClient]

    def __init__(
        self,
        host: str,
        limits: CallLimits,
        options: ModelOptions = ModelOptions(),
        circuit: Circuit | None = None,
        api_key: str = "",
    ) -> None:
        super().__init__(options)
        self._clients = ClientPool(
            lambda: ollama.AsyncClient(host, **_proof(host, api_key), **limits.client_options()),
            lambda client: client.close(),  # type: ignore[no-untyped-call]
        )
        self.calls = ServerCalls(host, limits, probe=self._models, circuit=circuit)

    async def chat(self, model: str, request: ChatRequest, spent: Spent) -> ChatAnswer:
        """Ask a vision model one question."""
        images = [ollama.Image(value=request.jpeg)] if request.jpeg is not None else None
        learnt, usage = self._learnt_of(model, "vision"), Usage(calls=0)
        while True:
            stage, in_form = learnt.stage, bool(request.form and learnt.takes("format"))
            max_tokens = request.room(stage.budget, in_form=in_form)
            sent = learnt.sent(
                {
                    "temperature": request.temperature,
                    "seed": request.seed,
                    "num_predict": max_tokens,
                    "num_ctx": CONTEXT_TOKENS,
                    "format": request.form.schema if request.form and in_form else None,
                }
            )
            message = ollama.Message(
                role="user", content=request.question(in_form=in_form), images=images
            )
            began = time.monotonic()
            try:
                async with self._clients.client() as client:
                    response = await client.chat(model, [message], **_arguments(sent))
            except ollama.ResponseError as error:
                if learnt.learns_from_refusal(sent, error.status_code, error.error):
                    continue
                raise
            used = _usage(response, began)
            spent(used)
            usage += used
            text = response.message.content or ""
            cut = response.done_reason == "length"
            has_thought = bool(response.message.thinking)
            if learnt.accepts(stage, text, max_tokens, cut=cut, has_thought=has_thought):
                in_form = in_form and learnt.follows_form("format", text)
                return ChatAnswer(text, cut, usage, in_form)

    async def embed(
        self, model: str, texts: Sequence[str], dimensions: int, spent: Spent
    ) -> EmbedAnswer:
        """Embed texts; refuses a text that is longer than the context instead of cutting it."""
        learnt, began = self._learnt_of(model, "embedding"), time.monotonic()
        while True:
            sent = learnt.sent({"num_ctx": CONTEXT_TOKENS, "dimensions": dimensions})
            try:
                async with self._clients.client() as client:
                    response = await client.embed(
                        model, list(texts), truncate=False, **_arguments(sent)
                    )
            except ollama.ResponseError as error:
                if learnt.learns_from_refusal(sent, error.status_code, error.error):
                    continue
                raise
            usage = _usage(response, began)
            spent(usage)
            return EmbedAnswer([list(vector) for vector in response.embeddings], usage)

    async def digest(self, model: str) -> str:
        """Return the digest of the model."""
        present = await self._models()
        if _with_tag(model) not in present:
            raise self._missing(model, present)
        return present[_with_tag(model)]

    def hint(self, kind: str, model: str) -> str:
        """Return what to do about an error of this kind for this model."""
        match kind:
            case "model_server_down":
                return "Start it with `ollama serve`, or set BATCH_PIPELINE_OLLAMA_HOST"
            case "model_missing":
                return f"Run `ollama pull {model}` where the server runs"
            case "model_unsuitable":
                return (
                    "Choose another BATCH_PIPELINE_VISION_MODEL or BATCH_PIPELINE_EMBEDDING_MODEL"
                )
            case "model_address_wrong":
                return "Set BATCH_PIPELINE_OLLAMA_HOST, without a path such as /v1 or /api"
            case "model_server_refused":
                return (
                    "If a proxy in front of the server asks for a key, set "
                    "BATCH_PIPELINE_OLLAMA_API_KEY to it"
                )
            case _:
                return ""

    async def check_vision(self, model: str) -> str:
        """Return what was found; raises a `KindedError` if the model is missing or unsuitable."""
        await self._show(model, "vision")
        return "answers, model is there"

    async def check_embedding(self, model: str, dimensions: int, spent: Spent) -> str:
        """Return what was found; raises a `KindedError` if such vectors are not possible."""
        facts = (await self._show(model, "embedding")).modelinfo or {}
        lengths = [
            value
            for name, value in facts.items()
            if name.endswith(".embedding_length") and isinstance(value, int)
        ]
        if lengths and lengths[0] < dimensions:
            raise wrong_length(model, lengths[0], dimensions)
        if lengths and lengths[0] > dimensions and (model, dimensions) not in self._embeds_well:
            # Newer servers cut vectors to the requested length, older ones ignore it.
            await self._require_vector(model, dimensions, spent)
        return f"answers, model is there, {dimensions} dimensions"

    async def _models(self) -> dict[str, str]:
        """Return the digest of each model on the server, by name with tag."""
        async with self._clients.client() as client:
            listed = await client.list()
        return {entry.model: entry.digest or "" for entry in listed.models if entry.model}

    def _missing(self, model: str, present: Iterable[str]) -> ServiceDownError:
        names = nearest_names(model, present)
        return ServiceDownError(
            "model_missing", f"model {model} is not on {self.calls.url}; there are: {names}"
        )

    async def _show(self, model: str, capability: str) -> ollama.ShowResponse:
        # Other commands of Ollama may find a model by a part of its name; the list is exact.
        present = await self._models()
        if _with_tag(model) not in present:
            raise self._missing(model, present)
        async with self._clients.client() as client:
            shown = await client.show(model)
        # Servers older than 0.6.4 do not report capabilities.
        if shown.capabilities and capability not in shown.capabilities:
            raise ServiceDownError(
                "model_unsuitable",
                f"model {model} is not made for {capability}; it can: "
                + ", ".join(shown.capabilities),
            )
        return shown


def _arguments(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Sort parameters for the client: a few are its own arguments, the others are options."""
    own = {name: value for name, value in sent.items() if name in _OF_THE_REQUEST}
    given = sent.get("options", {})
    options = {k: v for k, v in sent.items() if k not in own and k != "options"}
    return {**own, "options": {**options, **given}}


def _proof(host: str, api_key: str) -> dict[str, Any]:
    """Return the client's arguments for the key, and for a user and password in the address.

    The client itself drops these from an address.
    """
    proof: dict[str, Any] = {}
    if api_key:
        proof["headers"] = {"Authorization": f"Bearer {api_key}"}
    parts = urlsplit(host)
    if parts.username or parts.password:
        proof["auth"] = (unquote(parts.username or ""), unquote(parts.password or ""))
    return proof


def _usage(response: ollama.ChatResponse | ollama.EmbedResponse, began: float) -> Usage:
    return Usage(
        counted(response.prompt_eval_count),
        counted(getattr(response, "eval_count", None)),
        time.monotonic() - began,
    )


def _with_tag(model: str) -> str:
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"
