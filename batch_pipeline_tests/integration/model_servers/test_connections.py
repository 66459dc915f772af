import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.model_servers.base import Caller, VisionModel
from batch_pipeline.model_servers.call_slots import CallGate
from batch_pipeline.model_servers.circuit import Circuit
from batch_pipeline.model_servers.http_calls import CallLimits
from batch_pipeline.model_servers.ollama import OllamaServer
from batch_pipeline.model_servers.openai_compatible import OpenAICompatibleServer
from batch_pipeline.model_servers.remote import ModelServer, RemoteVision
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline_tests.integration.model_servers.conftest import IMAGE, BuildAnalyzer, picture
from batch_pipeline_tests.patience import DEADLINE


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vision(dialect: str, server: ScriptedModelServer, clock: Clock) -> Iterator[VisionModel]:
    """A vision model whose circuit uses the test's clock and opens at the first failure."""
    limits, circuit = CallLimits(), Circuit(failures_to_open=1, pause_seconds=5, clock=clock)
    remote: ModelServer = (
        OllamaServer(server.ollama_url, limits, circuit=circuit)
        if dialect == "ollama"
        else OpenAICompatibleServer(server.openai_url, "", limits, circuit=circuit)
    )
    yield RemoteVision([remote], "qwen3-vl:8b-instruct", CallGate(4))
    remote.close()


def test_calls_in_a_row_share_one_connection(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    analyzer = build()
    for _ in range(5):
        analyzer.embedding.embed([analyzer.vision.describe(IMAGE, [picture()]).text])

    assert len(server.calls) == 10
    assert server.connections == 1


def test_calls_in_flight_never_exceed_the_setting_of_their_kind(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.latency_seconds = 0.02
    server.together = {"vision": 3, "embedding": 2}
    settings = {"max_vision_calls": 3, "max_embedding_calls": 2}

    def work(_: int) -> None:
        analyzer = build(**settings)  # each thread builds it, like the steps of a run
        analyzer.embedding.embed([analyzer.vision.describe(IMAGE, [picture()]).text])

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(32)))

    assert server.most_in_flight == {"vision": 3, "embedding": 2}
    assert server.connections <= 5


def test_a_server_that_is_gone_stops_the_work_of_all_threads_without_burning_an_attempt(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    vision = build().vision
    server.stop()

    def refused(_: int) -> str:
        with pytest.raises(ServiceDownError, match="Connect call failed") as raised:
            vision.describe(IMAGE, [picture()])
        return raised.value.kind

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(refused, range(8))) == {"model_server_down"}


def test_uploads_in_progress_when_a_server_dies_are_not_to_blame(
    vision: VisionModel, server: ScriptedModelServer
) -> None:
    server.play("vision", [Fault.HANG])

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(vision.describe, IMAGE, [picture()])
        server.wait_for_calls(1)
        server.stop()
        with pytest.raises(ServiceDownError) as raised:
            call.result(timeout=DEADLINE)

    assert raised.value.kind == "model_server_down"


def test_a_server_known_to_be_down_is_not_called_until_the_pause_is_over(
    vision: VisionModel, server: ScriptedModelServer, clock: Clock
) -> None:
    server.stop()
    with pytest.raises(ServiceDownError):
        vision.describe(IMAGE, [picture()])
    server.start()

    clock.now = 4.9
    with pytest.raises(ServiceDownError):
        vision.describe(IMAGE, [picture()])
    assert server.requests == 0

    clock.now = 5.1
    assert vision.describe(IMAGE, [picture()]).text
    assert server.requests == 2  # a probe, and the call itself


def test_a_probe_of_a_server_that_is_still_down_starts_the_next_pause(
    vision: VisionModel, server: ScriptedModelServer, clock: Clock
) -> None:
    server.stop()
    for clock.now in (0.0, 6.0):
        with pytest.raises(ServiceDownError):
            vision.describe(IMAGE, [picture()])
    server.start()

    clock.now = 10.0
    with pytest.raises(ServiceDownError):
        vision.describe(IMAGE, [picture()])
    clock.now = 11.1
    assert vision.describe(IMAGE, [picture()]).text


def test_a_health_check_that_finds_the_server_ends_the_pause(
    vision: VisionModel, server: ScriptedModelServer
) -> None:
    server.stop()
    with pytest.raises(ServiceDownError):
        vision.describe(IMAGE, [picture()])
    server.start()

    assert [check.ok for check in vision.check()] == [True]
    assert vision.describe(IMAGE, [picture()]).text


def test_a_short_outage_is_bridged_within_the_call(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    vision = build().vision
    server.stop()
    asked = threading.Event()

    def cancelled() -> bool:
        asked.set()
        return False

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(
            vision.describe, IMAGE, [picture()], caller=Caller(cancelled=cancelled)
        )
        assert asked.wait(timeout=DEADLINE)
        server.start()
        assert call.result(timeout=DEADLINE)


def test_errors_that_the_server_answers_do_not_count_as_an_outage(
    vision: VisionModel, server: ScriptedModelServer
) -> None:
    # After each error, the known picture is answered.
    server.play("vision", [Fault.ERROR_500, None, Fault.RESET, None] * 3)
    for _ in range(6):
        with pytest.raises(Exception, match=r"answered 500|broke off"):
            vision.describe(IMAGE, [picture()])

    assert vision.describe(IMAGE, [picture()]).text
