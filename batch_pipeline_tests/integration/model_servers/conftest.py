"""The same tests for both dialects: real clients, and the scripted server."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers import server_group
from batch_pipeline.model_servers.base import Analyzer
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import ScriptedModelServer

IMAGE = MediaFacts("image", "jpeg", 64, 32)
VIDEO = MediaFacts("video", "mp4", 64, 32, duration_seconds=90.0)

BuildAnalyzer = Callable[..., Analyzer]

#: For rules that only one of the protocols can follow.
only_ollama = pytest.mark.parametrize("dialect", ["ollama"], indirect=True)
only_openai = pytest.mark.parametrize("dialect", ["openai"], indirect=True)


def picture(colour: str = "red", position_seconds: float = 0.0) -> Frame:
    written = io.BytesIO()
    Image.new("RGB", (64, 32), colour).save(written, "JPEG")
    return Frame(written.getvalue(), position_seconds)


@pytest.fixture(params=["ollama", "openai"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def short_waits_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not say when to come back is called again almost at once."""
    monkeypatch.setattr(server_group, "_BUSY_WAIT_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[ScriptedModelServer]:
    with ScriptedModelServer(drip_seconds=0.05) as running:
        yield running


@pytest.fixture
def build(dialect: str, server: ScriptedModelServer) -> Iterator[BuildAnalyzer]:
    """Builds the analyzer for the server from `Settings`, with some settings changed."""

    def for_server(**changed: Any) -> Analyzer:
        settings: dict[str, Any] = {
            "analyzer": dialect,
            "ollama_host": server.ollama_url,
            "openai_base_url": server.openai_url,
        }
        return build_analyzer(Settings(_env_file=None, **(settings | changed)))

    yield for_server
    close_analyzers()
