"""Answers with fields, over HTTP: one call if the server accepts a schema, else plain text."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batch_pipeline.errors import TransientError
from batch_pipeline.model_servers.structured import SCHEMA
from batch_pipeline.testing.model_server import (
    VISIBLE_TEXT,
    Fault,
    ReceivedCall,
    ScriptedModelServer,
    describe_picture,
)
from batch_pipeline_tests.integration.model_servers.conftest import (
    IMAGE,
    VIDEO,
    BuildAnalyzer,
    only_openai,
    picture,
)

FIELD = {"ollama": "format", "openai": "response_format"}


def schema_of(call: ReceivedCall) -> Any:
    body = call.body
    if call.dialect == "ollama":
        return body.get("format")
    return body.get("response_format", {}).get("json_schema", {}).get("schema")


def test_one_call_gives_description_tags_and_visible_text(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.structured, frame = True, picture()

    found = build().vision.describe(IMAGE, [frame])

    assert found.text == describe_picture(frame.jpeg)
    assert found.tags == ("sunset", "harbour", "red boat", "rtl", "two people")
    assert found.visible_text == VISIBLE_TEXT
    [call] = server.calls
    assert schema_of(call) == SCHEMA
    assert "Answer as JSON with these fields" in call.texts[0]
    limits = call.body.get("options", call.body)
    assert limits.get("num_predict", limits.get("max_tokens")) == 2048


def test_the_answer_about_a_whole_video_has_fields(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.structured = True

    found = build().vision.describe(VIDEO, [picture("red"), picture("blue", 5)])

    assert "red, then blue" in found.text
    assert "harbour" in found.tags
    assert [bool(schema_of(call)) for call in server.calls] == [False, False, True]
    assert "{" not in server.calls[2].texts[0].partition("Answer as JSON")[0]


def test_a_video_of_one_frame_has_fields_too(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.structured = True

    assert build().vision.describe(VIDEO, [picture()]).tags


def test_a_server_that_refuses_a_schema_gives_plain_text_and_is_asked_once(
    build: BuildAnalyzer, server: ScriptedModelServer, dialect: str
) -> None:
    server.refused_parameters, frame = {FIELD[dialect]}, picture()
    analyzer = build()

    for _ in range(2):
        found = analyzer.vision.describe(IMAGE, [frame])
        assert (found.text, found.tags) == (describe_picture(frame.jpeg), ())

    assert len(server.calls) == 3
    assert not schema_of(server.calls[-1])
    assert "JSON" not in server.calls[-1].texts[0]
    assert f"does not take {FIELD[dialect]}" in analyzer.try_out()[0].detail


@pytest.mark.parametrize(
    ("dialect", "reason"),
    [
        ("openai", "This response_format type is unavailable now"),
        ("openai", "'response_format.type' must be one of 'text', 'json_object'"),
        ("openai", "Failed to initialize samplers: std::exception"),
        ("ollama", "failed to parse grammar"),
        ("ollama", "json: cannot unmarshal object into Go struct field ChatRequest.format of type"),
        ("ollama", "'format' is not supported"),
    ],
    indirect=["dialect"],
)
def test_servers_refuse_a_schema_in_their_own_words(
    build: BuildAnalyzer, server: ScriptedModelServer, reason: str
) -> None:
    server.refuse = lambda call: (400, reason) if schema_of(call) else None

    assert build().vision.describe(IMAGE, [picture()]).text


def test_a_server_that_ignores_a_schema_gives_plain_text(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    frame, vision = picture(), build().vision

    for _ in range(2):
        found = vision.describe(IMAGE, [frame])
        assert (found.text, found.tags) == (describe_picture(frame.jpeg), ())

    assert [bool(schema_of(call)) for call in server.calls] == [True, False]


REFUSAL = "I'm sorry, but I can't help with identifying people in images."


@only_openai
def test_an_answer_in_fields_after_a_thought_about_code_is_read(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    fields = {"description": "An editor.", "tags": ["code"], "visible_text": "int main() {"}
    answer = f"The first line is `int main() {{`.\n</think>\n\n{json.dumps(fields)}"
    server.says = lambda _: answer

    found = build().vision.describe(IMAGE, [picture()])

    assert (found.text, found.tags) == ("An editor.", ("code",))
    assert found.visible_text == "int main() {"


def test_one_refusal_in_prose_does_not_end_the_use_of_a_schema(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.structured, vision = True, build().vision
    assert vision.describe(IMAGE, [picture()]).tags

    server.structured, server.says = False, lambda _: REFUSAL
    refused = vision.describe(IMAGE, [picture()])
    server.structured, server.says = True, lambda _: None

    assert (refused.text, refused.tags) == (REFUSAL, ())
    assert vision.describe(IMAGE, [picture()]).tags
    assert all(schema_of(call) for call in server.calls)


def test_an_answer_in_fields_shows_that_a_schema_is_not_ignored(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    red, blue, refused = picture("red"), picture("blue"), threading.Event()

    def says(call: ReceivedCall) -> str | None:
        if call.images == [red.jpeg]:
            return REFUSAL
        refused.wait(60)
        return None

    server.says, vision = says, build().vision
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(vision.describe, IMAGE, [blue])
        server.wait_for_calls(1)
        assert vision.describe(IMAGE, [red]).text == REFUSAL
        server.structured = True
        refused.set()
        assert slow.result().tags

    assert vision.describe(IMAGE, [blue]).tags


@pytest.mark.parametrize("fault", [Fault.NOT_IN_FIELDS, Fault.CUT_FIELDS])
def test_an_answer_of_other_fields_is_refused_and_not_taken_for_text(
    build: BuildAnalyzer, server: ScriptedModelServer, fault: Fault
) -> None:
    server.structured = True
    server.play("vision", [fault])
    vision = build().vision

    with pytest.raises(TransientError) as raised:
        vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_output_invalid"
    assert vision.describe(IMAGE, [picture()]).tags, "the next answer is asked for in fields again"


def test_visible_text_that_reaches_the_limit_of_tokens_does_not_cost_the_description(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.structured, frame = True, picture()
    server.play("vision", [Fault.CUT_VISIBLE_TEXT])

    found = build().vision.describe(IMAGE, [frame])

    assert found.text == describe_picture(frame.jpeg)
    assert "harbour" in found.tags
    assert found.visible_text
    assert VISIBLE_TEXT.startswith(found.visible_text)
    assert len(server.calls) == 1


def test_a_cut_description_in_fields_is_refused(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.says = lambda _: '{"description": "A boat and'
    server.play("vision", [Fault.CUT_BY_LENGTH])

    with pytest.raises(TransientError, match="was cut by length"):
        build().vision.describe(IMAGE, [picture()])


@pytest.mark.parametrize(("structured", "how"), [(True, "in fields"), (False, "in plain text")])
def test_a_real_call_shows_whether_answers_have_fields(
    build: BuildAnalyzer, server: ScriptedModelServer, structured: bool, how: str
) -> None:
    server.structured = structured

    seeing, _ = build().try_out()

    assert seeing.ok
    assert f"calls a red square red, {how} (" in seeing.detail


def test_an_option_can_remove_the_schema(
    build: BuildAnalyzer, server: ScriptedModelServer, dialect: str
) -> None:
    server.structured = True
    analyzer = build(vision_options=f'{{"{FIELD[dialect]}": null}}')

    assert analyzer.vision.describe(IMAGE, [picture()]).tags == ()
    assert FIELD[dialect] not in server.calls[0].body
