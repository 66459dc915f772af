"""The dialect of OpenAI's API; vLLM, llama.cpp, LM Studio and hosted services use it too."""

import asyncio
import base64
import json
import re
import time
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import openai
from openai.types.chat import ChatCompletion, ChatCompletionContentPartParam
from openai.types.chat.chat_completion import Choice
from openai.types.completion_usage import CompletionUsage
from openai.types.create_embedding_response import Usage as EmbeddingUsage

from batch_pipeline.errors import PermanentError, ServiceDownError, TransientError
from batch_pipeline.model_servers.base import Spent, Usage
from batch_pipeline.model_servers.circuit import Circuit
from batch_pipeline.model_servers.client_pool import ClientPool
from batch_pipeline.model_servers.http_calls import CallLimits, ServerCalls
from batch_pipeline.model_servers.http_errors import Misread, error_for_status, server_reason
from batch_pipeline.model_servers.http_transport import reading_answer
from batch_pipeline.model_servers.learnt import (
    BUDGET_OF_A_THINKER,
    Learnt,
    Stage,
    is_beyond_context,
)
from batch_pipeline.model_servers.model_server import (
    ChatAnswer,
    ChatRequest,
    EmbedAnswer,
    ModelOptions,
    ModelServer,
    counted,
    nearest_names,
)

#: Statuses of a server without a list of models, and for a model that it does not have.
_NO_LIST, _NO_SUCH_MODEL = {404, 405}, {400, 404, 422}
#: What a check finds if an unlisted model neither answers nor is refused.
_SILENT = "answers; the model is not in the list of the server, and has not answered yet"
#: Reasons for the end of an answer that is not complete: servers broke it off (vLLM and SGLang call
#: it "abort", OpenRouter "error"), or it reached a limit (Mistral has a second word for that).
_BROKEN_OFF, _CUT_BY_LENGTH = {"abort", "error"}, {"length", "model_length"}
_NOT_BY_TEMPLATE = {"enable_thinking": False, "thinking": False}
#: The least that gpt-oss can think; `think` is Ollama's parameter.
_LEAST = {
    "chat_template_kwargs": {**_NOT_BY_TEMPLATE, "reasoning_effort": "low"},
    "reasoning_effort": "low",
    "think": False,
}
#: Ways to keep a model from thinking; servers and models know different ones. The first sends
#: nothing: most models do not think, and strict services refuse parameters they do not know.
_STAGES = (
    Stage({}),
    # vLLM, SGLang and llama.cpp (Qwen, DeepSeek and others); newer hosted models.
    Stage({"chat_template_kwargs": _NOT_BY_TEMPLATE, "reasoning_effort": "none"}),
    Stage({"reasoning_effort": "minimal"}),
    Stage(_LEAST),
    Stage(_LEAST, BUDGET_OF_A_THINKER),
)


