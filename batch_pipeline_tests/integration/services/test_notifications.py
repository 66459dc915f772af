"""Events are sent at least once, signed, and never to a forbidden address."""

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from standardwebhooks.webhooks import Webhook

from batch_pipeline.demo import free_port
from batch_pipeline.errors import ConfigurationError, ServiceDownError
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.services.notifications import outbox, sending
from batch_pipeline.services.notifications.outbox import Delivery, end_outages
from batch_pipeline.services.notifications.sending import send_due, send_test, targets_of
from batch_pipeline.services.notifications.webhooks import is_public, signed_headers
from batch_pipeline.settings import load_settings
from batch_pipeline.testing.records import USER, add_batch
from batch_pipeline.testing.webhook_receiver import webhook_receiver
from batch_pipeline.webhook_secrets import secret_key
from batch_pipeline_tests.patience import DEADLINE

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
#: Warnings of apprise's plugins, which are all imported together.
APPRISE_WARNS = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SENDER = """
from batch_pipeline.services.notifications.sending import send_due
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import load_settings
settings = load_settings()
print(send_due(Pipeline(settings).database, settings))
"""


@pytest.fixture
def receiver():
    with webhook_receiver() as receiver:
        yield receiver


@pytest.fixture
def told(change, receiver):
    return change(webhook_urls=receiver.url, webhook_secret=SECRET, webhook_allow_private=True)


def execute(database, statement, **values):
    with database.transaction() as connection:
        return connection.execute(text(statement), values)


def events(database):
    with database.transaction() as connection:
        rows = connection.execute(text("SELECT type, data FROM notifications ORDER BY occurred_at"))
        return [tuple(row) for row in rows]


def make_due(database):
    execute(
        database,
        "UPDATE notification_deliveries SET next_attempt_at = now() "
        "WHERE next_attempt_at IS NOT NULL",
    )


def cancelled_batch(pipeline, **values):
    batch_id = add_batch(pipeline.database, 2, **values)
    pipeline.batches.cancel_batch(batch_id)
    return batch_id


def test_the_end_of_a_batch_is_sent_with_its_counts_and_a_valid_signature(
    pipeline, database, told, receiver
):
    batch_id = cancelled_batch(pipeline, name="Härte")

    assert send_due(database, told) == (1, 0)

    (request,) = receiver.received
    said = Webhook(SECRET).verify(request.body, dict(request.headers))
    assert said["type"] == "batch.cancelled"
    assert datetime.fromisoformat(said["timestamp"]).tzinfo == UTC
    assert said["data"] == {
        "batch_id": str(batch_id),
        "user_id": str(USER),
        "name": "Härte",
        "status": "cancelled",
        "total": 2,
        "successful": 0,
        "failed": 0,
        "reason": None,
    }
    assert send_due(database, told) == (0, 0)
    assert len(receiver.received) == 1


def test_signatures_are_those_of_the_specification():
    delivery = Delivery(uuid.uuid4(), "", "", {}, datetime.now(UTC), 1)
    moment = datetime.now(UTC)
    body = b'{"test": 2432232314}'
    headers = signed_headers(delivery, body, secret_key(SECRET), moment)
    expected = Webhook(SECRET).sign(headers["webhook-id"], moment, body.decode())
    assert headers["webhook-signature"] == expected


def test_a_cancel_by_an_upload_api_sends_an_event(database):
    batch_id = add_batch(database, 1)
    execute(database, "UPDATE upload_batches SET status = 'cancelled' WHERE id = :id", id=batch_id)
    execute(database, "UPDATE upload_batches SET status = 'cancelled' WHERE id = :id", id=batch_id)
    assert [(type_, data["batch_id"]) for type_, data in events(database)] == [
        ("batch.cancelled", str(batch_id))
    ]


def test_an_event_of_a_transaction_that_is_rolled_back_is_never_sent(database):
    batch_id = add_batch(database, 1)
    with database.engine.connect() as connection:
        connection.execute(
            text("UPDATE upload_batches SET status = 'failed' WHERE id = :id"), {"id": batch_id}
        )
        seen = connection.scalar(text("SELECT count(*) FROM notifications"))
        connection.rollback()
    assert seen == 1
    assert events(database) == []


