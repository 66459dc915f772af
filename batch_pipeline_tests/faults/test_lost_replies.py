"""The connection to the database is lost during the real job."""

import pytest

from batch_pipeline.orchestration.assets import upload_analysis

from .conftest import PICTURES


@pytest.mark.parametrize("pictures", [1, 3], ids=["the_last_of_its_batch", "among_others"])
def test_14_a_step_whose_last_commit_gets_no_reply_ends_well_and_pays_once(
    work,
    proxy,
    model_server,
    pictures,
):
    through, lossy = proxy
    work = work(database_url=through, max_concurrent_uploads=1)
    batch_id = work.submit(*PICTURES[:pictures])
    if pictures == 1:  # BEGIN, this statement, COMMIT
        lossy.lose_the_reply_to(b"COMMIT\x00", after=b"WITH ended AS")
    else:  # a statement that is a separate transaction
        lossy.lose_the_reply_to(b"WITH held AS")

    result = work.run(batch_id)

    assert lossy.dropped.is_set()
    assert result.success
    shown = [
        entry.dagster_event.asset_key
        for entry in work.instance.all_logs(result.run_id)
        if entry.dagster_event and entry.dagster_event.is_step_materialization
    ]
    assert shown.count(upload_analysis.key) == pictures
    assert len(model_server.calls_of("vision")) == pictures
    assert len(model_server.calls_of("embedding")) == pictures
    assert work.counts(batch_id) == ("completed", pictures, 0)
    for row in work.uploads(batch_id):
        assert row.description
        assert row.embedding_local is not None
        assert (row.owner_run_id, row.attempts, row.error_kind) == (None, 1, None)


def test_a_run_that_cannot_reserve_because_the_database_is_down_says_so_without_a_traceback(
    work, proxy
):
    through, line = proxy
    work = work(database_url=through)
    work.submit("fog.webp")
    tick = work.tick()
    line.cut()

    [result] = work.run_what_is_asked_for(tick)

    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    said = failure.user_failure_data
    assert said.description.startswith("database_down: the database does not answer: ")
    assert said.metadata["next"].value.startswith("nothing is lost")
    assert failure.error.cause is None
