"""Only the state machine: claims, fencing, counters. Rules of the loop: test_loop_rules.py."""

import random
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, func, text, update

from batch_pipeline.database.models import PauseScope, Stage, Upload, UploadBatch
from batch_pipeline.database.session import connect
from batch_pipeline.errors import (
    ClaimLostError,
    PermanentError,
    ServiceDownError,
    TransientError,
)
from batch_pipeline.services.pauses import pause
from batch_pipeline.services.states.backlog import MAX_DIED_RUNS
from batch_pipeline.services.states.upload_states import Claim, SkippedUpload, StartedUpload
from batch_pipeline.testing.records import add_batch, batch_row, embedded, upload_row, upload_rows
from batch_pipeline_tests.patience import DEADLINE, wait_until

RUN, OTHER = "run-1", "run-2"


def started(pipeline, upload_id, run_id=RUN) -> StartedUpload:
    result = pipeline.states.start(upload_id, run_id)
    assert isinstance(result, StartedUpload)
    return result


def complete(pipeline, claim):
    return pipeline.states.complete(claim, embedded=embedded(pipeline.database), seconds={})


def expire(pipeline, upload_id):
    with pipeline.database.transaction() as connection:
        connection.execute(
            update(Upload)
            .where(Upload.id == upload_id)
            .values(heartbeat_at=func.now() - text("interval '1 day'"))
        )


def assert_counters_equal_a_recount(pipeline, batch_id):
    batch = batch_row(pipeline.database, batch_id)
    states = Counter(row.processing_status for row in upload_rows(pipeline.database, batch_id))
    assert batch.successful_uploads == states["completed"]
    assert batch.failed_uploads == states["failed"]
    assert batch.processed_uploads == batch.successful_uploads + batch.failed_uploads
    ended = batch.processed_uploads == batch.total_uploads
    # A batch without uploads is still being filled, or was abandoned.
    is_empty = batch.status in {"pending", "failed"} and batch.total_uploads == 0
    if batch.status != "cancelled" and not is_empty:
        assert (batch.status == "completed") == ended
        assert (batch.completed_at is not None) == ended


def test_eight_claimers_of_a_thousand_uploads_take_each_once(pipeline, change, open_pipeline):
    batch_id = add_batch(pipeline.database, 1000)
    wide = open_pipeline(change(max_concurrent_uploads=8))

    def take(run_id):
        taken = []
        while loaded := wide.states.load_batch(batch_id, run_id, limit=37).reserved:
            taken += [row.id for row in loaded]
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [id_ for ids in pool.map(take, map(str, range(8))) for id_ in ids]
    assert len(taken) == len(set(taken)) == 1000


