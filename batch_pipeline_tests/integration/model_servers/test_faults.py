import itertools
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from batch_pipeline.errors import (
    KindedError,
    ServiceDownError,
    TransientError,
    WorkCancelledError,
)
from batch_pipeline.model_servers.base import Caller
from batch_pipeline.model_servers.prompts import COLOUR
from batch_pipeline.testing.model_server import (
    Fault,
    ReceivedCall,
    ScriptedModelServer,
    at_random,
)
from batch_pipeline_tests.integration.model_servers.conftest import (
    IMAGE,
    BuildAnalyzer,
    only_ollama,
    picture,
)
from batch_pipeline_tests.patience import DEADLINE, promised


def asks_colour(call: ReceivedCall) -> bool:
    """Return whether a call is the question with a known answer."""
    return any(text.startswith(COLOUR) for text in call.texts)


FAILS_ALL = {Fault.ERROR_500, Fault.BAD_GATEWAY_502, Fault.RESET}
DOUBTFUL = {
    Fault.MISSING_404,
    Fault.REFUSED_KEY_401,
    Fault.UNSUITABLE_400,
    Fault.REFUSED_INPUT_400,
}


@pytest.mark.parametrize(
    ("fault", "named", "reason"),
    [
        (Fault.ERROR_500, (ServiceDownError, "model_fails_all"), "unexpectedly stopped: signal"),
        (Fault.BAD_GATEWAY_502, (ServiceDownError, "model_fails_all"), "upstream closed"),
        (Fault.RESET, (ServiceDownError, "model_fails_all"), "reset by peer"),
        (Fault.CUT_JSON, (TransientError, "model_output_invalid"), "not an answer of its protocol"),
        (Fault.EMPTY, (TransientError, "model_output_invalid"), "an empty answer"),
        (Fault.CUT_BY_LENGTH, (TransientError, "model_output_invalid"), "cut by length"),
        (
            Fault.MISSING_404,
            (ServiceDownError, "model_missing"),
            "model 'qwen3-vl:8b-instruct' not found",
        ),
        (Fault.REFUSED_KEY_401, (ServiceDownError, "model_server_refused"), "API_KEY"),
        (Fault.UNSUITABLE_400, (ServiceDownError, "model_unsuitable"), "does not support image"),
        (Fault.REFUSED_INPUT_400, (ServiceDownError, "model_refuses_all"), "decode the picture"),
    ],
)
def test_each_fault_of_a_description_raises_its_error(
    build: BuildAnalyzer,
    server: ScriptedModelServer,
    fault: Fault,
    named: tuple[type[KindedError], str],
    reason: str,
) -> None:
    error, kind = named
    vision = build().vision
    server.play("vision", itertools.repeat(fault))

    with pytest.raises(error, match=reason) as raised:
        vision.describe(IMAGE, [picture()])

    assert raised.value.kind == kind
    # If the error may concern only this picture, a known picture is tried; after a 5xx three times,
    # since it may fail by chance.
    assert len(server.calls) == (4 if fault in FAILS_ALL else 2 if fault in DOUBTFUL else 1)
    server.play("vision", [])
    assert vision.describe(IMAGE, [picture()]).text  # the fault has no later effect


@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        (Fault.EMPTY, TransientError, "embedding_empty"),
        (Fault.NAN, TransientError, "embedding_not_finite"),
        (Fault.ZEROS, TransientError, "embedding_zero"),
        (Fault.WRONG_DIMENSION, ServiceDownError, "embedding_wrong_length"),
        (Fault.CUT_JSON, TransientError, "model_output_invalid"),
        (Fault.ERROR_500, TransientError, "model_server_error"),
    ],
)
def test_an_embedding_that_cannot_be_stored_has_a_kind_of_its_own(
    build: BuildAnalyzer,
    server: ScriptedModelServer,
    fault: Fault,
    error: type[KindedError],
    kind: str,
) -> None:
    server.play("embedding", [fault])

    with pytest.raises(error) as raised:
        build().embedding.embed(["a boat"])

    assert raised.value.kind == kind


