"""From settings to the analyzer that they name; who describes and who embeds is chosen apart."""

import threading
from functools import cache
from urllib.parse import urlsplit

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.model_servers.base import Analyzer
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding, EmbeddedVision
from batch_pipeline.model_servers.http_calls import CallLimits, CallSlots
from batch_pipeline.model_servers.ollama import OllamaServer
from batch_pipeline.model_servers.openai_compatible import OpenAICompatibleServer
from batch_pipeline.model_servers.remote import ModelServer, RemoteEmbedding, RemoteVision
from batch_pipeline.settings import AnalyzerName, Settings

#: Connections beside those of capped calls: health checks and looks at a server that was down.
_SPARE_CONNECTIONS = 4

_lock = threading.Lock()
_servers: list[ModelServer] = []


def build_analyzer(settings: Settings) -> Analyzer:
    """Build the analyzer that the settings name.

    Equal settings give the same object within a process: caps on calls in flight and the
    knowledge that a server is down are then shared by all threads.

    Raises:
        ConfigurationError: a setting that the choice needs is empty or not an address.
    """
    with _lock:
        return _built(settings)


def close_analyzers() -> None:
    """Close all connections of the analyzers built so far; none of them may be used again."""
    with _lock:
        _built.cache_clear()
        while _servers:
            _servers.pop().close()


@cache
def _built(settings: Settings) -> Analyzer:
    limits = CallLimits(
        connect=settings.model_connect_seconds,
        read=settings.model_read_seconds,
        write=settings.model_write_seconds,
        total=settings.model_total_seconds,
        connections=settings.max_vision_calls + settings.max_embedding_calls + _SPARE_CONNECTIONS,
    )
    api_key = settings.openai_api_key.get_secret_value()

    @cache
    def server(name: AnalyzerName, url: str) -> ModelServer:
        made: ModelServer = (
            OllamaServer(url, limits)
            if name is AnalyzerName.OLLAMA
            else OpenAICompatibleServer(url, api_key, limits)
        )
        _servers.append(made)
        return made

    def address(name: AnalyzerName, *, of_embeddings: bool = False) -> str:
        if name is AnalyzerName.OLLAMA:
            return _address("OLLAMA_HOST", settings.ollama_host, "http://127.0.0.1:11434")
        if of_embeddings and settings.openai_embedding_base_url:
            url = settings.openai_embedding_base_url
            return _address("OPENAI_EMBEDDING_BASE_URL", url, "http://127.0.0.1:8001/v1")
        return _address("OPENAI_BASE_URL", settings.openai_base_url, "http://127.0.0.1:8000/v1")

    vision = settings.analyzer
    embedder = settings.embedder_name
    return Analyzer(
        vision=EmbeddedVision()
        if vision is AnalyzerName.EMBEDDED
        else RemoteVision(
            server(vision, address(vision)),
            settings.vision_model,
            CallSlots(settings.max_vision_calls),
        ),
        embedding=EmbeddedEmbedding(settings.embedding_dimensions)
        if embedder is AnalyzerName.EMBEDDED
        else RemoteEmbedding(
            server(embedder, address(embedder, of_embeddings=True)),
            settings.embedding_model,
            settings.embedding_dimensions,
            CallSlots(settings.max_embedding_calls),
        ),
    )


def _address(variable: str, value: str, example: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"BATCH_PIPELINE_{variable}={value!r} is not the address of a server; "
            f"expected one such as {example}"
        )
    return value
