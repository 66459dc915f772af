"""Storage in S3, on a real server over real HTTP: a whole batch, and outages of the storage."""

import itertools
import uuid
from pathlib import PurePosixPath

import pytest
from sqlalchemy import text

from batch_pipeline.database.models import Stage
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.services.reports.previews import Previews
from batch_pipeline.services.reports.report_page import read_report, render_html
from batch_pipeline.services.reprocessing import Selection, reprocess
from batch_pipeline_tests.integration.orchestration.conftest import MEDIA

from .conftest import failures

pytestmark = pytest.mark.xdist_group("object_store")


@pytest.fixture
def in_s3(work, s3_url):
    return work(storage_url=s3_url, max_concurrent_uploads=2)


def stored(work):
    """Names of all objects, by upload."""
    files, root = work.pipeline.storage._files, work.pipeline.storage._root
    names = sorted(PurePosixPath(path) for path in files.find(root) if "/." not in path)
    return {
        uuid.UUID(upload): {path.name for path in paths}
        for upload, paths in itertools.groupby(names, lambda path: path.parent.name)
    }


def test_a_batch_is_processed_reported_and_reprocessed_in_s3(in_s3):
    work, pipeline = in_s3, in_s3.pipeline
    batch_id = work.submit("fog.webp", "ball_on_meadow.mp4")
    [result] = work.run_what_is_asked_for()
    assert result.success
    assert work.counts(batch_id) == ("completed", 2, 0)

    uploads = {row.id: row for row in work.uploads(batch_id)}
    assert stored(work) == {
        upload_id: {PurePosixPath(row.file_path).name, "thumb_256.jpg"}
        for upload_id, row in uploads.items()
    }
    for row in uploads.values():
        assert Previews(pipeline.storage).read(row.thumbnail_path, 160)
    html = render_html(read_report(pipeline.database, pipeline.storage, batch_id))
    assert html.count("data:image/jpeg") >= 2

    for row in uploads.values():
        pipeline.storage.write(row.thumbnail_path, b"spoilt")
    reprocess(pipeline.database, pipeline.batches, Selection(Stage.THUMBNAIL))
    [result] = work.run_what_is_asked_for()
    assert result.success
    for row in uploads.values():
        assert pipeline.storage.read(row.thumbnail_path).startswith(b"\xff\xd8")

    [storage] = [check for check in check_health(pipeline.settings) if check.name == "storage"]
    assert storage.ok, storage


def test_an_object_that_is_gone_fails_its_upload_alone(in_s3):
    work = in_s3
    batch_id = work.submit("fog.webp", "sea.jpg")
    gone, _ = work.uploads(batch_id)
    work.pipeline.storage.remove(gone.file_path)
    [result] = work.run_what_is_asked_for()
    assert "source_missing" in " ".join(failures(result))
    assert work.counts(batch_id) == ("completed", 1, 1)
    assert work.column(batch_id, "error_kind") == ["source_missing", None]


@pytest.mark.parametrize("outage", ["no bucket", "wrong key", "server down"])
def test_an_outage_of_s3_fails_nothing_and_says_what_it_is(
    in_s3, work, s3_url, object_store, outage
):
    batch_id = in_s3.submit("fog.webp", "sea.jpg")
    if outage == "no bucket":
        elsewhere = work(storage_url="s3://no-such-bucket/uploads", max_concurrent_uploads=2)
        [result] = elsewhere.run_what_is_asked_for()
        work(storage_url=s3_url, max_concurrent_uploads=2)
        said = "bucket does not exist"
    elif outage == "wrong key":
        with object_store.refusing_everybody():
            [result] = in_s3.run_what_is_asked_for()
            checks = {check.name: check for check in check_health(in_s3.pipeline.settings)}
            assert not checks["storage"].ok
        said = "Forbidden"
    else:
        paths = in_s3.column(batch_id, "file_path")
        contents = {path: in_s3.pipeline.storage.read(path) for path in paths}
        object_store.stop()
        [result] = in_s3.run_what_is_asked_for()
        object_store.start()
        for path, content in contents.items():
            in_s3.pipeline.storage.write(path, content)
        said = "Could not connect to the endpoint"

    first, second = sorted(failures(result), key=lambda reason: reason.startswith("stopped"))
    assert first.startswith("storage_down: the storage cannot be used: ")
    assert said in first
    assert second.startswith("stopped, the upload is pending: storage_down")
    assert in_s3.column(batch_id, "processing_status") == ["pending"] * 2
    assert in_s3.column(batch_id, "attempts") == [0, 0]

    in_s3.end_the_pause()
    [result] = in_s3.run_what_is_asked_for()
    assert result.success, failures(result)
    assert in_s3.counts(batch_id) == ("completed", 2, 0)


def test_a_submission_into_a_bucket_that_is_not_there_stores_nothing_and_says_so(
    console, object_store, pipeline
):
    answer = console(
        *("submit", "--json", str(MEDIA / "fog.webp")),
        BATCH_PIPELINE_STORAGE_URL="s3://no-such-bucket/uploads",
        **object_store.variables,
    )
    assert answer.code == 1
    assert "the storage cannot be used: The specified bucket does not exist" in answer.err
    assert batch_count(pipeline.database) == 0


def batch_count(database):
    with database.transaction() as connection:
        return connection.scalar(text("SELECT count(*) FROM upload_batches"))
