"""Errors name the proxy, and calls use a proxy only if a setting asks for it."""

import pytest

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline_tests.integration.model_servers.conftest import IMAGE, BuildAnalyzer, picture

#: Nobody listens at port 1.
NOBODY = "http://user:secret@127.0.0.1:1"


def test_a_server_of_ours_is_reached_whatever_the_environment_says(
    build: BuildAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, NOBODY)
    monkeypatch.setenv("NO_PROXY", "[::1, http://")

    assert build().vision.describe(IMAGE, [picture()]).text


def test_a_proxy_that_does_not_answer_is_named_without_its_password(build: BuildAnalyzer) -> None:
    with pytest.raises(ServiceDownError) as raised:
        build(model_proxy=NOBODY).vision.describe(IMAGE, [picture()])

    assert "(through the proxy http://127.0.0.1:1) cannot be reached" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_error_from_a_proxy_names_the_proxy(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    # As a proxy, the scripted server does not know the path.
    proxy = server.ollama_url
    away = {"ollama_host": "http://gpu1.invalid", "openai_base_url": "http://gpu1.invalid/v1"}

    with pytest.raises(ServiceDownError) as raised:
        build(model_proxy=proxy, **away).vision.describe(IMAGE, [picture()])

    assert f"http://gpu1.invalid (through the proxy {proxy}) answered 404" in str(
        raised.value
    ).replace("/v1", "")


def test_a_proxy_that_is_set_but_not_used_is_mentioned_when_a_server_is_not_reached(
    build: BuildAnalyzer, server: ScriptedModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOBODY)
    server.stop()

    with pytest.raises(ServiceDownError, match="BATCH_PIPELINE_MODEL_PROXY=environment"):
        build().vision.describe(IMAGE, [picture()])
