"""The database's reply to the last commit of an upload is lost, in the real job."""

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
