"""`batch-pipeline doctor`, as a separate process, with a model server in each bad state."""

import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from batch_pipeline.testing.model_server import Fault, ScriptedModelServer, Thinking

VISION, EMBEDDING = "vision model qwen3-vl:8b-instruct", "embedding model qwen3-embedding:0.6b"


@pytest.fixture
def doctor(console, server):
    """Runs the doctor; returns findings by name. No daemon of Dagster runs in these tests."""
    with server.new_database(migrated=False) as dagster_url:

        def ask(model_server, dialect="ollama", arguments=(), **variables):
            answer = console(
                "doctor",
                "--json",
                *arguments,
                BATCH_PIPELINE_DAGSTER_DATABASE_URL=dagster_url,
                BATCH_PIPELINE_ANALYZER=dialect,
                BATCH_PIPELINE_OLLAMA_HOST=model_server.ollama_url,
                BATCH_PIPELINE_OPENAI_BASE_URL=model_server.openai_url,
                **variables,
            )
            assert answer.code == 1, answer.err
            return {check["name"]: check for check in answer.json}

        yield ask


@contextmanager
def listening(**arguments):
    with ScriptedModelServer(**arguments) as model_server:
        yield model_server


def failed(checks):
    assert checks["database"]["ok"]
    assert checks["storage"]["ok"]
    return {name for name, check in checks.items() if not check["ok"]} - {"dagster daemon"}


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_a_server_with_both_models_is_healthy(doctor, dialect):
    with listening() as model_server:
        checks = doctor(model_server, dialect)

    assert failed(checks) == set()
    assert checks[VISION]["ok"]
    assert checks[EMBEDDING]["ok"]


@pytest.mark.parametrize(
    ("dialect", "hint"),
    [
        ("ollama", "Start it with `ollama serve`, or set BATCH_PIPELINE_OLLAMA_HOST"),
        ("openai", "Start it, or set BATCH_PIPELINE_OPENAI_BASE_URL"),
    ],
)
def test_doctor_names_a_server_that_does_not_listen(doctor, dialect, hint):
    with listening() as model_server:
        pass

    checks = doctor(model_server, dialect)

    assert failed(checks) == {VISION, EMBEDDING}
    assert {checks[name]["hint"] for name in (VISION, EMBEDDING)} == {hint}
    assert "cannot be reached" in checks[VISION]["detail"]


@pytest.mark.parametrize(
    ("state", "name", "model"),
    [
        ({"vision_models": ["qwen3-vl:4b-instruct"]}, VISION, "qwen3-vl:8b-instruct"),
        ({"embedding_models": ["qwen3-embedding:4b"]}, EMBEDDING, "qwen3-embedding:0.6b"),
    ],
)
def test_doctor_names_a_missing_model_with_its_exact_tag(doctor, state, name, model):
    with listening(**state) as model_server:
        checks = doctor(model_server)

    assert failed(checks) == {name}
    assert f"`ollama pull {model}`" in checks[name]["hint"]
    assert checks[name]["kind"] == "model_missing"


@pytest.mark.parametrize(
    ("state", "name"),
    [({"vision_models": []}, VISION), ({"embedding_models": []}, EMBEDDING)],
)
def test_doctor_names_a_model_that_an_openai_compatible_server_lacks(doctor, state, name):
    with listening(**state) as model_server:
        checks = doctor(model_server, "openai")

    assert failed(checks) == {name}
    assert name.split()[-1] in checks[name]["hint"]


def test_doctor_names_a_refused_key(doctor):
    with listening(api_key="right") as model_server:
        checks = doctor(model_server, "openai", BATCH_PIPELINE_OPENAI_API_KEY="wrong")

    assert failed(checks) == {VISION, EMBEDDING}
    assert "401: invalid API key" in checks[VISION]["detail"]
    assert "BATCH_PIPELINE_OPENAI_API_KEY" in checks[VISION]["hint"]


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_doctor_names_vectors_that_do_not_fit_the_column(doctor, dialect):
    with listening(dimensions=768) as model_server:
        checks = doctor(model_server, dialect)

    assert failed(checks) == {EMBEDDING}
    assert "have 768 numbers, 1024 are expected" in checks[EMBEDDING]["detail"]


