import base64
import logging

import pytest

from batch_pipeline.errors import PermanentError, TransientError
from batch_pipeline.model_servers.prompts import Prompts
from batch_pipeline.testing.model_server import (
    INJECTED_TEXT,
    Fault,
    ReceivedCall,
    ScriptedModelServer,
    describe_picture,
    embed_text,
)
from batch_pipeline_tests.integration.model_servers.conftest import (
    IMAGE,
    VIDEO,
    BuildAnalyzer,
    only_ollama,
    only_openai,
    picture,
)


def sampling(call: ReceivedCall) -> dict[str, float]:
    """Return the options of the sampler, under Ollama's names."""
    if call.dialect == "ollama":
        return dict(call.body["options"])
    return {
        "temperature": call.body["temperature"],
        "seed": call.body["seed"],
        "num_predict": call.body["max_tokens"],
    }


def test_a_picture_is_sent_unchanged_with_its_prompt_and_limits(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    frame = picture("navy")

    vision = build().vision
    vision.describe(IMAGE, [frame])  # the server ignores the schema

    description = vision.describe(IMAGE, [frame]).text

    assert description == describe_picture(frame.jpeg)
    in_fields, call = server.calls
    assert call.model == "qwen3-vl:8b-instruct"
    assert call.images == [frame.jpeg]
    assert call.texts == [Prompts().of_image(IMAGE)]
    assert sampling(call)["temperature"] == 0.3
    assert sampling(call)["num_predict"] == 512
    assert in_fields.texts == [f"{Prompts().of_image(IMAGE)}\n\n{Prompts().fields}"]
    assert sampling(in_fields)["num_predict"] == 2048


@only_ollama
def test_ollama_is_asked_for_a_context_of_8192_and_a_plain_answer(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    build().vision.describe(IMAGE, [picture()])

    (call,) = server.calls
    assert call.body["options"]["num_ctx"] == 8192
    assert call.body["stream"] is False


@only_openai
def test_the_openai_dialect_sends_pictures_as_data_urls_and_a_key(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.api_key = "secret"
    build(openai_api_key="secret").vision.describe(IMAGE, [picture()])

    (call,) = server.calls
    url = call.body["messages"][0]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert call.headers["authorization"] == "Bearer secret"


@only_ollama
def test_ollama_gets_the_key_that_is_set(build: BuildAnalyzer, server: ScriptedModelServer) -> None:
    server.api_key = "secret"
    build(ollama_api_key="secret").vision.describe(IMAGE, [picture()])

    (call,) = server.calls
    assert call.headers["authorization"] == "Bearer secret"


def test_user_and_password_in_an_address_are_sent(
    build: BuildAnalyzer, server: ScriptedModelServer, dialect: str
) -> None:
    variable, url = {
        "ollama": ("ollama_host", server.ollama_url),
        "openai": ("openai_base_url", server.openai_url),
    }[dialect]

    changed = {variable: url.replace("://", "://ann:p%40ss@")}
    build(**changed).vision.describe(IMAGE, [picture()])

    (call,) = server.calls
    proof = base64.b64encode(b"ann:p@ss").decode()
    assert call.headers["authorization"] == f"Basic {proof}"


def test_a_later_attempt_never_repeats_an_earlier_call(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    vision = build().vision
    for attempt in (1, 2, 3):
        vision.describe(IMAGE, [picture()], attempt=attempt)

    asked = [sampling(call) for call in server.calls]
    assert len({one["seed"] for one in asked}) == 3
    assert [one["temperature"] for one in asked] == pytest.approx([0.3, 0.5, 0.7])


def test_a_video_is_described_frame_by_frame_then_as_a_whole(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    frames = [picture("red", 0), picture("lime", 30.2), picture("blue", 75)]

    description = build().vision.describe(VIDEO, frames).text

    *of_frames, synthesis = server.calls
    assert [call.images for call in of_frames] == [[frame.jpeg] for frame in frames]
    assert ["at 0:00" in of_frames[0].texts[0], "at 1:15" in of_frames[2].texts[0]] == [True, True]
    assert synthesis.images == []
    assert sampling(synthesis)["num_predict"] == 2048 + 512
    assert {sampling(call)["num_predict"] for call in of_frames} == {512}
    (prompt,) = synthesis.texts
    places = [prompt.index(describe_picture(frame.jpeg)) for frame in frames]
    assert places == sorted(places)
    assert "red, then green, then blue" in description


def test_a_video_of_one_frame_needs_no_synthesis(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    frame = picture("lime")

    assert build().vision.describe(VIDEO, [frame]).text == describe_picture(frame.jpeg)
    assert len(server.calls) == 1


def test_a_crash_on_one_frame_is_asked_again_on_the_spot_and_not_the_same_way(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    # After the crash, a known picture is answered.
    server.play("vision", [None, Fault.ERROR_500, None, Fault.EMPTY])

    build().vision.describe(VIDEO, [picture("red"), picture("blue", 5)])

    # One frame, three tries of the other and the known picture, the synthesis.
    assert len(server.calls) == 6
    tries = [server.calls[number] for number in (1, 3, 4)]
    assert len({sampling(call)["seed"] for call in tries}) == 3


def test_text_in_a_picture_that_the_model_obeys_stays_literal_text(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.INJECTED])

    assert build().vision.describe(IMAGE, [picture()]).text == INJECTED_TEXT


def test_thoughts_of_the_model_are_not_part_of_the_description(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.THINKING])
    frame = picture()

    assert build().vision.describe(IMAGE, [frame]).text == describe_picture(frame.jpeg)


def test_many_texts_are_embedded_in_one_call_in_their_order(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    embedding = build().embedding

    vectors = embedding.embed(["a red boat", "a green hill", "snow"])

    assert (embedding.name, embedding.dimensions) == ("qwen3-embedding:0.6b", 1024)
    assert vectors == [embed_text(text, 1024) for text in ("a red boat", "a green hill", "snow")]
    (call,) = server.calls
    assert call.model == "qwen3-embedding:0.6b"


def test_no_call_is_made_without_texts(build: BuildAnalyzer, server: ScriptedModelServer) -> None:
    assert build().embedding.embed([]) == []
    assert server.calls == []


def test_a_text_beyond_the_context_is_embedded_in_part_and_flagged(
    build: BuildAnalyzer, server: ScriptedModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.context_characters = 1000
    long = "harbour lights " * 200

    with caplog.at_level(logging.WARNING):
        short_vector, long_vector = build().embedding.embed(["a boat", long])

    assert short_vector == embed_text("a boat", 1024)
    assert long_vector == embed_text(long[: len(long) // 4], 1024)
    assert "is too long for qwen3-embedding:0.6b" in caplog.text
    assert "exceeds the context length" in caplog.text


def test_a_server_that_is_silent_for_too_long_does_not_shorten_a_text(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("embedding", [Fault.HANG])

    with pytest.raises(TransientError) as raised:
        build(model_read_seconds=0.3).embedding.embed(["harbour lights " * 200])

    assert raised.value.kind == "model_timeout"
    assert len(server.calls) == 1


def test_a_limit_of_tokens_shortens_a_text(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    def refuse(call: ReceivedCall) -> tuple[int, str] | None:
        if len(call.texts[0]) <= 1000:
            return None
        return 413, "`inputs` must have less than 512 tokens. Given: 600"

    server.refuse = refuse
    long = "harbour lights " * 200

    assert build().embedding.embed([long]) == [embed_text(long[: len(long) // 4], 1024)]


def test_a_context_too_small_for_anything_is_an_error_not_an_endless_loop(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.context_characters = 10

    with pytest.raises(PermanentError, match="exceeds the context length"):
        build().embedding.embed(["harbour lights " * 200])


@pytest.mark.parametrize(
    ("model", "question", "document"),
    [
        ("nomic-embed-text:v1.5", "search_query: a boat", "search_document: a boat"),
        ("intfloat/multilingual-e5-large", "query: a boat", "passage: a boat"),
        (
            "embeddinggemma:300m",
            "task: search result | query: a boat",
            "title: none | text: a boat",
        ),
        (
            "qwen3-embedding:0.6b",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query"
            "\nQuery:a boat",
            "a boat",
        ),
        ("bge-m3", "a boat", "a boat"),
    ],
)
def test_questions_and_descriptions_get_the_prefixes_of_the_model(
    build: BuildAnalyzer, server: ScriptedModelServer, model: str, question: str, document: str
) -> None:
    server.embedding_models.append(model)
    embedding = build(embedding_model=model).embedding

    embedding.embed(["a boat"], as_questions=True)
    embedding.embed(["a boat"])

    assert [call.texts for call in server.calls] == [[question], [document]]


def test_prefixes_can_be_set(build: BuildAnalyzer, server: ScriptedModelServer) -> None:
    embedding = build(
        embedding_question_prefix="Find:\\n", embedding_document_prefix="File: "
    ).embedding

    embedding.embed(["a boat"], as_questions=True)
    embedding.embed(["a boat"])

    assert [call.texts for call in server.calls] == [["Find:\na boat"], ["File: a boat"]]
    assert embedding.fingerprint() != build().embedding.fingerprint()


@pytest.mark.parametrize("dimensions", [384, 1024, 4000])
def test_the_server_is_asked_for_vectors_of_the_length_that_is_set(
    build: BuildAnalyzer, server: ScriptedModelServer, dimensions: int
) -> None:
    server.dimensions, server.cuts_vectors = 4096, True
    embedding = build(embedding_dimensions=dimensions).embedding

    [vector] = embedding.embed(["a boat"])

    assert len(vector) == dimensions
    assert server.calls[-1].body["dimensions"] == dimensions
    assert all(check.ok for check in embedding.check())


def test_a_server_that_takes_no_length_is_not_asked_for_it_again(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.refused_parameters = {"dimensions"}
    embedding = build().embedding

    embedding.embed(["a boat"])
    embedding.embed(["a hill"])

    assert ["dimensions" in call.body for call in server.calls] == [True, False, False]
    [check] = embedding.try_out()
    assert "does not take dimensions" in check.detail


@only_openai
def test_the_words_with_which_vllm_refuses_a_length_are_understood(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    reason = (
        'Model "bge-m3" does not support matryoshka representation, changing output dimensions '
        "will lead to poor results."
    )
    server.refuse = lambda call: (400, reason) if "dimensions" in call.body else None

    assert len(build().embedding.embed(["a boat"])[0]) == 1024
