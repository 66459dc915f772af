"""A refusal of one picture does not stop the others; a refusal of all pictures is an outage."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from batch_pipeline.errors import KindedError, PermanentError, ServiceDownError, TransientError
from batch_pipeline.testing.model_server import Fault, ReceivedCall, ScriptedModelServer
from batch_pipeline_tests.integration.model_servers.conftest import (
    IMAGE,
    BuildAnalyzer,
    only_openai,
    picture,
)
from batch_pipeline_tests.patience import DEADLINE

MODERATION = "Your input was flagged by the content policy."


def is_green(call: ReceivedCall) -> bool:
    if not call.images:
        return False
    with Image.open(io.BytesIO(call.images[0])) as opened:
        red, green, blue = opened.convert("RGB").resize((1, 1)).getpixel((0, 0))
    return green > max(red, blue) + 50


def refusing_green(server: ScriptedModelServer, status: int, reason: str) -> None:
    server.refuse = lambda call: (status, reason) if is_green(call) else None


@pytest.mark.parametrize(
    ("refusal", "named", "calls"),
    [
        ((403, MODERATION), (PermanentError, "model_refused_input"), 1),
        ((400, MODERATION), (PermanentError, "model_refused_input"), 1),
        ((415, "unknown media type"), (PermanentError, "model_refused_input"), 1),
        # If the refusal may concern all pictures, a red square is tried.
        ((400, "Invalid image: cannot be decoded"), (PermanentError, "model_refused_input"), 2),
        ((422, "the image is too large"), (PermanentError, "model_refused_input"), 2),
        ((400, "image format is not supported"), (PermanentError, "model_refused_input"), 2),
        ((400, "Bad Request"), (PermanentError, "model_refused_input"), 2),
        ((403, "Forbidden"), (TransientError, "model_refused_call"), 2),
        ((401, "unauthorized"), (TransientError, "model_refused_call"), 2),
        ((404, "not found"), (TransientError, "model_refused_call"), 2),
        ((500, "the runner crashed"), (TransientError, "model_server_error"), 2),
    ],
)
def test_a_picture_that_is_the_only_one_refused_is_the_cause(
    build: BuildAnalyzer,
    server: ScriptedModelServer,
    refusal: tuple[int, str],
    named: tuple[type[KindedError], str],
    calls: int,
) -> None:
    error, kind = named
    refusing_green(server, *refusal)
    vision = build().vision

    with pytest.raises(error, match=refusal[1].rstrip(".")) as raised:
        vision.describe(IMAGE, [picture("lime")])

    assert raised.value.kind == kind
    assert len(server.calls) == calls
    assert vision.describe(IMAGE, [picture("blue")]).text


def test_answers_to_other_calls_in_the_meantime_are_enough_evidence(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    refusing_green(server, 403, "Forbidden")
    vision = build(max_vision_calls=2).vision
    answered = threading.Event()

    def slow_for_green(call: ReceivedCall) -> tuple[int, str] | None:
        if not is_green(call):
            return None
        answered.wait(DEADLINE)
        return 403, "Forbidden"

    server.refuse = slow_for_green
    with ThreadPoolExecutor(1) as threads:
        refused = threads.submit(vision.describe, IMAGE, [picture("lime")])
        server.wait_for_calls(1)
        assert vision.describe(IMAGE, [picture("blue")]).text
        answered.set()
        with pytest.raises(TransientError, match="answers other calls"):
            refused.result()

    assert len(server.calls) == 2


def test_if_all_calls_are_refused_one_tries_a_known_picture_for_all(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.refuse = lambda _: (403, "Forbidden")
    server.latency_seconds = 0.3
    vision = build().vision

    def refused(_: int) -> str:
        with pytest.raises(ServiceDownError) as raised:
            vision.describe(IMAGE, [picture("lime")])
        return raised.value.kind

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(refused, range(4))) == {"model_server_refused"}

    assert len(server.calls) == 4 + 1


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (403, "This account was flagged by the safety team", "model_server_refused"),
        (400, "no such model as this", "model_refuses_all"),
        (400, "Your credit balance is too low", "model_quota_used_up"),
        (402, "payment", "model_quota_used_up"),
        # Refusals that name the picture or the context may still concern every picture.
        (400, "Invalid image: cannot be decoded", "model_refuses_all"),
        (422, "the picture is too large", "model_refuses_all"),
        (
            400,
            "'max_tokens' is too large: 1024. The maximum context length is",
            "model_refuses_all",
        ),
        (400, "image_url is only supported by certain models", "model_unsuitable"),
        (400, "unknown variant `image_url`, expected `text`", "model_unsuitable"),
        (400, "At most 0 image", "model_unsuitable"),
        (400, "Image content cannot be used with this model", "model_unsuitable"),
    ],
)
def test_a_refusal_of_the_customer_or_of_every_call_fails_no_upload(
    build: BuildAnalyzer, server: ScriptedModelServer, status: int, reason: str, kind: str
) -> None:
    server.refuse = lambda _: (status, reason)

    with pytest.raises(ServiceDownError, match=reason) as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == kind


def test_a_quota_that_is_used_up_is_an_outage_that_names_the_bill(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.retry_after = "2"
    server.refuse = lambda _: (429, "You exceeded your current quota: insufficient_quota")

    with pytest.raises(ServiceDownError, match="the billing of the service") as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_quota_used_up"
    assert len(server.calls) == 1


def test_a_context_that_is_too_short_for_every_answer_fails_no_upload(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    def too_long(call: ReceivedCall) -> tuple[int, str] | None:
        tokens = call.body.get("max_tokens") or call.body["options"]["num_predict"]
        return (400, "'max_tokens' is too large") if tokens >= 1024 else None

    server.structured = True
    server.refuse = too_long

    with pytest.raises(ServiceDownError, match="too large") as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_refuses_all"


@only_openai
def test_an_answer_that_a_filter_stopped_is_the_pictures_fault(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.CONTENT_FILTER])

    with pytest.raises(PermanentError, match="content filter") as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_refused_input"
