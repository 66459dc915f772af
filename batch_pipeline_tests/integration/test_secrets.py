"""No password of any setting that is a URL reaches a person: health, errors, logs, backups."""

import logging
import uuid
from pathlib import Path

import pytest
from pydantic import SecretStr

from batch_pipeline import masking
from batch_pipeline.errors import ConfigurationError, PipelineError, ServiceDownError
from batch_pipeline.masking import masked
from batch_pipeline.orchestration.instance_health import check_dagster
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.settings import AnalyzerName, Settings, load_settings
from batch_pipeline.storage import storage_error
from batch_pipeline.testing.records import add_batch

MEDIA = Path(__file__).parents[2] / "examples" / "media"
PASSWORD = "s3cr3t/Pass#word"
ENCODED = "s3cr3t%2FPass%23word"

#: For every setting that is a URL: a URL with a password, on which no server listens.
URLS = {
    "database_url": f"postgresql://user:{ENCODED}@127.0.0.1:1/x",
    "dagster_database_url": f"postgresql://user:{ENCODED}@127.0.0.1:1/x",
    "storage_url": f"sftp://user:{ENCODED}@127.0.0.1:1/uploads",
    "ollama_host": f"http://user:{ENCODED}@127.0.0.1:1",
    "openai_base_url": f"http://user:{ENCODED}@127.0.0.1:1/v1,http://127.0.0.1:2/v1?key={ENCODED}",
    "openai_embedding_base_url": f"http://user:{ENCODED}@127.0.0.1:1/v1",
    "redis_url": f"redis://:{ENCODED}@127.0.0.1:1/0",
    "celery_broker_url": f"redis://:{ENCODED}@127.0.0.1:1/0",
}
#: Pages show it.
REFUSES_PASSWORDS = {"dagster_ui_url"}


def test_a_password_that_pages_would_show_is_refused():
    with pytest.raises(ConfigurationError, match="a user or password") as refused:
        load_settings(dagster_ui_url=f"http://user:{ENCODED}@127.0.0.1:3000")
    assert ENCODED not in str(refused.value)


def names_of_urls():
    return [
        name
        for name, field in Settings.model_fields.items()
        if field.annotation is str
        and name.rpartition("_")[2] in {"url", "host"}
        and name not in REFUSES_PASSWORDS
    ]


def test_every_setting_that_is_a_url_is_tried_here():
    assert sorted(URLS) == sorted(names_of_urls())
    words = ("URL", "PostgreSQL", "Redis", "server;", "Broker")
    for name, field in Settings.model_fields.items():
        if name in {"webhook_urls", "notify_urls"} | REFUSES_PASSWORDS:
            continue  # URLs with tokens: services/test_notifications.py
        if field.annotation is str and any(word in field.description for word in words):
            assert name in URLS, f"{name} looks like a URL: {field.description}"


def analyzer_of(name: str) -> dict[str, object]:
    if name.startswith("openai"):
        return {"analyzer": AnalyzerName.OPENAI, "openai_base_url": "http://127.0.0.1:3/v1"}
    return {"analyzer": AnalyzerName.OLLAMA} if name == "ollama_host" else {}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(URLS))
def test_a_password_is_in_no_health_line_no_error_and_no_log(
    name, change, caplog, capsys, open_pipeline
):
    caplog.set_level(logging.DEBUG, logger="batch_pipeline")
    settings = change(**(analyzer_of(name) | {name: URLS[name]}))
    said = []
    for check in (*check_health(settings), *check_dagster(settings)):
        said += [check.detail, check.hint]
    try:
        pipeline = open_pipeline(settings)
        said.append(str(pipeline.analyzer_outage()))
        add_batch(pipeline.database, 1)
        submit(
            [MEDIA / "fog.webp"],
            user_id=uuid.uuid4(),
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=settings,
        )
    except PipelineError as error:
        said.append(str(error))
    said += [caplog.text, *capsys.readouterr()]
    for text in said:
        assert "s3cr3t" not in text, text
    assert any(said)


def test_only_the_secrets_of_a_url_are_masked():
    url = "cannot open s3://bucket/x?key=abcd1234&region=eu and sftp://me:pw@host:22/x"
    assert masked(url) == "cannot open s3://bucket/x?key=***&region=eu and sftp://me:***@host:22/x"
    assert masked("http://host/a:b@c and 10:30") == "http://host/a:b@c and 10:30"


def test_a_password_that_a_library_quotes_without_its_url_is_masked_too(change, caplog):
    change(storage_url=URLS["storage_url"], openai_api_key=SecretStr("sk-verysecret"))
    error = OSError(f"login as user with {PASSWORD!r} failed, sk-verysecret")
    named = storage_error(error)
    assert isinstance(named, ServiceDownError)
    logging.getLogger("some.library").error("tried %s", PASSWORD)
    try:
        raise ValueError(PASSWORD)
    except ValueError:
        logging.getLogger("some.library").exception("failed")
    for text in (str(named), str(error), caplog.text):
        assert masking.MASK in text
        assert "s3cr3t" not in text
        assert "verysecret" not in text
