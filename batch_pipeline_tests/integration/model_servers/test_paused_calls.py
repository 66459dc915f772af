"""Each call checks right before it begins whether its server or upload is paused."""

from collections.abc import Iterator

import pytest

from batch_pipeline.errors import ServiceDownError, WorkPausedError
from batch_pipeline.model_servers.base import WORK_PAUSED, Caller
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline_tests.integration.model_servers.conftest import (
    IMAGE,
    BuildAnalyzer,
    picture,
)
from batch_pipeline_tests.integration.model_servers.test_several_servers import both_of


@pytest.fixture
def other() -> Iterator[ScriptedModelServer]:
    with ScriptedModelServer() as running:
        yield running


def held(server: ScriptedModelServer) -> Caller:
    """A person has paused this server."""
    address = server.ollama_url
    return Caller(paused=lambda url: "cables" if url.startswith(address) else "")


def test_calls_go_to_the_servers_that_are_not_paused(
    build: BuildAnalyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    analyzer = both_of(build, server, other)
    for _ in range(4):
        analyzer.vision.describe(IMAGE, [picture()], caller=held(server))
    analyzer.embedding.embed(["sea"] * 3, caller=held(server))
    assert server.calls == []
    assert len(other.calls) == 5


def test_if_all_servers_are_paused_no_call_is_made_and_it_is_not_an_outage(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    analyzer = both_of(build, server)
    with pytest.raises(WorkPausedError, match="cables"):
        analyzer.vision.describe(IMAGE, [picture()], caller=held(server))
    with pytest.raises(WorkPausedError, match="cables"):
        analyzer.embedding.embed(["sea"], caller=held(server))
    kinds = {found.kind for found in analyzer.outages(paused=held(server).paused)}
    assert kinds == {WORK_PAUSED}
    assert {found.kind for found in analyzer.vision.try_out(held(server))} == {WORK_PAUSED}
    assert server.calls == []


def test_if_the_servers_that_are_not_paused_fail_it_is_an_outage(
    build: BuildAnalyzer, server: ScriptedModelServer, other: ScriptedModelServer
) -> None:
    analyzer = both_of(build, server, other)
    other.stop()
    with pytest.raises(ServiceDownError, match="cannot be reached"):
        analyzer.vision.describe(IMAGE, [picture()], caller=held(server))
    assert server.calls == []


def test_a_call_that_did_not_reach_its_server_is_not_tried_again_during_a_pause(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    analyzer = both_of(build, server)
    server.stop()
    asked: list[str] = []

    def paused(url: str) -> str:
        """Pause after the call has begun: it checks before it waits and before it is sent."""
        asked.append(url)
        return "" if len(asked) <= 2 else "cables"

    with pytest.raises(WorkPausedError, match="cables"):
        analyzer.vision.describe(IMAGE, [picture()], caller=Caller(paused=paused))
