"""`batch-pipeline doctor` against a model server in each bad state, as a process of its own."""

from contextlib import contextmanager

import pytest

from batch_pipeline.testing.model_server import ScriptedModelServer

VISION, EMBEDDING = "vision model qwen2.5vl:7b", "embedding model bge-m3"


@pytest.fixture
def doctor(console, server):
    """Asks the doctor; gives the findings by name. Dagster's daemon is down, which is not ours."""
    with server.new_database(migrated=False) as dagster_url:

        def ask(model_server, dialect="ollama", **variables):
            answer = console(
                "doctor",
                "--json",
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
def test_a_server_with_both_models_is_well(doctor, dialect):
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
def test_a_server_that_does_not_listen(doctor, dialect, hint):
    with listening() as model_server:
        pass

    checks = doctor(model_server, dialect)

    assert failed(checks) == {VISION, EMBEDDING}
    assert {checks[name]["hint"] for name in (VISION, EMBEDDING)} == {hint}
    assert "cannot be reached" in checks[VISION]["detail"]


@pytest.mark.parametrize(
    ("state", "name", "model"),
    [
        ({"vision_models": ["qwen2.5vl:3b"]}, VISION, "qwen2.5vl:7b"),
        ({"embedding_models": ["bge-m3:567m"]}, EMBEDDING, "bge-m3"),
    ],
)
def test_a_model_that_is_missing_with_its_exact_tag(doctor, state, name, model):
    with listening(**state) as model_server:
        checks = doctor(model_server)

    assert failed(checks) == {name}
    assert f"`ollama pull {model}`" in checks[name]["hint"]
    assert checks[name]["kind"] == "model_missing"


@pytest.mark.parametrize(
    ("state", "name"),
    [({"vision_models": []}, VISION), ({"embedding_models": []}, EMBEDDING)],
)
def test_a_model_that_an_openai_compatible_server_has_not(doctor, state, name):
    with listening(**state) as model_server:
        checks = doctor(model_server, "openai")

    assert failed(checks) == {name}
    assert name.split()[-1] in checks[name]["hint"]


def test_a_key_that_is_refused(doctor):
    with listening(api_key="right") as model_server:
        checks = doctor(model_server, "openai", BATCH_PIPELINE_OPENAI_API_KEY="wrong")

    assert failed(checks) == {VISION, EMBEDDING}
    assert "401: invalid API key" in checks[VISION]["detail"]
    assert "BATCH_PIPELINE_OPENAI_API_KEY" in checks[VISION]["hint"]


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_vectors_that_do_not_fit_the_column(doctor, dialect):
    with listening(dimensions=768) as model_server:
        checks = doctor(model_server, dialect)

    assert failed(checks) == {EMBEDDING}
    assert "have 768 numbers, 1024 are stored" in checks[EMBEDDING]["detail"]


def test_a_model_that_cannot_see(doctor):
    with listening(vision_models=[]) as model_server:
        checks = doctor(model_server, BATCH_PIPELINE_VISION_MODEL="bge-m3")

    assert failed(checks) == {"vision model bge-m3"}
    assert checks["vision model bge-m3"]["kind"] == "model_unsuitable"


def test_an_address_that_is_none(doctor):
    with listening() as model_server:
        checks = doctor(model_server, "openai", BATCH_PIPELINE_OPENAI_EMBEDDING_BASE_URL="here")

    assert failed(checks) == {"analyzer"}
    assert "BATCH_PIPELINE_OPENAI_EMBEDDING_BASE_URL='here'" in checks["analyzer"]["detail"]


def test_a_person_reads_what_to_do(console):
    with listening(vision_models=[]) as model_server:
        answer = console(
            "doctor",
            BATCH_PIPELINE_ANALYZER="ollama",
            BATCH_PIPELINE_OLLAMA_HOST=model_server.ollama_url,
            COLUMNS="200",
        )

    assert answer.code == 1
    assert "FAIL" in answer.out
    assert "ollama pull qwen2.5vl:7b" in answer.out
