"""What wakes the sensor: every write by any client that makes an upload ready for processing."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import make_url, text

from batch_pipeline.database.session import Database
from batch_pipeline.services.dispatch.signals import work_signals
from batch_pipeline.testing.records import USER, add_batch, upload_rows
from batch_pipeline_tests.integration.services.test_upload_states import (
    RUN,
    complete,
    expire,
    started,
)
from batch_pipeline_tests.patience import DEADLINE


@pytest.fixture
def heard(pipeline):
    """Returns whether work was signalled since the last call."""
    with work_signals(pipeline.database) as wait:

        def since() -> bool:
            # Notifications arrive in order of commits, so our own comes after all others.
            return wait(0.2)

        yield since


def test_uploads_of_other_clients_are_signalled(pipeline, heard):
    batch_id = add_batch(pipeline.database)
    assert not heard()
    with pipeline.database.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size)"
                " VALUES (:user, :batch, 'a.jpg', 'a.jpg', 'image', 1)"
            ),
            {"user": USER, "batch": batch_id},
        )
    assert heard()


def test_processing_a_batch_signals_its_beginning_and_nothing_more(pipeline, heard):
    batch_id = add_batch(pipeline.database, 2)
    assert heard()
    first, second = upload_rows(pipeline.database, batch_id)
    claims = [started(pipeline, upload.id).claim for upload in (first, second)]
    heard()  # the batch has begun: its other slices may
    for claim in claims:
        pipeline.states.store_thumbnail(claim, "thumb.jpg", {})
        complete(pipeline, claim)
    assert not heard()


def release(pipeline, _, upload_id):
    pipeline.states.release(started(pipeline, upload_id).claim)


def rescue(pipeline, _, upload_id):
    started(pipeline, upload_id)
    expire(pipeline, upload_id)
    pipeline.backlog.rescue()


def reserve_and_die(pipeline, batch_id, _):
    pipeline.states.load_batch(batch_id, RUN, limit=1)
    pipeline.backlog.rescue([RUN])


def reset_by_somebody(pipeline, _, upload_id):
    complete(pipeline, started(pipeline, upload_id).claim)
    with pipeline.database.transaction() as connection:
        connection.execute(
            text("UPDATE uploads SET processing_status = 'pending' WHERE id = :id"),
            {"id": upload_id},
        )


def cancel_and_retry(pipeline, batch_id, _):
    pipeline.batches.cancel_batch(batch_id)
    pipeline.batches.retry_batch(batch_id)


@pytest.mark.parametrize(
    "way", [release, rescue, reserve_and_die, reset_by_somebody, cancel_and_retry]
)
def test_each_way_in_which_an_upload_becomes_pending_again_is_signalled(pipeline, heard, way):
    batch_id = add_batch(pipeline.database, 2)
    other, upload = upload_rows(pipeline.database, batch_id)
    started(pipeline, other.id, "another run")  # the batch has begun
    while heard():
        pass
    way(pipeline, batch_id, upload.id)
    assert heard()


def test_the_wait_ends_by_time_without_a_listener(database_url):
    nowhere = make_url(database_url).set(
        drivername="postgresql+psycopg", host="127.0.0.1", port=1, query={}
    )
    database = Database(nowhere)
    begin = datetime.now(UTC)
    with work_signals(database) as wait:
        assert not wait(0.05)
    assert (datetime.now(UTC) - begin).total_seconds() < DEADLINE
    database.close()
