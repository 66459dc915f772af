"""Rows F5 and F6 of the list of faults: a refused picture, and a service with a rate limit."""

import io
import itertools
import time
from email.utils import formatdate

import pytest
from PIL import Image

from batch_pipeline.testing.model_server import Fault, RateLimit

from .conftest import both_dialects, failures
from .test_model_server_faults import assert_nothing_burned

#: By the green of its picture: how the service refuses it, and the kind that is stored.
REFUSALS = {
    60: (403, "Your input was flagged by the content policy", "model_refused_input"),
    100: (403, "Forbidden", "model_refused_call"),
    140: (400, "this kind of image is not supported", "model_refused_input"),
    180: (404, "no route", "model_refused_call"),
    220: (401, "unauthorized", "model_refused_call"),
}


def refuse_green(call):
    if not call.images:
        return None
    with Image.open(io.BytesIO(call.images[0])) as picture:
        green = picture.convert("RGB").resize((1, 1)).getpixel((0, 0))[1]
    found = next((REFUSALS[known] for known in REFUSALS if abs(known - green) < 10), None)
    return found and found[:2]


@both_dialects
def test_row_f5_refused_pictures_stop_none_of_their_60_siblings(work, model_server, pictures):
    work = work(max_concurrent_uploads=4)
    refused = [path for green in REFUSALS for path in pictures(1, green)]
    siblings = pictures(60)
    batch_id = work.submit(*siblings[:20], *refused, *siblings[20:])
    model_server.refuse = refuse_green

    result = work.run(batch_id)

    assert work.counts(batch_id) == ("completed", 60, len(REFUSALS))
    failed = [row for row in work.uploads(batch_id) if row.processing_status == "failed"]
    assert {row.filename for row in failed} == {path.name for path in refused}
    for row in failed:
        _, reason, kind = REFUSALS[int(row.filename.split("_")[1])]
        assert row.error_kind == kind
        assert reason in row.error_message
        # A refusal that names the picture is believed at once; other refusals are retried.
        assert row.attempts == (1 if kind == "model_refused_input" else 2)
    assert all(row.attempts == 1 for row in work.uploads(batch_id) if row not in failed)
    assert not [said for said in failures(result) if "stopped" in said]


@pytest.mark.parametrize(("tells", "uploads"), [(True, 200), (False, 130)])
def test_row_f6_at_60_calls_a_window_a_batch_completes_and_hardly_a_call_is_refused(
    work, model_server, pictures, tells, uploads
):
    """The pace is learnt from what the service tells about its limit, or from its refusals."""
    work = work(max_concurrent_uploads=8, embedder="embedded")
    batch_id = work.submit(*pictures(uploads))
    model_server.rate_limit = RateLimit(60, 2.0, tells=tells)

    result = work.run(batch_id)

    assert result.success
    assert work.counts(batch_id) == ("completed", uploads, 0)
    assert set(work.column(batch_id, "attempts")) == {1}
    in_flight_at_the_first_refusal = work.pipeline.settings.max_vision_calls
    assert model_server.turned_away <= (1 if tells else in_flight_at_the_first_refusal)


def in_three_seconds():
    return formatdate(int(time.time()) + 3, usegmt=True)  # whole seconds: in two, at least


@pytest.mark.parametrize(("how", "fault"), [("seconds", Fault.BUSY_429), ("date", Fault.BUSY_503)])
def test_row_f6_a_pause_that_a_service_asks_for_is_kept_by_all_and_shown(
    work, model_server, pictures, fault, how
):
    work = work(max_concurrent_uploads=4, max_vision_calls=1)
    batch_id = work.submit(*pictures(4))
    model_server.retry_after = "2" if how == "seconds" else in_three_seconds
    model_server.play("vision", [fault])

    result = work.run(batch_id)

    assert result.success
    assert set(work.column(batch_id, "attempts")) == {1}
    first, second, *_ = [call.started_at for call in model_server.calls_of("vision")]
    assert second - first >= 1.9
    said = [record.user_message for record in work.instance.all_logs(result.run_id)]
    assert len([line for line in said if "wait for" in line and "answered" in line]) == 1


def test_row_f6_a_long_pause_releases_the_uploads_until_it_is_over(work, model_server, pictures):
    work = work()
    batch_id = work.submit(*pictures(3))
    model_server.retry_after = "600"
    model_server.play("vision", itertools.repeat(Fault.BUSY_429))

    result = work.run(batch_id)

    assert sorted(failures(result))[0].startswith("model_rate_limited: ")
    assert_nothing_burned(work, batch_id)
    assert 500 < min(work.rest(batch_id)) <= 600
    assert work.tick().run_requests == []


@both_dialects
def test_row_f6_a_quota_that_is_used_up_stops_the_run_and_names_the_bill(
    work, model_server, pictures
):
    work = work()
    batch_id = work.submit(*pictures(3))
    model_server.refuse = lambda _: (429, "insufficient_quota: you exceeded your current quota")

    result = work.run(batch_id)

    assert "the billing of the service" in sorted(failures(result))[0]
    assert_nothing_burned(work, batch_id)
    assert set(work.column(batch_id, "error_kind")) == {"model_quota_used_up"}