@only_ollama
def test_a_missing_model_says_which_command_brings_it(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.embedding_models.clear()

    with pytest.raises(ServiceDownError, match=r"ollama pull qwen3-embedding:0\.6b"):
        build().embedding.embed(["a boat"])


@pytest.mark.parametrize("fault", [Fault.BUSY_503, Fault.BUSY_429])
def test_a_busy_server_is_asked_again_when_it_says(
    build: BuildAnalyzer, server: ScriptedModelServer, fault: Fault
) -> None:
    server.retry_after = "0.2"
    server.play("vision", [fault, fault])

    assert build().vision.describe(IMAGE, [picture()]).text

    first, second, third = (call.started_at for call in server.calls)
    assert second - first >= 0.2
    assert third - second >= 0.2


def test_a_server_that_stays_busy_is_left_alone_after_a_few_tries(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.BUSY_503] * 4)

    with pytest.raises(TransientError, match="maximum pending requests") as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_server_busy"
    assert len(server.calls) == 4 + 1  # a known picture


def test_a_server_that_is_busy_for_every_call_is_an_outage(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", itertools.repeat(Fault.BUSY_503))

    with pytest.raises(ServiceDownError, match="maximum pending requests") as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_fails_all"
    assert raised.value.if_alone is None  # no crash


def test_a_known_picture_that_fails_by_chance_is_tried_again(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.ERROR_500] * 3)

    with pytest.raises(TransientError, match="unexpectedly stopped") as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_server_error"
    assert len(server.calls) == 4


@pytest.mark.slow
@pytest.mark.parametrize("status", [504, 521, 522, 523, 530])
def test_a_status_of_a_proxy_about_a_server_that_is_away_is_an_outage(
    build: BuildAnalyzer, server: ScriptedModelServer, status: int
) -> None:
    server.unserved = (status, "no upstream")

    with pytest.raises(ServiceDownError, match="no upstream") as raised:
        build().vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_server_down"


