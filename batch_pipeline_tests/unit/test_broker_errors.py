"""How an outage of the Celery broker names the broker."""

import pytest

from batch_pipeline.orchestration.celery.broker import broker_down


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://:secret@broker:6379/0", "redis://broker:6379"),
        ("redis://broker/0", "redis://broker"),
        ("sentinel://:secret@a:26379;sentinel://:secret@b:26379", "sentinel://a:26379"),
        ("amqp://user:secret@a:5672;amqp://user:secret@b:5672", "amqp://a:5672"),
    ],
)
def test_an_outage_names_the_first_broker_without_its_password(url, named):
    said = str(broker_down(url, OSError("Connection refused")))
    assert f"the Celery broker {named} cannot be used: Connection refused" in said
    assert "secret" not in said