@pytest.mark.parametrize("kind", ["killed_worker", "model_server_crash"])
def test_a_quarantined_upload_sends_an_event_and_an_ordinary_failure_does_not(database, kind):
    batch_id = add_batch(database, 2)
    one = "(SELECT id FROM uploads WHERE batch_id = :id AND processing_status = 'pending' LIMIT 1)"
    update = "UPDATE uploads SET processing_status = 'failed', error_kind = :kind WHERE id = "
    execute(database, update + one, id=batch_id, kind="truncated")
    execute(database, update + one, id=batch_id, kind=kind)
    ((type_, data),) = events(database)
    assert (type_, data["error_kind"]) == ("upload.quarantined", kind)


def test_an_outage_sends_one_event_when_it_begins_and_one_when_it_ends(pipeline, database):
    batch_id = add_batch(database, 2)
    down = ServiceDownError("model_server_down", "cannot be reached")
    for _ in range(2):
        pipeline.states.release_waiting(batch_id, down, resume_after_seconds=0)
    assert [type_ for type_, _ in events(database)] == ["outage.begun"]

    assert end_outages(database, quiet_seconds=0) == 0, "uploads still wait for it"
    one = "(SELECT id FROM uploads ORDER BY id LIMIT 1)"
    execute(
        database,
        "UPDATE uploads SET processing_status = 'completed', updated_at = clock_timestamp()"
        f" WHERE id = {one}",
    )
    assert end_outages(database, quiet_seconds=0) == 0, "a copy of known results asks no model"
    execute(
        database,
        "INSERT INTO model_calls (id, upload_id, kind, model, tokens_in, tokens_out, seconds)"
        f" VALUES (gen_random_uuid(), {one}, 'vision', 'a model', 0, 0, 1)",
    )
    assert end_outages(database) == 0, "it was seen a moment ago"
    assert end_outages(database, quiet_seconds=0) == 1
    assert end_outages(database, quiet_seconds=0) == 0
    assert [type_ for type_, _ in events(database)] == ["outage.begun", "outage.ended"]
    assert events(database)[1][1]["kind"] == "model_server_down"


def test_an_outage_ends_if_the_batch_that_waited_for_it_is_cancelled(pipeline, database):
    batch_id = add_batch(database, 2)
    down = ServiceDownError("model_server_down", "cannot be reached")
    pipeline.states.release_waiting(batch_id, down, resume_after_seconds=0)
    assert end_outages(database, quiet_seconds=0) == 0
    pipeline.batches.cancel_batch(batch_id)
    assert end_outages(database, quiet_seconds=0) == 1


def test_a_receiver_that_was_down_gets_the_event_once_with_the_id_of_the_first_attempt(
    pipeline, database, told, change
):
    port = free_port()
    with webhook_receiver(port) as broken:
        settings = change(
            webhook_urls=broken.url, webhook_secret=SECRET, webhook_allow_private=True
        )
        broken.status = 503
        cancelled_batch(pipeline)
        assert send_due(database, settings) == (0, 1)
        first = broken.received[0].headers
    assert send_due(database, settings) == (0, 0), "it waits before it is tried again"
    make_due(database)
    assert send_due(database, settings) == (0, 1), "nobody listens"
    make_due(database)
    with webhook_receiver(port) as mended:
        assert send_due(database, settings) == (1, 0)
        assert send_due(database, settings) == (0, 0)
        assert [r.headers["webhook-id"] for r in mended.received] == [first["webhook-id"]]
        Webhook(SECRET).verify(mended.received[0].body, dict(mended.received[0].headers))


def test_only_the_status_of_an_answer_counts(pipeline, database, told, receiver):
    receiver.status, receiver.headers = 200, {"content-length": "10"}  # the body never comes
    cancelled_batch(pipeline)
    assert send_due(database, told) == (1, 0)


