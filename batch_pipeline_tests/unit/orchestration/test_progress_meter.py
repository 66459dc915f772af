"""How often ``batch_progress`` is materialized."""

import uuid

from batch_pipeline.orchestration.progress_meter import ProgressMeter
from batch_pipeline.services.progress.publishing import BatchProgress


def reading(processed, total=1000):
    return BatchProgress(uuid.UUID(int=1), uuid.UUID(int=2), "processing", total, processed, 0, 0)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_reading_is_kept_for_each_percent():
    meter = ProgressMeter(Clock())
    kept = [processed for processed in range(1, 1000) if meter.is_due(reading(processed))]
    assert kept == list(range(1, 1000, 10))


def test_a_reading_is_kept_every_second_however_little_was_done():
    clock = Clock()
    meter = ProgressMeter(clock)
    assert meter.is_due(reading(1))
    assert not meter.is_due(reading(2))
    clock.now = 0.99
    assert not meter.is_due(reading(2))
    clock.now = 1.0
    assert meter.is_due(reading(2))


def test_the_last_reading_is_always_kept():
    meter = ProgressMeter(Clock())
    assert meter.is_due(reading(999))
    assert meter.is_due(reading(1000))
    assert meter.is_due(reading(1000))


def test_a_batch_without_uploads_is_not_an_error():
    assert ProgressMeter(Clock()).is_due(reading(0, total=0))
