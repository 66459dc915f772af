"""Recorded answers of each kind of server, replayed to the real clients.

Fields of bodies and words of errors are those of the named source. Only the text of an answer is
ours, because clients and the audit treat all texts alike. Other servers of the same kind may
differ. For llama.cpp's own server see `test_llama_cpp`.
"""

import base64
import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from batch_pipeline.errors import PermanentError, ServiceDownError
from batch_pipeline.model_servers import server_group
from batch_pipeline.model_servers.base import Analyzer, Caller, Usage
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline_tests.integration.model_servers.conftest import IMAGE, picture

SAID = "A red square fills the whole picture, evenly lit, without people or readable text."
FIELDS = json.dumps({"description": SAID, "tags": ["red", "square"], "visible_text": ""})
MODEL = "some-model"


@dataclass
class Recording:
    """Sends answers in order, repeats the last one, and keeps the requests."""

    answers: Sequence[tuple[int, Mapping[str, Any]]]
    asked: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def replay() -> Iterator[Any]:
    servers = []

    def start(
        dialect: str, *answers: tuple[int, Mapping[str, Any]]
    ) -> tuple[Analyzer, list[dict[str, Any]]]:
        recording = Recording(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                number = min(len(recording.asked), len(recording.answers) - 1)
                recording.asked.append(asked)
                status, body = recording.answers[number]
                written = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(written)))
                self.end_headers()
                self.wfile.write(written)

            def log_message(self, *_: object) -> None:
                pass

        listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        servers.append((listening, thread))
        url = f"http://127.0.0.1:{listening.server_port}"
        changed: dict[str, Any] = {
            "analyzer": dialect,
            "ollama_host": url,
            "openai_base_url": f"{url}/v1",
            "vision_model": MODEL,
        }
        return build_analyzer(Settings(_env_file=None, **changed)), recording.asked

    yield start
    close_analyzers()
    for listening, thread in servers:
        listening.shutdown()
        listening.server_close()
        thread.join()


def ollama_chat(content: str, **message: Any) -> tuple[int, dict[str, Any]]:
    """docs/api.md and docs/capabilities/thinking.mdx of ollama/ollama."""
    return 200, {
        "model": MODEL,
        "created_at": "2024-12-06T00:46:58.265747Z",
        "message": {"role": "assistant", "content": content, **message},
        "done_reason": "stop",
        "done": True,
        "total_duration": 2254970291,
        "load_duration": 574751416,
        "prompt_eval_count": 34,
        "prompt_eval_duration": 1502000000,
        "eval_count": 12,
        "eval_duration": 175000000,
    }


def completion(
    message: Mapping[str, Any], usage: Mapping[str, Any], **rest: Any
) -> tuple[int, dict[str, Any]]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", **message},
        "logprobs": None,
        "finish_reason": "stop",
        **rest.pop("choice", {}),
    }
    return 200, {
        "id": "chatcmpl-638c8ca8b3254905bcfb2265a616c5eb",
        "object": "chat.completion",
        "created": 1748352291,
        "model": MODEL,
        "choices": [choice],
        "usage": dict(usage),
        **rest,
    }


def vllm(content: str, **thought: str | None) -> tuple[int, dict[str, Any]]:
    """An answer about a picture, as the documentation of a service that runs vLLM (Surus, chat
    completions with pictures, May 2025) shows it. A thought is `reasoning`, formerly
    `reasoning_content`: docs/features/reasoning_outputs.md of vllm-project/vllm."""
    return completion(
        {"content": content, "tool_calls": [], **(thought or {"reasoning_content": None})},
        {
            "prompt_tokens": 1830,
            "total_tokens": 1880,
            "completion_tokens": 50,
            "prompt_tokens_details": None,
        },
        choice={"stop_reason": None},
        prompt_logprobs=None,
    )


def sglang(content: str, *, thought: str | None = None, tokens: int = 0) -> Any:
    """The answer of SGLang in doc/en/Kimi-K2-Thinking-Native.md of kvcache-ai/ktransformers; the
    same fields stand in sgl-project/sglang issue 4550."""
    return completion(
        {"content": content, "reasoning_content": thought, "tool_calls": None},
        {
            "prompt_tokens": 26,
            "total_tokens": 189,
            "completion_tokens": 163,
            "prompt_tokens_details": None,
            "reasoning_tokens": tokens,
        },
        choice={"matched_stop": 163586},
        metadata={"weight_version": "default"},
    )