@pytest.mark.slow
def test_delays_grow_over_a_day_and_then_the_delivery_is_given_up_and_shown(
    pipeline, database, told, receiver, console
):
    receiver.status = 500
    cancelled_batch(pipeline)
    waits = []
    for _ in range(len(outbox.RETRY_SECONDS) + 1):
        assert send_due(database, told) == (0, 1)
        (row,) = outbox.undelivered(database)
        if row.next_attempt_at:
            waits.append((row.next_attempt_at - datetime.now(UTC)).total_seconds())
        make_due(database)
    assert len(receiver.received) == 11
    assert waits == sorted(waits)
    assert 22 * 3600 < sum(waits) < 26 * 3600
    assert send_due(database, told) == (0, 0)
    variables = {
        "BATCH_PIPELINE_WEBHOOK_URLS": receiver.url,
        "BATCH_PIPELINE_WEBHOOK_SECRET": SECRET,
        "BATCH_PIPELINE_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    shown = console("notify", "--list", **variables)
    assert "given up after 11 attempts; HTTP 500" in shown.out
    assert "http://127.0.0.1" in shown.out
    (check,) = [one for one in check_health(told, quick=True) if one.name == "notifications"]
    assert not check.ok
    assert console("notify", "--again", "--json", **variables).json == {"again": 1}
    receiver.status = 200
    assert send_due(database, told) == (1, 0)


def test_given_up_deliveries_to_a_target_that_is_no_longer_set_are_not_a_problem(
    pipeline, told, receiver, change, console
):
    database = pipeline.database
    # Given: a wrong address, at which a delivery was given up
    receiver.status = 410
    cancelled_batch(pipeline)
    assert send_due(database, told) == (0, 1)
    (row,) = outbox.undelivered(database)
    assert row.next_attempt_at is None
    # When: the address is corrected
    right = change(
        webhook_urls=f"{receiver.url}/right", webhook_secret=SECRET, webhook_allow_private=True
    )
    # Then: there is nothing to repair, and nothing is sent to the wrong one
    (check,) = [one for one in check_health(right, quick=True) if one.name == "notifications"]
    assert check.ok, check.detail
    variables = {
        "BATCH_PIPELINE_WEBHOOK_URLS": f"{receiver.url}/right",
        "BATCH_PIPELINE_WEBHOOK_SECRET": SECRET,
    }
    assert console("notify", "--again", "--json", **variables).json == {"again": 0}
    assert "a target that is not set any more" in console("notify", "--list", **variables).out


@pytest.mark.slow
def test_the_message_of_a_sender_killed_in_the_middle_is_sent_by_the_next_with_the_same_id(
    pipeline, database, told, receiver
):
    go_on = threading.Event()
    receiver.before_answer = go_on.wait
    cancelled_batch(pipeline)
    environment = {
        "PATH": "",
        "BATCH_PIPELINE_HOME": str(told.home),
        "BATCH_PIPELINE_DATABASE_URL": told.database_url,
        "BATCH_PIPELINE_WEBHOOK_URLS": receiver.url,
        "BATCH_PIPELINE_WEBHOOK_SECRET": SECRET,
        "BATCH_PIPELINE_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    sender = subprocess.Popen([sys.executable, "-c", SENDER], env=environment)
    try:
        assert receiver.came.wait(DEADLINE)
        assert send_due(database, told) == (0, 0), "a second sender leaves it to the first"
    finally:
        sender.send_signal(signal.SIGKILL)
        sender.wait()
        go_on.set()
    make_due(database)  # as if the lease were over
    assert send_due(database, told) == (1, 0)
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


def test_a_sender_that_was_too_slow_does_not_change_what_another_has_noted(
    pipeline, database, told
):
    cancelled_batch(pipeline)
    targets = [target.id for target in targets_of(told)]
    outbox.address(database, targets)
    (slow,) = outbox.take_due(database, targets)
    make_due(database)
    (quick,) = outbox.take_due(database, targets)
    outbox.note_answer(database, quick, "HTTP 200", delivered=True)
    outbox.note_answer(database, slow, "no answer", delivered=False)
    assert outbox.undelivered(database) == []


def test_many_events_for_one_target_do_not_delay_another(pipeline, database):
    for _ in range(outbox.TAKEN_AT_ONCE):
        cancelled_batch(pipeline)
    outbox.address(database, ["broken"])
    cancelled_batch(pipeline)
    outbox.address(database, ["broken", "other"])
    taken = outbox.take_due(database, ["broken", "other"])
    assert [delivery.target for delivery in taken].count("other") == 1


def test_a_redirect_is_not_followed(pipeline, told, receiver):
    with webhook_receiver() as elsewhere:
        receiver.status, receiver.headers = 307, {"location": elsewhere.url}
        (answer,) = send_test(told)
        assert not answer.delivered
        assert "redirects are not followed" in answer.detail
        assert elsewhere.received == []


def test_a_target_that_answers_gone_is_not_tried_again(pipeline, database, told, receiver):
    receiver.status = 410
    cancelled_batch(pipeline)
    assert send_due(database, told) == (0, 1)
    (row,) = outbox.undelivered(database)
    assert row.next_attempt_at is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_a_private_address_and_a_name_that_leads_to_one_get_nothing(told, receiver, change, host):
    url = f"http://{host}:{receiver.port}/hook"
    settings = change(webhook_urls=url, webhook_secret=SECRET)
    (answer,) = send_test(settings)
    assert not answer.delivered
    assert "BATCH_PIPELINE_WEBHOOK_ALLOW_PRIVATE" in answer.detail
    assert receiver.received == []


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    change, receiver, monkeypatch
):
    """A name with a public address at the first look-up, and with loopback at the second."""
    answers = ["198.41.0.4", "127.0.0.1", "127.0.0.1"]
    connected = []

    def rebinding(host, port, *_, **__):
        if host == "rebinding.example":
            host = answers.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)

    async def refuse(self, sock, address):
        connected.append(address[0])
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", refuse)
    url = f"http://rebinding.example:{receiver.port}/hook"
    (answer,) = send_test(change(webhook_urls=url, webhook_secret=SECRET))
    assert not answer.delivered
    assert connected == ["198.41.0.4"]
    assert receiver.received == []


