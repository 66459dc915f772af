"""Models that think, that refuse parameters, and that need pictures of certain sizes."""

import io
from typing import Any

import pytest
from PIL import Image

from batch_pipeline.errors import PermanentError, ServiceDownError, TransientError
from batch_pipeline.media.content import Frame
from batch_pipeline.model_servers.base import Caller, Usage
from batch_pipeline.testing.model_server import (
    RateLimit,
    ScriptedModelServer,
    Thinking,
    describe_picture,
)
from batch_pipeline_tests.integration.model_servers.conftest import (
    IMAGE,
    BuildAnalyzer,
    only_ollama,
    only_openai,
    picture,
)

# Thinking


@pytest.mark.parametrize("switch", ["template", "effort"])
def test_thinking_is_switched_off_and_costs_no_upload_an_attempt(
    build: BuildAnalyzer, server: ScriptedModelServer, switch: Any
) -> None:
    server.thinking = Thinking(switch)
    vision, frame = build().vision, picture()

    for _ in range(3):
        assert vision.describe(IMAGE, [frame]).text == describe_picture(frame.jpeg)

    before = len(server.calls)
    vision.describe(IMAGE, [frame])
    assert len(server.calls) == before + 1, "what was learnt is not asked for again"


@only_openai
@pytest.mark.parametrize("shown", ["reasoning_content", "reasoning", "inline", "hidden"])
def test_a_thought_is_recognised_wherever_a_server_shows_it(
    build: BuildAnalyzer, server: ScriptedModelServer, shown: Any
) -> None:
    server.thinking = Thinking("template", shown=shown)
    frame = picture()

    assert build().vision.describe(IMAGE, [frame]).text == describe_picture(frame.jpeg)

    assert server.calls[-1].body["chat_template_kwargs"]["enable_thinking"] is False