class OpenAICompatibleServer(ModelServer):
    """One server, or one hosted service, with OpenAI's API.

    Args:
        base_url: address, usually ending in ``/v1``.
        api_key: key of the service; empty for servers that need none.
        limits: time-outs.
        options: what people set for the requests.
        circuit: for tests that cannot wait for the usual pause.
    """

    kind = "OpenAI-compatible server"
    stages = _STAGES
    _clients: ClientPool[openai.AsyncOpenAI]

    def __init__(
        self,
        base_url: str,
        api_key: str,
        limits: CallLimits,
        options: ModelOptions = ModelOptions(),
        circuit: Circuit | None = None,
    ) -> None:
        super().__init__(options)
        self._clients = ClientPool(
            lambda: openai.AsyncOpenAI(
                base_url=base_url,
                api_key=api_key or "none",
                # Tries are counted in one place, server_group.
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(**limits.client2_options()),
            ),
            lambda client: client.close(),
        )
        self._ask_seconds = limits.connect
        """Time limit of the question to an unlisted model (seconds). `ServerCalls.ask` allows more,
        for the list before it."""
        self._unlisted: set[str] = set()
        """Models that have answered although they are not in the server's list."""
        self.calls = ServerCalls(base_url, limits, probe=self._models, circuit=circuit)

    async def chat(self, model: str, request: ChatRequest, spent: Spent) -> ChatAnswer:
        """Ask a vision model one question."""
        pictures = [self._picture(request.jpeg)] if request.jpeg is not None else []
        learnt, usage = self._learnt_of(model, "vision"), Usage(calls=0)
        has_limit = True
        while True:
            stage, in_form = learnt.stage, bool(request.form and learnt.takes("response_format"))
            max_tokens = request.room(stage.budget, in_form=in_form)
            limit = _limit_of_tokens(learnt)
            sent = learnt.sent(
                {
                    "temperature": request.temperature,
                    "seed": request.seed,
                    # Not every compatible server knows the newer name.
                    limit: max_tokens if has_limit else None,
                    "response_format": _json_schema(request) if in_form else None,
                }
            )
            question: ChatCompletionContentPartParam = {
                "type": "text",
                "text": request.question(in_form=in_form),
            }
            began = time.monotonic()
            try:
                async with self._clients.client() as client:
                    completion = await client.chat.completions.create(
                        model=model,
                        messages=[{"role": "user", "content": [question, *pictures]}],
                        extra_body=sent,
                    )
            except openai.APIStatusError as error:
                status, said = error.status_code, error.response.text
                if learnt.learns_from_refusal(sent, status, said):
                    continue
                # A limit that a person has set is always sent.
                if has_limit and learnt.takes(limit) and is_beyond_context(status, said):
                    has_limit = False
                    continue
                raise
            self._raise_error_inside(completion)
            used = _usage(getattr(completion, "usage", None), began)
            spent(used)
            usage += used
            with reading_answer():
                choice = self._choice(completion)
                text, cut = choice.message.content or "", choice.finish_reason in _CUT_BY_LENGTH
                has_thought = _has_thought(completion, choice)
            if learnt.accepts(stage, text, max_tokens, cut=cut, has_thought=has_thought):
                in_form = in_form and learnt.follows_form("response_format", text)
                return ChatAnswer(text, cut, usage, in_form)

    async def embed(
        self, model: str, texts: Sequence[str], dimensions: int, spent: Spent
    ) -> EmbedAnswer:
        """Embed texts; servers refuse a text that is longer than the context."""
        learnt, began = self._learnt_of(model, "embedding"), time.monotonic()
        while True:
            # The client's default is base64, which not every compatible server knows.
            sent = learnt.sent({"encoding_format": "float", "dimensions": dimensions})
            try:
                async with self._clients.client() as client:
                    response = await client.embeddings.create(
                        model=model,
                        input=list(texts),
                        encoding_format="float",
                        extra_body={"encoding_format": openai.omit, **sent},
                    )
            except openai.APIStatusError as error:
                if learnt.learns_from_refusal(sent, error.status_code, error.response.text):
                    continue
                raise
            self._raise_error_inside(response)
            usage = _usage(getattr(response, "usage", None), began)
            spent(usage)
            entries = getattr(response, "data", None)
            if not isinstance(entries, list):
                raise self._not_the_protocol(response)
            with reading_answer():
                entries.sort(key=lambda entry: entry.index)
                return EmbedAnswer([_numbers(entry.embedding) for entry in entries], usage)

    async def digest(self, model: str) -> str:
        """Return an empty text: the protocol has no digests."""
        del model
        return ""

    def hint(self, kind: str, model: str) -> str:
        """Return what to do about an error of this kind for this model."""
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
            case "model_address_wrong":
                return "Set BATCH_PIPELINE_OPENAI_BASE_URL; it usually ends in /v1"
            case "model_server_refused":
                return "Set BATCH_PIPELINE_OPENAI_API_KEY to a key that may use this model"
            case _:
                return ""

    async def check_vision(self, model: str) -> str:
        """Return what was found; raises a `KindedError` if the model is missing."""
        is_there = await self._require(model, partial(self._say_yes, model))
        return "answers, model is there" if is_there else _SILENT

    async def check_embedding(self, model: str, dimensions: int, spent: Spent) -> str:
        """Return what was found; raises a `KindedError` if such vectors are not possible."""
        embed = partial(self._require_vector, model, dimensions, spent)
        if not await self._require(model, embed):
            return _SILENT
        # The protocol does not report the length of vectors.
        if (model, dimensions) not in self._embeds_well:
            await embed()
        return f"answers, model is there, {dimensions} dimensions"

    async def _models(self) -> set[str]:
        async with self._clients.client() as client:
            page = await client.models.list()
            names = {model.id for model in getattr(page, "data", None) or []}
        if not all(isinstance(name, str) for name in names):
            raise self._not_the_protocol(page)
        return names

    async def _require(self, model: str, ask: Callable[[], Coroutine[Any, Any, object]]) -> bool:
        """Return true if the model is there, false if it has not answered yet.

        Lists may be incomplete, have other names, or not exist at all. So a model that is not
        listed is asked once, and only its refusal counts. A server may have to load it first, which
        takes longer than a check may; then the first real call decides.

        Raises:
            KindedError: the model is missing.
        """
        present = await self._listed()
        if model in self._unlisted or (present is not None and model in present):
            return True
        try:
            async with asyncio.timeout(self._ask_seconds):
                await ask()
        except (TimeoutError, openai.APITimeoutError):
            return False
        except openai.APIStatusError as error:
            if error.status_code == 503:  # busy, or loading the model
                return False
            if present is None or error.status_code not in _NO_SUCH_MODEL:
                raise
            raise ServiceDownError(
                "model_missing",
                f"model {model} is not on {self.calls.url}; there are: "
                f"{nearest_names(model, present)}. Asked for it anyway, the server answered "
                f"{error.status_code}: {server_reason(error.response.text)[:200]}",
            ) from error
        self._unlisted.add(model)
        return True

    async def _listed(self) -> set[str] | None:
        """Return the names in the server's list; None if it has none that can be read."""
        try:
            return await self._models()
        except Misread:
            return None
        except openai.APIStatusError as error:
            if error.status_code not in _NO_LIST:
                raise
            return None

    async def _say_yes(self, model: str) -> None:
        """Make the smallest call to a vision model, without parameters that it may refuse."""
        async with self._clients.client() as client:
            completion = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Say yes."}]
            )
        self._raise_error_inside(completion)
        with reading_answer():
            self._choice(completion)

    def _picture(self, jpeg: bytes) -> ChatCompletionContentPartParam:
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        image: dict[str, str] = {"url": url}
        if self._options.detail:
            image["detail"] = self._options.detail
        return {"type": "image_url", "image_url": image}  # type: ignore[typeddict-item]

    def _choice(self, completion: ChatCompletion) -> Choice:
        # The client builds its objects without validating the server's answer.
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise self._not_the_protocol(completion)
        choice = completion.choices[0]
        if not isinstance(choice.message.content, str | None):
            raise self._not_the_protocol(completion)
        if choice.finish_reason == "content_filter" or (
            choice.message.refusal and not choice.message.content
        ):
            said = choice.message.refusal or "its content filter ended the answer"
            raise PermanentError(
                "model_refused_input", f"model server {self.calls.name} refuses: {said}"
            )
        if choice.finish_reason in _BROKEN_OFF:
            reason = _mapping(choice.model_extra, "error").get("message", "no reason given")
            raise TransientError(
                "model_server_error",
                f"model server {self.calls.name} broke off its answer "
                f"({choice.finish_reason}): {reason}",
            )
        return choice

    def _raise_error_inside(self, received: object) -> None:
        """Raise the error in an answer of status 200.

        Services that pass calls on to others have sent their status before they know the result.
        """
        error = _mapping(getattr(received, "model_extra", None), "error")
        code = error.get("code")
        if isinstance(code, str) and re.fullmatch("[45][0-9]{2}", code):
            code = int(code)
        if isinstance(code, int) and 400 <= code < 600:
            told = _mapping(_mapping(error, "metadata"), "headers").items()
            headers = {str(name).lower(): str(value) for name, value in told}
            raise error_for_status(self.calls.name, code, json.dumps({"error": error}), headers)

    def _not_the_protocol(self, received: object) -> TransientError:
        return TransientError(
            "model_output_invalid",
            f"{self.calls.url} sent something that is not an answer of its protocol: "
            f"{str(received)[:200]!r}",
        )


