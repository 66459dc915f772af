import pytest

from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline_tests.integration.model_servers.conftest import (
    BuildAnalyzer,
    only_ollama,
    only_openai,
)
from batch_pipeline_tests.patience import DEADLINE


def only_failure(checks: list[HealthCheck]) -> HealthCheck:
    (failed,) = [check for check in checks if not check.ok]
    return failed


def test_a_server_with_both_models_is_healthy(build: BuildAnalyzer) -> None:
    checks = build().check()

    assert [(check.name, check.ok) for check in checks] == [
        ("vision model qwen3-vl:8b-instruct", True),
        ("embedding model qwen3-embedding:0.6b", True),
    ]


def test_a_server_that_does_not_answer_fails_both_checks_and_says_what_to_set(
    build: BuildAnalyzer, server: ScriptedModelServer, dialect: str
) -> None:
    server.stop()

    checks = build().check()

    assert [check.ok for check in checks] == [False, False]
    assert all("Connect call failed" in check.detail for check in checks)
    variable = "OLLAMA_HOST" if dialect == "ollama" else "OPENAI_BASE_URL"
    assert all(f"BATCH_PIPELINE_{variable}" in check.hint for check in checks)


def test_a_proxy_without_a_server_behind_it_fails_both_checks(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.unserved = (503, "no upstream")

    checks = build().check()

    assert [(check.ok, check.kind) for check in checks] == [(False, "model_server_down")] * 2
    assert all("no upstream" in check.detail for check in checks)


def test_the_error_for_a_missing_model_lists_the_models_of_the_server(
    build: BuildAnalyzer, server: ScriptedModelServer, dialect: str
) -> None:
    server.vision_models[:] = ["qwen3-vl:4b-instruct"]

    failed = only_failure(build().check())

    assert "qwen3-vl:8b-instruct is not on" in failed.detail
    assert "qwen3-vl:4b-instruct" in failed.detail
    if dialect == "ollama":
        assert "ollama pull qwen3-vl:8b-instruct" in failed.hint


def test_another_tag_of_a_model_is_another_model(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.embedding_models[:] = ["qwen3-embedding:4b"]

    assert "embedding model qwen3-embedding:0.6b" in only_failure(build().check()).name


def test_a_model_whose_vectors_do_not_fit_the_column_is_found_before_any_upload(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.dimensions = 768

    failed = only_failure(build().check())

    assert "have 768 numbers, 1024 are expected" in failed.detail
    assert "BATCH_PIPELINE_EMBEDDING_DIMENSIONS=768" in failed.detail


@only_openai
@pytest.mark.parametrize(
    "listed",
    [
        (404, {"detail": "Not Found"}),
        (405, {"detail": "Method Not Allowed"}),
        (200, [{"id": "qwen3-vl:8b-instruct", "object": "model"}]),
        (200, {"object": "list", "data": [{"id": "models/another", "object": "model"}]}),
    ],
    ids=["no list", "no GET", "a bare array", "other names"],
)
def test_a_model_that_answers_is_there_whatever_the_list_says(
    build: BuildAnalyzer, server: ScriptedModelServer, listed: tuple[int, object]
) -> None:
    server.listed = listed
    analyzer = build()

    for _ in range(3):
        assert [check.detail for check in analyzer.check() if not check.ok] == []

    # Each model is asked once.
    assert sorted(call.kind for call in server.calls) == ["embedding", "vision"]


@only_openai
def test_an_unlisted_model_that_must_first_be_loaded_is_not_missing(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.listed = (200, {"object": "list", "data": [{"id": "models/another"}]})
    server.latency_seconds = DEADLINE
    analyzer = build(model_connect_seconds=0.2)

    checks = analyzer.check()

    assert [check.ok for check in checks] == [True, True]
    assert all("not in the list" in check.detail for check in checks)
    # It was silent, so it is asked again.
    server.latency_seconds = 0
    assert all("model is there" in check.detail for check in analyzer.check())


@only_openai
def test_an_unlisted_model_of_an_account_without_credit_is_not_taken_for_a_busy_one(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.listed = (200, {"object": "list", "data": [{"id": "models/another"}]})
    server.refuse = lambda _: (429, "insufficient_quota")

    assert [check.kind for check in build().check()] == ["model_quota_used_up"] * 2


@only_openai
@pytest.mark.parametrize("fault", [Fault.BUSY_503, Fault.BUSY_429])
def test_an_unlisted_model_that_is_busy_is_not_missing(
    build: BuildAnalyzer, server: ScriptedModelServer, fault: Fault
) -> None:
    server.listed = (200, {"object": "list", "data": [{"id": "models/another"}]})
    server.play("vision", [fault])
    server.play("embedding", [fault])

    assert [check.ok for check in build().check()] == [True, True]


@only_openai
def test_a_model_that_is_missing_without_a_list_is_found(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.listed = (404, {"detail": "Not Found"})
    server.vision_models.clear()

    assert only_failure(build().check()).kind == "model_missing"


def test_of_many_models_the_error_names_the_nearest(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.vision_models[:] = ["qwen3-vl:8b", *(f"other-{number}:1b" for number in range(300))]

    failed = only_failure(build().check())

    assert "qwen3-vl:8b" in failed.detail.partition("there are")[2]
    assert "more" in failed.detail
    assert len(failed.detail) < 500


@only_openai
def test_an_answer_without_vectors_is_not_a_healthy_embedding_model(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.play("embedding", [Fault.NO_VECTORS])

    assert only_failure(build().check()).kind == "embedding_empty"


@only_ollama
def test_a_model_that_cannot_see_is_not_a_vision_model(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    failed = only_failure(build(vision_model="qwen3-embedding:0.6b").check())

    assert "not made for vision" in failed.detail


def test_a_key_that_is_refused_names_the_setting(
    build: BuildAnalyzer, server: ScriptedModelServer
) -> None:
    server.api_key = "secret"

    checks = build(openai_api_key="wrong").check()

    assert [check.ok for check in checks] == [False, False]
    assert all("API_KEY" in check.hint for check in checks)
    assert all("wrong" not in check.detail for check in checks)


def test_the_check_before_a_run_asks_no_model_for_a_description(
    build: BuildAnalyzer, server: ScriptedModelServer, dialect: str
) -> None:
    analyzer = build()
    for _ in range(3):
        assert analyzer.outages() == []

    # OpenAI's protocol does not report the length of vectors, so one word is embedded once.
    assert [call.kind for call in server.calls] == (["embedding"] if dialect == "openai" else [])