@pytest.mark.slow
def test_an_address_that_never_answers_leaves_time_for_the_next(change, receiver, monkeypatch):
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, receiver.port))
        for address in ("203.0.113.1", "203.0.113.2", "127.0.0.1")
    ]
    connect = asyncio.SelectorEventLoop.sock_connect

    async def silent(self, sock, address):
        if address[0] != "127.0.0.1":
            await asyncio.sleep(60)
        await connect(self, sock, address)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", silent)
    monkeypatch.setattr("batch_pipeline.services.notifications.webhooks.TIMEOUT_SECONDS", 4.0)
    settings = change(
        webhook_urls=f"http://several.example:{receiver.port}/hook",
        webhook_secret=SECRET,
        webhook_allow_private=True,
    )
    (answer,) = send_test(settings)
    assert answer.delivered, answer.detail


@pytest.mark.slow
def test_a_name_server_that_is_silent_does_not_delay_other_targets(
    pipeline, database, change, receiver, monkeypatch
):
    may_answer, answered = threading.Event(), []
    look_up = socket.getaddrinfo

    def silent(host, *arguments, **names):
        if host.startswith("silent"):
            may_answer.wait(DEADLINE)
            answered.append(host)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return look_up(host, *arguments, **names)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr("batch_pipeline.services.notifications.webhooks.TIMEOUT_SECONDS", 4.0)
    settings = change(
        webhook_urls=f"http://silent1.example/,http://silent2.example/,{receiver.url}",
        webhook_secret=SECRET,
        webhook_allow_private=True,
    )
    for _ in range(outbox.TAKEN_AT_ONCE):
        cancelled_batch(pipeline)
    outbox.address(database, [target.id for target in targets_of(settings)[:2]])
    cancelled_batch(pipeline)

    sent = send_due(database, settings)

    assert answered == []  # nor did the end of the round wait
    may_answer.set()
    assert sent == (1, 2 * outbox.TAKEN_AT_ONCE + 2)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1"),
        *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("64:ff9b:1::7f00:1", "64:ff9b:1::808:808", "::ffff:0:127.0.0.1", "fec0::1"),
        "::127.0.0.1",
    ],
)
def test_an_address_in_a_private_network_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["198.41.0.4", "2001:503:ba3e::2:30", "::ffff:198.41.0.4"])
def test_an_address_on_the_internet_is_public(address):
    assert is_public(address)


