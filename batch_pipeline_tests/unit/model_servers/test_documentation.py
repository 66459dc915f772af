"""docs/model_servers.md and the package agree on settings, kinds of error and tested servers."""

import re
from pathlib import Path

import pytest

from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "model_servers.md").read_text()
SETTINGS = {name.upper() for name in Settings.model_fields}
#: Words in capitals between backticks that belong to a server and are not our settings.
OF_SERVERS = {"OLLAMA_NUM_PARALLEL", "HTTP_PROXY"}


def test_every_setting_that_is_named_exists() -> None:
    anywhere = set(re.findall(rf"{ENVIRONMENT_PREFIX}([A-Z]+(?:_[A-Z]+)*)", TEXT))
    in_tables = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", TEXT.replace(ENVIRONMENT_PREFIX, "")))
    assert anywhere
    assert in_tables
    assert (anywhere | in_tables) - OF_SERVERS <= SETTINGS


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name in SETTINGS
        if name.startswith(("MODEL_", "MAX_VISION", "MAX_EMBEDDING", "OLLAMA_", "OPENAI_"))
        or name in {"ANALYZER", "EMBEDDER", "VISION_MODEL", "EMBEDDING_MODEL"}
    ),
)
def test_every_setting_of_model_calls_is_explained(name: str) -> None:
    assert re.search(rf"\b(?:{ENVIRONMENT_PREFIX})?{name}\b", TEXT)


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("model_connect_seconds", "10 s"),
        ("model_read_seconds", "300 s"),
        ("model_write_seconds", "60 s"),
        ("model_total_seconds", "600 s"),
    ],
)
def test_the_defaults_in_the_table_are_those_of_the_settings(name: str, default: str) -> None:
    [row] = [line for line in TEXT.splitlines() if f"`{name.upper()}`" in line]
    assert row.endswith(f"| {default} |")
    assert default == f"{Settings.model_fields[name].default:g} s"


def test_every_kind_of_error_that_is_explained_is_raised_and_the_other_way_round() -> None:
    table = TEXT.partition("## What goes wrong")[2].partition("##")[0]
    explained = {
        kind
        for line in table.splitlines()
        if line.startswith("| `")
        for kind in re.findall(r"`([a-z_]+)`", line.split("|")[1])
    }
    code = "".join(
        path.read_text() for path in (ROOT / "batch_pipeline/model_servers").glob("*.py")
    )
    raised = set(re.findall(r'Error\(\s*"((?:model|embedding)_[a-z_]+)"', code))
    assert explained == raised


@pytest.mark.parametrize("server", ["Ollama", "vLLM", "SGLang", "LM Studio", "A hosted API"])
def test_commands_that_were_not_tried_here_say_so(server: str) -> None:
    section = TEXT.partition(f"\n## {server}\n")[2].partition("\n## ")[0]
    assert "not tried here" in section.lower()


@pytest.mark.parametrize("name", ["vision_model", "embedding_model"])
def test_the_default_models_are_explained_and_stand_first_in_their_table(name: str) -> None:
    default = Settings.model_fields[name].default
    assert f"`{name.upper()}` is `{default}`" in TEXT
    rows = TEXT.partition(f"\n| {name.replace('_', ' ')} |")[2].splitlines()
    assert f"| `{default}` |" in rows[2]
    assert "default" in rows[2]


@pytest.mark.parametrize("title", ["llama.cpp", "Recorded answers"])
def test_the_servers_that_were_tried_or_recorded_name_their_test(title: str) -> None:
    section = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    [path] = re.findall(r"batch_pipeline_tests/\S+\.py", section)
    assert (ROOT / path).exists()
