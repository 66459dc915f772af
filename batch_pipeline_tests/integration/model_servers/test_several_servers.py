"""Several servers with the same models: calls go to any that can serve them."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from batch_pipeline.errors import ConfigurationError, ServiceDownError
from batch_pipeline.model_servers import server_group
from batch_pipeline.model_servers.base import Analyzer, Caller, Spent
from batch_pipeline.model_servers.call_slots import CallGate
from batch_pipeline.model_servers.circuit import Circuit
from batch_pipeline.model_servers.http_calls import CallLimits
from batch_pipeline.model_servers.model_server import ModelServer
from batch_pipeline.model_servers.ollama import OllamaServer
from batch_pipeline.model_servers.server_group import ServerGroup
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline_tests.integration.model_servers.conftest import (
    IMAGE,
    BuildAnalyzer,
    only_ollama,
    picture,
)


@pytest.fixture
def other() -> Iterator[ScriptedModelServer]:
    with ScriptedModelServer() as running:
        yield running


@pytest.fixture
def both(build: BuildAnalyzer, server: ScriptedModelServer, other: ScriptedModelServer) -> Analyzer:
    return both_of(build, server, other)


def both_of(build: BuildAnalyzer, *servers: ScriptedModelServer, **changed: Any) -> Analyzer:
    return build(
        ollama_host=" , ".join(each.ollama_url for each in servers),
        openai_base_url=",".join(each.openai_url for each in servers),
        **changed,
    )


def describe(analyzer: Analyzer, times: int, threads: int = 4) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: analyzer.vision.describe(IMAGE, [picture()]), range(times)))


def test_the_cap_is_that_of_each_server_and_both_are_used(
    build: BuildAnalyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    server.latency_seconds = other.latency_seconds = 0.05
    describe(both_of(build, server, other, max_vision_calls=2), 24, threads=8)

    assert [each.most_in_flight["vision"] for each in (server, other)] == [2, 2]


def test_a_server_may_have_a_cap_of_its_own(
    build: BuildAnalyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    server.latency_seconds = other.latency_seconds = 0.05
    analyzer = build(
        ollama_host=f"{server.ollama_url}#3,{other.ollama_url}",
        openai_base_url=f"{server.openai_url}#3,{other.openai_url}",
        max_vision_calls=1,
    )
    describe(analyzer, 32, threads=8)

    assert [each.most_in_flight["vision"] for each in (server, other)] == [3, 1]


@pytest.mark.slow
def test_a_slow_server_gets_less_than_a_fast_one(
    build: BuildAnalyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    slow, fast = server, other
    slow.latency_seconds, fast.latency_seconds = 0.5, 0.0
    analyzer = both_of(build, slow, fast, max_vision_calls=4)
    describe(analyzer, 4)  # durations are unknown until each server has had a call
    assert slow.calls

    # With one call at a time both are idle: by number of calls alone, each would get half.
    begun = len(slow.calls)
    describe(analyzer, 20, threads=1)
    assert len(slow.calls) == begun

    # With more calls than the fast server can take, the slow one gets the few that are left.
    describe(analyzer, 40, threads=6)
    assert len(slow.calls) <= begun + 40 / 4


def test_a_server_that_is_down_leaves_its_calls_to_the_other(
    both: Analyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    server.stop()
    describe(both, 20)

    assert len(other.calls_of("vision")) == 20
    assert both.embedding.embed(["a boat"])


@pytest.mark.slow
def test_it_is_an_outage_only_if_all_servers_are_down_and_each_is_named(
    both: Analyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    server.stop()
    assert both.outages() == []
    other.stop()

    with pytest.raises(ServiceDownError) as raised:
        describe(both, 1)

    assert raised.value.kind == "model_server_down"
    assert server.ollama_url in str(raised.value)
    assert other.ollama_url in str(raised.value)
    assert len(both.outages()) == 4


def test_a_server_without_the_model_is_set_aside_instead_of_drawing_calls_by_being_idle(
    both: Analyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    server.vision_models.clear()
    describe(both, 20, threads=1)

    assert len(other.calls_of("vision")) == 20
    # The call that it got, and the known question that shows whether it answers others.
    assert len(server.calls_of("vision")) <= 2


def test_a_server_whose_vectors_do_not_fit_leaves_its_calls_to_the_other(
    both: Analyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    server.dimensions = 768

    for _ in range(4):
        assert both.embedding.embed(["a boat"])

    assert len(server.calls_of("embedding")) <= 1
    assert len(other.calls_of("embedding")) == 4


def test_an_error_of_one_call_is_not_carried_to_the_other_server(
    both: Analyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    for each in (server, other):
        each.play("vision", [Fault.REFUSED_INPUT_400])

    with pytest.raises(Exception, match="decode the picture"):
        describe(both, 1)

    # The call, and the known question that shows that the refusal concerns only this call.
    assert sorted([len(server.calls), len(other.calls)]) == [0, 2]


def test_every_server_is_checked_for_every_model(
    both: Analyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    other.embedding_models.clear()

    checks = both.check()

    assert [check.ok for check in checks] == [True, True, True, False]
    assert [check.name.partition(" at ")[0] for check in checks] == [
        "vision model qwen3-vl:8b-instruct",
        "vision model qwen3-vl:8b-instruct",
        "embedding model qwen3-embedding:0.6b",
        "embedding model qwen3-embedding:0.6b",
    ]
    assert other.ollama_url in checks[3].name
    assert "qwen3-embedding:0.6b is not on" in checks[3].detail


@only_ollama  # the other protocol has no digest
def test_another_model_behind_the_name_is_noticed_and_a_server_that_is_away_changes_nothing(
    both: Analyzer,
    server: ScriptedModelServer,
    other: ScriptedModelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_group, "DIGEST_SECONDS", 0)
    before = both.vision.fingerprint()
    server.digests["qwen3-vl:8b-instruct"] = other.digests["qwen3-vl:8b-instruct"] = (
        "sha256:ffff0000"
    )
    after = both.vision.fingerprint()
    other.stop()

    assert "@ffff0000 " in after
    assert before != after
    assert both.vision.fingerprint() == after
    server.stop()
    assert both.vision.fingerprint() == after


@only_ollama
def test_a_server_that_is_down_is_not_asked_which_model_it_has(
    both: Analyzer,
    server: ScriptedModelServer,
    other: ScriptedModelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_group, "DIGEST_SECONDS", 0)
    before = both.vision.fingerprint()
    other.stop()
    describe(both, 20)
    other.start()  # no call has found that out
    asked = other.requests

    assert both.vision.fingerprint() == before
    assert other.requests == asked


#: A wait for a server that is switched off would last at least twice as long (seconds).
A_LONG_WAIT = 10.0


@pytest.fixture
def switched_off() -> Iterator[str]:
    """The address of a host that answers no packet: its queue of connections is full."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