def usages(vision: Any, **options: Any) -> list[Usage]:
    spent: list[Usage] = []
    described = vision.describe(IMAGE, [picture()], caller=Caller(spent=spent.append), **options)
    assert described.text == SAID
    return spent


def test_ollama_counts_tokens_and_fills_in_fields(replay: Any) -> None:
    analyzer, asked = replay("ollama", ollama_chat(FIELDS))

    [usage] = usages(analyzer.vision)

    assert (usage.tokens_in, usage.tokens_out) == (34, 12)
    assert asked[0]["format"]["type"] == "object"
    assert asked[0]["think"] is False


def test_a_thought_in_a_field_of_ollama_is_not_part_of_the_answer(replay: Any) -> None:
    analyzer, _ = replay("ollama", ollama_chat(SAID, thinking="Red, and square. Is it a flag?"))

    usages(analyzer.vision)


def test_ollama_whose_model_cannot_think_is_asked_without_the_switch(replay: Any) -> None:
    # docs/api/errors.mdx of ollama/ollama; by these words several clients know this refusal.
    refusal = 400, {"error": f'"{MODEL}" does not support thinking'}
    analyzer, asked = replay("ollama", refusal, ollama_chat(FIELDS))

    usages(analyzer.vision)

    assert [body.get("think") for body in asked] == [False, None]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_vllm_is_asked_by_the_template_once_a_thought_was_seen(replay: Any, name: str) -> None:
    analyzer, asked = replay("openai", vllm(FIELDS, **{name: "Red?"}), vllm(FIELDS))

    assert [(u.tokens_in, u.tokens_out) for u in usages(analyzer.vision)] == [(1830, 50)]
    usages(analyzer.vision)

    assert "chat_template_kwargs" not in asked[0]
    assert asked[1]["chat_template_kwargs"]["enable_thinking"] is False


