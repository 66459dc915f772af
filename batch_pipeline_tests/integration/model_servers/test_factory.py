from collections.abc import Iterator
from typing import Any

import pytest

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.model_servers.base import Analyzer
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding, EmbeddedVision
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline_tests.integration.model_servers.conftest import IMAGE, picture


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_analyzers()


def built(**settings: Any) -> Analyzer:
    return build_analyzer(Settings(_env_file=None, **settings))


def test_the_embedded_analyzer_needs_no_server() -> None:
    analyzer = built()

    assert isinstance(analyzer.vision, EmbeddedVision)
    assert isinstance(analyzer.embedding, EmbeddedEmbedding)


def test_vision_and_embeddings_may_come_from_different_servers() -> None:
    with ScriptedModelServer() as seeing, ScriptedModelServer() as embedding:
        analyzer = built(
            analyzer="openai",
            openai_base_url=seeing.openai_url,
            openai_embedding_base_url=embedding.openai_url,
        )
        analyzer.embedding.embed([analyzer.vision.describe(IMAGE, [picture()]).text])

        assert [call.kind for call in seeing.calls] == ["vision"]
        assert [call.kind for call in embedding.calls] == ["embedding"]


def test_vision_and_embeddings_may_come_from_different_kinds_of_servers() -> None:
    with ScriptedModelServer() as seeing, ScriptedModelServer() as embedding:
        analyzer = built(
            analyzer="openai",
            openai_base_url=seeing.openai_url,
            embedder="ollama",
            ollama_host=embedding.ollama_url,
        )
        analyzer.embedding.embed([analyzer.vision.describe(IMAGE, [picture()]).text])

        assert [call.dialect for call in seeing.calls] == ["openai"]
        assert [call.dialect for call in embedding.calls] == ["ollama"]


def test_a_model_server_may_describe_while_the_embedded_model_embeds() -> None:
    analyzer = built(analyzer="ollama", embedder="embedded")

    assert not isinstance(analyzer.vision, EmbeddedVision)
    assert isinstance(analyzer.embedding, EmbeddedEmbedding)


def test_equal_settings_share_one_analyzer_and_so_its_caps() -> None:
    assert built(analyzer="ollama") is built(analyzer="ollama")
    assert built(analyzer="ollama") is not built(analyzer="ollama", max_vision_calls=1)


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"analyzer": "openai"}, "BATCH_PIPELINE_OPENAI_BASE_URL=''"),
        ({"analyzer": "openai", "openai_base_url": "gpu:8000/v1"}, "BATCH_PIPELINE_OPENAI_BASE"),
        ({"analyzer": "ollama", "ollama_host": "http://"}, "BATCH_PIPELINE_OLLAMA_HOST"),
        ({"analyzer": "ollama", "ollama_host": "http://a:b"}, "BATCH_PIPELINE_OLLAMA_HOST"),
        ({"embedder": "openai"}, "BATCH_PIPELINE_OPENAI_BASE_URL"),
        ({"analyzer": "ollama", "ollama_host": "http://a#many"}, "BATCH_PIPELINE_OLLAMA_HOST"),
        ({"analyzer": "ollama", "ollama_host": "http://a#0"}, "BATCH_PIPELINE_OLLAMA_HOST"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_with_an_example(
    settings: dict[str, str], variable: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"http://127\.0\.0\.1:\d+") as raised:
        built(**settings)

    assert variable in str(raised.value)
