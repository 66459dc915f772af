"""Deleting an upload, a batch, a user: nothing of it is left anywhere, all else is unchanged."""

import json
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from sqlalchemy import Engine, delete, event, func, insert, select, text, update

from batch_pipeline.database.models import (
    AnsweringSpace,
    ModelCall,
    Stage,
    Upload,
    UploadBatch,
)
from batch_pipeline.database.readings import LOCAL_USER
from batch_pipeline.errors import NotFoundError, RefusedError, ServiceDownError
from batch_pipeline.orchestration.forgetting import DagsterHistory
from batch_pipeline.orchestration.sweep import tidy
from batch_pipeline.orchestration.tags import tags_of_batch
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.deletion.file_ownership import OWNER_NOTE
from batch_pipeline.services.deletion.forgetting import forget
from batch_pipeline.services.deletion.leftovers import remove_leftovers
from batch_pipeline.services.export import export_user
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reprocessing import Selection, _conditions
from batch_pipeline.services.search.filters import Filters
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.short_ids import Named, short
from batch_pipeline.terminal import receipt_lines
from batch_pipeline.testing.records import add_batch, batch_row, upload_row, upload_rows
from batch_pipeline_tests.runs import record_run
from batch_pipeline_tests.traces import of_upload, traces

from .conftest import DAGSTER_DATABASE_URL, MEDIA, ROOT

BARNABY, OTHER = uuid.uuid4(), uuid.uuid4()
PICTURES = {"quokka_barnaby": "sea.jpg", "pelican_odette": "sunset.jpg"}
WORDS = {
    "quokka_barnaby": "A quokka called Barnaby sits on a turquoise bench beside a wooden fence.",
    "pelican_odette": "A pelican called Odette stands on a striped pier above calm green water.",
}


class Kept:
    """What the pipeline and Dagster store, and methods to delete it."""

    def __init__(self, runner, model_server, database_url, dagster_url):
        self.runner, self.model_server = runner, model_server
        self.pipeline = runner.pipeline
        self.history = DagsterHistory(runner.instance, runner.pipeline)
        self.databases = [database_url, dagster_url]
        self.folders = [
            Path(self.pipeline.settings.storage_location),
            Path(runner.instance.root_directory),
        ]

    def batch(self, tmp_path, *names, user=BARNABY, album=None):
        """Process a batch of files with these names, and report it like the sensor."""
        paths = []
        for name in names:
            paths.append(tmp_path / f"{name}.jpg")
            shutil.copy(MEDIA / PICTURES.get(name, "city.jpg"), paths[-1])
        self.model_server.says = lambda _: WORDS.get(names[0])
        submission = submit(
            paths,
            user_id=user,
            publisher=self.pipeline.publisher,
            storage=self.pipeline.storage,
            settings=self.pipeline.settings,
            name=album or f"{names[0]} album",
        )
        self.runner.run(submission.batch_id)
        self.history.report_again(submission.batch_id)
        return submission.batch_id

    def delete(self, named, id_, history=None, **options):
        return forget(self.pipeline, history or self.history, Named(named), id_, **options)

    def traces(self, *needles):
        return traces(needles, self.databases, self.folders)

    def pictures(self, batch_id):
        """Return the thumbnails as stored, and as Dagster's events contain them."""
        storage = self.pipeline.storage
        rows = upload_rows(self.pipeline.database, batch_id)
        return [storage.read(row.thumbnail_path) for row in rows], [
            data
            for event in self.events("upload_analysis", batch_id)
            for data in [event.metadata["preview"].value.partition("base64,")[2].encode()]
        ]

    def events(self, asset, batch_id):
        records = self.runner.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[str(batch_id)]), limit=50
        ).records
        return [record.asset_materialization for record in records]


@pytest.fixture(scope="module")
def own_instance(server, tmp_path_factory):
    """A Dagster instance that other tests do not use."""
    home = tmp_path_factory.mktemp("dagster_home")
    shutil.copy(ROOT / "dagster.yaml", home)
    with server.new_database(migrated=False) as url:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(DAGSTER_DATABASE_URL, url)
            instance = dg.DagsterInstance.from_config(str(home))
        with instance:
            yield instance, url


@pytest.fixture
def instance(own_instance, monkeypatch):
    instance, url = own_instance
    monkeypatch.setenv(DAGSTER_DATABASE_URL, url)
    instance.wipe()
    for batch_id in instance.get_dynamic_partitions("batches"):
        instance.delete_dynamic_partition("batches", batch_id)
    return instance


@pytest.fixture
def kept(runner, model_server, database_url, own_instance):
    runner.pipeline.ownership.take_over()  # rows of tests name files that do not exist
    return Kept(runner, model_server, database_url, own_instance[1])


def needles(kept, batch_id, name):
    files, previews = kept.pictures(batch_id)
    sheet = kept.events("batch_report", batch_id)[0].metadata["contact_sheet"].value
    return [
        name.encode(),
        WORDS[name][:40].encode(),
        *files,
        *previews,
        sheet.partition("base64,")[2].encode(),
        *(
            one
            for row in upload_rows(kept.pipeline.database, batch_id)
            for one in of_upload(row.id)
        ),
    ]