def _json_schema(request: ChatRequest) -> dict[str, Any] | None:
    if request.form is None:
        return None
    schema = {"name": "answer", "strict": True, "schema": dict(request.form.schema)}
    return {"type": "json_schema", "json_schema": schema}


def _mapping(of: object, name: str) -> Mapping[str, Any]:
    """Return a mapping in a mapping; empty if one of them is something else."""
    found = of.get(name) if isinstance(of, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _numbers(sent: list[float] | str) -> list[float]:
    """Return the numbers of a vector; some servers send base64, whatever they are asked for."""
    return array("f", base64.b64decode(sent)).tolist() if isinstance(sent, str) else sent


def _limit_of_tokens(learnt: Learnt) -> str:
    return "max_completion_tokens" if learnt.refuses("max_tokens") else "max_tokens"


def _has_thought(completion: ChatCompletion, choice: Choice) -> bool:
    """Return whether the model thought: servers show or count thoughts under different names."""
    extra = choice.message.model_extra or {}
    if extra.get("reasoning_content") or extra.get("reasoning"):
        return True
    used = completion.usage
    details = used and used.completion_tokens_details
    if details and details.reasoning_tokens:
        return True
    return _tokens_out(used) > counted(getattr(used, "completion_tokens", None))


def _tokens_out(told: CompletionUsage | EmbeddingUsage | None) -> int:
    """Return the tokens that a model wrote; some gateways count a thought only in the total."""
    written = counted(getattr(told, "completion_tokens", None))
    total = counted(getattr(told, "total_tokens", None))
    asked = counted(getattr(told, "prompt_tokens", None))
    return max(written, total - asked) if asked else written


def _usage(told: CompletionUsage | EmbeddingUsage | None, began: float) -> Usage:
    return Usage(
        counted(getattr(told, "prompt_tokens", None)),
        _tokens_out(told),
        time.monotonic() - began,
    )
