"""Builds the analyzer that the settings name. Describing and embedding are chosen separately.

Modules that call servers are imported only if they are chosen: their client libraries take a second
to load, and a command that calls no model should not wait for them.
"""

import importlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.languages import language_name
from batch_pipeline.model_servers.base import Analyzer, CallKind, CallSlots, MakeCallSlots
from batch_pipeline.model_servers.call_slots import CallGate
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding, EmbeddedVision, load_models
from batch_pipeline.model_servers.prompts import Prompts, read_prompts
from batch_pipeline.model_servers.text_prefixes import TextPrefixes, prefixes_for
from batch_pipeline.settings import AnalyzerName, Settings, VisionDetail

if TYPE_CHECKING:
    from batch_pipeline.model_servers.model_server import ModelServer

#: What a client of each kind of server imports, at the latest with its first call.
_CLIENTS = {
    AnalyzerName.OLLAMA: ("batch_pipeline.model_servers.ollama", "anyio._backends._asyncio"),
    AnalyzerName.OPENAI: (
        "batch_pipeline.model_servers.openai_compatible",
        "anyio._backends._asyncio",
    ),
}

_lock = threading.Lock()
#: The servers of all analyzers of this process; tests close their connections.
_servers: list["ModelServer"] = []


def slots_of_this_process(kind: CallKind, limit: int, limits: Mapping[str, int]) -> CallSlots:
    """Cap only the calls of this process, without regard to other processes."""
    del kind
    return CallGate(limit, limits)


def build_analyzer(
    settings: Settings, make_slots: MakeCallSlots = slots_of_this_process
) -> Analyzer:
    """Build the analyzer that the settings name.

    Within a process, equal arguments return the same object. So all threads share the caps on
    calls in flight and the knowledge that a server is down.

    Args:
        settings: models, addresses of their servers, and caps on calls in flight.
        make_slots: makes the caps on calls in flight.

    Raises:
        ConfigurationError: a setting that the analyzer needs is empty or not an address, or the
            proxy cannot be used.
    """
    with _lock:
        return _built(settings, make_slots)


def preload(settings: Settings) -> None:
    """Import the clients of the servers that the settings name, and load the embedded models.

    Processes that are forked later have them at once, and share their memory. No client is made
    and nothing is opened.

    Raises:
        ServiceDownError: the weights of an embedded model are not the expected ones, or cannot be
            loaded.
    """
    used = {settings.analyzer, settings.embedder_name}
    for name in used - {AnalyzerName.EMBEDDED}:
        for module in ("batch_pipeline.model_servers.remote", *_CLIENTS[name]):
            importlib.import_module(module)
    load_models(
        vision=settings.analyzer is AnalyzerName.EMBEDDED,
        embedding=settings.embedder_name is AnalyzerName.EMBEDDED,
    )


@cache
def _built(settings: Settings, make_slots: MakeCallSlots) -> Analyzer:
    vision, embedding = settings.analyzer, settings.embedder_name
    if vision is embedding is AnalyzerName.EMBEDDED:
        return Analyzer(EmbeddedVision(), EmbeddedEmbedding(settings.embedding_dimensions))

    from batch_pipeline.model_servers.http_transport import shown_address  # noqa: PLC0415
    from batch_pipeline.model_servers.picture_size import picture_size  # noqa: PLC0415
    from batch_pipeline.model_servers.remote import (  # noqa: PLC0415
        RemoteEmbedding,
        RemoteVision,
    )

    server = _server_maker(settings)

    def slots(kind: CallKind, limit: int, given: Mapping[str, int | None]) -> CallSlots:
        own = {shown_address(url): number for url, number in given.items() if number}
        return make_slots(kind, limit, own)

    def remote_vision() -> RemoteVision:
        given = _vision_urls(settings)
        return RemoteVision(
            [server(vision, url) for url in given],
            settings.vision_model,
            slots("vision", settings.max_vision_calls, given),
            size=picture_size(settings),
            prompts=prompts_of(settings),
            options={
                "options": json.loads(settings.vision_options or "{}"),
                "detail": settings.vision_detail.value,
            },
        )

    def remote_embedding() -> RemoteEmbedding:
        given = _embedding_urls(settings)
        return RemoteEmbedding(
            [server(embedding, url) for url in given],
            settings.embedding_model,
            settings.embedding_dimensions,
            slots("embedding", settings.max_embedding_calls, given),
            prefixes=embedding_prefixes(settings),
            options={"options": json.loads(settings.embedding_options or "{}")},
        )

    return Analyzer(
        vision=EmbeddedVision() if vision is AnalyzerName.EMBEDDED else remote_vision(),
        embedding=EmbeddedEmbedding(settings.embedding_dimensions)
        if embedding is AnalyzerName.EMBEDDED
        else remote_embedding(),
    )