@pytest.mark.slow
def test_nothing_of_a_deleted_batch_is_found_and_that_of_others_is_untouched(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby", "second")
    others = kept.batch(tmp_path, "pelican_odette", user=OTHER)
    gone, stay = needles(kept, batch, "quokka_barnaby"), needles(kept, others, "pelican_odette")
    assert {needle for _, needle in kept.traces(*gone)} == set(gone)
    before = kept.traces(*stay)
    counted = kept.delete("batch", batch, dry_run=True)
    assert {needle for _, needle in kept.traces(*gone)} == set(gone)

    receipt = kept.delete("batch", batch)

    assert kept.traces(*gone, str(batch).encode()) == []
    assert kept.traces(*stay) == before
    assert receipt.batches == [batch]
    assert len(receipt.uploads) == 2
    for what in ("batches", "uploads", "vectors", "model_calls", "originals", "thumbnails"):
        assert receipt.counts[what] == counted.counts[what] > 0, what
    for what in ("runs", "checks", "partitions"):  # of Dagster
        assert receipt.counts[what] == counted.counts[what] > 0, what
    assert receipt.counts["files_kept"] == 0
    assert str(batch) not in kept.runner.instance.get_dynamic_partitions("batches")
    last = kept.runner.instance.get_latest_materialization_event(dg.AssetKey("upload_analysis"))
    assert last.asset_materialization.partition == str(others)


def test_a_receipt_holds_no_name_and_no_description(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    receipt = repr(kept.delete("batch", batch))
    assert "quokka" not in receipt
    assert "Barnaby" not in receipt


def test_a_deleted_upload_leaves_nothing_and_its_batch_is_counted_and_reported_again(
    kept, tmp_path
):
    batch = kept.batch(tmp_path, "quokka_barnaby", "sibling", album="album")
    rows = {row.filename: row for row in upload_rows(kept.pipeline.database, batch)}
    gone, sibling = rows["quokka_barnaby.jpg"], rows["sibling.jpg"]
    thumbnail = kept.pipeline.storage.read(gone.thumbnail_path)
    old_sheet = kept.events("batch_report", batch)[0].metadata["contact_sheet"].value

    kept.delete("upload", gone.id)

    assert kept.traces(b"quokka_barnaby", thumbnail, *of_upload(gone.id)) == []
    assert upload_row(kept.pipeline.database, sibling.id).description
    counters = batch_row(kept.pipeline.database, batch)
    assert (counters.total_uploads, counters.processed_uploads, counters.successful_uploads) == (
        1,
        1,
        1,
    )
    assert counters.status == "completed"
    [report] = kept.events("batch_report", batch)
    assert report.metadata["total"].value == 1
    assert report.metadata["contact_sheet"].value != old_sheet
    [analysis] = kept.events("upload_analysis", batch)
    assert analysis.metadata["upload_id"].value == str(sibling.id)


def test_a_deleted_failed_upload_leaves_no_name_in_events_about_all_steps(kept, tmp_path):
    shutil.copy(MEDIA / "truncated.jpg", tmp_path / "broken_vase_of_agatha.jpg")
    shutil.copy(MEDIA / "sea.jpg", tmp_path / "sea.jpg")
    batch = kept.runner.submit(tmp_path / "broken_vase_of_agatha.jpg", tmp_path / "sea.jpg")
    result = kept.runner.run(batch)
    kept.history.report_again(batch)
    assert not result.success
    [gone] = [row for row in upload_rows(kept.pipeline.database, batch) if "agatha" in row.filename]
    assert kept.traces(b"broken_vase_of_agatha")

    kept.delete("upload", gone.id)

    assert kept.traces(b"broken_vase_of_agatha", *of_upload(gone.id)) == []
    assert batch_row(kept.pipeline.database, batch).failed_uploads == 0
    assert kept.runner.instance.all_logs(result.run_id)  # the rest can be read


@pytest.mark.slow
def test_nothing_of_a_deleted_user_is_found_and_others_are_untouched(kept, tmp_path):
    user = uuid.uuid4()
    first = kept.batch(tmp_path, "quokka_barnaby", user=user)
    kept.batch(tmp_path, "second", user=user)
    others = kept.batch(tmp_path, "pelican_odette", user=OTHER)
    gone, stay = needles(kept, first, "quokka_barnaby"), needles(kept, others, "pelican_odette")
    before = kept.traces(*stay)

    receipt = kept.delete("user", user)

    assert kept.traces(*gone, str(user).encode()) == []
    assert kept.traces(*stay) == before
    assert len(receipt.batches) == 2
    with pytest.raises(NotFoundError, match=f"there is no user {user} "):
        kept.delete("user", user)


def test_a_batch_that_an_api_has_given_to_another_user_stays_when_the_first_is_deleted(
    kept, tmp_path
):
    first, second = uuid.uuid4(), uuid.uuid4()
    given = kept.batch(tmp_path, "given", user=first)
    kept.batch(tmp_path, "own", user=first)
    with kept.pipeline.database.transaction() as connection:
        for table, id_ in ((UploadBatch, UploadBatch.id), (Upload, Upload.batch_id)):
            connection.execute(update(table).where(id_ == given).values(user_id=second))
    assert kept.delete("user", first).counts["uploads"] == 1
    [row] = upload_rows(kept.pipeline.database, given)
    assert row.user_id == second
    assert kept.pipeline.storage.exists(row.thumbnail_path)
    assert kept.pipeline.ownership.made_thumbnail(row.id)
    assert kept.events("upload_analysis", given)


def test_an_upload_that_an_api_has_given_to_another_user_stays_when_its_batch_goes(kept, tmp_path):
    first, second = uuid.uuid4(), uuid.uuid4()
    batch = kept.batch(tmp_path, "quokka_barnaby", "second", user=first)
    rows = upload_rows(kept.pipeline.database, batch)
    gone, stays = sorted(rows, key=lambda row: row.filename)
    with kept.pipeline.database.transaction() as connection:
        connection.execute(update(Upload).where(Upload.id == stays.id).values(user_id=second))

    assert kept.delete("user", first, dry_run=True).uploads == [gone.id]
    receipt = kept.delete("user", first)

    assert (receipt.batches, receipt.uploads) == ([], [gone.id])
    [row] = upload_rows(kept.pipeline.database, batch)
    assert (row.id, row.description, row.user_id) == (stays.id, stays.description, second)
    assert kept.pipeline.storage.exists(row.file_path)
    assert kept.pipeline.storage.exists(row.thumbnail_path)
    left = batch_row(kept.pipeline.database, batch)
    assert (left.user_id, left.name, left.total_uploads, left.status) == (
        second,
        None,
        1,
        "completed",
    )
    [report] = kept.events("batch_report", batch)
    assert "quokka_barnaby" not in str(report)


def test_the_thumbnail_of_an_upload_that_was_given_away_goes_with_it(kept, tmp_path):
    first, second = uuid.uuid4(), uuid.uuid4()
    [upload] = upload_rows(kept.pipeline.database, kept.batch(tmp_path, "given", user=first))
    with kept.pipeline.database.transaction() as connection:
        connection.execute(update(Upload).values(user_id=second))
    assert kept.delete("upload", upload.id).counts["thumbnails"] == 1
    assert not kept.pipeline.storage.exists(upload.thumbnail_path)


def test_the_thumbnail_of_a_deleted_upload_stays_if_a_row_of_another_user_names_it(kept, tmp_path):
    first, second = uuid.uuid4(), uuid.uuid4()
    [upload] = upload_rows(kept.pipeline.database, kept.batch(tmp_path, "copied", user=first))
    columns = "filename, file_path, file_type, file_size, processing_status, thumbnail_path"
    with kept.pipeline.database.transaction() as connection:
        connection.execute(
            text(f"INSERT INTO uploads (user_id, {columns}) SELECT :user, {columns} FROM uploads"),
            {"user": second},
        )
        connection.execute(delete(Upload).where(Upload.id == upload.id))
    assert kept.delete("user", first).counts["thumbnails"] == 0
    assert kept.pipeline.storage.exists(upload.thumbnail_path)
    removed_by_the_tidy_after_the_copy(kept, upload.thumbnail_path)


def removed_by_the_tidy_after_the_copy(kept, thumbnail_path):
    leftovers = partial(
        remove_leftovers,
        *(kept.pipeline.database, kept.pipeline.storage, kept.pipeline.ownership),
        grace_seconds=0,
    )
    leftovers()
    assert kept.pipeline.storage.exists(thumbnail_path)
    with kept.pipeline.database.transaction() as connection:
        connection.execute(delete(Upload))
    leftovers()
    assert not kept.pipeline.storage.exists(thumbnail_path)


@pytest.mark.parametrize("what", ["upload", "batch", "user"])
def test_a_thumbnail_that_a_copied_row_names_is_removed_after_the_copy(kept, tmp_path, what):
    first = uuid.uuid4()
    batch = kept.batch(tmp_path, "copied", user=first)
    [upload] = upload_rows(kept.pipeline.database, batch)
    columns = "filename, file_path, file_type, file_size, processing_status, thumbnail_path"
    with kept.pipeline.database.transaction() as connection:
        connection.execute(
            text(f"INSERT INTO uploads (user_id, {columns}) SELECT :user, {columns} FROM uploads"),
            {"user": uuid.uuid4()},
        )
    deleted = {"upload": upload.id, "batch": batch, "user": first}[what]

    assert kept.delete(what, deleted).counts["thumbnails"] == 0

    removed_by_the_tidy_after_the_copy(kept, upload.thumbnail_path)


def interrupted_after(step, kept, monkeypatch):
    """A history whose deletion stops after one step, as after Ctrl-C or a power cut."""
    history = DagsterHistory(kept.runner.instance, kept.pipeline)
    done = getattr(history, step)

    def then_stop(*arguments):
        done(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(history, step, then_stop)
    return history


def test_a_deletion_that_is_interrupted_after_each_step_is_completed_by_the_next(
    kept, tmp_path, monkeypatch
):
    batch = kept.batch(tmp_path, "quokka_barnaby", "second")
    gone = needles(kept, batch, "quokka_barnaby")
    for step in (
        "wait_for_ticks",
        "_delete_ticks",
        "_delete_events",
        "_delete_checks",
        "_delete_run",
        "_forget_last_events",
        "forget_batch",
    ):
        with pytest.raises(KeyboardInterrupt):
            kept.delete("batch", batch, interrupted_after(step, kept, monkeypatch))
        assert {row.description for row in upload_rows(kept.pipeline.database, batch)} == {None}

    assert kept.delete("batch", batch).counts["batches"] == 1

    assert kept.traces(*gone, str(batch).encode()) == []
    with pytest.raises(NotFoundError):
        kept.delete("batch", batch)


def test_a_deletion_of_an_upload_that_is_interrupted_after_each_step_is_completed_by_the_next(
    kept, tmp_path, monkeypatch
):
    batch = kept.batch(tmp_path, "quokka_barnaby", "sibling", album="album")
    [gone] = [
        row
        for row in upload_rows(kept.pipeline.database, batch)
        if row.filename == "quokka_barnaby.jpg"
    ]
    kept.runner.run(batch, upload_ids=[str(gone.id)])  # its plan names the upload
    for step in (
        "_delete_events",
        "_delete_logs",
        "_delete_run",
        "wait_for_ticks",
        "_delete_ticks",
        "_forget_last_events",
        "forget_upload",
    ):
        with pytest.raises(KeyboardInterrupt):
            kept.delete("upload", gone.id, interrupted_after(step, kept, monkeypatch))

    kept.delete("upload", gone.id)

    assert kept.traces(b"quokka_barnaby", *of_upload(gone.id)) == []
    [report] = kept.events("batch_report", batch)
    assert report.metadata["total"].value == 1


@pytest.mark.slow
def test_reports_that_a_sensor_was_about_to_store_are_deleted_too(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    # Given: a tick that has read the batch, and not yet stored its report.
    with psycopg.connect(kept.databases[1], autocommit=True) as ticks:
        ticks.execute(
            "INSERT INTO job_ticks (job_origin_id, status, type, timestamp, tick_body) VALUES "
            "('o', 'STARTED', 'SENSOR', now() AT TIME ZONE 'UTC', "
            """'{"instigator_name": "report_ended_batches"}')"""
        )
        with ThreadPoolExecutor() as pool:
            deletion = pool.submit(kept.delete, "batch", batch)
            with pytest.raises(TimeoutError):  # the deletion waits for it
                deletion.result(2)
            # When: it stores the report in the meantime.
            kept.runner.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    "batch_report", partition=str(batch), metadata={"file": "quokka_barnaby.jpg"}
                )
            )
            ticks.execute("UPDATE job_ticks SET status = 'SUCCESS'")
            deletion.result(60)
    assert kept.traces(b"quokka_barnaby", str(batch).encode()) == []


def test_a_sweep_in_the_middle_of_a_deletion_does_not_open_the_batch_again(kept, monkeypatch):
    failed = {"processing_status": "failed", "retry_at": func.now()}
    batch = add_batch(kept.pipeline.database, [failed], status="completed")
    wait = kept.history.wait_for_ticks

    def wait_during_a_sweep():
        kept.pipeline.backlog.retry_due()
        wait()

    monkeypatch.setattr(kept.history, "wait_for_ticks", wait_during_a_sweep)
    assert kept.delete("batch", batch).batches == [batch]


def test_a_batch_that_a_person_retries_in_the_middle_of_a_deletion_stays_and_says_so(
    kept, monkeypatch
):
    batch = add_batch(kept.pipeline.database, 1, status="cancelled")
    wait = kept.history.wait_for_ticks

    def wait_during_a_retry():
        kept.pipeline.batches.retry_batch(batch)
        wait()

    monkeypatch.setattr(kept.history, "wait_for_ticks", wait_during_a_retry)
    reopened = f"^a part is deleted; batch .* is pending: .*cancel {batch}.*, then delete again"
    with pytest.raises(RefusedError, match=reopened):
        kept.delete("batch", batch)
    monkeypatch.undo()
    kept.pipeline.batches.cancel_batch(batch)
    assert kept.delete("batch", batch).batches == [batch]


def test_an_upload_that_a_sweep_adopts_in_the_middle_of_a_deletion_leaves_no_batch_behind(
    kept, monkeypatch
):
    user, database = uuid.uuid4(), kept.pipeline.database
    rows = [{"user_id": user, "created_at": func.now() - func.make_interval(0, 0, 0, 1)}]
    batch = add_batch(database, rows, user_id=user)
    with database.transaction() as connection:
        connection.execute(UploadBatch.__table__.delete().where(UploadBatch.id == batch))
    wait = kept.history.wait_for_ticks

    def wait_during_a_sweep():
        kept.pipeline.backlog.adopt()
        wait()

    monkeypatch.setattr(kept.history, "wait_for_ticks", wait_during_a_sweep)
    added = f"^a part is deleted; uploads or a batch were added to user {user} .*: delete again"
    with pytest.raises(RefusedError, match=added):
        kept.delete("user", user)
    monkeypatch.undo()
    with database.transaction() as connection:
        mine = select(UploadBatch.id).where(UploadBatch.user_id == user)
        [adopted] = connection.scalars(mine)
    kept.pipeline.batches.cancel_batch(adopted)
    assert kept.delete("user", user).batches == [adopted]


def test_an_upload_that_an_api_adds_in_the_middle_of_a_deletion_does_not_lose_its_row(
    kept, monkeypatch
):
    database, storage = kept.pipeline.database, kept.pipeline.storage
    batch = add_batch(database, 1, status="cancelled")
    path = storage.original_path(BARNABY, uuid.uuid4(), "jpg")
    storage.write(path, b"a picture")
    forget_batch = kept.history.forget_batch

    def forget_batch_while_an_api_adds_an_upload(batch_id):
        with database.transaction() as connection:
            connection.execute(
                insert(Upload).values(
                    user_id=BARNABY, batch_id=batch_id, filename="late.jpg", file_path=path,
                    file_type="image", file_size=9,
                )
            )  # fmt: skip
        return forget_batch(batch_id)

    monkeypatch.setattr(kept.history, "forget_batch", forget_batch_while_an_api_adds_an_upload)
    added = "^a part is deleted; .* while the batch was being deleted: delete again"
    with pytest.raises(RefusedError, match=added):
        kept.delete("batch", batch)
    assert "late.jpg" in {row.filename for row in upload_rows(database, batch)}
    monkeypatch.undo()
    assert len(kept.delete("batch", batch, originals=True).uploads) == 2
    assert not storage.exists(path)


def test_ticks_and_console_lines_that_name_a_batch_are_deleted_too(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    other = kept.batch(tmp_path, "pelican_odette")
    console = Path(kept.runner.instance.root_directory) / "dagster-dev.log"
    with psycopg.connect(kept.databases[1], autocommit=True) as ticks:
        for one, name in ((batch, "quokka_barnaby"), (other, "pelican_odette")):
            said = f"1 batch waits: 1 behind other runs [{name} album ({short(one)})]"
            with console.open("a") as lines:
                lines.write(f"2026-01-01 10:00:00 +0000 - dagster - INFO - {said}\n")
            ticks.execute(
                "INSERT INTO job_ticks (job_origin_id, status, type, timestamp, tick_body)"
                " VALUES ('o', 'SKIPPED', 'SENSOR', now() AT TIME ZONE 'UTC', %s)",
                [json.dumps({"job_name": "pending_batches", "skip_reason": said})],
            )
    counted = kept.delete("batch", batch, dry_run=True)
    receipt = kept.delete("batch", batch)
    assert (counted.counts["ticks"], receipt.counts["ticks"]) == (1, 1)
    assert kept.traces(b"quokka_barnaby", short(batch).encode()) == []
    of_other = kept.traces(f"pelican_odette album ({short(other)})".encode())
    assert {"job_ticks", str(console)} <= {place for place, _ in of_other}


def test_dagsters_data_about_a_batch_whose_rows_an_api_deleted_is_deleted_too(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    with kept.pipeline.database.transaction() as connection:
        connection.execute(Upload.__table__.delete().where(Upload.batch_id == batch))
        connection.execute(UploadBatch.__table__.delete().where(UploadBatch.id == batch))

    assert kept.delete("batch", batch).counts["runs"] == 1

    assert traces([b"quokka_barnaby"], kept.databases, []) == []


@pytest.mark.parametrize("status", ["pending", "processing"])
def test_the_deletion_of_an_open_batch_is_refused_with_what_to_do(kept, status):
    batch = add_batch(kept.pipeline.database, 2, status=status, name="Rome")
    [upload, _] = upload_rows(kept.pipeline.database, batch)
    for named, id_ in (("batch", batch), ("upload", upload.id), ("user", upload.user_id)):
        with pytest.raises(RefusedError, match=rf"Rome .* is {status}: .*cancel {batch}\)"):
            kept.delete(named, id_)
    assert len(upload_rows(kept.pipeline.database, batch)) == 2


def test_the_deletion_of_an_upload_that_a_worker_holds_is_refused(kept):
    batch = add_batch(
        kept.pipeline.database,
        [{"processing_status": "analyzing", "heartbeat_at": func.now(), "owner_run_id": "r"}],
        status="cancelled",
    )
    with pytest.raises(RefusedError, match="still in progress"):
        kept.delete("batch", batch)


def test_the_deletion_of_a_batch_whose_run_has_not_ended_is_refused(kept):
    batch = add_batch(kept.pipeline.database, 1, status="cancelled", name="Rome")
    run = record_run(
        kept.runner.instance,
        kept.runner.job,
        run_config={"ops": {"load_batch": {"config": {"batch_id": str(batch)}}}},
        tags={"batch_pipeline/batch_id": str(batch)},
    )
    with pytest.raises(RefusedError, match=f"run {run.run_id} of batch Rome .* has not ended"):
        kept.delete("batch", batch)


def test_runs_of_a_batch_whose_name_contains_the_id_of_a_deleted_one_stay(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    config = {"ops": {"load_batch": {"config": {"batch_id": str(batch)}}}}
    by_hand = record_run(kept.runner.instance, kept.runner.job, run_config=config)
    other = add_batch(kept.pipeline.database, 1, status="cancelled", name=f"copy of {batch}")
    of_other = record_run(
        kept.runner.instance,
        kept.runner.job,
        run_config={"ops": {"load_batch": {"config": {"batch_id": str(other)}}}},
        tags=tags_of_batch(other, BARNABY, f"copy of {batch}"),
    )

    assert kept.delete("batch", batch, dry_run=True).counts["runs"] == 2
    assert kept.delete("batch", batch).counts["runs"] == 2

    assert kept.runner.instance.get_run_by_id(by_hand.run_id) is None
    assert kept.runner.instance.get_run_by_id(of_other.run_id)


#: Rows and rules of an upload API that keep a row from being deleted.
KEEPING = {
    "rows of an upload": """
        CREATE TABLE albums (upload_id uuid REFERENCES uploads DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO albums SELECT id FROM uploads
    """,
    "rows of a batch": """
        CREATE TABLE invoices (batch_id uuid REFERENCES upload_batches);
        INSERT INTO invoices SELECT id FROM upload_batches
    """,
    "a trigger": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE EXCEPTION ''kept for ten years''; END';
        CREATE TRIGGER refuse BEFORE DELETE ON uploads FOR EACH ROW EXECUTE FUNCTION refuse()
    """,
    "a trigger that marks uploads as deleted": """
        ALTER TABLE uploads ADD deleted_at timestamptz;
        CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN UPDATE uploads SET deleted_at = now() WHERE id = OLD.id; RETURN NULL; END';
        CREATE TRIGGER mark BEFORE DELETE ON uploads FOR EACH ROW EXECUTE FUNCTION mark()
    """,
    "a rule that keeps batches": """
        CREATE RULE keep AS ON DELETE TO upload_batches DO INSTEAD NOTHING
    """,
    "a column that may not be empty": """
        ALTER TABLE uploads ALTER description SET NOT NULL
    """,
    "a check of the batch": """
        ALTER TABLE upload_batches ADD CONSTRAINT has_a_name CHECK (name IS NOT NULL)
    """,
    "a check at the commit": """
        CREATE FUNCTION check_it() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN IF NEW.description IS NULL THEN RAISE EXCEPTION ''no text''; END IF;
            RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER check_it AFTER UPDATE ON uploads DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION check_it()
    """,
}


@pytest.mark.parametrize("keeps", KEEPING)
def test_rows_that_an_upload_api_keeps_are_refused_before_anything_is_deleted(kept, keeps):
    kept.pipeline.storage.write("gallery/holiday.jpg", b"theirs")
    ended = {"processing_status": "completed", "description": "a quokka"}
    row = ended | {"file_path": "gallery/holiday.jpg"}
    batch = add_batch(kept.pipeline.database, [row], status="completed", name="Rome")
    [before] = upload_rows(kept.pipeline.database, batch)
    with kept.pipeline.database.transaction() as connection:
        connection.exec_driver_sql(KEEPING[keeps])

    for named, id_ in (("batch", batch), ("user", before.user_id)):
        with pytest.raises(RefusedError, match="nothing was deleted, because the upload API"):
            kept.delete(named, id_, originals=True)

    assert upload_rows(kept.pipeline.database, batch) == [before]
    assert batch_row(kept.pipeline.database, batch).name == "Rome"
    assert kept.pipeline.storage.exists("gallery/holiday.jpg")


def test_a_batch_is_deleted_although_an_api_allows_a_name_only_once(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby", "second")
    with kept.pipeline.database.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE uploads ADD UNIQUE (batch_id, filename)")
    assert kept.delete("batch", batch).counts["uploads"] == 2
    assert kept.traces(b"quokka_barnaby") == []


def test_a_batch_is_deleted_although_a_trigger_of_an_api_deletes_it_first(kept):
    batch = add_batch(kept.pipeline.database, 2, status="cancelled")
    with kept.pipeline.database.transaction() as connection:
        connection.exec_driver_sql("""
            CREATE FUNCTION last() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN DELETE FROM upload_batches WHERE id NOT IN (
                    SELECT batch_id FROM uploads WHERE batch_id IS NOT NULL); RETURN NULL; END';
            CREATE TRIGGER last AFTER DELETE ON uploads EXECUTE FUNCTION last()
        """)
    assert kept.delete("batch", batch).counts["uploads"] == 2


def test_a_batch_of_any_size_is_deleted(kept):
    """A statement has at most 65,535 parameters, so none may have one for each upload."""
    engine, counted = kept.pipeline.database.engine, []

    def count(_connection, _cursor, _statement, given, *_):
        counted.append(len(given))

    event.listen(engine, "before_cursor_execute", count)
    most = []
    for number in (2, 20):
        ended = [{"processing_status": "completed"}] * number
        batch = add_batch(kept.pipeline.database, ended, status="completed")
        counted.clear()
        for dry_run in (True, False):
            assert kept.delete("batch", batch, dry_run=dry_run).counts["uploads"] == number
        most.append(max(counted))
    event.remove(engine, "before_cursor_execute", count)
    assert most[0] == most[1]


def test_originals_of_an_upload_api_are_kept_unless_a_person_says_so(kept):
    storage = kept.pipeline.storage
    storage.write("gallery/holiday.jpg", b"theirs")
    storage.write("gallery/shared.jpg", b"theirs")
    ended = {"processing_status": "completed"}
    rows = [{"file_path": "gallery/holiday.jpg"}, {"file_path": "gallery/shared.jpg"}]
    first = add_batch(kept.pipeline.database, [ended | row for row in rows], status="completed")
    second = add_batch(kept.pipeline.database, [ended | rows[1]], status="completed")
    assert kept.delete("batch", first, dry_run=True).counts["files_kept"] == 2
    kept.delete("batch", second)
    assert storage.exists("gallery/shared.jpg")
    other = add_batch(kept.pipeline.database, [ended | rows[1]], status="completed")

    receipt = kept.delete("batch", first, originals=True)

    assert (receipt.counts["originals"], receipt.counts["files_kept"]) == (1, 1)
    assert not storage.exists("gallery/holiday.jpg")
    assert storage.exists("gallery/shared.jpg")  # a row of another batch names it, too
    kept.delete("batch", other, originals=True)
    assert not storage.exists("gallery/shared.jpg")


def test_a_path_that_cannot_lead_to_a_file_does_not_stop_a_deletion(kept):
    storage = kept.pipeline.storage
    storage.write("gallery/holiday.jpg", b"theirs")
    paths = ["x" * 300, "gallery/holiday.jpg/below.jpg", "gallery"]
    failed = [{"processing_status": "failed", "file_path": path} for path in paths]
    batch = add_batch(kept.pipeline.database, failed, status="completed")
    receipt = kept.delete("batch", batch, originals=True)
    assert receipt.counts == {"batches": 1, "uploads": 3, "files_missing": 3}
    assert storage.exists("gallery/holiday.jpg")


def test_a_dry_run_counts_what_the_deletion_removes(kept):
    """No database owns the default storage yet, and two uploads name the same file."""
    storage, database = kept.pipeline.storage, kept.pipeline.database
    storage.remove(OWNER_NOTE)
    storage.write("gallery/shared.jpg", b"theirs")
    shared = {"processing_status": "completed", "file_path": "gallery/shared.jpg"}
    batch = add_batch(database, [shared, shared, shared], status="completed")
    ours, *_ = upload_rows(database, batch)
    path = storage.original_path(ours.user_id, ours.id, "jpg")
    storage.write(path, b"ours")
    with database.transaction() as connection:
        connection.execute(update(Upload).where(Upload.id == ours.id).values(file_path=path))
    assert not kept.pipeline.ownership.is_marked()
    for options in ({}, {"originals": True}):
        dry = kept.delete("batch", batch, dry_run=True, **options)
        assert dry.counts["originals"] == len(options) + 1
    assert not kept.pipeline.ownership.is_marked()

    assert kept.delete("batch", batch, originals=True).counts == dry.counts


@pytest.mark.parametrize("what", ["upload", "batch", "user"])
@pytest.mark.parametrize("found", ["an empty mount point", "another folder"])
def test_nothing_is_deleted_while_the_storage_is_not_there(kept, tmp_path, change, what, found):
    user = uuid.uuid4()
    batch = kept.batch(tmp_path, "quokka_barnaby", user=user)
    [before] = upload_rows(kept.pipeline.database, batch)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if found == "another folder":
        (elsewhere / "notes.txt").touch()
    id_ = {"upload": before.id, "batch": batch, "user": user}[what]
    with closing(Pipeline(change(storage_url=str(elsewhere)))) as wrong:
        for options in ({"dry_run": True}, {}, {"originals": True}):
            with pytest.raises(ServiceDownError, match="is it mounted"):
                forget(wrong, kept.history, Named(what), id_, **options)

    assert upload_rows(kept.pipeline.database, batch) == [before]
    assert kept.delete(what, id_).counts["originals"] == 1


def test_rows_stay_if_the_storage_goes_away_during_a_deletion(kept, tmp_path, monkeypatch):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    root = Path(kept.pipeline.settings.storage_location)
    wait, away = kept.history.wait_for_ticks, root.with_name("away")

    def wait_while_the_storage_goes_away():
        wait()
        root.rename(away)
        root.mkdir()

    monkeypatch.setattr(kept.history, "wait_for_ticks", wait_while_the_storage_goes_away)
    with pytest.raises(ServiceDownError, match="is it mounted"):
        kept.delete("batch", batch)
    monkeypatch.undo()
    root.rmdir()
    away.rename(root)
    receipt = kept.delete("batch", batch)
    assert (receipt.counts["originals"], receipt.counts["files_missing"]) == (1, 0)


def test_files_that_are_missing_are_counted(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    [row] = upload_rows(kept.pipeline.database, batch)
    kept.pipeline.storage.remove(row.file_path)
    counted = kept.delete("batch", batch, dry_run=True)
    receipt = kept.delete("batch", batch)
    for one in (counted, receipt):
        assert (one.counts["files_missing"], one.counts["originals"]) == (1, 0)
        assert "Missing: 1 file that uploads name" in "\n".join(receipt_lines(one))


def test_on_a_storage_that_another_database_owns_no_file_is_removed(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    [row] = upload_rows(kept.pipeline.database, batch)
    kept.pipeline.ownership._write_owner(str(uuid.uuid4()))
    receipt = kept.delete("batch", batch)
    assert receipt.counts["files_kept"] == 2
    assert kept.pipeline.storage.exists(row.file_path)
    assert kept.pipeline.storage.exists(row.thumbnail_path)


def test_an_upload_without_a_batch_and_calls_without_an_upload_go_with_their_user(kept):
    user = uuid.uuid4()
    batch = add_batch(kept.pipeline.database, [{"user_id": user}], user_id=user)
    with kept.pipeline.database.transaction() as connection:
        connection.execute(UploadBatch.__table__.delete().where(UploadBatch.id == batch))
        connection.execute(
            insert(ModelCall).values(
                id=uuid.uuid4(), user_id=user, kind="vision", model="m", tokens_in=1,
                tokens_out=1, seconds=1.0,
            )
        )  # fmt: skip
    counted = {"uploads": 1, "files_missing": 1, "model_calls": 1}
    assert kept.delete("user", user, dry_run=True).counts == counted
    assert kept.delete("user", user).counts == counted
    with kept.pipeline.database.transaction() as connection:
        assert connection.scalar(select(func.count()).select_from(ModelCall)) == 0


def test_the_log_is_read_once_for_all_uploads_without_a_batch(kept, tmp_path):
    user = uuid.uuid4()
    names = ["quokka_barnaby", "1f3870be274f6c49b3e31a0c6728957f", "pelican_odette"]
    batch = kept.batch(tmp_path, *names, user=user)
    ids = [row.id for row in upload_rows(kept.pipeline.database, batch)]
    kept.history.forget_reports(batch)
    with kept.pipeline.database.transaction() as connection:
        connection.execute(UploadBatch.__table__.delete().where(UploadBatch.id == batch))
    with psycopg.connect(kept.databases[1]) as dagster:
        dagster.execute("DELETE FROM run_tags")  # nothing else leads from the user to the run
    read = []

    def note(_connection, _cursor, statement, *_):
        if "step_key" in statement and "run_id = ANY" not in statement:
            read.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert kept.delete("user", user).counts["uploads"] == len(names)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(read) == 1
    steps = [of_upload(upload_id) for upload_id in ids]
    assert traces([one for of in steps for one in of], kept.databases[1:], []) == []


def test_paths_of_other_uploads_are_read_once_for_a_batch_of_any_size(kept):
    batch = add_batch(kept.pipeline.database, 600, status="cancelled")
    read = []

    def note(_connection, _cursor, statement, *_):
        if "thumbnail_path" in statement.partition("WHERE")[2]:
            read.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert kept.delete("batch", batch).counts["uploads"] == 600
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(read) == 1


def test_an_upload_whose_batch_an_api_has_deleted_goes_alone_and_with_its_user(kept):
    user = uuid.uuid4()
    batch = add_batch(kept.pipeline.database, [{"user_id": user}] * 2, user_id=user)
    one, other = upload_rows(kept.pipeline.database, batch)
    with kept.pipeline.database.transaction() as connection:
        # As in tables of an API that has no foreign key.
        connection.execute(text("ALTER TABLE uploads DROP CONSTRAINT fk_uploads_batch_id"))
        connection.execute(UploadBatch.__table__.delete().where(UploadBatch.id == batch))
    assert kept.delete("upload", one.id).uploads == [one.id]
    assert kept.delete("user", user).uploads == [other.id]
    assert upload_rows(kept.pipeline.database, batch) == []


def test_an_export_holds_everything_about_a_user_and_nothing_about_others(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby")
    kept.batch(tmp_path, "pelican_odette", user=OTHER)
    folder = tmp_path / "about"
    database, storage = kept.pipeline.database, kept.pipeline.storage

    done = export_user(database, storage, BARNABY, folder, originals=True)

    lines = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in folder.glob("*.jsonl")
    }
    [row] = upload_rows(database, batch)
    [upload] = lines["uploads"]
    assert [one["id"] for one in lines["batches"]] == [str(batch)]
    assert upload["description"] == row.description == WORDS["quokka_barnaby"]
    assert set(upload) == {"vectors", *(column.name for column in Upload.__table__.columns)}
    assert upload["embedding_local"] == pytest.approx(row.embedding_local)
    [one] = upload["vectors"]
    assert (one["model"], one["dimensions"]) == (row.embedding_model, 1024)
    assert one["vector"] == pytest.approx(row.embedding_local)
    assert {call["kind"] for call in lines["model_calls"]} == {"vision", "embedding"}
    thumbnail = folder / "thumbnails" / f"{row.id}.jpg"
    assert thumbnail.read_bytes() == storage.read(row.thumbnail_path)
    original = folder / "originals" / f"{row.id}.jpg"
    assert original.read_bytes() == (MEDIA / "sea.jpg").read_bytes()
    assert (done.batches, done.uploads, done.thumbnails, done.originals) == (1, 1, 1, 1)
    assert traces([b"pelican_odette", str(OTHER).encode()], [], [folder]) == []
    with pytest.raises(RefusedError, match="is not empty"):
        export_user(database, storage, BARNABY, folder, originals=False)


@pytest.fixture
def without_user(kept, tmp_path):
    """Batches of two users, with uploads that have no user in their row, as an API may do it."""
    users = uuid.uuid4(), uuid.uuid4()
    names = ("quokka_barnaby", "pelican_odette")
    batches = [
        kept.batch(tmp_path, name, user=user) for user, name in zip(users, names, strict=True)
    ]
    with kept.pipeline.database.transaction() as connection:
        for table in (UploadBatch, Upload):
            name = table.__tablename__
            connection.execute(text(f"ALTER TABLE {name} ALTER user_id DROP NOT NULL"))
        connection.execute(update(Upload).values(user_id=None))
        # If the uploads come without a user, model calls and vectors are stored like this.
        connection.execute(update(ModelCall).values(user_id=LOCAL_USER))
        connection.execute(delete(AnsweringSpace).where(AnsweringSpace.user_id != LOCAL_USER))
    return users, batches


def found_by(kept, user):
    """Return the ids that both a search and a selection to redo find."""
    pipeline = kept.pipeline
    filters = Filters(user_id=user)
    hits = search(pipeline.database, pipeline.spaces.model_of, "an animal", filters=filters)
    assert {hit.user_id for hit in hits} <= {user}
    redone = select(Upload.id).where(*_conditions(Selection(Stage.THUMBNAIL, user_id=user)))
    with pipeline.database.transaction() as connection:
        assert set(connection.scalars(redone)) == {hit.upload_id for hit in hits}
    return [hit.upload_id for hit in hits]


def test_an_upload_without_a_user_belongs_to_the_user_of_its_batch(kept, tmp_path, without_user):
    (first, second), (of_first, of_second) = without_user
    database, storage = kept.pipeline.database, kept.pipeline.storage
    [mine] = upload_rows(database, of_first)

    assert found_by(kept, first) == [mine.id]
    assert found_by(kept, LOCAL_USER) == []
    done = export_user(database, storage, first, tmp_path / "first", originals=False)
    assert (done.batches, done.uploads, done.model_calls) == (1, 1, 2)
    [line] = (tmp_path / "first" / "uploads.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == str(mine.id)
    with pytest.raises(NotFoundError):
        kept.delete("user", LOCAL_USER)
    receipt = kept.delete("user", first)
    assert (receipt.uploads, receipt.counts["model_calls"]) == ([mine.id], 2)
    [theirs] = upload_rows(database, of_second)
    assert found_by(kept, second) == [theirs.id]


def test_the_local_user_owns_an_upload_if_its_batch_has_no_user_either(
    kept, tmp_path, without_user
):
    (first, _), (of_first, of_second) = without_user
    database, storage = kept.pipeline.database, kept.pipeline.storage
    with database.transaction() as connection:
        connection.execute(
            update(UploadBatch).where(UploadBatch.id == of_second).values(user_id=None)
        )
    [mine], [others] = upload_rows(database, of_second), upload_rows(database, of_first)

    assert found_by(kept, LOCAL_USER) == [mine.id]
    done = export_user(database, storage, LOCAL_USER, tmp_path / "local", originals=False)
    assert (done.batches, done.uploads, done.model_calls) == (1, 1, 2)
    counted = kept.delete("user", LOCAL_USER, dry_run=True)
    receipt = kept.delete("user", LOCAL_USER)
    for one in (counted, receipt):
        assert (one.uploads, one.counts["model_calls"]) == ([mine.id], 2)
    assert found_by(kept, first) == [others.id], "the space still answers"


def test_an_upload_without_a_user_in_a_batch_that_goes_to_another_is_deleted_by_the_second_call(
    kept, tmp_path, monkeypatch
):
    first, second = uuid.uuid4(), uuid.uuid4()
    batch = kept.batch(tmp_path, "quokka_barnaby", "second", user=first)
    gone, stays = sorted(upload_rows(kept.pipeline.database, batch), key=lambda row: row.filename)
    with kept.pipeline.database.transaction() as connection:
        connection.execute(text("ALTER TABLE uploads ALTER user_id DROP NOT NULL"))
        for row, user in ((gone, None), (stays, second)):
            connection.execute(update(Upload).where(Upload.id == row.id).values(user_id=user))
    with pytest.raises(KeyboardInterrupt):
        kept.delete("user", first, interrupted_after("wait_for_ticks", kept, monkeypatch))
    assert kept.delete("user", first).uploads == [gone.id]
    assert [row.id for row in upload_rows(kept.pipeline.database, batch)] == [stays.id]


def test_an_export_of_several_pages_holds_every_row_once_also_the_nil_id(kept, tmp_path):
    nil = uuid.UUID(int=0)
    add_batch(kept.pipeline.database, [{"id": nil}, *[{}] * 420], id=nil, user_id=BARNABY)
    with kept.pipeline.database.transaction() as connection:
        connection.execute(Upload.__table__.update().values(user_id=BARNABY))
    database, storage = kept.pipeline.database, kept.pipeline.storage
    done = export_user(database, storage, BARNABY, tmp_path / "about", originals=False)
    assert (done.batches, done.uploads) == (1, 421)
    lines = (tmp_path / "about" / "uploads.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 421


def test_an_export_leaves_out_a_file_that_cannot_be_read_and_names_it(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby", "second")
    first, second = upload_rows(kept.pipeline.database, batch)
    storage, folder = kept.pipeline.storage, tmp_path / "about"
    loop = Path(kept.pipeline.settings.storage_location, first.file_path)
    loop.unlink()
    loop.symlink_to(loop)
    done = export_user(kept.pipeline.database, storage, BARNABY, folder, originals=True)
    assert (done.uploads, done.thumbnails, done.originals) == (2, 2, 1)
    assert (done.missing, done.unreadable) == ([], [first.file_path])
    assert [file.stem for file in (folder / "originals").iterdir()] == [str(second.id)]


def test_an_export_goes_into_the_current_folder_if_that_is_empty(kept, tmp_path, monkeypatch):
    kept.batch(tmp_path, "quokka_barnaby")
    folder = tmp_path / "about"
    folder.mkdir()
    monkeypatch.chdir(folder)
    export_user(kept.pipeline.database, kept.pipeline.storage, BARNABY, Path(), originals=False)
    assert (folder / "uploads.jsonl").exists()
    assert Path("uploads.jsonl").exists(), "the shell is still in it"


def test_an_export_of_an_unknown_user_writes_no_folder(kept, tmp_path):
    with pytest.raises(NotFoundError):
        export_user(
            kept.pipeline.database,
            kept.pipeline.storage,
            uuid.uuid4(),
            tmp_path / "about",
            originals=False,
        )
    assert not list(tmp_path.glob("about*"))


def test_events_of_what_is_deleted_leave_the_outbox_and_those_of_others_stay(kept, tmp_path):
    batch = kept.batch(tmp_path, "quokka_barnaby", "second", album="quokka_album")
    others = kept.batch(tmp_path, "pelican_odette", user=OTHER, album="pelican_album")
    first, second = (row.id for row in upload_rows(kept.pipeline.database, batch))
    quarantine = text(
        "UPDATE uploads SET processing_status = 'failed', error_kind = 'killed_worker' "
        "WHERE id = :id"
    )
    with kept.pipeline.database.transaction() as connection:
        for upload_id in (first, second):
            connection.execute(quarantine, {"id": upload_id})
    kept.pipeline.batches.recount_batch(batch)

    def told():
        with kept.pipeline.database.transaction() as connection:
            rows = connection.execute(text("SELECT type, data FROM notifications")).all()
        return sorted((row.type, row.data.get("filename") or row.data["name"]) for row in rows)

    of_others = ("batch.completed", "pelican_album")
    before = [
        ("batch.completed", "quokka_album"),
        ("upload.quarantined", "quokka_barnaby.jpg"),
        ("upload.quarantined", "second.jpg"),
    ]
    assert told() == sorted([*before, of_others])

    kept.delete("upload", first)
    assert told() == sorted([before[0], before[2], of_others])
    kept.delete("batch", batch)
    assert told() == [of_others]
    kept.delete("user", OTHER)
    assert told() == []
    assert kept.traces(str(others).encode()) == []


def test_reports_of_batches_that_ended_long_ago_are_deleted_with_their_partition(kept, tmp_path):
    old = kept.batch(tmp_path, "quokka_barnaby")
    young = kept.batch(tmp_path, "pelican_odette", user=OTHER)
    instance = kept.runner.instance
    instance.add_dynamic_partitions("batches", [str(old), str(young)])
    with kept.pipeline.database.transaction() as connection:
        connection.execute(
            update(UploadBatch)
            .where(UploadBatch.id == old)
            .values(updated_at=func.now() - func.make_interval(0, 0, 0, 91))
        )
    assert kept.events("batch_report", old)
    own_step = len(kept.events("upload_analysis", old))

    found = tidy(instance, kept.pipeline, LeftOut())

    assert found["partitions_pruned"] == 1
    assert kept.events("batch_report", old) == []
    assert len(kept.events("upload_analysis", old)) == own_step, "runs have a time of their own"
    assert kept.events("batch_report", young)
    assert instance.get_dynamic_partitions("batches") == [str(young)]