def test_vllm_that_forbids_a_parameter_is_asked_without_it(replay: Any) -> None:
    # vllm-project/vllm issue 10078, with the name of a parameter that we send.
    said = (
        "[{'type': 'extra_forbidden', 'loc': ('body', 'response_format'), "
        "'msg': 'Extra inputs are not permitted', 'input': 64}]"
    )
    refusal = {
        "object": "error",
        "message": said,
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
    analyzer, asked = replay("openai", (400, refusal), vllm(SAID))

    usages(analyzer.vision)

    assert ["response_format" in body for body in asked] == [True, False]


def test_a_text_model_on_vllm_stops_the_work_and_not_only_one_upload(replay: Any) -> None:
    # studio-dots-ai/dots.ocr issue 61; vllm-project/vllm issue 19144 has the same words.
    refusal = {
        "object": "error",
        "message": f"{MODEL} is not a multimodal model None",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
    analyzer, _ = replay("openai", (400, refusal))

    with pytest.raises(ServiceDownError, match="not a multimodal model") as raised:
        analyzer.vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_unsuitable"


def test_sglang_without_a_parser_writes_its_thought_into_the_answer(replay: Any) -> None:
    analyzer, asked = replay("openai", sglang(f" <think> Red. </think> {FIELDS}"), sglang(FIELDS))

    [usage] = usages(analyzer.vision)
    usages(analyzer.vision)

    assert (usage.tokens_in, usage.tokens_out) == (26, 163)
    assert asked[1]["chat_template_kwargs"]["enable_thinking"] is False


def test_sglang_with_a_parser_returns_the_thought_separately(replay: Any) -> None:
    analyzer, asked = replay("openai", sglang(FIELDS, thought="Red.", tokens=40), sglang(FIELDS))

    usages(analyzer.vision)
    usages(analyzer.vision)

    assert asked[1]["chat_template_kwargs"]["enable_thinking"] is False


def test_lm_studio_refuses_in_one_sentence_and_is_asked_for_plain_text(replay: Any) -> None:
    # lmstudio-ai/lmstudio-bug-tracker issues 169 and 307: the error is not an object.
    refusal = 400, {"error": "'response_format.type' must be 'json_schema' or 'text'"}
    usage = {"prompt_tokens": 24, "completion_tokens": 44, "total_tokens": 68}
    analyzer, asked = replay(
        "openai", refusal, completion({"content": SAID}, usage, system_fingerprint=MODEL)
    )

    [spent] = usages(analyzer.vision)

    assert (spent.tokens_in, spent.tokens_out) == (24, 44)
    assert ["response_format" in body for body in asked] == [True, False]


def test_a_hosted_model_that_wants_other_parameters_gets_them(replay: Any) -> None:
    # microsoft/vscode-copilot-release issue 9954, microsoft/clarity-agent issue 59: OpenAI's own.
    def unsupported(message: str, name: str, code: str) -> tuple[int, dict[str, Any]]:
        kind = "invalid_request_error"
        return 400, {"error": {"message": message, "type": kind, "param": name, "code": code}}

    usage = {
        "prompt_tokens": 300,
        "completion_tokens": 60,
        "total_tokens": 360,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
    analyzer, asked = replay(
        "openai",
        unsupported(
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "max_tokens",
            "unsupported_parameter",
        ),
        completion({"content": FIELDS, "refusal": None, "annotations": []}, usage),
    )

    [spent] = usages(analyzer.vision)

    assert (spent.tokens_in, spent.tokens_out) == (300, 60)
    assert asked[1]["max_completion_tokens"] == asked[0]["max_tokens"]


def passed_on(code: int | str, message: str, **metadata: Any) -> tuple[int, dict[str, Any]]:
    """An error of OpenRouter while a provider writes the answer: openrouter.ai/docs/errors. The
    headers of a provider stand in Aider-AI/aider issue 3550."""
    error = {"code": code, "message": message, "metadata": metadata}
    return 200, {"error": error, "user_id": "user_1"}


@pytest.mark.parametrize("code", [429, "429"], ids=repr)  # LiteLLM writes it as text
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0.3"}])
def test_a_rate_limit_inside_an_answer_is_waited_for(
    replay: Any, headers: dict[str, str], code: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_group, "_BUSY_WAIT_SECONDS", 0.5)
    limit = passed_on(code, "Rate limit exceeded", headers=headers, provider_name="one")
    analyzer, asked = replay("openai", limit, vllm(SAID))
    began = time.monotonic()

    assert analyzer.vision.describe(IMAGE, [picture()]).text == SAID
    assert len(asked) == 2
    assert time.monotonic() - began >= 0.3


def test_an_error_inside_an_answer_is_named_like_one_with_its_status(replay: Any) -> None:
    flagged = passed_on(403, "Your input was flagged", reasons=["violence"])
    with pytest.raises(PermanentError) as refused:
        replay("openai", flagged)[0].vision.describe(IMAGE, [picture()])
    assert refused.value.kind == "model_refused_input"

    failed = passed_on(500, "Provider returned error")
    with pytest.raises(ServiceDownError, match="Provider returned error") as raised:
        replay("openai", failed)[0].embedding.embed(["a boat"])
    assert raised.value.kind == "model_fails_all"


def test_vectors_in_base64_are_read_although_numbers_were_asked_for(replay: Any) -> None:
    encoded = base64.b64encode(struct.pack("<1024f", *[0.5] * 1024)).decode()
    analyzer, _ = replay("openai", (200, {"data": [{"index": 0, "embedding": encoded}]}))

    assert analyzer.embedding.embed(["a boat"]) == [[0.5] * 1024]


def test_a_thought_that_only_the_total_shows_is_recognised_and_counted(replay: Any) -> None:
    """Gemini behind OpenAI-compatible gateways, which leave out `reasoning_tokens`."""
    usage = {"prompt_tokens": 20, "completion_tokens": 151, "total_tokens": 553}
    analyzer, asked = replay("openai", completion({"content": SAID}, usage))
    spent: list[Usage] = []

    for _ in range(2):
        analyzer.vision.describe(IMAGE, [picture()], caller=Caller(spent=spent.append))

    assert [used.tokens_out for used in spent] == [533, 533]
    assert "reasoning_effort" not in asked[0]
    assert asked[1]["reasoning_effort"] == "none"