@pytest.mark.slow
def test_the_wait_for_a_slot_does_not_count_as_a_time_of_refusals(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    vision = build(max_vision_calls=1, model_total_seconds=1).vision
    server.retry_after = "0.05"
    group = vision._servers  # type: ignore[attr-defined]
    waiting = threading.Event()

    def cancelled() -> bool:
        waiting.set()
        return False

    with ThreadPoolExecutor(1) as threads:
        with group._slots.taken(lambda: list(group._servers), lambda: False):
            call = threads.submit(
                vision.describe, IMAGE, [picture()], caller=Caller(cancelled=cancelled)
            )
            assert waiting.wait(DEADLINE)
            time.sleep(1.3)  # longer than one call may take
            server.play("vision", [Fault.BUSY_429])
        assert call.result(timeout=DEADLINE).text


@pytest.mark.slow
@pytest.mark.parametrize("status", [502, 503])
def test_a_proxy_without_a_server_behind_it_is_not_called_again_at_once(
    build: BuildAnalyzer, server: ScriptedModelServer, status: int
) -> None:
    vision = build().vision
    server.unserved = (status, "no upstream")
    with pytest.raises(ServiceDownError, match="no upstream"):
        vision.describe(IMAGE, [picture()])
    asked = server.requests

    with pytest.raises(ServiceDownError, match="no upstream") as raised:
        vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_server_down"
    assert server.requests == asked


@pytest.mark.parametrize("fault", [Fault.BUSY_503, Fault.BUSY_429])
def test_a_server_that_only_ever_asks_to_wait_is_an_outage_and_fails_no_upload(
    build: BuildAnalyzer, server: ScriptedModelServer, fault: Fault
) -> None:
    server.retry_after = "0.05"
    server.play("vision", itertools.repeat(fault))

    with pytest.raises(ServiceDownError, match="has refused a call") as raised:
        build(model_total_seconds=0.3).vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_rate_limited"


@pytest.mark.slow
def test_a_long_pause_that_a_server_asks_for_is_not_spent_holding_an_upload(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.retry_after = "3600"
    server.play("vision", [Fault.BUSY_429])
    vision = build().vision

    for _ in range(2):
        with pytest.raises(ServiceDownError, match="too many requests") as raised:
            vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_rate_limited"
    assert 800 < raised.value.resume_after_seconds <= 900
    assert len(server.calls) == 1, "it was called in the pause that it asked for"


def test_a_silent_server_holds_a_call_no_longer_than_the_read_time_out(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.HANG])
    started = time.monotonic()

    with pytest.raises(TransientError) as raised:
        build(model_read_seconds=0.3).vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_timeout"
    assert time.monotonic() - started < promised(1.5)
    assert server.calls[0].client_left.wait(timeout=DEADLINE)


def test_a_dripping_server_holds_a_call_no_longer_than_the_total_deadline(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.DRIP])
    started = time.monotonic()

    with pytest.raises(TransientError, match=r"no complete answer within 0\.\d+ s") as raised:
        build(model_read_seconds=0.3, model_total_seconds=0.5).vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_timeout"
    assert time.monotonic() - started < promised(1.7)
    assert server.calls[0].client_left.wait(timeout=DEADLINE)


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DRIP])
def test_a_cancelled_call_ends_within_two_seconds_and_closes_its_connection(
    build: BuildAnalyzer, server: ScriptedModelServer, fault: Fault
) -> None:
    server.play("vision", [fault])
    cancelled = threading.Event()
    vision = build().vision

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(
            vision.describe, IMAGE, [picture()], caller=Caller(cancelled=cancelled.is_set)
        )
        server.wait_for_calls(1)
        cancelled.set()
        with pytest.raises(WorkCancelledError):
            call.result(timeout=promised(2))

    assert server.calls[0].client_left.wait(timeout=DEADLINE)


@pytest.mark.slow
def test_a_call_that_waits_for_its_turn_can_be_cancelled(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.HANG])
    cancelled, first_cancelled = threading.Event(), threading.Event()
    vision = build(max_vision_calls=1).vision

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(
            vision.describe, IMAGE, [picture()], caller=Caller(cancelled=first_cancelled.is_set)
        )
        server.wait_for_calls(1)
        second = threads.submit(
            vision.describe, IMAGE, [picture()], caller=Caller(cancelled=cancelled.is_set)
        )
        cancelled.set()
        with pytest.raises(WorkCancelledError):
            second.result(timeout=promised(2))
        first_cancelled.set()
        with pytest.raises(WorkCancelledError):
            first.result(timeout=promised(2))

    assert len(server.calls) == 1


def test_a_caller_is_asked_at_least_twice_a_second_whether_it_still_wants_its_call(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.HANG])
    asked: list[float] = []

    def cancelled() -> bool:
        asked.append(time.monotonic())
        return False

    with pytest.raises(TransientError):
        build(model_read_seconds=0.9).vision.describe(
            IMAGE, [picture()], caller=Caller(cancelled=cancelled)
        )

    # Not the maximum: on a busy machine, any process may pause once.
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert statistics.median(pauses) < promised(0.5)


def test_each_crash_fails_only_its_own_call_when_four_calls_in_ten_crash(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("vision", at_random(Fault.ERROR_500, 0.4, seed=3))
    vision = build().vision

    def tried(_: int) -> str:
        try:
            return vision.describe(IMAGE, [picture()]).text
        except TransientError as error:
            return error.kind

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(tried, range(60)))

    crashes = sum(call.fault is not None for call in server.calls if not asks_colour(call))
    assert 10 < crashes < 40
    assert outcomes.count("model_server_error") == crashes
