"""A step shows the picture of its upload, even if an earlier attempt has made it."""

import base64
import io
import re

from PIL import Image

from batch_pipeline.testing.model_server import Fault


def assert_shows_a_picture_at_once(value):
    data = re.fullmatch(r"!\[thumbnail\]\(data:image/webp;base64,(.+)\)", value.value).group(1)
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert max(picture.size) >= 64
    assert len(value.value) < 1000, "an asset's page would hide it behind a click"


def test_the_last_failure_of_an_upload_shows_the_picture_of_its_first_attempt(runner, model_server):
    model_server.play("vision", [Fault.LOOP, Fault.CONTROL_TOKENS])
    result = runner.run(runner.submit("fog.webp"))
    [event] = [event for event in result.all_events if event.is_step_failure]
    shown = event.step_failure_data.user_failure_data.metadata
    assert [shown[name].value for name in ("file", "kind", "attempt")] == [
        "fog.webp", "model_output_invalid", 2,
    ]  # fmt: skip
    assert shown["reason"].value.endswith(
        " scores 0 of 100, 60 are needed: The control token <| occurs 3 times. The control token "
        "|> occurs 3 times."
    )
    order = list(shown)
    assert order.index("preview") < order.index("reason"), "what is long would push it out of sight"
    assert_shows_a_picture_at_once(shown["preview"])


def test_an_upload_that_succeeds_at_last_shows_the_picture_of_its_first_attempt(
    runner, model_server
):
    model_server.play("vision", [Fault.LOOP, None])
    result = runner.run(runner.submit("fog.webp"))
    [event] = [
        event.materialization
        for event in result.all_events
        if event.is_step_materialization and event.asset_key.path == ["upload_analysis"]
    ]
    assert event.metadata["attempt"].value == 2
    assert_shows_a_picture_at_once(event.metadata["preview"])


def test_a_thumbnail_that_was_damaged_meanwhile_fails_nothing(runner, model_server):
    batch_id = runner.submit("fog.webp")
    model_server.play("vision", [Fault.LOOP, Fault.LOOP])
    runner.run(batch_id)
    [thumbnail] = runner.pipeline.settings.home.rglob("thumb_256.jpg")
    thumbnail.write_bytes(b"no picture")
    runner.pipeline.batches.retry_batch(batch_id)
    assert runner.run(batch_id).success