def test_doctor_names_a_model_that_cannot_see(doctor):
    with listening(vision_models=[]) as model_server:
        checks = doctor(model_server, BATCH_PIPELINE_VISION_MODEL="qwen3-embedding:0.6b")

    assert failed(checks) == {"vision model qwen3-embedding:0.6b"}
    assert checks["vision model qwen3-embedding:0.6b"]["kind"] == "model_unsuitable"


def test_doctor_names_an_invalid_address(doctor):
    with listening() as model_server:
        checks = doctor(model_server, "openai", BATCH_PIPELINE_OPENAI_EMBEDDING_BASE_URL="here")

    assert failed(checks) == {"analyzer"}
    assert "BATCH_PIPELINE_OPENAI_EMBEDDING_BASE_URL='here'" in checks["analyzer"]["detail"]


def test_doctor_prints_what_to_do(console):
    with listening(vision_models=[]) as model_server:
        answer = console(
            "doctor",
            BATCH_PIPELINE_ANALYZER="ollama",
            BATCH_PIPELINE_OLLAMA_HOST=model_server.ollama_url,
            COLUMNS="200",
        )

    assert answer.code == 1
    assert "FAIL" in answer.out
    assert "ollama pull qwen3-vl:8b-instruct" in answer.out


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_each_model_is_asked_a_known_question_unless_the_check_is_quick(doctor, dialect):
    with listening(thinking=Thinking("effort", tokens=50)) as model_server:
        checks = doctor(model_server, dialect)
        assert len(model_server.calls_of("vision")) == 1
        quick = doctor(model_server, dialect, arguments=["--quick"])
        assert len(model_server.calls_of("vision")) == 1

    assert "calls a red square red" in checks["a call to the vision model"]["detail"]
    learnt = checks["a call to the vision model"]["detail"].partition("learnt: ")[2]
    assert "thinks (asked not to by" in learnt
    assert "similar texts score" in checks["a call to the embedding model"]["detail"]
    assert not [name for name in quick if name.startswith("a call")]


def test_a_model_that_is_there_and_fails_is_found_by_a_real_call(doctor):
    with listening(vision_faults=[Fault.ERROR_500] * 9) as model_server:
        checks = doctor(model_server)

    assert failed(checks) == {"a call to the vision model"}


def test_a_pause_that_a_server_asked_for_is_shown(doctor, console, settings, database):
    with database.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO model_pauses VALUES ('http://gpu1', 'vision', now() + interval '90 s',"
                " 'answered 429: daily limit')"
            )
        )
    with listening() as model_server:
        found = doctor(model_server)["rate limits"]

    assert found["ok"]
    assert "vision calls to http://gpu1 wait for another" in found["detail"]
    assert "daily limit" in found["detail"]


#: Numbers that differ from call to call, with the values of the docs.
VARIES = [
    (re.compile(r"http://127\.0\.0\.1:\d+"), "http://gpu1:8000"),
    (re.compile(r"\d+\.\d+ s\b"), "2.10 s"),
    (re.compile(r"\d{3} tokens in, \d{4} out"), "650 tokens in, 1060 out"),
]


def model_lines(printed):
    """Return what `doctor` prints about models, with fixed numbers."""
    for pattern, shown in VARIES:
        printed = pattern.sub(shown, printed)
    begin = printed.index("model qwen3-vl")
    lines = printed[printed.rindex("\n", 0, begin) + 1 :].splitlines()
    end = next(n for n, line in enumerate(lines) if "dagster" in line)
    return "\n".join(line.rstrip() for line in lines[:end])


@pytest.mark.parametrize(
    ("dialect", "state"),
    [
        pytest.param(
            "openai",
            {"thinking": Thinking("template"), "refused_parameters": ["max_tokens"]},
            id="what-was-learnt",
        ),
        pytest.param("ollama", {"vision_models": []}, id="missing-model"),
    ],
)
def test_doctor_prints_what_the_docs_show(console, dialect, state):
    with listening(**state) as model_server:
        answer = console(
            "doctor",
            BATCH_PIPELINE_ANALYZER=dialect,
            BATCH_PIPELINE_OLLAMA_HOST=model_server.ollama_url,
            BATCH_PIPELINE_OPENAI_BASE_URL=model_server.openai_url,
            COLUMNS="110",
        )

    docs = (Path(__file__).parents[2] / "docs" / "model_servers.md").read_text()
    printed = model_lines(answer.out)
    assert f"\n{printed}\n```" in docs, printed