def test_nothing_waits_for_a_switched_off_server_that_another_one_can_replace(
    build: BuildAnalyzer,
    server: ScriptedModelServer,
    switched_off: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    analyzer = build(
        ollama_host=f"{switched_off},{server.ollama_url}",
        openai_base_url=f"{switched_off}/v1,{server.openai_url}",
        model_connect_seconds=2 * A_LONG_WAIT,
    )

    # What a launch and the start of a run ask, then the first calls of the run
    began = time.monotonic()
    assert analyzer.outages() == []
    assert analyzer.vision.fingerprint()
    assert analyzer.embedding.fingerprint()
    describe(analyzer, 8)
    assert time.monotonic() - began < A_LONG_WAIT

    monkeypatch.setattr(server_group, "_SILENCE_SECONDS", 2 * A_LONG_WAIT)
    began = time.monotonic()
    assert analyzer.outages() == []
    assert time.monotonic() - began < A_LONG_WAIT


@pytest.mark.slow
def test_a_server_that_is_switched_off_is_reported_with_the_time_that_was_waited(
    build: BuildAnalyzer, switched_off: str
) -> None:
    analyzer = build(
        ollama_host=switched_off, openai_base_url=f"{switched_off}/v1", model_connect_seconds=0.5
    )

    checks = analyzer.check()

    assert [check.ok for check in checks] == [False, False]
    assert all("no connection within 0.5 s" in check.detail for check in checks)


def test_a_server_that_was_down_is_asked_again_before_that_is_an_outage(
    both: Analyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    other.stop()
    describe(both, 20)
    other.start()
    server.stop()

    assert both.outages() == []


@pytest.mark.slow
@only_ollama
def test_no_call_waits_for_the_probe_of_a_server_that_is_down(
    dialect: str, server: ScriptedModelServer, switched_off: str
) -> None:
    limits = CallLimits(connect=A_LONG_WAIT)
    off = OllamaServer(switched_off, limits, circuit=Circuit(pause_seconds=0.1))
    on = OllamaServer(server.ollama_url, CallLimits(), circuit=Circuit(pause_seconds=0.1))
    model = "qwen3-vl:8b-instruct"

    async def call(of: ModelServer, spent: Spent) -> str:
        return await of.digest(model)

    group = ServerGroup([off, on], model, CallGate(4, {}), call)
    off.calls.note_silence()
    for _ in range(3):
        time.sleep(0.2)
        began = time.monotonic()
        group.run(call, Caller())
        assert time.monotonic() - began < 4  # a probe that nobody answers takes 5 s
    on.calls.note_silence()
    time.sleep(0.2)
    group.run(call, Caller())  # without another server, the call itself asks
    for each in (off, on):
        each.close()


def test_a_server_that_is_named_twice_is_one(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    assert len(both_of(build, server, server).check()) == 2


def test_one_wrong_address_among_several_is_refused(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    with pytest.raises(ConfigurationError, match="separated by commas"):
        build(
            ollama_host=f"{server.ollama_url},gpu:11434",
            openai_base_url=f"{server.openai_url},gpu:8000/v1",
        )
