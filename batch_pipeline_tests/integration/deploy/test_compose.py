"""Each Compose file follows the current schema, and Compose itself accepts it."""

import subprocess
import sys
from typing import Any

import pytest
import yaml

from .composed import (
    COMPOSE,
    FIRST_HOST,
    SECOND_HOST,
    RefusedByComposeError,
    read_as_compose_does,
)

#: Settings with a default of their own in the Compose file; that default, and another value.
SETTINGS = {
    "BATCH_PIPELINE_LOG_FORMAT": ("json", "text"),
    "BATCH_PIPELINE_REDIS_URL": ("redis://redis:6379/0", ""),
    "BATCH_PIPELINE_STORAGE_URL": ("/data/uploads", "s3://media/uploads"),
    "BATCH_PIPELINE_MAX_RUNS_IN_FLIGHT": ("16", "4"),
}
EXTRA = ("production", "production,notify")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The services with the unchanged example of settings."""
    return read_as_compose_does(tmp_path_factory.mktemp("as_it_comes"))


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The services with another value of each of `SETTINGS` and `EXTRA` in the file `.env`."""
    given = {name: value for name, (_, value) in SETTINGS.items()}
    return read_as_compose_does(tmp_path_factory.mktemp("changed"), **given, IMAGE_EXTRA=EXTRA[1])


@pytest.mark.parametrize("file", [COMPOSE, FIRST_HOST, SECOND_HOST], ids=lambda file: file.name)
def test_the_compose_file_follows_the_current_schema(file):
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec", file),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_compose_reads_the_file_with_the_example_settings_unchanged(services):
    ours = {"migrate", "code-location", "webserver", "daemon", "metrics"}
    assert set(services) == ours | {"postgres", "redis"}
    # Every service that answers requests has a health check.
    assert {name for name, service in services.items() if "healthcheck" not in service} == {
        "migrate"
    }
    for name in ours:
        assert services[name]["environment"]["BATCH_PIPELINE_DATABASE_URL"] == (
            "postgresql://batch_pipeline:change_me@postgres:5432/batch_pipeline"
        )
    # The output of services cannot fill the disk.
    assert {service["logging"]["options"]["max-file"] for service in services.values()} == {"5"}
    # The UI and the metrics are public only if a person sets that.
    written = yaml.safe_load(COMPOSE.read_text())["services"]
    published = [port for service in written.values() for port in service.get("ports", [])]
    assert published == [
        "${UI_ADDRESS:-127.0.0.1:3000}:3000",
        "${METRICS_ADDRESS:-127.0.0.1:9464}:9464",
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_in_the_env_file_replaces_the_default_of_every_service(services, changed, name):
    default, given = SETTINGS[name]
    for service in ("migrate", "code-location", "webserver", "daemon", "metrics"):
        assert services[service]["environment"][name] == default
        assert changed[service]["environment"][name] == given


def test_the_env_file_chooses_what_the_image_contains(services, changed):
    built = [read["migrate"]["build"]["args"]["EXTRA"] for read in (services, changed)]
    assert built == [*EXTRA]


ON_FIRST = {"DATABASE_ADDRESS": "10.0.0.1:5432", "BATCH_PIPELINE_STORAGE_URL": "s3://media/uploads"}
ON_SECOND = {**ON_FIRST, "CODE_SERVER_ADDRESS": "10.0.0.2:4000"}


@pytest.mark.slow
def test_a_second_host_runs_the_same_code_server_with_the_database_of_the_first(tmp_path):
    first = read_as_compose_does(tmp_path / "first", **ON_FIRST)
    second = read_as_compose_does(tmp_path / "second", SECOND_HOST, **ON_SECOND)

    assert set(second) == {"code-location"}  # so `up` starts no database
    here, there = first["code-location"], second["code-location"]
    assert there.pop("build") | {"context": ""} == first["migrate"]["build"] | {"context": ""}
    assert "depends_on" not in there
    assert address(there.pop("ports")) == "10.0.0.2:4000->4000"
    differs = {
        name: value
        for name, value in there.pop("environment").items()
        if here["environment"].get(name) != value
    }
    assert differs == {
        "BATCH_PIPELINE_DATABASE_URL": (
            "postgresql://batch_pipeline:change_me@10.0.0.1:5432/batch_pipeline"
        ),
        "BATCH_PIPELINE_REDIS_URL": "",
        "CODE_SERVER_ADDRESS": "10.0.0.2:4000",
    }
    volumes = [volume.replace("/first/", "/second/") for volume in here.pop("volumes")]
    assert set(there.pop("volumes")) <= set(volumes)
    assert there == {name: value for name, value in here.items() if name in there}
    assert set(here) - set(there) == {"depends_on", "environment"}


@pytest.mark.slow
def test_only_the_database_is_published_for_the_second_host_and_only_at_the_address_given(
    tmp_path, services
):
    first = read_as_compose_does(tmp_path, COMPOSE, FIRST_HOST, **ON_FIRST)

    published = {name for name, service in first.items() if "ports" in service}
    assert published - {name for name, service in services.items() if "ports" in service} == {
        "postgres"
    }
    assert address(first["postgres"]["ports"]) == "10.0.0.1:5432->5432"


def address(ports: list[Any]) -> str:
    """Return the only port, as ``HOST:PORT->PORT``; versions of Compose print it in two ways."""
    [port] = ports
    if isinstance(port, str):
        host, _, inside = port.removesuffix("/tcp").rpartition(":")
        return f"{host}->{inside}"
    return f"{port['host_ip']}:{port['published']}->{port['target']}"


@pytest.mark.slow
@pytest.mark.parametrize("missing", ON_SECOND)
def test_a_second_host_without_an_address_is_refused_and_says_what_to_set(tmp_path, missing):
    given = {name: value for name, value in ON_SECOND.items() if name != missing}
    with pytest.raises(RefusedByComposeError, match=f"{missing}.*set it in"):
        read_as_compose_does(tmp_path, SECOND_HOST, **given)
