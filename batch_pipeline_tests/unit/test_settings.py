"""Settings: read once; the error for a bad setting says how to fix it."""

import os

import pytest
from annotated_types import Ge, Gt, Le

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.masking import MASK, masked
from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings, load_settings
from batch_pipeline.storage import Storage


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Ignore every `.env` of this machine."""
    monkeypatch.chdir(tmp_path)


def out_of_range():
    for name, field in Settings.model_fields.items():
        for limit in field.metadata:
            match limit:
                case Ge(ge=least):
                    yield name, str(least - 1), f"greater than or equal to {least}"
                case Gt(gt=below):
                    yield name, str(below), f"greater than {below}"
                case Le(le=most):
                    yield name, str(most + 1), f"less than or equal to {most}"


WRONG = [
    *out_of_range(),
    *((name, "many", "valid") for name in ("max_attempts", "lease_seconds")),
    ("max_attempts", "2.5", "integer"),
    ("lease_seconds", "nan", "less than or equal to"),
    ("lease_seconds", "inf", "less than or equal to"),
    *(
        (name, "1000000", "less than or equal to")
        for name in ("keep_partitions_days", "keep_runs_days")
    ),
    ("accepted_formats", "jpeg,svg", "not known: svg; accepted are jpeg, png"),
    *((name, "gpt", "'embedded', 'ollama' or 'openai'") for name in ("analyzer", "embedder")),
    ("celery_broker_url", "rediss://broker:6380/0", "?ssl_cert_reqs=required"),
]


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG)
def test_a_wrong_value_is_refused_with_variable_value_and_what_is_accepted(
    monkeypatch, name, value, accepted
):
    variable = f"{ENVIRONMENT_PREFIX}{name.upper()}"
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert f"{variable}={value!r}" in str(refused.value)
    assert accepted in str(refused.value)


def test_all_wrong_values_are_named_at_once(monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_MAX_ATTEMPTS", "0")
    monkeypatch.setenv("BATCH_PIPELINE_LEASE_SECONDS", "soon")
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert "BATCH_PIPELINE_MAX_ATTEMPTS" in str(refused.value)
    assert "BATCH_PIPELINE_LEASE_SECONDS" in str(refused.value)


def test_every_numeric_setting_has_a_lower_limit():
    numeric = {
        name for name, field in Settings.model_fields.items() if field.annotation in {int, float}
    }
    limited = {name for name, _, accepted in out_of_range() if accepted.startswith("greater")}
    assert numeric == limited


def test_the_environment_goes_before_the_file_and_empty_means_default(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text(
        "BATCH_PIPELINE_MAX_ATTEMPTS=3\nBATCH_PIPELINE_UPLOADS_PER_RUN=7\nOTHER=1\n"
    )
    monkeypatch.setenv("BATCH_PIPELINE_MAX_ATTEMPTS", "5")
    monkeypatch.setenv("BATCH_PIPELINE_ANALYZER", "")
    settings = load_settings()
    assert (settings.max_attempts, settings.uploads_per_run) == (5, 7)
    assert settings.analyzer == "embedded"


@pytest.mark.parametrize("content", ["NAME=Straße".encode("latin-1"), "A=1".encode("utf-16")])
def test_a_settings_file_that_is_not_text_is_named(tmp_path, content):
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read as UTF-8 text"):
        load_settings()


def test_a_byte_order_mark_is_not_part_of_a_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("BATCH_PIPELINE_MAX_ATTEMPTS=3\nOTHER=1\n", "utf-8-sig")
    (tmp_path / "key").write_text("sk-1234\n", "utf-8-sig")
    monkeypatch.setenv("BATCH_PIPELINE_OPENAI_API_KEY_FILE", "key")
    settings = load_settings()
    assert settings.max_attempts == 3
    assert settings.openai_api_key.get_secret_value() == "sk-1234"
    (tmp_path / ".env").write_text("BATCH_PIPELINE_STORAGE_URL=stored\n", "utf-8-sig")
    assert load_settings().storage_location == str(tmp_path / "stored")
    (tmp_path / ".env").write_text("BATCH_PIPELINE_MAX_ATEMPTS=3\n", "utf-8-sig")
    with pytest.raises(ConfigurationError, match="did you mean BATCH_PIPELINE_MAX_ATTEMPTS"):
        load_settings()


def test_paths_do_not_depend_on_the_working_directory_of_a_later_step(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_HOME", "here")
    settings = load_settings()
    assert settings.home == tmp_path / "here"
    assert settings.storage_location == str(tmp_path / "here" / "uploads")


@pytest.mark.parametrize("prefix", ["", "./", "file://", "file:", "local://"])
def test_a_path_in_a_file_begins_at_the_folder_of_the_file(tmp_path, monkeypatch, prefix):
    # Given a clone with its settings beside the home, and a command in a folder below it
    (tmp_path / ".batch_pipeline").mkdir()
    (tmp_path / "prompts").mkdir()
    (tmp_path / "url").write_text(f"{prefix}stored/here\n")
    (tmp_path / ".env").write_text(
        "BATCH_PIPELINE_HOME=data\nBATCH_PIPELINE_PROMPTS=prompts\n"
        f"BATCH_PIPELINE_STORAGE_URL={prefix}stored/here\n"
    )
    below = tmp_path / "photos"
    below.mkdir()

    for here in (tmp_path, below):
        monkeypatch.chdir(here)
        settings = load_settings()
        assert settings.home == tmp_path / "data"
        assert settings.prompts == str(tmp_path / "prompts")
        Storage(settings.storage_location).write(f"from_{here.name}", b"x")

    stored = {path.name for path in (tmp_path / "stored" / "here").iterdir()}
    assert stored == {f"from_{tmp_path.name}", "from_photos"}
    # A variable that names a file with the value begins there too, and so does that value.
    (tmp_path / ".env").write_text("BATCH_PIPELINE_STORAGE_URL_FILE=url\n")
    assert load_settings().storage_location.endswith(f"{tmp_path}/stored/here")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("database_url", "sslmode=verify-full&sslrootcert=ca.pem", "sslrootcert={}/ca.pem"),
        ("database_url", "sslrootcert=my%20ca.pem&sslmode=require", "sslrootcert={}/my%20ca.pem&"),
        ("database_url", "sslrootcert=/etc/ca.pem", "sslrootcert=/etc/ca.pem"),
        ("database_url", "sslrootcert=system", "sslrootcert=system"),
        (
            "dagster_database_url",
            "sslcert=a.crt&sslkey=a.key",
            "sslcert={0}/a.crt&sslkey={0}/a.key",
        ),
        ("dagster_database_url", "passfile=secrets/pgpass", "passfile={}/secrets/pgpass"),
        ("redis_url", "ssl_ca_certs=./ca.pem", "ssl_ca_certs={}/ca.pem"),
        ("celery_broker_url", "ssl_keyfile=a.key", "ssl_keyfile={}/a.key"),
    ],
)
def test_a_file_in_a_url_begins_at_the_folder_of_the_file_of_settings(
    tmp_path, monkeypatch, name, given, expected
):
    (tmp_path / ".batch_pipeline").mkdir()
    url = "db://me:p?w&x=ca.pem@host/x?"
    (tmp_path / ".env").write_text(f"BATCH_PIPELINE_{name.upper()}={url}{given}\n")
    below = tmp_path / "photos"
    below.mkdir()
    monkeypatch.chdir(below)
    found = getattr(load_settings(), name)
    assert found.startswith(url)
    assert expected.format(tmp_path) in found
    # In a variable it begins at the working directory, so later steps may stand elsewhere.
    monkeypatch.setenv(f"BATCH_PIPELINE_{name.upper()}", f"{url}{given}")
    assert expected.format(below) in getattr(load_settings(), name)


def test_a_path_in_the_environment_begins_at_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / ".batch_pipeline").mkdir()
    (tmp_path / ".env").write_text("BATCH_PIPELINE_STORAGE_URL=stored\n")
    below = tmp_path / "photos"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.setenv("batch_pipeline_storage_url", "mine")
    settings = load_settings()
    monkeypatch.chdir(tmp_path)
    assert settings.storage_location == str(below / "mine")


@pytest.mark.parametrize(
    "url", ["/srv/uploads", "file:///srv/uploads", "s3://bucket/uploads", "memory://uploads"]
)
def test_a_complete_location_of_the_storage_stays_as_it_is(tmp_path, monkeypatch, url):
    (tmp_path / ".env").write_text(f"BATCH_PIPELINE_STORAGE_URL={url}\n")
    assert load_settings().storage_location == url


def test_the_home_is_found_upward_as_git_finds_its_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    photos = tmp_path / "clone" / "photos" / "2024"
    photos.mkdir(parents=True)
    monkeypatch.chdir(photos)
    assert load_settings().home == tmp_path / "data" / "batch_pipeline"
    (tmp_path / "clone" / ".batch_pipeline").mkdir()
    assert load_settings().home == tmp_path / "clone" / ".batch_pipeline"
    (photos.parent / ".batch_pipeline").mkdir()
    assert load_settings().home == photos.parent / ".batch_pipeline"
    monkeypatch.setenv("BATCH_PIPELINE_HOME", str(tmp_path / "said"))
    assert load_settings().home == tmp_path / "said"
    assert [path.name for path in tmp_path.iterdir()] == ["clone"]  # nothing was created


def test_a_working_directory_that_was_removed_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigurationError, match="working directory does not exist any more"):
        load_settings()


def test_a_home_of_another_user_is_passed_over(tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = tmp_path / ".batch_pipeline"
    folder.mkdir()
    os.chown(folder, 12345, -1)
    assert load_settings().home != folder


def test_the_settings_of_the_home_also_count_in_folders_below_it(tmp_path, monkeypatch):
    below = tmp_path / "photos"
    (tmp_path / ".batch_pipeline").mkdir()
    below.mkdir()
    (tmp_path / ".env").write_text(
        "BATCH_PIPELINE_MAX_ATTEMPTS=3\nBATCH_PIPELINE_UPLOADS_PER_RUN=7\n"
    )
    (below / ".env").write_text("BATCH_PIPELINE_UPLOADS_PER_RUN=8\n")
    monkeypatch.chdir(below)
    settings = load_settings()
    assert (settings.max_attempts, settings.uploads_per_run) == (3, 8)


def test_the_api_key_is_not_shown(monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_OPENAI_API_KEY", "sk-secret")
    assert "sk-secret" not in repr(load_settings())


def test_space_around_a_value_is_removed(monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_OPENAI_API_KEY", "sk-from-a-secret\n")
    monkeypatch.setenv("BATCH_PIPELINE_DATABASE_URL", " postgresql://db/photos\n")
    monkeypatch.setenv("BATCH_PIPELINE_ANALYZER", "openai ")
    monkeypatch.setenv("BATCH_PIPELINE_VISION_MODEL", "qwen\r\n")
    monkeypatch.setenv("BATCH_PIPELINE_EMBEDDING_QUESTION_PREFIX", "query: ")

    settings = load_settings()

    assert settings.openai_api_key.get_secret_value() == "sk-from-a-secret"
    assert settings.database_url == "postgresql://db/photos"
    assert (settings.analyzer, settings.vision_model) == ("openai", "qwen")
    assert settings.embedding_question_prefix == "query: "


def test_quotes_around_a_value_are_removed(tmp_path, monkeypatch):
    """`docker run --env-file` keeps them, unlike shells and `.env`."""
    monkeypatch.setenv("BATCH_PIPELINE_STORAGE_URL", ' "/srv/my photos" ')
    monkeypatch.setenv("BATCH_PIPELINE_HOME", "'/srv/home'")
    monkeypatch.setenv("BATCH_PIPELINE_OPENAI_API_KEY", '"sk-quoted"')
    monkeypatch.setenv("BATCH_PIPELINE_MAX_ATTEMPTS", '"3"')
    (tmp_path / "url").write_text("postgresql://db/photos")
    monkeypatch.setenv("BATCH_PIPELINE_DATABASE_URL_FILE", f'"{tmp_path / "url"}"')

    settings = load_settings()

    assert settings.storage_location == "/srv/my photos"
    assert str(settings.home) == "/srv/home"
    assert settings.openai_api_key.get_secret_value() == "sk-quoted"
    assert settings.max_attempts == 3
    assert settings.database_url == "postgresql://db/photos"


def test_a_secret_of_several_lines_is_masked_where_a_library_quotes_it(monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_OPENAI_API_KEY", "sk-first-line\nsk-second-line")
    key = load_settings().openai_api_key.get_secret_value()

    quoted = masked(f"Illegal header value {f'Bearer {key}'.encode()!r}")

    assert quoted == f"Illegal header value b'Bearer {MASK}'"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"webhook_urls": "https://hooks.example.org/batch-pipeline"}, "`batch-pipeline status`"),
        ({"webhook_urls": "https://hooks.example.org/notifications"}, "docs/notifications.md"),
        ({"webhook_urls": "https://hooks.example.org/"}, "sent to https://hooks.example.org"),
        ({"notify_urls": "json://localhost:11434"}, "no answer from http://localhost:11434"),
        ({"notify_urls": "ntfy://batch-pipeline"}, "`batch-pipeline status`"),
        ({"openai_api_key": "ollama"}, "start it: `ollama serve`"),
        ({"openai_api_key": "EMPTY"}, "expected a name, not EMPTY"),
        ({"database_url": "postgresql://postgres:postgres@db/x"}, "user postgres may not log in"),
    ],
)
def test_words_of_our_messages_are_not_secrets(values, said):
    if "webhook_urls" in values:
        values |= {"webhook_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    load_settings(**values)
    assert masked(said) == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"webhook_urls": "https://a.example/hooks/new"}, "POST https://a.example/hooks/new: 500"),
        ({"webhook_urls": "https://a.example/hooks/new"}, "POST a.example/hooks/new: 500"),
        ({"webhook_urls": "https://a.example/s/T0/B0Secret"}, "a.example: no path /s/T0/B0Secret"),
        ({"webhook_urls": "https://a.example/s/T0/B0Secret"}, "no path s/T0/B0Secret"),
        ({"notify_urls": "json://a.example/s/T0/B1Secret"}, "retries with url: /s/T0/B1Secret"),
        ({"notify_urls": "slack://T0/B0/C2Secret"}, "retries with url: /services/T0/B0/C2Secret"),
        ({"notify_urls": "pbul://o.d3Secret"}, "no access with o.d3Secret"),
        ({"notify_urls": "ntfy://our-topic"}, "POST https://ntfy.sh/our-topic: 500"),
    ],
)
def test_a_url_with_a_token_is_masked_in_every_form_that_errors_quote(values, said):
    if "webhook_urls" in values:
        values |= {"webhook_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    load_settings(**values)
    assert MASK in masked(said)
    for secret in ("hooks/new", "Secret", "our-topic"):
        assert secret not in masked(said)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("{num_ctx: 1}", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"model": "x", "stream": true}', "model, stream cannot be set"),
        ('{"options": 3}', "`options` are not a JSON object"),
    ],
)
@pytest.mark.parametrize("name", ["VISION_OPTIONS", "EMBEDDING_OPTIONS"])
def test_invalid_options_of_a_model_are_refused_at_the_start(monkeypatch, name, options, reason):
    monkeypatch.setenv(f"BATCH_PIPELINE_{name}", options)
    with pytest.raises(ConfigurationError, match=f"BATCH_PIPELINE_{name}=.*{reason}"):
        load_settings()


def test_accepted_formats_are_a_list_and_all_by_default(monkeypatch):
    assert {"jpeg", "mp4", "tiff"} <= load_settings().accepted_format_names

    monkeypatch.setenv(f"{ENVIRONMENT_PREFIX}ACCEPTED_FORMATS", "JPEG, heic ,mp4")

    assert load_settings().accepted_format_names == {"jpeg", "heic", "mp4"}


def test_a_misspelt_name_is_refused_with_the_nearest_right_one(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_OLAMA_HOST", "http://gpu1")
    (tmp_path / ".env").write_text("BATCH_PIPELINE_VISON_MODEL=x\nOTHER=1\nbatch_pipeline_xyz=1\n")
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert str(refused.value).splitlines()[1:] == [
        "  BATCH_PIPELINE_OLAMA_HOST, in the environment: did you mean BATCH_PIPELINE_OLLAMA_HOST?",
        f"  BATCH_PIPELINE_VISON_MODEL, in {tmp_path}/.env: "
        "did you mean BATCH_PIPELINE_VISION_MODEL?",
        f"  batch_pipeline_xyz, in {tmp_path}/.env: docs/settings.md lists all",
    ]


@pytest.mark.parametrize(
    "name",
    ["SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR",
     "WEBSERVER_SERVICE_HOST", "WEBSERVER_PORT_80_TCP_PROTO"],
)  # fmt: skip
def test_variables_of_a_kubernetes_service_with_our_name_are_not_settings(monkeypatch, name):
    monkeypatch.setenv(f"BATCH_PIPELINE_{name}", "x")
    load_settings()


def test_a_value_may_be_in_a_file_as_engines_mount_secrets(tmp_path, monkeypatch):
    secret = tmp_path / "key"
    secret.write_text("sk-from-a-file\n")
    monkeypatch.setenv("BATCH_PIPELINE_OPENAI_API_KEY_FILE", str(secret))
    (tmp_path / "attempts").write_text("5")
    (tmp_path / ".env").write_text(f"BATCH_PIPELINE_MAX_ATTEMPTS_FILE={tmp_path / 'attempts'}\n")

    settings = load_settings()

    assert settings.openai_api_key.get_secret_value() == "sk-from-a-file"
    assert settings.max_attempts == 5
    assert masked("401: sk-from-a-file") == f"401: {MASK}"


def test_a_missing_doubled_or_misspelt_file_variable_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCH_PIPELINE_DATABASE_URL_FILE", str(tmp_path / "gone"))
    with pytest.raises(ConfigurationError, match=r"DATABASE_URL_FILE=.*gone: cannot be read"):
        load_settings()
    monkeypatch.setenv("BATCH_PIPELINE_DATABASE_URL", "postgresql://127.0.0.1/x")
    with pytest.raises(ConfigurationError, match="both BATCH_PIPELINE_DATABASE_URL and"):
        load_settings()
    monkeypatch.delenv("BATCH_PIPELINE_DATABASE_URL_FILE")
    monkeypatch.setenv("BATCH_PIPELINE_DATABASE_ULR_FILE", "x")
    with pytest.raises(ConfigurationError, match="did you mean BATCH_PIPELINE_DATABASE_URL"):
        load_settings()
