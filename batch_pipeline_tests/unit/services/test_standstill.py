"""How long a batch stands still: outages count, slow models do not."""

import uuid

from batch_pipeline.services.progress.batch_watch import BatchSnapshot, Standstill, UploadSnapshot
from batch_pipeline.services.progress.publishing import BatchProgress

PROGRESS = BatchProgress(uuid.UUID(int=1), uuid.UUID(int=2), "processing", 3, 0, 0, 0, "Rome")
IDLE = BatchSnapshot(PROGRESS, [], [])


def upload(status):
    return UploadSnapshot(uuid.uuid4(), "sea.jpg", status, None, None, None)


def measured(*steps):
    """Return the standstill after each step: how much time has passed, and the snapshot then."""
    now = 0.0
    standstill = Standstill(lambda: now)
    found = []
    for seconds, snapshot in steps:
        now += seconds
        found.append(standstill.seconds(snapshot))
    return found


def test_an_attempt_that_an_outage_ends_does_not_end_the_standstill():
    attempt = BatchSnapshot(PROGRESS, [upload("analyzing")], [])
    assert measured((5, IDLE), (1, attempt), (5, IDLE), (1, attempt), (5, IDLE)) == [
        5, 5, 10, 10, 15,
    ]  # fmt: skip


def test_a_long_call_to_a_slow_model_is_no_standstill():
    call = BatchSnapshot(PROGRESS, [upload("analyzing")], [])
    assert measured((1, call), (3600, call), (1, IDLE)) == [0, 0, 1]


def test_an_upload_that_ends_ends_the_standstill():
    ended = BatchSnapshot(PROGRESS, [], [upload("completed")])
    assert measured((5, IDLE), (1, ended), (2, IDLE)) == [5, 0, 2]
