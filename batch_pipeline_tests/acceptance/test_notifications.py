"""A batch with a bad file ends in a real Dagster; a receiver is notified automatically."""

import json
import shutil

import pytest
from standardwebhooks.webhooks import Webhook

from batch_pipeline.testing.webhook_receiver import webhook_receiver
from batch_pipeline_tests.patience import wait_until

from .conftest import MEDIA, real_stack

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.slow
def test_the_webhook_of_a_batch_with_one_bad_file_arrives_with_its_counts(tmp_path):
    folder = tmp_path / "wedding"
    folder.mkdir()
    shutil.copy(MEDIA / "sea.jpg", folder)
    whole = (MEDIA / "city.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    home = tmp_path / "home"
    home.mkdir()
    with (
        webhook_receiver() as receiver,
        real_stack(
            home,
            WEBHOOK_URLS=receiver.url,
            WEBHOOK_SECRET=SECRET,
            WEBHOOK_ALLOW_PRIVATE="true",
        ) as stack,
    ):
        done = stack.cli("submit", folder, "--wait", expect=None)
        wait_until(lambda: receiver.received, "the webhook arrives")
    request = receiver.received[0]
    Webhook(SECRET).verify(request.body, dict(request.headers))
    said = json.loads(request.body)
    assert said["type"] == "batch.completed"
    assert said["data"]["batch_id"] == done["batch_id"]
    assert said["data"]["name"] == "wedding"
    counts = [said["data"][name] for name in ("total", "successful", "failed")]
    expected = done["status"]
    assert counts == [
        expected["total_uploads"],
        expected["successful_uploads"],
        expected["failed_uploads"],
    ]
    assert counts[0] == 2
