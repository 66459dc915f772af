"""What `doctor` reports about Redis and the object store, each a real server in a bad state."""

import pytest
import redis
from s3fs import S3FileSystem
from sqlalchemy import text

from batch_pipeline.services.health.checks import check_health
from batch_pipeline.storage import Storage
from batch_pipeline.testing.records import add_batch, upload_rows


@pytest.fixture
def check(change):
    def named(name, **changed):
        [found] = [
            check for check in check_health(change(**changed), quick=True) if name == check.name
        ]
        return found

    return named


@pytest.fixture
def listener(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.acl_deluser("other", "mute")


def test_without_a_redis_url_redis_is_not_checked(settings):
    assert "redis" not in {check.name for check in check_health(settings, quick=True)}


def test_redis_passes_the_check_if_we_may_publish(check, redis_url, listener):
    assert check("redis", redis_url=redis_url).detail == "messages can be published; 0 listened"

    with listener.pubsub() as subscription:
        subscription.subscribe("batch_progress:doctor")
        assert subscription.get_message(timeout=10)["type"] == "subscribe"
        detail = "messages can be published; 1 listened"
        assert check("redis", redis_url=redis_url).detail == detail


def test_an_unreachable_redis_is_named_with_what_continues_without_it(check):
    found = check("redis", redis_url="redis://127.0.0.1:1/0")

    assert not found.ok
    assert "Connection refused" in found.detail
    assert "BATCH_PIPELINE_REDIS_URL" in found.hint
    assert "meanwhile uploads are processed" in found.hint


def test_a_redis_that_refuses_the_password_is_named_without_it(check, redis_url, listener):
    listener.acl_setuser("other", enabled=True, passwords=["+right"], commands=["+@all"])

    found = check("redis", redis_url=redis_url.replace("//", "//other:wr0ng-secret@"))

    assert not found.ok
    assert "invalid username-password pair" in found.detail
    assert "wr0ng-secret" not in found.detail + found.hint


def test_a_redis_that_does_not_let_us_publish_fails_the_check(check, redis_url, listener):
    listener.acl_setuser("mute", enabled=True, nopass=True, commands=["+@all", "-publish"])

    found = check("redis", redis_url=redis_url.replace("//", "//mute:any@"))

    assert not found.ok
    assert "no permissions" in found.detail


def test_all_waiting_uploads_whose_batch_is_gone_are_counted(pipeline):
    kept, gone = (add_batch(pipeline.database, count) for count in (1, 2))
    with pipeline.database.transaction() as connection:
        # As in tables of an API that has no foreign key.
        connection.execute(text("ALTER TABLE uploads DROP CONSTRAINT fk_uploads_batch_id"))
        connection.execute(text("DELETE FROM upload_batches WHERE id = :id"), {"id": gone})

    checks = {check.name: check for check in check_health(pipeline.settings, quick=True)}

    found = checks["oldest waiting upload"]
    assert found.ok
    [oldest] = upload_rows(pipeline.database, kept)
    assert f"upload {oldest.id} has waited" in found.detail
    assert "waiting uploads whose batch is gone: 2 (set their batch_id to NULL" in found.detail


@pytest.mark.xdist_group("object_store")
def test_a_bucket_that_can_be_written_passes_the_check_and_is_unchanged(check, s3_url):
    assert check("storage", storage_url=s3_url).ok
    assert Storage(s3_url).is_empty()


@pytest.mark.xdist_group("object_store")
def test_a_missing_bucket_and_refused_keys_have_different_findings(check, s3_url, object_store):
    missing = check("storage", storage_url="s3://nobody/uploads")
    with object_store.refusing_everybody():
        refused = check("storage", storage_url=s3_url)

    assert "bucket does not exist" in missing.detail
    assert "Access Key Id you provided does not exist" in refused.detail
    for found in (missing, refused):
        assert not found.ok
        assert "make the bucket" in found.hint
        assert "AWS_ACCESS_KEY_ID" in found.hint


@pytest.mark.slow
@pytest.mark.xdist_group("object_store")
def test_an_unreachable_object_store_is_named(check, s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    S3FileSystem.clear_instance_cache()  # clients are cached with their old address

    found = check("storage", storage_url=s3_url)
    S3FileSystem.clear_instance_cache()

    assert not found.ok
    assert "Could not connect" in found.detail
    assert "start the object store" in found.hint