def test_a_worker_that_slept_past_its_lease_writes_nothing(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    stale = started(pipeline, upload.id).claim
    expire(pipeline, upload.id)
    fresh = started(pipeline, upload.id, OTHER).claim

    with pytest.raises(ClaimLostError):
        complete(pipeline, stale)
    complete(pipeline, fresh)
    with pytest.raises(ClaimLostError):
        pipeline.states.fail(stale, PermanentError("late", "too late"))
    assert upload_row(pipeline.database, upload.id).processing_status == "completed"
    assert_counters_equal_a_recount(pipeline, batch_id)


#: Operations of the holder of a claim.
WRITES = {
    "store_thumbnail": lambda states, claim: states.store_thumbnail(claim, "thumb_256.jpg", {}),
    "complete": lambda states, claim: states.complete(claim, seconds={}),
    "fail": lambda states, claim: states.fail(claim, PermanentError("late", "too late")),
    "note_error": lambda states, claim: states.note_error(claim, TransientError("late", "late")),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("taken_by", ["start", "load_batch"])
def test_two_workers_of_one_run_have_different_tokens(pipeline, taken_by, write):
    """A resumed run has the same id as the worker that slept past its lease."""
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    stale = started(pipeline, upload.id).claim
    expire(pipeline, upload.id)
    pipeline.backlog.rescue()
    if taken_by == "start":
        started(pipeline, upload.id)
    else:
        pipeline.states.load_batch(batch_id, RUN, limit=1)
    taken = upload_row(pipeline.database, upload.id)

    with pytest.raises(ClaimLostError):
        WRITES[write](pipeline.states, stale)
    pipeline.states.release(stale)
    assert upload_row(pipeline.database, upload.id) == taken
    assert pipeline.states.wanted([stale]) == set()


def test_an_upload_held_by_a_live_run_is_not_taken(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    started(pipeline, upload.id)
    skipped = pipeline.states.start(upload.id, OTHER)
    assert isinstance(skipped, SkippedUpload)
    assert skipped.reason == "run run-1 is processing it"


def test_rescue_returns_uploads_of_ended_runs_and_of_expired_leases_alone(pipeline):
    batch_id = add_batch(pipeline.database, 4)
    alive, ended, expired, _ = upload_rows(pipeline.database, batch_id)
    started(pipeline, alive.id, "alive")
    started(pipeline, ended.id, "ended")
    started(pipeline, expired.id, "silent")
    expire(pipeline, expired.id)

    assert pipeline.backlog.rescue(["ended"]).returned == 2
    assert pipeline.backlog.rescue(["ended"]).returned == 0
    rows = upload_rows(pipeline.database, batch_id)
    assert [row.processing_status for row in rows] == ["analyzing", *["pending"] * 3]
    assert [row.dispatch_reason for row in rows] == ["new", "rescue", "rescue", "new"]


def test_rescue_returns_uploads_in_progress_of_a_worker_without_claims(pipeline):
    batch_id = add_batch(pipeline.database, [{"processing_status": "analyzing"}] * 2)
    fresh, _ = upload_rows(pipeline.database, batch_id)
    with pipeline.database.transaction() as connection:
        connection.execute(
            update(Upload)
            .where(Upload.id != fresh.id)
            .values(updated_at=func.now() - text("interval '1 day'"))
        )
    assert pipeline.backlog.rescue().returned == 1
    assert upload_row(pipeline.database, fresh.id).processing_status == "analyzing"


def test_heartbeats_keep_reservations_and_held_claims_alive_but_not_lost_ones(pipeline):
    batch_id = add_batch(pipeline.database, 3)
    reserved, held, forgotten = upload_rows(pipeline.database, batch_id)
    pipeline.states.load_batch(batch_id, RUN, limit=10)
    claim = started(pipeline, held.id).claim
    started(pipeline, forgotten.id)
    for upload in (reserved, held, forgotten):
        expire(pipeline, upload.id)
    pipeline.states.heartbeat(RUN, [claim])
    assert pipeline.backlog.rescue().returned == 1
    assert upload_row(pipeline.database, forgotten.id).owner_run_id is None


def test_a_released_attempt_does_not_count(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    pipeline.states.release(started(pipeline, upload.id).claim, resume_after_seconds=60)
    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.attempts, row.owner_run_id) == ("pending", 0, None)
    assert row.not_before > row.updated_at


@pytest.mark.parametrize(
    ("chosen", "released"), [({}, {0, 1, 2}), ({"slice_number": 1}, {0, 1}), ("second", {1})]
)
def test_a_run_that_meets_an_outage_delays_what_was_meant_for_it(pipeline, chosen, released):
    batch_id = add_batch(pipeline.database, [{"slice": 1}, {"slice": 1}, {"slice": 2}])
    other = add_batch(pipeline.database, [{"slice": 1}])
    before = upload_rows(pipeline.database, batch_id)
    if chosen == "second":
        chosen = {"slice_number": 1, "upload_ids": [before[1].id]}
    reason = ServiceDownError("model_server_down", "it does not answer")
    with pipeline.database.engine.begin() as connection:  # a change of another program
        connection.execute(
            text("SELECT FROM uploads WHERE batch_id = :id FOR UPDATE"), {"id": other}
        )
        number = pipeline.states.release_waiting(
            batch_id, reason, resume_after_seconds=60, **chosen
        )
    assert number == len(released)
    for index, row in enumerate(upload_rows(pipeline.database, batch_id)):
        if index in released:
            assert (row.slice, row.error_kind) == (None, "model_server_down")
            assert (row.not_before - row.updated_at).total_seconds() == 60
        else:
            assert (row.slice, row.not_before) == (before[index].slice, None)
    assert upload_rows(pipeline.database, other)[0].slice == 1


def test_a_delay_does_not_wait_for_an_upload_that_somebody_else_changes(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    [first, _] = upload_rows(pipeline.database, batch_id)
    reason = ServiceDownError("model_server_down", "it does not answer")
    with pipeline.database.engine.begin() as connection:
        connection.execute(text("SELECT FROM uploads WHERE id = :id FOR UPDATE"), {"id": first.id})
        assert pipeline.states.release_waiting(batch_id, reason, resume_after_seconds=60) == 1


def test_a_completion_whose_reply_was_lost_is_repeated_and_counts_once(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    upload, _ = upload_rows(pipeline.database, batch_id)
    claim = started(pipeline, upload.id).claim
    first = complete(pipeline, claim)
    assert complete(pipeline, claim) == first
    assert batch_row(pipeline.database, batch_id).successful_uploads == 1
    for other in (Claim(upload.id, RUN, claim.token + 1), Claim(uuid.uuid4(), RUN, claim.token)):
        with pytest.raises(ClaimLostError, match=f"upload {other.upload_id} is no longer held"):
            complete(pipeline, other)


def test_a_repeated_completion_of_an_upload_that_is_pending_again_is_refused(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    claim = started(pipeline, upload.id).claim
    complete(pipeline, claim)
    with pipeline.database.transaction() as connection:
        connection.execute(update(Upload).values(processing_status="pending"))
    with pytest.raises(ClaimLostError):
        complete(pipeline, claim)


def test_a_repeated_completion_of_an_upload_without_a_batch_reports_no_batch(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    claim = started(pipeline, upload.id).claim
    with pipeline.database.transaction() as connection:
        connection.execute(delete(UploadBatch))
    assert complete(pipeline, claim) is None
    assert complete(pipeline, claim) is None


@pytest.mark.parametrize(
    ("of_batch", "of_upload", "reason"),
    [
        ({"status": "cancelled"}, {}, "the batch was cancelled; `batch-pipeline retry` reopens it"),
        ({}, {"processing_status": "completed"}, "it is completed already"),
        ({}, {"processing_status": "archived"}, "its status is archived"),
        ({}, {"owner_run_id": OTHER, "heartbeat_at": func.now()}, f"run {OTHER} is processing it"),
    ],
)
def test_a_skipped_upload_is_named_with_the_reason(pipeline, of_batch, of_upload, reason):
    batch_id = add_batch(pipeline.database, [of_upload], **of_batch)
    [upload] = upload_rows(pipeline.database, batch_id)
    skipped = pipeline.states.start(upload.id, RUN)
    assert skipped == SkippedUpload(upload.id, reason, upload.filename)


def test_an_upload_that_was_deleted_or_is_paused_is_skipped(pipeline):
    batch_id = add_batch(pipeline.database, [{"slice": 1}])
    [upload] = upload_rows(pipeline.database, batch_id)
    pause(pipeline.database, pipeline.settings, PauseScope.BATCH, str(batch_id))
    skipped = pipeline.states.start(upload.id, RUN)
    assert skipped == SkippedUpload(upload.id, "it is paused", upload.filename)
    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.slice, row.owner_run_id) == ("pending", None, None)
    with pipeline.database.transaction() as connection:
        connection.execute(delete(Upload))
    assert pipeline.states.start(upload.id, RUN) == SkippedUpload(upload.id, "it was deleted")


@pytest.mark.parametrize("odd", ["\0", "\ud800"])
def test_a_reason_with_what_no_text_of_postgresql_can_hold_is_stored(pipeline, odd):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    claim = started(pipeline, upload.id).claim
    pipeline.states.fail(claim, PermanentError("odd", f"a{odd}b"))
    assert upload_row(pipeline.database, upload.id).error_message == "a�b"


def test_concurrent_endings_count_each_upload_once_and_end_the_batch_once(
    change, open_pipeline, pipeline
):
    wide = open_pipeline(change(max_concurrent_uploads=16))
    batch_id = add_batch(wide.database, 64)
    claims = [started(wide, row.id).claim for row in upload_rows(wide.database, batch_id)]
    barrier = threading.Barrier(16)

    def end(share):
        barrier.wait(DEADLINE)
        for claim in share:
            if random.random() < 0.5:
                complete(wide, claim)
            else:
                wide.states.fail(claim, PermanentError("k", "r"))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(end, [claims[i::16] for i in range(16)]))
    assert_counters_equal_a_recount(wide, batch_id)
    assert batch_row(wide.database, batch_id).status == "completed"


def give_up(pipeline, batch_id):
    """Let one more run die than is allowed."""
    with pipeline.database.transaction() as connection:
        connection.execute(
            update(UploadBatch)
            .where(UploadBatch.id == batch_id)
            .values(died_runs=MAX_DIED_RUNS - 1)
        )
    pipeline.backlog.note_died_run(batch_id, "exit code 139")


ACTIONS = st.sampled_from(
    [
        *("start", "complete", "fail", "note", "release", "rescue", "retry"),
        *("delete", "add", "load", "cancel", "die", "redo"),
    ]
)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=st.lists(st.tuples(ACTIONS, st.integers(0, 3)), max_size=25))
def test_for_any_sequence_of_transitions_the_counters_equal_a_recount(pipeline, moves):
    batch_id = add_batch(pipeline.database, 3)
    claims: dict[uuid.UUID, Claim] = {}
    for action, index in moves:
        rows = upload_rows(pipeline.database, batch_id)
        if not rows:
            break
        upload = rows[index % len(rows)]
        make_move(pipeline, batch_id, upload, action, claims)
        assert_counters_equal_a_recount(pipeline, batch_id)


def make_move(pipeline, batch_id, upload, action, claims):  # noqa: PLR0912 - a table of cases
    claim = claims.get(upload.id)
    states = pipeline.states
    try:
        match action:
            case "start":
                result = states.start(upload.id, RUN)
                if isinstance(result, StartedUpload):
                    claims[upload.id] = result.claim
            case "complete" if claim:
                complete(pipeline, claim)
            case "fail" if claim:
                states.fail(claim, PermanentError("kind", "reason"))
            case "note" if claim:
                states.note_error(claim, TransientError("kind", "reason"))
            case "release" if claim:
                states.release(claim)
            case "rescue":
                pipeline.backlog.rescue([RUN])
            case "retry":
                pipeline.batches.retry_batch(batch_id)
            case "load":
                states.load_batch(batch_id, RUN, limit=2, upload_ids=[upload.id])
            case "cancel":
                pipeline.batches.cancel_batch(batch_id)
            case "die":
                give_up(pipeline, batch_id)
            case "redo":
                pipeline.batches.redo(batch_id, Stage.EMBEDDING, [upload.id])
            case "delete":
                with pipeline.database.transaction() as connection:
                    connection.execute(delete(Upload).where(Upload.id == upload.id))
                pipeline.batches.recount_batch(batch_id)
            case "add":
                with pipeline.database.transaction() as connection:
                    connection.execute(
                        text(
                            "INSERT INTO uploads (user_id, batch_id, filename, file_path, "
                            "file_type, file_size) SELECT user_id, id, 'x', 'x', 'image', 1 "
                            "FROM upload_batches WHERE id = :id"
                        ),
                        {"id": batch_id},
                    )
                pipeline.batches.recount_batch(batch_id)
    except ClaimLostError:
        claims.pop(upload.id, None)


def test_deleting_a_batch_keeps_its_uploads_and_their_transitions_work(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    claim = started(pipeline, upload.id).claim
    with pipeline.database.transaction() as connection:
        connection.execute(delete(UploadBatch).where(UploadBatch.id == batch_id))
    assert complete(pipeline, claim) is None
    assert upload_row(pipeline.database, upload.id).processing_status == "completed"


def test_a_cancelled_batch_stays_cancelled_whatever_ends_in_it(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    first, second = (started(pipeline, row.id) for row in upload_rows(pipeline.database, batch_id))
    complete(pipeline, first.claim)
    pipeline.batches.cancel_batch(batch_id)
    complete(pipeline, second.claim)
    pipeline.backlog.reconcile_batches()
    assert batch_row(pipeline.database, batch_id).status == "cancelled"


@pytest.mark.parametrize("status", ["completed", "failed", "archived"])
def test_an_upload_that_an_api_ends_while_it_is_processed_keeps_its_status(pipeline, status):
    batch_id = add_batch(pipeline.database, 2)
    upload, _ = upload_rows(pipeline.database, batch_id)
    claim = started(pipeline, upload.id).claim
    with pipeline.database.transaction() as connection:
        statement = update(Upload).where(Upload.id == upload.id)
        connection.execute(statement.values(processing_status=status))

    assert pipeline.states.wanted([claim]) == set()
    with pytest.raises(ClaimLostError):
        pipeline.states.store_thumbnail(claim, "thumbnail.jpg", {})
    with pytest.raises(ClaimLostError):
        pipeline.states.fail(claim, PermanentError("truncated", "cut"))
    pipeline.states.release(claim)

    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.thumbnail_path) == (status, None)
    pipeline.backlog.rescue([RUN])
    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.owner_run_id) == (status, None)


def test_retry_reopens_a_cancelled_batch(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    pipeline.batches.cancel_batch(batch_id)
    pipeline.batches.retry_batch(batch_id)
    assert batch_row(pipeline.database, batch_id).status == "pending"


def test_a_run_that_finds_its_batch_cancelled_leaves_no_upload_in_its_slice(pipeline):
    batch_id = add_batch(pipeline.database, [{"slice": 1}, {"slice": 2}])
    pipeline.batches.cancel_batch(batch_id)

    pipeline.states.load_batch(batch_id, RUN, slice_number=1, limit=1)

    pipeline.batches.retry_batch(batch_id)
    assert [row.slice for row in upload_rows(pipeline.database, batch_id)] == [None, 2]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_outage_does_not_keep_failed_uploads_that_a_person_names_from_being_reopened(
    pipeline, status
):
    batch_id = add_batch(
        pipeline.database,
        [{"processing_status": "failed"}] * 2,
        status=status,
        failed_uploads=2,
        processed_uploads=2,
    )
    named, other = upload_rows(pipeline.database, batch_id)
    down = ServiceDownError("model_server_down", "it does not answer")

    released = pipeline.states.release_waiting(
        batch_id, down, upload_ids=[named.id], resume_after_seconds=60
    )

    is_cancelled = status == "cancelled"
    assert released == (0 if is_cancelled else 1)
    row = upload_row(pipeline.database, named.id)
    assert row.processing_status == ("failed" if is_cancelled else "pending")
    assert upload_row(pipeline.database, other.id).processing_status == "failed"
    assert_counters_equal_a_recount(pipeline, batch_id)
    batch = batch_row(pipeline.database, batch_id)
    assert batch.status == ("cancelled" if is_cancelled else "processing")


@pytest.mark.parametrize("way", ["start", "load_batch", "retry_batch"])
def test_each_way_to_process_an_upload_again_reopens_a_batch_that_was_given_up(pipeline, way):
    batch_id = add_batch(pipeline.database, [{"processing_status": "failed"}, {}], failed_uploads=1)
    failed, waiting = upload_rows(pipeline.database, batch_id)
    give_up(pipeline, batch_id)
    assert pipeline.states.load_batch(batch_id, RUN, limit=2).reserved == []

    if way == "load_batch":
        pipeline.states.load_batch(batch_id, RUN, limit=2, upload_ids=[failed.id])
    elif way == "retry_batch":
        pipeline.batches.retry_batch(batch_id)
    for upload in (failed, waiting):
        complete(pipeline, started(pipeline, upload.id).claim)
        batch = batch_row(pipeline.database, batch_id)
        assert (batch.status != "failed", batch.error_message) == (True, None)
    assert_counters_equal_a_recount(pipeline, batch_id)
    assert batch.status == "completed"


def test_a_run_does_not_reopen_a_batch_that_was_given_up_while_it_works(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    pipeline.states.load_batch(batch_id, RUN, limit=1)
    give_up(pipeline, batch_id)

    skipped = pipeline.states.start(upload.id, RUN)

    assert isinstance(skipped, SkippedUpload)
    assert skipped.reason == "the batch was given up"
    assert batch_row(pipeline.database, batch_id).status == "failed"
    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.owner_run_id) == ("pending", None)


@pytest.mark.parametrize("end", ["complete", "fail", "ended by an upload API"])
def test_an_upload_that_has_ended_has_no_slice(pipeline, end):
    batch_id = add_batch(pipeline.database, [{"slice": 1}, {}])
    upload = upload_rows(pipeline.database, batch_id)[0]
    pipeline.states.load_batch(batch_id, RUN, slice_number=1, limit=1)

    if end == "complete":
        complete(pipeline, started(pipeline, upload.id).claim)
    elif end == "fail":
        pipeline.states.fail(started(pipeline, upload.id).claim, PermanentError("bad", "bad"))
    else:
        with pipeline.database.transaction() as connection:
            connection.execute(update(Upload).values(processing_status="completed"))
        pipeline.backlog.rescue([RUN])

    row = upload_row(pipeline.database, upload.id)
    assert (row.owner_run_id, row.slice) == (None, None)


def test_a_batch_left_processing_with_wrong_counters_is_put_right_and_ended(pipeline):
    batch_id = add_batch(
        pipeline.database,
        [{"processing_status": "completed"}, {"processing_status": "failed"}],
        status="processing",
        processed_uploads=7,
        successful_uploads=7,
    )
    pipeline.backlog.reconcile_batches()
    assert_counters_equal_a_recount(pipeline, batch_id)


def test_an_upload_is_skipped_if_its_batch_is_cancelled_while_it_is_opened_again(
    pipeline, settings
):
    batch_id = add_batch(pipeline.database, 2)
    upload, _ = upload_rows(pipeline.database, batch_id)
    pipeline.states.fail(started(pipeline, upload.id).claim, PermanentError("bad", "bad"))
    person = connect(settings)

    def cancel(_, __, statement, *___):
        if "FOR UPDATE OF uploads" in statement:
            with person.transaction() as connection:
                connection.execute(
                    update(UploadBatch).where(UploadBatch.id == batch_id).values(status="cancelled")
                )

    event.listen(pipeline.database.engine, "after_cursor_execute", cancel)
    skipped = pipeline.states.start(upload.id, OTHER)
    event.remove(pipeline.database.engine, "after_cursor_execute", cancel)
    person.close()
    assert isinstance(skipped, SkippedUpload)
    assert skipped.reason == "its batch was cancelled or given up meanwhile"
    assert upload_row(pipeline.database, upload.id).processing_status == "pending"
    assert_counters_equal_a_recount(pipeline, batch_id)


#: Changes of another session, which commits while an upload's end waits for it.
MEANWHILE = {
    "its heartbeat was renewed": update(Upload).values(heartbeat_at=func.now()),
    "its batch was touched": update(UploadBatch).values(updated_at=func.now()),
    "it became the last one": update(UploadBatch).values(processed_uploads=2, failed_uploads=2),
    "it was taken over": update(Upload).values(
        owner_run_id=OTHER, claim_token=Upload.claim_token + 1
    ),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_an_end_that_waits_for_somebody_else_is_counted_once_or_not_at_all(
    pipeline, settings, what
):
    batch_id = add_batch(pipeline.database, 3)
    upload, *others = upload_rows(pipeline.database, batch_id)
    claim = started(pipeline, upload.id).claim
    pipeline.states.load_batch(batch_id, RUN, limit=3)
    somebody = connect(settings)
    with ThreadPoolExecutor(1) as thread:
        with somebody.transaction() as connection:
            connection.execute(
                MEANWHILE[what].where(
                    UploadBatch.id == batch_id
                    if MEANWHILE[what].table.name == "upload_batches"
                    else Upload.id == upload.id
                )
            )
            if what == "it became the last one":
                connection.execute(
                    update(Upload)
                    .where(Upload.id.in_([other.id for other in others]))
                    .values(processing_status="failed")
                )
            ending = thread.submit(complete, pipeline, claim)
            wait_until_somebody_waits_for_a_lock(pipeline)
        if what == "it was taken over":
            with pytest.raises(ClaimLostError):
                ending.result(DEADLINE)
        else:
            assert ending.result(DEADLINE).successful == 1
    somebody.close()
    taken_over = what == "it was taken over"
    row = upload_row(pipeline.database, upload.id)
    assert row.processing_status == ("analyzing" if taken_over else "completed")
    assert batch_row(pipeline.database, batch_id).successful_uploads == (0 if taken_over else 1)
    assert_counters_equal_a_recount(pipeline, batch_id)


def test_a_recount_waits_for_an_end_that_is_not_committed_yet(pipeline, settings):
    batch_id = add_batch(pipeline.database, 2)
    upload, _ = upload_rows(pipeline.database, batch_id)
    ending = connect(settings)
    with ThreadPoolExecutor(1) as thread:
        with ending.transaction() as connection:
            connection.execute(
                update(Upload).where(Upload.id == upload.id).values(processing_status="failed")
            )
            connection.execute(
                update(UploadBatch)
                .where(UploadBatch.id == batch_id)
                .values(processed_uploads=1, failed_uploads=1)
            )
            recount = thread.submit(pipeline.batches.recount_batch, batch_id)
            wait_until_somebody_waits_for_a_lock(pipeline)
        assert recount.result(DEADLINE).failed == 1
    ending.close()
    assert_counters_equal_a_recount(pipeline, batch_id)


def test_a_batch_that_is_still_being_filled_does_not_end(pipeline):
    batch_id = add_batch(pipeline.database)
    assert pipeline.batches.recount_batch(batch_id).status == "pending"
    assert pipeline.backlog.reconcile_batches() == []


def wait_until_somebody_waits_for_a_lock(pipeline):
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with pipeline.database.engine.connect() as connection:

        def somebody_waits():
            connection.rollback()
            return connection.scalar(waiting)

        wait_until(somebody_waits, "somebody waits for a lock", DEADLINE)


def test_a_redone_upload_starts_like_a_new_one_and_keeps_its_results(pipeline):
    batch_id = add_batch(
        pipeline.database,
        [
            {
                "processing_status": "completed",
                "description": "a lake",
                "attempts": 2,
                "retries": 3,
                "not_before": func.now(),
                "error_kind": "internal_error",
                "error_message": "an earlier one",
            }
        ],
        status="completed",
    )
    [before] = upload_rows(pipeline.database, batch_id)

    count, progress = pipeline.batches.redo(batch_id, Stage.EMBEDDING, [before.id])

    [row] = upload_rows(pipeline.database, batch_id)
    assert (count, progress.status, progress.processed) == (1, "processing", 0)
    assert (row.processing_status, row.dispatch_reason) == ("pending", "reprocess")
    assert (row.attempts, row.retries, row.not_before) == (0, 0, None)
    assert (row.error_kind, row.error_message) == (None, None)
    assert (row.redo, row.description) == ([Stage.EMBEDDING], "a lake")


def test_only_completed_uploads_of_the_batch_are_redone(pipeline):
    batch_id = add_batch(
        pipeline.database, [{"processing_status": "failed"}, {}], status="processing"
    )
    elsewhere = add_batch(
        pipeline.database, [{"processing_status": "completed"}], status="completed"
    )
    rows = [*upload_rows(pipeline.database, batch_id), *upload_rows(pipeline.database, elsewhere)]

    count, _ = pipeline.batches.redo(batch_id, Stage.EMBEDDING, [row.id for row in rows])

    assert count == 0
    after = [*upload_rows(pipeline.database, batch_id), *upload_rows(pipeline.database, elsewhere)]
    assert [(row.processing_status, row.redo) for row in after] == [
        (row.processing_status, row.redo) for row in rows
    ]
