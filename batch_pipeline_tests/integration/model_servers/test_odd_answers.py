"""Answers of the wrong form: each is named, the health check reports it, and later calls work."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from batch_pipeline.errors import KindedError, ServiceDownError, TransientError
from batch_pipeline.model_servers.base import Analyzer, never_cancelled
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.model_servers.http_calls import CallLimits
from batch_pipeline.model_servers.ollama import OllamaServer
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline_tests.integration.model_servers.conftest import (
    IMAGE,
    only_ollama,
    only_openai,
    picture,
)


@dataclass
class Answer:
    """The answer of a server to every request."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def answer() -> Answer:
    return Answer()


@pytest.fixture
def analyzer(dialect: str, answer: Answer) -> Iterator[Analyzer]:
    """Calls a server that always gives `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(answer.status)
            headers = {"Content-Type": "application/json"} | answer.headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
    thread.start()
    url = f"http://127.0.0.1:{listening.server_port}"
    changed: dict[str, Any] = {
        "analyzer": dialect,
        "ollama_host": url,
        "openai_base_url": f"{url}/v1",
    }
    yield build_analyzer(Settings(_env_file=None, **changed))
    close_analyzers()
    listening.shutdown()
    listening.server_close()
    thread.join()


def refused(call: Callable[[], object]) -> KindedError:
    with pytest.raises(KindedError) as raised:
        call()
    return raised.value


@pytest.mark.parametrize("body", ["[]", "null", '"well"', "5", "[" * 50_000])
def test_json_that_is_not_an_object_is_not_an_answer(
    analyzer: Analyzer, answer: Answer, body: str
) -> None:
    answer.body = body.encode()

    for call in (
        lambda: analyzer.vision.describe(IMAGE, [picture()]),
        lambda: analyzer.embedding.embed(["a boat"]),
    ):
        assert refused(call).kind == "model_output_invalid"
    assert [check.ok for check in analyzer.check()] == [False, False]


def test_an_html_page_is_not_a_list_of_models(analyzer: Analyzer, answer: Answer) -> None:
    answer.body = b"<!doctype html><title>Sign in</title>"  # a wrong path, or a proxy
    answer.headers = {"Content-Type": "text/html"}

    checks = analyzer.check()

    assert [check.ok for check in checks] == [False, False]
    assert {check.kind for check in checks} == {"model_output_invalid"}


def said(message: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


@only_openai
@pytest.mark.parametrize(
    "document",
    [
        said({"role": "assistant", "content": [{"type": "text", "text": "A boat."}]}),
        said({"role": "assistant", "content": 5}),
        said("A boat."),
        {"choices": [None]},
        {"choices": {"message": "A boat."}},
        said({"role": "assistant", "content": "A boat."}) | {"usage": "little"},
    ],
    ids=str,
)
def test_a_description_with_values_of_other_types_is_not_an_answer(
    analyzer: Analyzer, answer: Answer, document: dict[str, Any]
) -> None:
    answer.body = json.dumps(document).encode()

    error = refused(lambda: analyzer.vision.describe(IMAGE, [picture()]))

    assert isinstance(error, TransientError)
    assert error.kind == "model_output_invalid"


HALF_AN_ANSWER = {"role": "assistant", "content": "A wooden boat lies on a quiet beach, and two"}


@only_openai
@pytest.mark.parametrize(
    ("ended", "kind", "reason"),
    [
        ({"finish_reason": "abort"}, "model_fails_all", "no reason given"),
        (
            {"finish_reason": "error", "error": {"code": 502, "message": "upstream is gone"}},
            "model_fails_all",
            "upstream is gone",
        ),
        ({"finish_reason": "model_length"}, "model_output_invalid", "cut by length"),
    ],
    ids=str,
)
def test_half_an_answer_is_not_a_description(
    analyzer: Analyzer, answer: Answer, ended: dict[str, Any], kind: str, reason: str
) -> None:
    answer.body = json.dumps({"choices": [{"message": HALF_AN_ANSWER, **ended}]}).encode()

    error = refused(lambda: analyzer.vision.describe(IMAGE, [picture()]))

    assert error.kind == kind
    assert reason in str(error)


@only_openai
@pytest.mark.parametrize(
    "data",
    [
        [None],
        [{"index": 0, "embedding": 5}],
        [{"index": 0, "embedding": "no base64!"}],
        [{"index": 0, "embedding": "AAAA"}],
        [{"index": 0, "embedding": ["x"] * 1024}],
        [{"index": 0, "embedding": [10**400] * 1024}],
        [{"embedding": [0.5] * 1024}, {"embedding": [0.5] * 1024}],
    ],
    ids=lambda data: str(data)[:60],
)
def test_a_vector_with_values_of_other_types_is_not_an_answer(
    analyzer: Analyzer, answer: Answer, data: list[Any]
) -> None:
    answer.body = json.dumps({"data": data}).encode()

    assert refused(lambda: analyzer.embedding.embed(["a boat"])).kind == "model_output_invalid"
    assert [check.ok for check in analyzer.check()] == [False, False]  # nor is it a list of models


@only_ollama
@pytest.mark.parametrize("is_answered", [False, True])
def test_a_bug_of_ours_is_not_blamed_on_the_server(
    dialect: str, server: ScriptedModelServer, is_answered: bool
) -> None:
    ollama = OllamaServer(server.ollama_url, CallLimits())

    async def buggy() -> int:
        answer = await ollama.digest("qwen3-vl:8b-instruct") if is_answered else ""
        return answer + 1  # type: ignore[operator]

    with pytest.raises(TypeError):
        ollama.calls.run(buggy, cancelled=never_cancelled)
    ollama.close()


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_would_turn_a_call_into_a_get_names_the_address_to_set(
    analyzer: Analyzer, answer: Answer, status: int
) -> None:
    answer.status = status
    answer.headers = {"Location": "https://user:secret@gpu.example/v1/chat"}

    for call in (
        lambda: analyzer.vision.describe(IMAGE, [picture()]),
        lambda: analyzer.embedding.embed(["a boat"]),
    ):
        error = refused(call)

        assert isinstance(error, ServiceDownError)
        assert error.kind == "model_address_wrong"
        assert "redirects the call to https://gpu.example/v1/chat" in str(error)
        assert "secret" not in str(error)
        assert "API_KEY" not in str(error)


def test_a_path_that_takes_no_calls_is_not_about_the_key(
    analyzer: Analyzer, answer: Answer
) -> None:
    answer.status, answer.body = 405, b'{"detail": "Method Not Allowed"}'

    error = refused(lambda: analyzer.vision.describe(IMAGE, [picture()]))

    assert error.kind == "model_address_wrong"
    assert "API_KEY" not in str(error)


def test_a_proxy_that_redirects_for_ever_is_an_outage(analyzer: Analyzer, answer: Answer) -> None:
    answer.status, answer.headers = 302, {"Location": "/sign-in"}

    error = refused(lambda: analyzer.vision.describe(IMAGE, [picture()]))

    assert isinstance(error, ServiceDownError)
    assert error.kind == "model_address_wrong"
    assert {check.kind for check in analyzer.check()} == {"model_server_refused"}


def test_an_answer_that_is_packed_in_a_way_not_asked_for_holds_up_no_later_call(
    analyzer: Analyzer, answer: Answer
) -> None:
    answer.body, answer.headers = b"packed", {"Content-Encoding": "br"}
    began = time.monotonic()

    for _ in range(2):
        error = refused(lambda: analyzer.vision.describe(IMAGE, [picture()]))
        assert "packed its answer as 'br'" in str(error)

    assert time.monotonic() - began < 8  # 10 s while the first one kept the connection
