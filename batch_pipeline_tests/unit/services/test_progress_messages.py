"""The content of progress messages; other tests show on a real database that they arrive."""

import json
import uuid

import pytest

from batch_pipeline.services.progress.publishing import BatchProgress, FileProgress
from batch_pipeline.testing.media import HOSTILE_FILENAMES

BATCH, UPLOAD, USER = uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=3)


def test_a_batch_message_has_the_agreed_shape():
    assert BatchProgress(BATCH, USER, "processing", 3, 2, 1, 1).payload() == {
        "batch_id": str(BATCH),
        "status": "processing",
        "total": 3,
        "processed": 2,
        "successful": 1,
        "failed": 1,
        "progress_percentage": 66.7,
        "name": None,
    }


def test_a_file_message_has_the_agreed_shape():
    assert FileProgress(BATCH, UPLOAD, "sea.jpg", 1000, 75, "processing").payload() == {
        "batch_id": str(BATCH),
        "upload_id": str(UPLOAD),
        "file_name": "sea.jpg",
        "file_size": 1000,
        "progress_percentage": 75,
        "status": "processing",
    }


@pytest.mark.parametrize(
    ("total", "processed", "percentage"),
    [(0, 0, 0.0), (3, 0, 0.0), (3, 3, 100.0), (1000, 999, 99.9)],
)
def test_a_percentage_is_the_share_that_has_ended(total, processed, percentage):
    progress = BatchProgress(BATCH, USER, "processing", total, processed, processed, 0)
    assert progress.progress_percentage == percentage


@pytest.mark.parametrize("name", [*HOSTILE_FILENAMES, "\N{PILE OF POO}" * 5000])
def test_any_file_name_fits_into_a_message(name):
    payload = FileProgress(BATCH, UPLOAD, name, 1, 0, "processing").payload()
    assert len(json.dumps(payload)) < 7000  # the envelope is small; PostgreSQL takes 7999 bytes