def test_no_events_are_stored_without_a_receiver(pipeline, database, settings):
    cancelled_batch(pipeline)
    assert send_due(database, settings) == (0, 0)
    assert events(database) == []


def test_delivered_events_are_deleted_after_a_week_and_given_up_ones_are_kept(
    pipeline, database, told, receiver
):
    cancelled_batch(pipeline, name="arrived")
    assert send_due(database, told) == (1, 0)
    receiver.status = 410
    cancelled_batch(pipeline, name="given up")
    assert send_due(database, told) == (0, 1)
    aged = "UPDATE notifications SET addressed_at = addressed_at - make_interval(days => 8)"
    execute(database, aged)
    assert send_due(database, told) == (0, 0)
    assert [data["name"] for _, data in events(database)] == ["given up"]


def test_secrets_are_in_no_log_line_and_no_answer(pipeline, database, told, receiver, caplog):
    receiver.status = 500
    cancelled_batch(pipeline)
    with caplog.at_level(logging.DEBUG):
        send_due(database, told)
        answers = send_test(told)
    said = caplog.text + json.dumps([answer.detail + answer.target for answer in answers])
    said += str(outbox.undelivered(database))
    assert SECRET not in said
    assert "/hook" not in said
    assert "not delivered to http://127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"webhook_urls": "ftp://a/b"}, "expected https://host/path"),
        ({"webhook_urls": "https://u:p@a/b"}, "without a user name"),
        ({"webhook_urls": "https://bücher.example/b"}, "write them as xn--… in the host"),
        ({"webhook_urls": "https://a/b"}, "WEBHOOK_SECRET: expected whsec_"),
        ({"webhook_urls": "https://a/b", "webhook_secret": "whsec_!"}, "expected whsec_"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(values, said):
    with pytest.raises(ConfigurationError, match=said):
        load_settings(**values)


def test_a_url_of_apprise_may_contain_commas():
    mail, chat = "mailto://a:b@example.org?to=c@example.org,d@example.org", "slack://t/#a,#b"
    settings = load_settings(notify_urls=f" {mail}, {chat},{mail},")
    assert settings.notify_url_list == (mail, chat)


@APPRISE_WARNS
def test_chats_get_a_readable_text_through_apprise(change, receiver):
    url = receiver.url.replace("http://", "json://")
    (answer,) = send_test(change(notify_urls=url))
    assert answer.delivered, answer.detail
    assert json.loads(receiver.received[0].body)["title"] == "notification.test"


@APPRISE_WARNS
def test_names_are_neither_markup_nor_lines_of_their_own_in_chats(
    pipeline, database, change, receiver
):
    cancelled_batch(pipeline, name="<img src=x>\nfailed: 0 \u202e")
    url = receiver.url.replace("http://", "json://") + "?format=html"

    assert send_due(database, change(notify_urls=url)) == (1, 0)

    told = json.loads(receiver.received[0].body)
    assert told["title"] == "batch.cancelled <img src=x> failed: 0 \N{REPLACEMENT CHARACTER}"
    assert "<img" not in told["message"]
    assert "&lt;img src=x&gt; failed: 0" in told["message"].replace("&nbsp;", " ")


@APPRISE_WARNS
def test_a_chat_that_takes_too_long_gets_no_message_twice(
    database, pipeline, change, receiver, monkeypatch
):
    monkeypatch.setattr(sending, "TOLD_WITHIN_SECONDS", 0.5)
    may_answer = threading.Event()
    receiver.before_answer = lambda: may_answer.wait(DEADLINE)
    settings = change(notify_urls=receiver.url.replace("http://", "json://"))
    cancelled_batch(pipeline)

    assert send_due(database, settings) == (0, 1)

    [row] = outbox.undelivered(database)
    assert "not done within 0.5 s" in row.answer
    may_answer.set()
    make_due(database)
    assert send_due(database, settings) == (1, 0)
    assert len(receiver.received) == 1


@APPRISE_WARNS
def test_an_unknown_apprise_url_is_reported(change):
    (answer,) = send_test(change(notify_urls="nosuchservice://somewhere"))
    assert (answer.delivered, answer.detail) == (False, "not a URL that apprise knows")
