"""The heartbeat of a run: it renews wanted claims, and reports unwanted ones."""

import pytest
from sqlalchemy import delete, func, text, update

from batch_pipeline.database.models import Upload
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.testing.records import add_batch, upload_row, upload_rows
from batch_pipeline_tests.patience import wait_until

RUN, OTHER = "run-1", "run-2"


@pytest.fixture
def batch_id(pipeline):
    return add_batch(pipeline.database, 2)


@pytest.fixture
def claims(pipeline, batch_id):
    uploads = upload_rows(pipeline.database, batch_id)
    return [pipeline.states.start(upload.id, RUN).claim for upload in uploads]


def silent(pipeline):
    """Set the last heartbeat of the run to a day ago."""
    a_day_ago = func.now() - text("interval '1 day'")
    with pipeline.database.transaction() as connection:
        connection.execute(update(Upload).values(heartbeat_at=a_day_ago))


def cancelled(pipeline, claim):
    pipeline.batches.cancel_batch(upload_row(pipeline.database, claim.upload_id).batch_id)


def taken_over(pipeline, claim):
    pipeline.backlog.rescue([RUN])
    pipeline.states.start(claim.upload_id, OTHER)


def deleted(pipeline, claim):
    with pipeline.database.transaction() as connection:
        connection.execute(delete(Upload).where(Upload.id == claim.upload_id))


@pytest.mark.parametrize("what_happens", [cancelled, taken_over, deleted])
def test_work_that_is_no_longer_wanted_is_reported_to_its_owner(pipeline, claims, what_happens):
    claim, _ = claims
    with (
        ClaimKeeper(pipeline.states, RUN, lease_seconds=120) as keeper,
        keeper.hold(claim) as held,
    ):
        assert not held.lost()
        what_happens(pipeline, claim)
        wait_until(held.lost, "it is told")


def test_no_error_of_the_database_ends_the_heartbeats(pipeline, claims, database, caplog):
    held, _ = claims
    with ClaimKeeper(pipeline.states, RUN, lease_seconds=120) as keeper, keeper.hold(held) as mine:
        with database.transaction() as connection:
            connection.execute(text("ALTER TABLE uploads RENAME COLUMN owner_run_id TO away"))
        wait_until(lambda: "heartbeat failed" in caplog.text, "it has met the error")
        with database.transaction() as connection:
            connection.execute(text("ALTER TABLE uploads RENAME COLUMN away TO owner_run_id"))
        cancelled(pipeline, held)
        wait_until(mine.lost, "it looks again")


def test_a_claim_is_kept_alive_while_it_is_held_and_no_longer(pipeline, claims):
    held, forgotten = claims
    silent(pipeline)
    with ClaimKeeper(pipeline.states, RUN, lease_seconds=120) as keeper, keeper.hold(held):
        wait_until(lambda: pipeline.states.holds(RUN), "its heartbeat is renewed")
        assert set(pipeline.states.holds(RUN)) == {held.upload_id}
    assert pipeline.backlog.rescue().returned == 1
    assert upload_row(pipeline.database, forgotten.upload_id).owner_run_id is None
