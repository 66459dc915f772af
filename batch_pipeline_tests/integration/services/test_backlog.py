"""What the sweep does with rows and files: rescue, quarantine, retries, adoption, recounts."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import event, func, insert, text, update

from batch_pipeline.database.models import Stage, Upload, UploadBatch
from batch_pipeline.database.session import Database
from batch_pipeline.errors import PermanentError, ServiceDownError, TransientError
from batch_pipeline.services.dispatch.slices import numbered_slices, open_slice, unnumbered_slices
from batch_pipeline.services.reports.batch_status import batches_ended_before, oldest_waiting
from batch_pipeline.services.states.backlog import MAX_DEATHS, MAX_DIED_RUNS
from batch_pipeline.services.states.upload_states import RETRY_DELAYS, SkippedUpload, StartedUpload
from batch_pipeline.testing.records import (
    USER,
    add_batch,
    batch_row,
    embedded,
    open_all_slices,
    upload_row,
    upload_rows,
)
from batch_pipeline_tests.patience import DEADLINE


def started(pipeline, upload_id, run_id="run"):
    result = pipeline.states.start(upload_id, run_id)
    assert isinstance(result, StartedUpload)
    return result.claim


def change(pipeline, upload_id, **values):
    with pipeline.database.transaction() as connection:
        connection.execute(update(Upload).where(Upload.id == upload_id).values(**values))


def ago(interval):
    return func.now() - text(f"interval '{interval}'")


def counts(pipeline, batch_id):
    row = batch_row(pipeline.database, batch_id)
    return row.status, row.processed_uploads, row.successful_uploads, row.failed_uploads


def twice_at_once(function):
    with ThreadPoolExecutor(2) as pool:
        return [future.result(DEADLINE) for future in [pool.submit(function) for _ in range(2)]]


def test_an_upload_in_progress_when_its_worker_died_every_time_is_failed_and_counted(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    killer, sibling = upload_rows(pipeline.database, batch_id)
    for death in range(1, MAX_DEATHS + 1):
        started(pipeline, killer.id, f"run-{death}")
        rescue = pipeline.backlog.rescue([f"run-{death}"])
        assert (rescue.returned, rescue.quarantined) == ((1, 0) if death < MAX_DEATHS else (0, 1))
    row = upload_row(pipeline.database, killer.id)
    assert (row.processing_status, row.error_kind) == ("failed", "killed_worker")
    assert "the worker died 3 times while it processed this file" in row.error_message
    assert row.retry_at is None
    assert counts(pipeline, batch_id)[1:] == (1, 0, 1)
    pipeline.states.complete(
        started(pipeline, sibling.id), embedded=embedded(pipeline.database), seconds={}
    )
    assert counts(pipeline, batch_id) == ("completed", 2, 1, 1)


def test_an_upload_that_was_only_reserved_is_not_blamed_for_its_workers_death(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    for death in range(MAX_DEATHS + 1):
        pipeline.states.load_batch(batch_id, f"run-{death}", limit=1)
        assert pipeline.backlog.rescue([f"run-{death}"]).returned == 1
    assert upload_rows(pipeline.database, batch_id)[0].deaths == 0


@pytest.mark.parametrize("status", ["completed", "failed", "archived", None])
@pytest.mark.parametrize("ends", ["the run", "the lease", "the step"])
def test_an_upload_that_an_api_ends_while_a_run_has_reserved_it_keeps_its_status(
    pipeline, status, ends
):
    batch_id = add_batch(pipeline.database, 2)
    upload, _ = upload_rows(pipeline.database, batch_id)
    pipeline.states.load_batch(batch_id, "run", limit=1)
    with pipeline.database.transaction() as connection:
        connection.execute(text("ALTER TABLE uploads ALTER processing_status DROP NOT NULL"))
    change(pipeline, upload.id, processing_status=status, heartbeat_at=ago("1 day"))
    if ends == "the step" and status != "failed":  # a failed one is processed again
        assert isinstance(pipeline.states.start(upload.id, "run"), SkippedUpload)
    else:
        assert pipeline.backlog.rescue(["run"] if ends == "the run" else []).returned == 0
    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.owner_run_id) == (status, None)
    assert pipeline.backlog.owners() == []


@pytest.mark.parametrize("ending", ["release", "note_error", "fail"])
def test_an_attempt_that_ends_in_any_way_clears_the_blame(pipeline, ending):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    started(pipeline, upload.id, "dead")
    pipeline.backlog.rescue(["dead"])
    assert upload_row(pipeline.database, upload.id).deaths == 1
    claim = started(pipeline, upload.id)
    arguments = [] if ending == "release" else [TransientError("kind", "reason")]
    getattr(pipeline.states, ending)(claim, *arguments)
    assert upload_row(pipeline.database, upload.id).deaths == 0


def test_an_upload_in_progress_when_its_worker_died_gets_a_run_of_its_own(pipeline):
    batch_id = add_batch(pipeline.database, 5)
    for upload in upload_rows(pipeline.database, batch_id)[:2]:
        started(pipeline, upload.id, "dead")
    pipeline.states.load_batch(batch_id, "dead", limit=5)
    pipeline.backlog.rescue(["dead"])
    slices = open_all_slices(pipeline.database, 250)
    assert sorted(slice_.uploads for slice_ in slices) == [1, 1, 3]


def test_an_upload_that_waits_for_its_next_attempt_keeps_its_lease(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    pipeline.states.note_error(started(pipeline, upload.id), TransientError("kind", "reason"))
    change(pipeline, upload.id, heartbeat_at=ago("1 day"))
    pipeline.states.heartbeat("run", [])
    assert pipeline.backlog.rescue().returned == 0
    assert upload_row(pipeline.database, upload.id).owner_run_id == "run"


def test_transient_failures_are_opened_again_after_each_delay_and_then_never(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    for number, delay in enumerate(RETRY_DELAYS):
        pipeline.states.fail(started(pipeline, upload.id), TransientError("busy", "busy"))
        row = upload_row(pipeline.database, upload.id)
        assert (row.retry_at - row.updated_at).total_seconds() == delay
        assert pipeline.backlog.retry_due() == 0, "before its time"
        change(pipeline, upload.id, retry_at=ago("1 second"))
        assert pipeline.backlog.overdue()["uploads to retry"] == 1
        assert pipeline.backlog.retry_due() == 1
        row = upload_row(pipeline.database, upload.id)
        assert (row.processing_status, row.retries, row.attempts) == ("pending", number + 1, 0)
        assert counts(pipeline, batch_id)[1:] == (0, 0, 0)
    pipeline.states.fail(started(pipeline, upload.id), TransientError("busy", "busy"))
    assert upload_row(pipeline.database, upload.id).retry_at is None


def test_permanent_failures_and_those_of_cancelled_batches_are_not_opened_again(pipeline):
    batch_id = add_batch(pipeline.database, 3)
    permanent, transient, _ = upload_rows(pipeline.database, batch_id)
    pipeline.states.fail(started(pipeline, permanent.id), PermanentError("truncated", "cut"))
    assert upload_row(pipeline.database, permanent.id).retry_at is None
    pipeline.states.fail(started(pipeline, transient.id), TransientError("busy", "busy"))
    change(pipeline, transient.id, retry_at=ago("1 second"))
    pipeline.batches.cancel_batch(batch_id)
    assert pipeline.backlog.retry_due() == 0


def test_a_retry_by_a_person_resets_the_count(pipeline):
    batch_id = add_batch(pipeline.database, 1)
    [upload] = upload_rows(pipeline.database, batch_id)
    pipeline.states.fail(started(pipeline, upload.id), TransientError("busy", "busy"))
    change(pipeline, upload.id, retries=3, retry_at=None)
    pipeline.batches.retry_batch(batch_id)
    row = upload_row(pipeline.database, upload.id)
    assert (row.retries, row.retry_at, row.processing_status) == (0, None, "pending")


def add_upload_without_batch(pipeline, user_id, **values):
    with pipeline.database.transaction() as connection:
        connection.execute(
            insert(Upload).values(
                user_id=user_id,
                filename="a.jpg",
                file_path="a",
                file_type="image",
                file_size=1,
                **values,
            )
        )


def test_waiting_uploads_without_a_batch_get_one_per_user_by_one_of_two_sweeps(pipeline):
    other = uuid.uuid4()
    for user_id in (USER, USER, other):
        add_upload_without_batch(pipeline, user_id, created_at=ago("1 hour"))
    add_upload_without_batch(pipeline, USER)
    assert pipeline.backlog.overdue()["uploads without a batch"] == 3
    assert sorted(twice_at_once(pipeline.backlog.adopt)) == [0, 3]
    with pipeline.database.transaction() as connection:
        batches = connection.execute(
            text("SELECT user_id, total_uploads, status FROM upload_batches")
        ).all()
    assert sorted(batches) == sorted([(USER, 2, "pending"), (other, 1, "pending")])


@pytest.mark.parametrize("refusal", ["RAISE EXCEPTION 'no credit left'", "NEW.name := 1 / 0"])
def test_uploads_whose_batch_a_trigger_refuses_do_not_keep_others_from_theirs(pipeline, refusal):
    for user_id in (uuid.UUID(int=1), USER):
        add_upload_without_batch(pipeline, user_id, created_at=ago("1 hour"))
    with pipeline.database.transaction() as connection:
        connection.exec_driver_sql(
            f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$BEGIN {refusal}; END$$; "
            "CREATE TRIGGER refuse BEFORE INSERT ON upload_batches FOR EACH ROW "
            f"WHEN (NEW.user_id = '{uuid.UUID(int=1)}') EXECUTE FUNCTION refuse()"
        )
    assert pipeline.backlog.adopt() == 1


def test_two_sweeps_at_once_open_a_due_upload_once(pipeline):
    batch_id = add_batch(
        pipeline.database,
        [{"processing_status": "failed", "retry_at": ago("1 second")}] * 20,
        status="completed",
        processed_uploads=20,
        failed_uploads=20,
    )
    assert sum(twice_at_once(pipeline.backlog.retry_due)) == 20
    assert {row.retries for row in upload_rows(pipeline.database, batch_id)} == {1}
    assert counts(pipeline, batch_id) == ("processing", 0, 0, 0)


@contextmanager
def locked_by_another(pipeline, upload_id):
    """Lock the row of an upload, like a run that is about to change it."""
    with pipeline.database.engine.begin() as connection:
        connection.execute(text("SELECT FROM uploads WHERE id = :id FOR UPDATE"), {"id": upload_id})
        yield


def test_a_sweep_does_not_wait_for_an_upload_that_somebody_else_changes(pipeline):
    due = {"processing_status": "failed", "retry_at": ago("1 second")}
    failed = add_batch(pipeline.database, [due] * 2, status="completed", total_uploads=2)
    ended = add_batch(pipeline.database, 2, status="completed")
    for _ in range(2):
        add_upload_without_batch(pipeline, USER, created_at=ago("1 hour"))
    sweeps = {
        pipeline.backlog.retry_due: upload_rows(pipeline.database, failed)[0].id,
        pipeline.backlog.reopen_ended: upload_rows(pipeline.database, ended)[0].id,
        pipeline.backlog.adopt: upload_rows(pipeline.database, None)[0].id,
    }
    for sweep, upload_id in sweeps.items():
        with locked_by_another(pipeline, upload_id):
            assert sweep() == 1


def test_an_upload_that_a_sweep_reopens_begins_anew(pipeline):
    used = {
        "attempts": 2,
        "deaths": 1,
        "server_deaths": 1,
        "retries": 2,
        "not_before": func.now() + text("interval '1 day'"),
        "slice": 3,
    }
    due = {"processing_status": "failed", "retry_at": ago("1 second")}
    failed = add_batch(pipeline.database, [used | due], status="completed")
    ended = add_batch(pipeline.database, [used], status="completed")
    add_upload_without_batch(pipeline, USER, created_at=ago("1 hour"), slice=3)
    [forgotten] = upload_rows(pipeline.database, None)
    for sweep in (pipeline.backlog.retry_due, pipeline.backlog.reopen_ended):
        assert sweep() == 1
    assert pipeline.backlog.adopt() == 1

    [row] = upload_rows(pipeline.database, failed)
    assert (row.dispatch_reason, row.attempts, row.retries, row.slice) == ("retry", 0, 3, None)
    [row] = upload_rows(pipeline.database, ended)
    assert (row.attempts, row.deaths, row.server_deaths, row.retries) == (0, 0, 0, 0)
    assert (row.not_before, row.slice) == (None, None)
    row = upload_row(pipeline.database, forgotten.id)
    assert row.slice is None
    assert row.updated_at > forgotten.updated_at


def test_a_run_leaves_behind_the_uploads_that_it_holds_and_those_that_wait_in_its_slice(pipeline):
    batch_id = add_batch(pipeline.database, [{"slice": 1}] * 3 + [{"slice": 2}] * 2)
    other = add_batch(pipeline.database, [{"slice": 1}])
    started(pipeline, upload_rows(pipeline.database, batch_id)[0].id)
    started(pipeline, upload_rows(pipeline.database, batch_id)[3].id)
    assert pipeline.backlog.left_behind(batch_id, "run", 1) == 4
    assert pipeline.backlog.left_behind(batch_id, "run", None) == 2
    assert pipeline.backlog.left_behind(batch_id, "another", 2) == 1
    assert pipeline.backlog.left_behind(other, "another", 2) == 0
    waiting = add_batch(pipeline.database, 2)
    assert pipeline.backlog.left_behind(waiting, "launched by hand", None) == 0


def test_a_run_is_silent_when_no_upload_of_it_has_a_young_heartbeat(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    old, young = upload_rows(pipeline.database, batch_id)
    started(pipeline, old.id)
    change(pipeline, old.id, heartbeat_at=ago("1 day"))
    started(pipeline, young.id, "another")
    assert pipeline.backlog.run_is_silent("run")
    assert not pipeline.backlog.run_is_silent("another")
    assert pipeline.backlog.run_is_silent("unknown")


def test_only_the_slice_of_the_ended_run_is_released(pipeline):
    ended, other = (add_batch(pipeline.database, 4) for _ in range(2))
    for batch_id in (ended, other):
        for number, upload in enumerate(upload_rows(pipeline.database, batch_id)):
            change(pipeline, upload.id, slice=1 + number // 2)
    taken, waiting = upload_rows(pipeline.database, ended)[:2]
    change(pipeline, taken.id, owner_run_id="run")
    assert pipeline.backlog.release_slices([(ended, 1)]) == 1
    released = upload_row(pipeline.database, waiting.id)
    assert (released.slice, released.dispatch_reason) == (None, "rescue")
    assert released.not_before <= released.updated_at, "it may begin at once"
    assert [row.slice for row in upload_rows(pipeline.database, ended)] == [1, None, 2, 2]
    assert [row.slice for row in upload_rows(pipeline.database, other)] == [1, 1, 2, 2]


def test_two_sweeps_at_once_count_a_death_once(pipeline):
    batch_id = add_batch(pipeline.database, 8)
    for upload in upload_rows(pipeline.database, batch_id):
        started(pipeline, upload.id, "dead")
    rescues = twice_at_once(lambda: pipeline.backlog.rescue(["dead"]))
    assert sum(rescue.returned for rescue in rescues) == 8
    assert {row.deaths for row in upload_rows(pipeline.database, batch_id)} == {1}


def test_only_batches_whose_counters_are_wrong_are_recounted(pipeline):
    right = add_batch(pipeline.database, 1)
    wrong = add_batch(pipeline.database, [{"processing_status": "failed"}, {}], status="processing")
    change_batch = update(UploadBatch).where(UploadBatch.id == wrong)
    with pipeline.database.transaction() as connection:
        connection.execute(change_batch.values(processed_uploads=5, successful_uploads=5))
    assert [batch.batch_id for batch in pipeline.backlog.reconcile_batches()] == [wrong]
    assert counts(pipeline, wrong) == ("processing", 1, 0, 1)
    assert pipeline.backlog.reconcile_batches() == []
    assert batch_row(pipeline.database, right).status == "pending"


def test_batches_that_ended_long_ago_and_that_nobody_changed_are_not_counted_again(pipeline):
    """Such batches are many, they do not change, and each recount would read all their uploads."""
    values = {"status": "completed", "processed_uploads": 7, "successful_uploads": 7}
    uploads = [{"processing_status": "completed"}]
    recent = add_batch(pipeline.database, uploads, **values, updated_at=ago("50 minutes"))
    add_batch(pipeline.database, uploads, **values, updated_at=ago("70 minutes"))
    with pipeline.database.transaction() as connection:
        connection.execute(text("DELETE FROM batches_to_recount"))
    assert pipeline.backlog.overdue()["batches to recount"] == 1
    assert [batch.batch_id for batch in pipeline.backlog.reconcile_batches()] == [recent]


def test_uploads_that_a_run_ended_without_taking_wait_for_a_while(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    [slice_] = open_all_slices(pipeline.database, 250)
    released = [(batch_id, slice_.number)]
    assert pipeline.backlog.release_slices(released, resume_after_seconds=3600) == 2
    assert open_all_slices(pipeline.database, 250) == []
    change_all = update(Upload).values(not_before=ago("1 second"))
    with pipeline.database.transaction() as connection:
        connection.execute(change_all)
    [again] = open_all_slices(pipeline.database, 250)
    assert (again.uploads, again.reason) == (2, "rescue")


@pytest.mark.parametrize("status", ["cancelled", "completed", "failed"])
def test_no_run_is_requested_for_uploads_of_a_batch_that_is_over(pipeline, status):
    database = pipeline.database
    batch_id = add_batch(database, 3)
    [waiting, *_] = unnumbered_slices(database, 2, at_most=2)
    opened = open_slice(database, waiting, 2)
    assert [slice_.key for slice_ in numbered_slices(database)] == [opened.key]
    with database.transaction() as connection:
        connection.execute(update(UploadBatch).values(status=status))
    assert numbered_slices(database) == unnumbered_slices(database, 2, at_most=2) == []
    assert [row.slice for row in upload_rows(database, batch_id)] == [1, 1, None]


def test_a_batch_whose_runs_die_again_and_again_is_failed_with_the_reason(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    for _ in range(MAX_DIED_RUNS - 1):
        assert pipeline.backlog.note_died_run(batch_id, "exit code 139") is None
    assert pipeline.backlog.note_died_run(batch_id, "exit code 139").status == "failed"
    assert batch_row(pipeline.database, batch_id).error_message == (
        "10 runs died one after the other; the last one: exit code 139"
    )
    pipeline.batches.retry_batch(batch_id)
    row = batch_row(pipeline.database, batch_id)
    assert (row.status, row.error_message, row.died_runs) == ("pending", None, 0)


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed"])
def test_a_run_that_dies_after_its_batch_has_ended_changes_nothing(pipeline, status):
    batch_id = add_batch(pipeline.database, status=status, died_runs=MAX_DIED_RUNS - 1)
    before = batch_row(pipeline.database, batch_id)
    assert pipeline.backlog.note_died_run(batch_id, "exit code 139") is None
    assert batch_row(pipeline.database, batch_id) == before


def test_an_upload_that_ends_resets_the_count_of_died_runs(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    upload, _ = upload_rows(pipeline.database, batch_id)
    pipeline.backlog.note_died_run(batch_id, "killed")
    pipeline.states.fail(started(pipeline, upload.id), PermanentError("truncated", "cut"))
    assert batch_row(pipeline.database, batch_id).died_runs == 0


def test_uploads_that_an_api_adds_or_resets_long_after_the_end_are_found_and_counted(pipeline):
    database = pipeline.database
    batch_id = add_batch(database, 2)
    for upload in upload_rows(database, batch_id):
        claim = started(pipeline, upload.id)
        pipeline.states.complete(claim, embedded=embedded(pipeline.database), seconds={})
    assert counts(pipeline, batch_id) == ("completed", 2, 2, 0)
    reset, _ = upload_rows(database, batch_id)
    values = {"user_id": USER, "batch_id": batch_id, "file_type": "image", "file_size": 1}
    with database.transaction() as connection:
        added = connection.scalar(
            insert(Upload).values(filename="new", file_path="x", **values).returning(Upload.id)
        )
        connection.execute(update(UploadBatch).values(updated_at=ago("400 days")))
    change(pipeline, reset.id, processing_status="pending", attempts=2, slice=1)

    assert pipeline.backlog.overdue()["uploads in batches that had ended"] == 2
    assert twice_at_once(pipeline.backlog.reopen_ended) in ([2, 0], [0, 2])
    assert counts(pipeline, batch_id) == ("processing", 1, 1, 0)
    row = upload_row(database, reset.id)
    assert (row.attempts, row.slice) == (0, None)
    [waiting] = unnumbered_slices(database, 10, at_most=4)
    opened = open_slice(database, waiting, 10)
    assert opened.uploads == 2
    for upload_id in (reset.id, added):
        claim = started(pipeline, upload_id)
        pipeline.states.complete(claim, embedded=embedded(pipeline.database), seconds={})
    assert counts(pipeline, batch_id) == ("completed", 3, 3, 0)
    assert pipeline.backlog.reopen_ended() == 0


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_uploads_of_batches_that_were_stopped_or_given_up_are_left_to_a_person(pipeline, status):
    batch_id = add_batch(pipeline.database, 1, status=status)
    assert pipeline.backlog.reopen_ended() == 0
    assert counts(pipeline, batch_id)[0] == status
    oldest = oldest_waiting(pipeline.database)
    assert oldest is None, "they wait for a person, not for a run"


def test_an_upload_of_unknown_age_does_not_hide_one_that_has_waited_for_long(pipeline):
    [known] = upload_rows(pipeline.database, add_batch(pipeline.database, 1))
    [unknown] = upload_rows(pipeline.database, add_batch(pipeline.database, 1))
    change(pipeline, known.id, created_at=ago("9 hours"))
    never = text("'infinity'")
    change(pipeline, unknown.id, created_at=never, updated_at=never)
    assert oldest_waiting(pipeline.database).upload_id == known.id
    change(pipeline, known.id, processing_status="completed")
    oldest = oldest_waiting(pipeline.database)
    assert (oldest.upload_id, oldest.waited) == (unknown.id, None)


@pytest.fixture
def old_batch(pipeline):
    """Add a batch that completed a year ago with 3 uploads, one failed; return their ids."""
    states = [{"processing_status": status} for status in ("completed", "completed", "failed")]
    values = {"total_uploads": 3, "processed_uploads": 3, "successful_uploads": 2}
    batch_id = add_batch(pipeline.database, states, status="completed", failed_uploads=1, **values)
    with pipeline.database.transaction() as connection:
        connection.execute(update(UploadBatch).values(updated_at=ago("1 year")))
    return batch_id, [row.id for row in upload_rows(pipeline.database, batch_id)]


ADD = """INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size,
    processing_status) VALUES (:user, :batch, 'a', 'a', 'image', 1, :status)"""


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([(ADD, "completed")], (4, "completed", 4, 3, 1)),
        ([(ADD, "failed"), (ADD, "failed")], (5, "completed", 5, 2, 3)),
        ([("DELETE FROM uploads WHERE id = :second", "")], (2, "completed", 2, 1, 1)),
        ([("DELETE FROM uploads WHERE batch_id = :batch", "")], (0, "completed", 0, 0, 0)),
        (
            [("UPDATE uploads SET batch_id = NULL WHERE id = :second", "")],
            (2, "completed", 2, 1, 1),
        ),
        (
            [
                (
                    "UPDATE uploads SET processing_status = :status WHERE batch_id = :batch",
                    "completed",
                )
            ],
            (3, "completed", 3, 3, 0),
        ),
        (
            [("UPDATE uploads SET processing_status = :status WHERE id = :second", "archived")],
            (2, "completed", 2, 1, 1),
        ),
    ],
)
def test_a_batch_that_ended_long_ago_is_recounted_when_an_api_changes_it(
    pipeline, old_batch, statements, expected
):
    batch_id, [_, second, _] = old_batch
    assert pipeline.backlog.overdue()["batches to recount"] == 0
    with pipeline.database.transaction() as connection:
        for statement, status in statements:
            names = {"user": USER, "batch": batch_id, "second": second, "status": status}
            connection.execute(text(statement), names)

    assert pipeline.backlog.overdue()["batches to recount"] == 1
    [_, _] = twice_at_once(pipeline.backlog.reconcile_batches)

    batch = batch_row(pipeline.database, batch_id)
    assert (batch.total_uploads, *counts(pipeline, batch_id)) == expected
    assert pipeline.backlog.overdue()["batches to recount"] == 0
    with pipeline.database.transaction() as connection:
        assert connection.scalar(text("SELECT count(*) FROM batches_to_recount")) == 0


def test_an_api_whose_role_may_not_use_our_tables_may_add_to_an_old_batch(pipeline, old_batch):
    batch_id, _ = old_batch
    role = f"api_{uuid.uuid4().hex[:8]}"
    with pipeline.database.transaction() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT SELECT, INSERT ON uploads TO {role}"))
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        names = {"user": USER, "batch": batch_id, "status": "completed"}
        connection.execute(text(ADD), names)
        connection.execute(text("RESET ROLE"))
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    assert len(pipeline.backlog.reconcile_batches()) == 1
    assert counts(pipeline, batch_id) == ("completed", 4, 3, 1)


def test_our_own_transitions_leave_no_notes(pipeline):
    batch_id = add_batch(pipeline.database, 2)
    well, ill = upload_rows(pipeline.database, batch_id)
    pipeline.states.load_batch(batch_id, "run", limit=2)
    pipeline.states.complete(
        started(pipeline, well.id), embedded=embedded(pipeline.database), seconds={}
    )
    pipeline.states.fail(started(pipeline, ill.id), PermanentError("truncated", "cut"))
    with pipeline.database.transaction() as connection:
        assert connection.scalar(text("SELECT count(*) FROM batches_to_recount")) == 0


@contextmanager
def parameters(database: Database) -> Iterator[list[int]]:
    """Collect the number of parameters of each statement."""
    counted: list[int] = []

    def count(_connection, _cursor, _statement, given, *_):
        counted.append(len(given))

    event.listen(database.engine, "before_cursor_execute", count)
    yield counted
    event.remove(database.engine, "before_cursor_execute", count)


FAILED, COMPLETED = {"processing_status": "failed"}, {"processing_status": "completed"}
DEAD = {"processing_status": "analyzing", "owner_run_id": "dead", "heartbeat_at": ago("1 day")}
LOST = {"batch_id": None, "created_at": ago("1 hour")}
DOWN = ServiceDownError("model_server_down", "refused")
#: Uploads, the status of their batch, and a transition of all of them that returns their number.
TRANSITIONS = {
    "retry": (FAILED, "completed", lambda p, batch, ids: p.batches.retry_batch(batch, ids)[0]),
    "redo": (
        COMPLETED,
        "completed",
        lambda p, batch, ids: p.batches.redo(batch, Stage.EMBEDDING, ids)[0],
    ),
    "re-execute": (
        FAILED,
        "processing",
        lambda p, batch, ids: len(
            p.states.load_batch(batch, "run", upload_ids=ids, limit=100).reserved
        ),
    ),
    "release": (
        {},
        "processing",
        lambda p, batch, ids: p.states.release_waiting(
            batch, DOWN, upload_ids=ids, resume_after_seconds=1
        ),
    ),
    "rescue": (DEAD, "processing", lambda p, *_: p.backlog.rescue().returned),
    "retry by the sweep": (
        FAILED | {"retry_at": ago("1 second")},
        "completed",
        lambda p, *_: p.backlog.retry_due(),
    ),
    "adopt": (LOST, "completed", lambda p, *_: p.backlog.adopt()),
    "reopen": ({}, "completed", lambda p, *_: p.backlog.reopen_ended()),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_no_transition_has_a_parameter_for_each_upload(pipeline, name):
    """A statement has at most 65,535 parameters, and a batch may have more uploads."""
    columns, status, transition = TRANSITIONS[name]
    most = []
    for number in (2, 20):
        batch_id = add_batch(pipeline.database, [columns] * number, status=status)
        ids = [row.id for row in upload_rows(pipeline.database, batch_id)]
        with parameters(pipeline.database) as counted:
            assert transition(pipeline, batch_id, ids) == number
        most.append(max(counted))
    assert most[0] == most[1]


def test_a_batch_that_an_api_ended_without_the_time_of_its_change_keeps_its_partition(database):
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE upload_batches ALTER updated_at DROP NOT NULL"))
    batch_id = add_batch(database, status="completed", completed_at=ago("1 hour"), updated_at=None)
    assert batches_ended_before(database, [batch_id], days=1) == []


def test_any_number_of_batches_may_have_a_partition(database):
    with parameters(database) as counted:
        for number in (2, 20):
            ids = [uuid.uuid4() for _ in range(number)]
            assert batches_ended_before(database, ids, days=1) == ids
    assert len(set(counted)) == 1


@pytest.mark.slow
def test_a_batch_with_more_failed_uploads_than_a_statement_has_parameters_is_retried(pipeline):
    number = 66_000
    batch_id = add_batch(pipeline.database, status="completed", total_uploads=number)
    with pipeline.database.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size,"
                " processing_status)"
                " SELECT :user, :batch, '', '', 'image', 1, 'failed' FROM generate_series(1, :n)"
            ),
            {"user": USER, "batch": batch_id, "n": number},
        )
    count, progress = pipeline.batches.retry_batch(batch_id)
    assert (count, progress.status, progress.processed) == (number, "processing", 0)
