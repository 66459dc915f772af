"""Progress messages on their channels: PostgreSQL always, a real Redis when it is configured."""

import json
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import event, update

from batch_pipeline.database.models import Upload
from batch_pipeline.errors import PermanentError
from batch_pipeline.services.progress.batch_watch import watch_batch
from batch_pipeline.services.progress.publishing import CHANNEL, FileProgress, ProgressPublisher
from batch_pipeline.services.states.backlog import MAX_DEATHS
from batch_pipeline.services.states.upload_states import StartedUpload
from batch_pipeline.testing.listening import messages_until_now
from batch_pipeline.testing.records import USER, add_batch, embedded, upload_rows
from batch_pipeline.testing.tcp_proxy import TcpProxy
from batch_pipeline_tests.patience import DEADLINE, promised, wait_until


def drain(subscription, wanted: int) -> list[tuple[str, dict]]:
    messages = []

    def have_come():
        message = subscription.get_message(ignore_subscribe_messages=True, timeout=0.5)
        if message:
            messages.append((message["channel"].decode(), json.loads(message["data"])))
        return len(messages) >= wanted

    wait_until(have_come, f"{wanted} messages", DEADLINE)
    return messages


def test_the_same_messages_reach_redis_on_the_channels_of_batch_and_user(
    redis_url, change, open_pipeline
):
    pipeline = open_pipeline(change(redis_url=redis_url))
    batch_id = add_batch(pipeline.database, 1, name="Rome 2026")
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as subscription:
        subscription.subscribe(f"batch_progress:{batch_id}", f"user:{USER}")
        subscription.get_message(timeout=DEADLINE)  # both subscriptions are active
        subscription.get_message(timeout=DEADLINE)
        pipeline.states.load_batch(batch_id, "run", limit=1)
        [upload] = upload_rows(pipeline.database, batch_id)
        assert isinstance(pipeline.states.start(upload.id, "run"), StartedUpload)
        received = drain(subscription, 4)
    channels = {channel for channel, _ in received}
    assert channels == {f"batch_progress:{batch_id}", f"user:{USER}"}
    batch, file = received[0][1], received[-1][1]
    assert set(batch) == {"action", "payload", "timestamp"}
    assert batch["action"] == "batch_progress"
    assert batch["payload"] == {
        "batch_id": str(batch_id),
        "status": "processing",
        "total": 1,
        "processed": 0,
        "successful": 0,
        "failed": 0,
        "progress_percentage": 0.0,
        "name": "Rome 2026",
    }
    assert file["action"] == "file_progress"
    assert file["payload"] == {
        "batch_id": str(batch_id),
        "upload_id": str(upload.id),
        "file_name": "picture_0.jpg",
        "file_size": 1000,
        "progress_percentage": 0,
        "status": "processing",
    }


@pytest.mark.parametrize("way", ["fail", "quarantine"])
def test_an_upload_that_fails_is_announced_with_its_batch(pipeline, database_url, way):
    batch_id = add_batch(pipeline.database, [{"deaths": MAX_DEATHS - 1}, {}])
    upload, _ = upload_rows(pipeline.database, batch_id)
    pipeline.states.load_batch(batch_id, "run", limit=2)
    started = pipeline.states.start(upload.id, "run")
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        if way == "fail":
            pipeline.states.fail(started.claim, PermanentError("truncated", "cut"))
        else:
            pipeline.backlog.rescue(["run"])
        said = [json.loads(message) for message in messages_until_now(listener)]
    assert [message["action"] for message in said] == ["file_progress", "batch_progress"]
    file, batch = (message["payload"] for message in said)
    assert (file["upload_id"], file["status"]) == (str(upload.id), "failed")
    assert (batch["processed"], batch["failed"], batch["total"]) == (1, 1, 2)