def test_a_model_whose_thinking_cannot_be_switched_off_gets_more_tokens_once(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.thinking = Thinking("none", tokens=3000)
    frame = picture()

    assert build().vision.describe(IMAGE, [frame]).text == describe_picture(frame.jpeg)

    body = server.calls[-1].body
    assert body.get("max_tokens", body.get("options", {}).get("num_predict")) == 8 * 512


def test_the_error_for_a_model_that_only_thinks_names_the_model_and_the_setting(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.thinking = Thinking("none", tokens=10_000)

    with pytest.raises(ServiceDownError, match="BATCH_PIPELINE_VISION_OPTIONS") as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_thinks"
    assert "used up all 4096 tokens" in str(raised.value)


def test_one_endless_thought_among_answers_fails_only_its_picture(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.thinking = Thinking("none", tokens=3000)
    vision = build().vision
    vision.describe(IMAGE, [picture()])
    server.thinking = Thinking("none", tokens=10_000)

    with pytest.raises(TransientError, match="before it began to answer") as raised:
        vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_output_invalid"


def test_a_model_that_thinks_little_is_used_and_asked_to_stop_the_next_time(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.thinking = Thinking("effort", tokens=100)
    vision, frame = build().vision, picture()

    assert vision.describe(IMAGE, [frame]).text == describe_picture(frame.jpeg)
    assert len(server.calls) == 1
    for _ in range(3):
        vision.describe(IMAGE, [frame])

    body = server.calls[-1].body
    assert "low" in {body.get("think"), body.get("reasoning_effort")}


# Parameters


@only_openai
def test_parameters_that_a_model_refuses_are_learnt_once_and_cost_no_attempt(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.refused_parameters = {"max_tokens", "temperature", "seed", "encoding_format"}
    analyzer = build()

    analyzer.embedding.embed([analyzer.vision.describe(IMAGE, [picture()]).text])
    assert len(server.calls) == 4 + 2
    analyzer.embedding.embed([analyzer.vision.describe(IMAGE, [picture()]).text])
    assert len(server.calls) == 4 + 2 + 2

    *_, chat, embed = server.calls
    assert chat.body["max_completion_tokens"] == 512
    assert not {"max_tokens", "temperature", "seed"} & chat.body.keys()
    assert "encoding_format" not in embed.body


@only_openai
@pytest.mark.parametrize(
    "reason",
    [
        # vLLM, older and newer, and SGLang.
        "This model's maximum context length is 4096 tokens. However, you requested 4959 tokens "
        "(2911 in the messages, 2048 in the completion).",
        "'max_tokens' or 'max_completion_tokens' is too large: 2048. This model's maximum context "
        "length is 4096 tokens and your request has 2911 input tokens (2048 > 4096 - 2911).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
    ],
)
def test_a_server_whose_context_is_too_small_for_the_limit_gets_no_limit(
    build: BuildAnalyzer, server: ScriptedModelServer, reason: str
) -> None:
    limits = {"max_tokens", "max_completion_tokens"}
    server.refuse = lambda call: (400, reason) if limits & call.body.keys() else None
    vision, frame = build().vision, picture()

    for _ in range(2):
        assert vision.describe(IMAGE, [frame]).text == describe_picture(frame.jpeg)

    assert [sorted(limits & call.body.keys()) for call in server.calls] == [["max_tokens"], []] * 2


@only_openai
def test_one_picture_beyond_the_context_does_not_remove_the_limit_from_other_calls(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    big, said = picture(), "This model's maximum context length is 4096 tokens."
    server.refuse = lambda call: (400, said) if call.images == [big.jpeg] else None
    vision = build().vision

    with pytest.raises(PermanentError):
        vision.describe(IMAGE, [big])
    vision.describe(IMAGE, [picture("blue")])

    assert "max_tokens" in server.calls[-1].body


@only_openai
def test_one_picture_beyond_the_context_does_not_stop_work_with_the_limit_of_a_person(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    frame, said = picture(), "This model's maximum context length is 4096 tokens."
    server.refuse = lambda call: (400, said) if call.images == [frame.jpeg] else None

    with pytest.raises(PermanentError) as raised:
        build(vision_options='{"max_tokens": 3000}').vision.describe(IMAGE, [frame])

    assert raised.value.kind == "model_refused_input"


@only_openai
def test_a_thinking_model_of_a_strict_service_can_be_used(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.refused_parameters = {"max_tokens", "chat_template_kwargs", "think", "temperature"}
    server.thinking = Thinking("effort", shown="hidden")
    frame = picture()

    assert build().vision.describe(IMAGE, [frame]).text == describe_picture(frame.jpeg)


def test_a_refused_option_of_a_person_stops_the_work_and_names_the_setting(
    build: BuildAnalyzer, server: ScriptedModelServer, dialect: str
) -> None:
    # Ollama ignores unknown options, but refuses unknown parameters outside of the options.
    name = "format" if dialect == "ollama" else "min_p"
    server.refused_parameters = {name}

    with pytest.raises(ServiceDownError, match="BATCH_PIPELINE_VISION_OPTIONS sets") as raised:
        build(vision_options=f'{{"{name}": "json"}}').vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_refused_options"


# Options


@only_ollama
def test_options_are_sent_where_ollama_expects_them(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    analyzer = build(
        vision_options='{"num_ctx": 16384, "keep_alive": "1h", "options": {"min_p": 0.1}}',
        embedding_options='{"num_ctx": 512}',
    )
    analyzer.embedding.embed([analyzer.vision.describe(IMAGE, [picture()]).text])

    chat, embed = (call.body for call in server.calls)
    assert (chat["options"]["num_ctx"], chat["options"]["min_p"]) == (16384, 0.1)
    assert chat["keep_alive"] == "1h"
    assert chat["options"]["seed"] == 1
    assert embed["options"]["num_ctx"] == 512


@only_openai
def test_options_are_fields_of_the_body_and_null_removes_one(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    analyzer = build(
        vision_options='{"provider": {"order": ["a"]}, "seed": null, "max_tokens": 99}',
        embedding_options='{"dimensions": 1024}',
        vision_detail="low",
    )
    analyzer.embedding.embed([analyzer.vision.describe(IMAGE, [picture()]).text])

    chat, embed = (call.body for call in server.calls)
    assert chat["provider"] == {"order": ["a"]}
    assert chat["max_tokens"] == 99
    assert "seed" not in chat
    assert chat["messages"][0]["content"][1]["image_url"]["detail"] == "low"
    assert embed["dimensions"] == 1024
    assert embed["encoding_format"] == "float"


def test_pictures_have_the_size_that_is_set_and_the_sides_that_the_model_needs(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    written = io.BytesIO()
    Image.new("RGB", (1000, 28), "navy").save(written, "JPEG")
    server.vision_models.append("qwen3-vl:8b")
    vision = build(vision_model="qwen3-vl:8b", vision_longest_side=640).vision

    vision.describe(IMAGE, [Frame(written.getvalue(), 0.0)])

    with Image.open(io.BytesIO(server.calls[0].images[0])) as sent:
        assert sent.size == (640, 32)


# A real call


def test_a_real_call_shows_that_a_model_sees_and_what_was_learnt(
    build: BuildAnalyzer, server: ScriptedModelServer, dialect: str
) -> None:
    server.thinking = Thinking("template", tokens=100)
    analyzer = build()

    seeing, embedding = analyzer.try_out()
    assert (seeing.ok, embedding.ok) == (True, True)
    assert "calls a red square red" in seeing.detail
    assert "tokens in" in seeing.detail
    assert "similar texts score" in embedding.detail
    if dialect == "openai":
        assert "thinks" in analyzer.try_out()[0].detail


@only_openai
def test_a_real_call_shows_what_a_model_refuses(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.refused_parameters = {"max_tokens", "seed"}

    assert "does not take max_tokens, seed" in build().try_out()[0].detail


def test_a_model_that_does_not_see_or_tell_texts_apart_fails_the_check(
    build: BuildAnalyzer, server: ScriptedModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "batch_pipeline.testing.model_server"
    monkeypatch.setattr(f"{module}.describe_picture", lambda _: "A blue harbour.")
    monkeypatch.setattr(f"{module}.embed_text", lambda _, dimensions: [1.0] * dimensions)

    seeing, embedding = build().try_out()

    assert "says 'A blue harbour.'" in seeing.detail
    assert "do not tell texts apart" in embedding.detail
    assert {seeing.kind, embedding.kind} == {"model_unsuitable"}


# Usage of calls


def test_the_usage_of_calls_equals_the_count_of_the_server(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    spent: list[Usage] = []
    server.thinking = Thinking("template")  # a thought that leaves no room for an answer costs too
    analyzer, caller = build(), Caller(spent=spent.append)
    description = analyzer.vision.describe(IMAGE, [picture()], caller=caller).text
    analyzer.embedding.embed([description, "a boat"], caller=caller)

    total = sum(spent, Usage(calls=0))
    assert (total.tokens_in, total.tokens_out) == (server.tokens["in"], server.tokens["out"])
    assert total.calls == len(server.calls)
    assert total.tokens_in > 256
    assert total.seconds > 0


# Rate limits


@pytest.mark.slow
@pytest.mark.parametrize("tells", [True, False])
def test_a_call_beyond_the_limit_waits_and_is_made_again(
    build: BuildAnalyzer, server: ScriptedModelServer, tells: bool
) -> None:
    server.rate_limit = RateLimit(5, 1.0, tells=tells)
    vision = build().vision

    for _ in range(9):
        assert vision.describe(IMAGE, [picture()]).text

    assert server.turned_away == (0 if tells else 1)
