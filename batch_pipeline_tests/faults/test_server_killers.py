"""A picture that crashes the model server, and a server that crashes for other reasons."""

import io
import itertools

import pytest
from PIL import Image

from batch_pipeline.model_servers.http_calls import _CONNECTION_TRIES
from batch_pipeline.services.outages import MAX_SERVER_DEATHS
from batch_pipeline.testing.model_server import Fault
from batch_pipeline_tests.patience import DEADLINE, wait_until

from .test_model_server_faults import assert_nothing_burned, meanwhile

GREEN = 200


def is_green(call):
    if not call.images:
        return False
    with Image.open(io.BytesIO(call.images[0])) as picture:
        return abs(picture.convert("RGB").resize((1, 1)).getpixel((0, 0))[1] - GREEN) < 10


def work_to_the_end(work, batch_id, model_server, *, rounds):
    """Tick and run like the daemon; wait for the server, and skip the pause of uploads."""
    for _ in range(rounds):
        assert model_server.is_up.wait(DEADLINE)
        work.end_the_pause()
        for request in work.tick().run_requests:
            assert model_server.is_up.wait(DEADLINE)
            work.run_request(request)
        if work.counts(batch_id)[0] == "completed":
            return
    raise AssertionError(f"still {work.counts(batch_id)} after {rounds} rounds")


@pytest.mark.parametrize(
    ("dialect", "away_seconds"), [("ollama", 0.05), ("openai", 3.0)], indirect=["dialect"]
)
def test_a_picture_that_crashes_the_server_fails_alone_and_its_24_siblings_complete(
    work,
    model_server,
    pictures,
    away_seconds,
):
    work = work(max_concurrent_uploads=4, uploads_per_run=10, embedder="embedded")
    siblings = pictures(24)
    [killer] = pictures(1, GREEN)
    batch_id = work.submit(*siblings[:12], killer, *siblings[12:])
    model_server.kills = is_green
    model_server.away_seconds = away_seconds
    model_server.latency_seconds = 0.05

    work_to_the_end(work, batch_id, model_server, rounds=20)

    assert work.counts(batch_id) == ("completed", 24, 1)
    [failed] = [row for row in work.uploads(batch_id) if row.processing_status == "failed"]
    assert failed.filename == killer.name
    calls = MAX_SERVER_DEATHS
    if away_seconds < 1:  # it is a matter of chance whether we notice that the server was down
        calls += work.pipeline.settings.max_attempts - 1  # as an error of the call
        assert failed.error_kind in {"model_server_crash", "model_server_error"}
    else:
        assert failed.error_kind == "model_server_crash"
        assert "in the middle of this call" in failed.error_message
        assert failed.server_deaths == MAX_SERVER_DEATHS - 1
    assert failed.retry_at is not None
    assert model_server.deaths <= _CONNECTION_TRIES * calls
    assert {row.server_deaths for row in work.uploads(batch_id) if row != failed} == {0}


def test_an_upload_that_crashed_the_server_is_tried_once_when_the_sweep_retries_it(
    work,
    model_server,
    pictures,
):
    work = work()
    [killer] = pictures(1, GREEN)
    batch_id = work.submit(killer)
    model_server.kills = is_green
    work_to_the_end(work, batch_id, model_server, rounds=MAX_SERVER_DEATHS)
    known = len(model_server.calls_of("vision"))

    work.make_retries_due()
    assert work.pipeline.backlog.retry_due() == 1
    work_to_the_end(work, batch_id, model_server, rounds=1)

    assert len(model_server.calls_of("vision")) == known + 2  # a known picture, and this one
    work.pipeline.batches.retry_batch(batch_id)
    assert work.column(batch_id, "server_deaths") == [0]


def test_a_real_outage_of_many_rounds_fails_no_upload(work, model_server, pictures):
    work = work(max_concurrent_uploads=4, embedder="embedded")
    batch_id = work.submit(*pictures(6))

    for _ in range(MAX_SERVER_DEATHS + 1):
        before = len(model_server.calls_of("vision"))
        model_server.play("vision", itertools.repeat(Fault.HANG))

        def stop_with_calls_in_flight(before=before):
            wait_until(lambda: len(model_server.calls_of("vision")) > before, "a call")
            model_server.stop()

        with meanwhile(stop_with_calls_in_flight):
            work.run(batch_id)
        for _ in range(2):  # runs during the outage
            work.end_the_pause()
            work.run(batch_id)
        assert_nothing_burned(work, batch_id)
        model_server.start()
        work.end_the_pause()

    model_server.play("vision", [])
    work_to_the_end(work, batch_id, model_server, rounds=10)
    assert work.counts(batch_id) == ("completed", 6, 0)


def test_a_server_that_crashes_on_every_picture_is_an_outage(work, model_server, pictures):
    work = work(max_concurrent_uploads=2)
    batch_id = work.submit(*pictures(3))
    model_server.kills = lambda call: bool(call.images)

    for _ in range(MAX_SERVER_DEATHS + 1):
        assert model_server.is_up.wait(DEADLINE)
        work.end_the_pause()
        work.run(batch_id)

    assert_nothing_burned(work, batch_id)
    assert max(work.column(batch_id, "server_deaths")) == 1


@pytest.mark.parametrize(
    ("dialect", "status"), [("ollama", 502), ("openai", 503)], indirect=["dialect"]
)
def test_a_proxy_whose_server_goes_away_in_mid_batch_is_an_outage(
    work, model_server, pictures, status
):
    work = work(max_concurrent_uploads=4, embedder="embedded")
    batch_id = work.submit(*pictures(6))

    def server_goes_away(_):
        model_server.unserved = (status, "no upstream")

    model_server.refuse = server_goes_away
    work.run(batch_id)

    rows = work.uploads(batch_id)
    assert {row.processing_status for row in rows} <= {"pending", "completed"}
    waiting = [row for row in rows if row.processing_status == "pending"]
    assert waiting
    assert {(row.attempts, row.error_kind) for row in waiting} == {(0, "model_server_down")}
    assert all("no upstream" in row.error_message for row in waiting)
    model_server.unserved = None
    model_server.refuse = lambda _: None
    work_to_the_end(work, batch_id, model_server, rounds=10)
    assert work.counts(batch_id) == ("completed", 6, 0)
