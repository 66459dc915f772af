"""The dialect of OpenAI's API, which vLLM, llama.cpp, LM Studio and hosted services speak too."""

import base64
from collections.abc import Sequence

import openai
from openai.types.chat import ChatCompletion, ChatCompletionContentPartParam

from batch_pipeline.errors import ServiceDownError, TransientError
from batch_pipeline.model_servers.answers import checked_vector
from batch_pipeline.model_servers.circuit import Circuit
from batch_pipeline.model_servers.client_pool import ClientPool
from batch_pipeline.model_servers.http_calls import CallLimits, ServerCalls, run_on_loop
from batch_pipeline.model_servers.model_server import ChatAnswer, ChatRequest, ModelServer


class OpenAICompatibleServer(ModelServer):
    """One server, or one hosted service, that speaks OpenAI's API.

    Args:
        base_url: address, usually ending in ``/v1``.
        api_key: key of the service; empty for servers that ask for none.
        limits: time-outs.
        circuit: for tests that cannot wait for the usual pause.
    """

    kind = "OpenAI-compatible server"

    def __init__(
        self, base_url: str, api_key: str, limits: CallLimits, circuit: Circuit | None = None
    ) -> None:
        options = limits.client2_options()
        self._clients = ClientPool(
            lambda: openai.AsyncOpenAI(
                base_url=base_url,
                api_key=api_key or "none",
                # Tries are counted in one place, http_calls.
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(**options),
            ),
            lambda client: client.close(),
        )
        self.calls = ServerCalls(base_url, limits, probe=self._models, circuit=circuit)

    async def chat(self, model: str, request: ChatRequest) -> ChatAnswer:
        """Ask a vision model one question."""
        content: list[ChatCompletionContentPartParam] = [{"type": "text", "text": request.prompt}]
        if request.jpeg is not None:
            picture = base64.b64encode(request.jpeg).decode()
            content.append(
                {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
            )
        async with self._clients.client() as client:
            completion = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": content}],
                temperature=request.temperature,
                seed=request.seed,
                # The newer max_completion_tokens is not known to every compatible server.
                max_tokens=request.max_tokens,
            )
        # The client builds its objects without validating what the server sent.
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise self._not_the_protocol(completion)
        choice = completion.choices[0]
        if choice.message is None:
            raise self._not_the_protocol(completion)
        return ChatAnswer(choice.message.content or "", choice.finish_reason == "length")

    async def embed(self, model: str, texts: Sequence[str]) -> Sequence[Sequence[float | None]]:
        """Embed texts; servers refuse one that is longer than the context."""
        async with self._clients.client() as client:
            response = await client.embeddings.create(
                model=model,
                input=list(texts),
                # The client's own choice, base64, is not known to every compatible server.
                encoding_format="float",
            )
        entries = getattr(response, "data", None)
        if not isinstance(entries, list):
            raise self._not_the_protocol(response)
        return [entry.embedding for entry in sorted(entries, key=lambda entry: entry.index)]

    def hint(self, kind: str, model: str) -> str:
        """What to do about an error of this kind when it concerns this model."""
        match kind:
            case "model_server_down":
                return "Start it, or set BATCH_PIPELINE_OPENAI_BASE_URL"
            case "model_missing":
                return (
                    f"Start the server with {model}, or choose another BATCH_PIPELINE_VISION_MODEL "
                    "or BATCH_PIPELINE_EMBEDDING_MODEL; a base URL usually ends in /v1"
                )
            case "model_unsuitable":
                return (
                    "Choose a model that takes pictures (llama.cpp: start the server with "
                    "--mmproj), or one that embeds"
                )
            case "model_server_refused":
                return "Set BATCH_PIPELINE_OPENAI_API_KEY to a key that may use this model"
            case _:
                return ""

    async def check_vision(self, model: str) -> str:
        """Say what was found; raises a `KindedError` if the model is missing."""
        await self._require(model)
        return "answers, model is there"

    async def check_embedding(self, model: str, dimensions: int) -> str:
        """Say what was found; raises a `KindedError` if vectors of this length cannot be had."""
        await self._require(model)
        # The protocol tells no lengths; one short text does.
        for vector in await self.embed(model, ["check"]):
            checked_vector(vector, model, dimensions)
        return f"answers, model is there, {dimensions} dimensions"

    def close(self) -> None:
        """Close the connections; no call may follow."""
        run_on_loop(self._clients.close())

    async def _models(self) -> set[str]:
        async with self._clients.client() as client:
            page = await client.models.list()
        return {model.id for model in getattr(page, "data", None) or []}

    async def _require(self, model: str) -> None:
        present = await self._models()
        if model not in present:
            names = ", ".join(sorted(present)) or "none"
            raise ServiceDownError(
                "model_missing", f"model {model} is not on {self.calls.url}; there are: {names}"
            )

    def _not_the_protocol(self, received: object) -> TransientError:
        return TransientError(
            "model_output_invalid",
            f"{self.calls.url} sent what is not an answer of its protocol: {str(received)[:200]!r}",
        )