def server_addresses(settings: Settings) -> dict[CallKind, list[str]]:
    """Return the servers for each kind of call; none for an embedded model.

    Raises:
        ConfigurationError: a setting is not an address.
    """
    from batch_pipeline.model_servers.http_transport import shown_address  # noqa: PLC0415

    embedded = AnalyzerName.EMBEDDED
    vision = {} if settings.analyzer is embedded else _vision_urls(settings)
    embedding = {} if settings.embedder_name is embedded else _embedding_urls(settings)
    return {
        "vision": [shown_address(url) for url in vision],
        "embedding": [shown_address(url) for url in embedding],
    }


def prompts_of(settings: Settings) -> Prompts:
    """Return the prompts for vision models.

    Raises:
        ConfigurationError: a file in the prompts folder cannot be used.
    """
    return read_prompts(
        settings.prompts,
        language=language_name(settings.language),
        tells_place=settings.prompt_place,
    )


def embedding_prefixes(settings: Settings) -> TextPrefixes:
    """Return the prefixes for texts that a model server embeds."""
    return prefixes_for(
        settings.embedding_model,
        settings.embedding_question_prefix,
        settings.embedding_document_prefix,
    )


def _server_maker(settings: Settings) -> Callable[[AnalyzerName, str], "ModelServer"]:
    """Return a function that makes one object per address, so that both models share a circuit."""
    from batch_pipeline.model_servers.http_calls import CallLimits  # noqa: PLC0415
    from batch_pipeline.model_servers.http_transport import proxy_for  # noqa: PLC0415
    from batch_pipeline.model_servers.model_server import ModelOptions  # noqa: PLC0415

    timeouts = CallLimits(
        connect=settings.model_connect_seconds,
        read=settings.model_read_seconds,
        write=settings.model_write_seconds,
        total=settings.model_total_seconds,
    )
    options = ModelOptions(
        json.loads(settings.vision_options or "{}"),
        json.loads(settings.embedding_options or "{}"),
        "" if settings.vision_detail is VisionDetail.DEFAULT else settings.vision_detail.value,
    )

    @cache
    def server(name: AnalyzerName, url: str) -> "ModelServer":
        made: ModelServer
        limits = replace(timeouts, proxy=proxy_for(url, settings.model_proxy))
        if name is AnalyzerName.OLLAMA:
            from batch_pipeline.model_servers.ollama import OllamaServer  # noqa: PLC0415

            key = settings.ollama_api_key.get_secret_value()
            made = OllamaServer(url, limits, options, api_key=key)
        else:
            from batch_pipeline.model_servers.openai_compatible import (  # noqa: PLC0415
                OpenAICompatibleServer,
            )

            key = settings.openai_api_key.get_secret_value()
            made = OpenAICompatibleServer(url, key, limits, options)
        _servers.append(made)
        return made

    return server


def _vision_urls(settings: Settings) -> dict[str, int | None]:
    if settings.analyzer is AnalyzerName.OLLAMA:
        return _addresses("OLLAMA_HOST", settings.ollama_host, "http://127.0.0.1:11434")
    return _addresses("OPENAI_BASE_URL", settings.openai_base_url, "http://127.0.0.1:8000/v1")


def _embedding_urls(settings: Settings) -> dict[str, int | None]:
    if settings.embedder_name is AnalyzerName.OLLAMA:
        return _addresses("OLLAMA_HOST", settings.ollama_host, "http://127.0.0.1:11434")
    if url := settings.openai_embedding_base_url:
        return _addresses("OPENAI_EMBEDDING_BASE_URL", url, "http://127.0.0.1:8001/v1")
    return _addresses("OPENAI_BASE_URL", settings.openai_base_url, "http://127.0.0.1:8000/v1")


def _addresses(variable: str, value: str, example: str) -> dict[str, int | None]:
    """Read addresses, each with its own cap on calls in flight if one follows a #."""
    parts = [part.strip().partition("#") for part in value.split(",") if part.strip()]
    if not parts or not all(
        _is_address(url) and (not mark or re.fullmatch("[1-9][0-9]{0,2}", number))
        for url, mark, number in parts
    ):
        raise ConfigurationError(
            f"BATCH_PIPELINE_{variable}={value!r} is not the address of a server, nor addresses "
            f"separated by commas; expected one such as {example}, or {example}#4 for a server "
            "that takes 4 calls at a time"
        )
    # A server that is named twice would count as two.
    unlike = {url.rstrip("/"): (url, number) for url, _, number in parts}
    return {url: int(number) if number else None for url, number in unlike.values()}


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return bool(parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0)
    except ValueError:
        return False