def test_statements_send_the_same_messages_to_postgresql_as_are_repeated_on_redis(
    redis_url, database_url, change, open_pipeline
):
    """SQL composes one, Python the other; the last message of a batch always comes from Python."""
    names = [
        "plain.jpg",
        'a "quoted" \\ back\nslash.jpg',
        "\u202eodd \U0001f600\x01.jpg",
        "n" * 300,
    ]
    pipeline = open_pipeline(change(redis_url=redis_url))
    states = pipeline.states
    batch_id = add_batch(pipeline.database, len(names))
    with pipeline.database.transaction() as connection:
        for row, name in zip(upload_rows(pipeline.database, batch_id), names, strict=True):
            connection.execute(update(Upload).where(Upload.id == row.id).values(filename=name))
    with (
        psycopg.connect(database_url, autocommit=True) as listener,
        redis.Redis.from_url(redis_url) as client,
        client.pubsub() as subscription,
    ):
        listener.execute(f"LISTEN {CHANNEL}")
        subscription.subscribe(f"batch_progress:{batch_id}")
        subscription.get_message(timeout=DEADLINE)
        for upload in states.load_batch(batch_id, "run", limit=len(names)).reserved:
            claim = states.start(upload.id, "run").claim
            states.store_thumbnail(claim, "thumb_256.jpg", {})
            states.complete(claim, seconds={})
        on_postgresql = [json.loads(body) for body in messages_until_now(listener)]
        on_redis = [body for _, body in drain(subscription, len(on_postgresql))]
    assert len(on_postgresql) == 1 + 4 * len(names)
    for one, other in zip(on_postgresql, on_redis, strict=True):
        moments = [datetime.fromisoformat(body.pop("timestamp")) for body in (one, other)]
        assert abs(moments[1] - moments[0]) < timedelta(seconds=DEADLINE)
        assert one == other


@pytest.mark.slow
def test_a_redis_that_hangs_keeps_nobody_waiting_for_each_message(
    redis_url, change, open_pipeline, caplog
):
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with TcpProxy(address=("127.0.0.1", port)) as proxy:
        pipeline = open_pipeline(change(redis_url=f"redis://127.0.0.1:{proxy.port}/0"))
        batch_id = add_batch(pipeline.database, 20)
        reserved = pipeline.states.load_batch(batch_id, "run", limit=20).reserved
        with proxy.holding():
            begin = time.monotonic()
            for upload in reserved:
                claim = pipeline.states.start(upload.id, "run").claim
                pipeline.states.complete(claim, seconds={})
            seconds = time.monotonic() - begin
    # Two of 40 messages waited for their time-out: the first, and the last.
    assert seconds < promised(10)
    assert caplog.text.count("progress is not published on Redis") == 1


def test_a_message_is_delivered_only_if_its_transaction_commits(pipeline, database_url):
    publisher = ProgressPublisher(pipeline.database)
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    message = FileProgress(batch_id, upload.id, "a.jpg", 1, 0, "processing")
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        with suppress(ZeroDivisionError), publisher.transaction() as transaction:
            transaction.announce(message, USER)
            raise ZeroDivisionError
        with publisher.transaction() as transaction:
            transaction.announce(message, USER)
        assert len(messages_until_now(listener)) == 1


def test_a_name_of_any_length_fits_into_a_message(pipeline, database_url):
    publisher = ProgressPublisher(pipeline.database)
    batch_id = add_batch(pipeline.database, [{"filename": "\U0001f600" * 5000}])
    [upload] = upload_rows(pipeline.database, batch_id)
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        with publisher.transaction() as transaction:
            name = upload.filename
            transaction.announce(FileProgress(batch_id, upload.id, name, 1, 0, "failed"), USER)
        [message] = messages_until_now(listener)
    assert len(message) < 8000
    assert Path(json.loads(message)["payload"]["file_name"]).name.startswith("\U0001f600")


def test_a_watch_shows_each_end_once_and_reads_only_what_is_new(pipeline, database_url):
    long_ago = {"updated_at": datetime.now(UTC) - timedelta(hours=2)}
    done = {"processing_status": "completed", **long_ago}
    batch_id = add_batch(pipeline.database, [done] * 5 + [{}] * 2, status="processing")
    one, other = (
        row.id
        for row in upload_rows(pipeline.database, batch_id)
        if row.processing_status == "pending"
    )
    read: list[int] = []

    def count(_connection, cursor, statement, *_):
        if "uploads.error_message" in statement:
            read.append(cursor.rowcount)

    event.listen(pipeline.database.engine, "after_cursor_execute", count)
    watch = watch_batch(pipeline.database, batch_id)
    assert len(next(watch).newly_ended) == 5
    claim = pipeline.states.start(one, "run").claim
    [in_work] = next(watch).in_work
    assert in_work.upload_id == one
    pipeline.states.complete(claim, embedded=embedded(pipeline.database), seconds={})
    for shown in ([one], []):
        assert [upload.upload_id for upload in next(watch).newly_ended] == shown
    assert read == [5, 1, 1, 1]
    # An upload API ends the other one, and leaves the time of the change as it is.
    with psycopg.connect(database_url, autocommit=True) as api:
        api.execute(
            "UPDATE uploads SET processing_status = 'completed', updated_at = %s WHERE id = %s",
            [long_ago["updated_at"], other],
        )
    pipeline.batches.recount_batch(batch_id)
    *_, last = watch
    assert [upload.upload_id for upload in last.newly_ended] == [other]
