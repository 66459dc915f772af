import contextlib
import os
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select

from batch_pipeline.database.models import Upload, UploadBatch
from batch_pipeline.database.session import Database
from batch_pipeline.errors import RefusedError, ServiceDownError
from batch_pipeline.services import batch_intake
from batch_pipeline.services.batch_intake import Submission, examine, store, submit
from batch_pipeline.services.deletion.file_ownership import OWNER_NOTE
from batch_pipeline.services.descriptions.known_results import count_known
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings
from batch_pipeline.storage import Storage
from batch_pipeline.testing.records import batch_row, upload_rows
from batch_pipeline_tests.patience import DEADLINE

MEDIA = Path(__file__).parents[3] / "examples" / "media"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "offered").mkdir()
    return tmp_path / "offered"


def copy(folder: Path, sample: str, name: str, appended: bytes = b"") -> Path:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((MEDIA / sample).read_bytes() + appended)
    return target


def offer(pipeline: Pipeline, *paths: Path, settings: Settings | None = None) -> Submission:
    return submit(
        paths,
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=settings or pipeline.settings,
    )


def rows_and_files(pipeline: Pipeline) -> tuple[int, int, int]:
    with pipeline.database.transaction() as connection:
        batches = connection.scalar(select(func.count()).select_from(UploadBatch))
        uploads = connection.scalar(select(func.count()).select_from(Upload))
    return batches, uploads, len(stored_files(pipeline))


def stored_files(pipeline: Pipeline) -> list[Path]:
    """List files, without our notes about the owner of the storage."""
    root = Path(pipeline.settings.storage_location)
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return [path for path in files if path != Path(OWNER_NOTE)]


def test_files_and_folders_become_one_batch_with_every_file_stored(pipeline, folder):
    copy(folder, "sea.jpg", "a/sea.jpg")
    copy(folder, "forest.webp", "a/b/forest.webp")
    single = copy(folder.parent, "night.jpg", "night.jpg")
    submission = offer(pipeline, folder, single)

    uploads = upload_rows(pipeline.database, submission.batch_id)
    assert [upload.filename for upload in uploads] == ["sea.jpg", "forest.webp", "night.jpg"]
    assert [upload.id for upload in uploads] == list(submission.upload_ids)
    assert batch_row(pipeline.database, submission.batch_id).total_uploads == 3
    for upload in uploads:
        assert len(pipeline.storage.read(upload.file_path)) == upload.file_size
        assert upload.file_path == f"{upload.user_id}/{upload.id}/" + Path(upload.file_path).name


def test_sidecars_are_not_uploads_and_give_a_date(pipeline, folder):
    for sample, name, sidecar, day in (
        ("sea.jpg", "a.jpg", "a.jpg.xmp", 1),
        ("night.jpg", "b.jpg", "b.XMP", 2),
        ("forest.webp", "c.webp", None, 0),
    ):
        copy(folder, sample, name)
        if sidecar:
            entry = f'<rdf:Description exif:DateTimeOriginal="2021-05-0{day}T07:08:09+02:00"/>'
            (folder / sidecar).write_text(entry)
    (folder / "nobodys.xmp").write_text("<?xml version='1.0'?><x/>")

    submission = offer(pipeline, folder)

    uploads = upload_rows(pipeline.database, submission.batch_id)
    assert {upload.filename: upload.metadata for upload in uploads} == {
        "a.jpg": {"sidecar_date": "2021-05-01T07:08:09"},
        "b.jpg": {"sidecar_date": "2021-05-02T07:08:09"},
        "c.webp": {},
    }
    assert (submission.refused, submission.left_out) == ([], {".xmp": 1})


def test_a_file_that_is_named_alone_has_its_sidecar_too(pipeline, folder):
    file = copy(folder, "sea.jpg", "a.jpg")
    (folder / "a.xmp").write_text('<rdf:Description xmp:CreateDate="2021-05-06"/>')

    submission = offer(pipeline, file)

    [upload] = upload_rows(pipeline.database, submission.batch_id)
    assert upload.metadata == {"sidecar_date": "2021-05-06T00:00:00"}


def test_a_file_with_the_longest_possible_name_is_submitted(pipeline, folder):
    file = copy(folder, "sea.jpg", f"{'n' * 251}.jpg")
    copy(folder, "night.jpg", "night.jpg")

    submission = offer(pipeline, folder)

    assert (submission.total_files, submission.refused) == (2, [])
    names = {upload.filename for upload in upload_rows(pipeline.database, submission.batch_id)}
    assert names == {file.name, "night.jpg"}


def test_the_type_is_that_of_the_content_not_of_the_name(pipeline, folder):
    copy(folder, "sea.jpg", "really_a_jpeg.png")
    copy(folder, "ball_on_meadow.mp4", "video.jpg")
    uploads = upload_rows(pipeline.database, offer(pipeline, folder).batch_id)
    found = {upload.filename: (upload.file_type, upload.mime_type) for upload in uploads}
    assert found == {
        "really_a_jpeg.png": ("image", "image/jpeg"),
        "video.jpg": ("video", "video/mp4"),
    }


def test_refused_files_are_listed_with_the_reason_and_the_others_go_on(pipeline, folder):
    copy(folder, "sea.jpg", "sea.jpg")
    copy(folder, "sea.jpg", "twin.jpg")
    (folder / "page.png").write_bytes(b"<html><body>no picture</body></html>")
    (folder / "empty.jpg").write_bytes(b"")
    submission = offer(pipeline, folder)

    reasons = {file.filename: file.error for file in submission.refused}
    assert len(submission.upload_ids) == 1
    assert reasons["twin.jpg"] == "the same content as sea.jpg"
    assert "HTML" in reasons["page.png"]
    assert "empty" in reasons["empty.jpg"]


@pytest.mark.parametrize("copied", ["IMG_1 (1).jpg", "IMG_1(1).jpg", "IMG_1-1.jpg", "IMG_1 2.jpg"])
def test_among_equal_files_the_one_that_is_not_named_like_a_copy_is_accepted(
    pipeline, folder, copied
):
    copy(folder, "sea.jpg", copied)
    copy(folder, "sea.jpg", "IMG_1.jpg")

    [refused] = offer(pipeline, folder).refused

    assert (refused.filename, refused.error) == (copied, "the same content as IMG_1.jpg")


def test_a_copy_in_another_folder_is_named_with_its_folder(pipeline, folder):
    first = copy(folder, "sea.jpg", "2024/IMG_1.jpg")
    second = copy(folder, "sea.jpg", "2025/IMG_1.jpg")

    [refused] = offer(pipeline, folder).refused

    assert (refused.path, refused.error) == (second, f"the same content as {first}")


def test_nothing_accepted_means_no_batch(pipeline, folder):
    (folder / "notes.txt").write_text("no media here")
    submission = offer(pipeline, folder)
    assert submission.batch_id is None
    assert rows_and_files(pipeline) == (0, 0, 0)


def test_an_outage_right_after_the_commit_does_not_hide_that_the_batch_is_submitted(
    pipeline, folder, monkeypatch
):
    copy(folder, "sea.jpg", "sea.jpg")
    submission = offer(pipeline, folder)
    nobody = pipeline.database.url.set(host="127.0.0.1", port=1, query={})
    monkeypatch.setattr(pipeline, "database", Database(nobody))
    assert count_known(pipeline, submission.batch_id) == 0


def test_a_file_over_the_limit_is_refused_with_both_numbers(pipeline, folder, change):
    copy(folder, "sea.jpg", "sea.jpg")
    submission = offer(pipeline, folder, settings=change(max_file_bytes=1000))
    assert submission.batch_id is None
    assert "a file may have 1,000" in submission.refused[0].error


def test_files_that_accompany_photos_do_not_count_for_the_limit(pipeline, folder, change):
    for name in ("sea.jpg", "night.jpg"):
        copy(folder, name, name)
        (folder / f"{name}.json").write_text("{}")
        (folder / f"{name}.aae").write_text("<plist/>")
    submission = offer(pipeline, folder, settings=change(max_files_per_batch=2))
    assert (len(submission.upload_ids), submission.left_out) == (2, {".json": 2, ".aae": 2})
    copy(folder, "city.jpg", "city.json")  # a photo, whatever its name says
    with pytest.raises(RefusedError, match="3 files were offered, a batch may hold 2"):
        offer(pipeline, folder, settings=change(max_files_per_batch=2))


@pytest.mark.parametrize(
    ("limit", "what_to_do"),
    [
        ({"max_files_per_batch": 1}, "or raise BATCH_PIPELINE_MAX_FILES_PER_BATCH"),
        ({"max_batch_bytes": 1000}, "or raise BATCH_PIPELINE_MAX_BATCH_BYTES"),
    ],
)
def test_a_submission_over_a_limit_is_refused_whole(pipeline, folder, change, limit, what_to_do):
    copy(folder, "sea.jpg", "sea.jpg")
    copy(folder, "night.jpg", "night.jpg")
    with pytest.raises(RefusedError, match=f"in parts, for example by subfolder, {what_to_do}"):
        offer(pipeline, folder, settings=change(**limit))
    assert rows_and_files(pipeline) == (0, 0, 0)


def test_a_file_that_is_changed_while_it_is_submitted_is_refused_and_the_others_go_on(
    pipeline, folder
):
    """Its checksum would be that of other bytes, and so might be its description."""
    names = ("a.webp", "b.jpg", "c.jpg", "d.jpg")
    paths = [copy(folder, "fog.webp", names[0])] + [
        copy(folder, "sea.jpg", name, appended=name.encode()) for name in names[1:]
    ]
    seen = paths[1].stat()

    def change(stored: int, total: int) -> None:
        if (stored, total) == (1, 4):
            paths[1].write_bytes(paths[1].read_bytes()[::-1])
            os.utime(paths[1], ns=(seen.st_atime_ns, seen.st_mtime_ns + 10**9))
            paths[2].unlink()

    submission = submit(
        paths,
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
        on_stored=change,
    )
    assert [file.filename for file in submission.refused] == ["b.jpg", "c.jpg"]
    assert "submit it again" in submission.refused[0].reason
    assert submission.batch_id
    rows = upload_rows(pipeline.database, submission.batch_id)
    assert {row.filename for row in rows} == {"a.webp", "d.jpg"}
    assert rows_and_files(pipeline) == (1, 2, 2)


def test_a_file_that_cannot_be_read_any_more_is_refused_and_the_others_go_on(pipeline, folder):
    copy(folder, "sea.jpg", "a.jpg")
    copy(folder, "night.jpg", "b.jpg")
    offer = examine([folder], pipeline.settings)
    unreadable = Path("/proc/self/mem")  # no memory is at address 0
    now = unreadable.stat()
    lost = replace(offer.accepted[0], path=unreadable, size=now.st_size, written_at=now.st_mtime_ns)
    done = store(
        replace(offer, accepted=[lost, offer.accepted[1]]),
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    )
    [refused] = done.refused
    assert (refused.filename, refused.error) == ("a.jpg", "it cannot be read: Input/output error")
    assert [row.filename for row in upload_rows(pipeline.database, done.batch_id)] == ["b.jpg"]
    assert rows_and_files(pipeline) == (1, 1, 1)


def test_a_submission_whose_only_file_is_changed_meanwhile_leaves_nothing(pipeline, folder):
    path = copy(folder, "sea.jpg", "a.jpg")
    offer = examine([path], pipeline.settings)
    path.write_bytes(b"")
    submission = store(
        offer,
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    )
    assert (submission.batch_id, len(submission.refused)) == (None, 1)
    assert rows_and_files(pipeline) == (0, 0, 0)


def test_a_path_that_does_not_exist_is_refused_by_name(pipeline, folder):
    with pytest.raises(RefusedError, match=r"missing\.jpg does not exist"):
        offer(pipeline, folder / "missing.jpg")


def test_a_database_that_fails_leaves_no_file_without_its_row(
    pipeline, folder, change, open_pipeline
):
    copy(folder, "sea.jpg", "sea.jpg")
    with pipeline.database.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE uploads")
    with pytest.raises(Exception, match="uploads"):
        offer(pipeline, folder)
    assert stored_files(pipeline) == []
    with pipeline.database.transaction() as connection:
        assert connection.scalar(select(func.count()).select_from(UploadBatch)) == 0


def test_an_interrupt_after_the_commit_leaves_the_batch_its_files(pipeline, folder, monkeypatch):
    copy(folder, "sea.jpg", "sea.jpg")
    insert = batch_intake._insert

    def insert_and_be_interrupted(*arguments):
        insert(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_intake, "_insert", insert_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        offer(pipeline, folder)
    assert rows_and_files(pipeline) == (1, 1, 1)


def test_a_commit_whose_answer_was_lost_is_waited_for_before_any_file_is_removed(
    pipeline, folder, monkeypatch
):
    """The connection is cut after COMMIT was sent; the server takes a moment longer."""
    copy(folder, "sea.jpg", "sea.jpg")
    insert, ending = batch_intake._insert, threading.Event()

    def insert_and_lose_the_answer(*arguments):
        begun = threading.Event()

        def on_the_server():
            with pipeline.publisher.transaction() as outer, monkeypatch.context() as patch:
                patch.setattr(
                    pipeline.publisher, "transaction", lambda: contextlib.nullcontext(outer)
                )
                insert(*arguments)
                begun.set()
                patch.undo()
                ending.wait(DEADLINE)

        threads.append(threading.Thread(target=on_the_server))
        threads[0].start()
        assert begun.wait(DEADLINE)
        threading.Timer(0.5, ending.set).start()
        raise ServiceDownError("database_down", "the answer was lost")

    threads: list[threading.Thread] = []
    monkeypatch.setattr(batch_intake, "_insert", insert_and_lose_the_answer)
    with pytest.raises(ServiceDownError):
        offer(pipeline, folder)
    threads[0].join(DEADLINE)
    assert rows_and_files(pipeline) == (1, 1, 1)


def test_a_storage_that_cannot_be_written_leaves_no_row(pipeline, folder):
    copy(folder, "sea.jpg", "sea.jpg")
    (folder.parent / "in_the_way").write_text("a file where the storage should be")
    pipeline.storage = Storage(str(folder.parent / "in_the_way"))
    with pytest.raises(ServiceDownError) as raised:
        offer(pipeline, folder)
    assert raised.value.kind == "storage_down"
    assert rows_and_files(pipeline)[:2] == (0, 0)


@pytest.mark.parametrize(
    "name", ["up..\\..\\etc", "\u202e<b>gpj.exe", "line\nbreak.jpg", "x" * 200 + ".jpg"]
)
def test_a_hostile_name_is_kept_for_show_and_never_part_of_a_path(pipeline, folder, name):
    copy(folder, "sea.jpg", name)
    upload = upload_rows(pipeline.database, offer(pipeline, folder).batch_id)[0]
    assert upload.filename == name
    assert upload.file_path == f"{upload.user_id}/{upload.id}/original.jpg"


def test_a_name_that_is_not_text_is_stored_readably(pipeline, folder):
    copy(folder, "sea.jpg", os.fsdecode(b"caf\xe9.jpg"))
    upload = upload_rows(pipeline.database, offer(pipeline, folder).batch_id)[0]
    assert upload.filename == "caf?.jpg"


@contextmanager
def as_nobody():
    """Make this user unable to read some files; root can always read them."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_files_that_may_not_be_read_are_listed_with_the_reason(settings):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        copy(root, "sea.jpg", "sea.jpg")
        copy(root, "night.jpg", "secret.jpg").chmod(0)
        copy(root, "city.jpg", "closed/city.jpg").parent.chmod(0)
        copy(root, "fog.webp", "listed/fog.webp").parent.chmod(0o444)
        with as_nobody():
            files, unreadable = batch_intake.collect_files([root])
            accepted, refused = batch_intake._examine(files, settings)
        (root / "closed").chmod(0o755)
        (root / "listed").chmod(0o755)

    assert [file.filename for file in accepted] == ["sea.jpg"]
    assert [(file.filename, file.error) for file in (*unreadable, *refused)] == [
        (f"{root}/closed", "the folder cannot be searched: Permission denied"),
        ("fog.webp", "it cannot be examined: Permission denied"),
        ("secret.jpg", "it cannot be read: Permission denied"),
    ]


def test_links_in_a_circle_end_and_a_name_that_is_too_long_is_refused(pipeline, folder):
    copy(folder, "sea.jpg", "sea.jpg")
    (folder / "again").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    submission = offer(pipeline, folder)
    assert len(submission.upload_ids) == 1
    assert [(file.filename, file.error) for file in submission.refused] == [
        ("itself", "it is a link that leads to no file")
    ]
    with pytest.raises(RefusedError, match="itself cannot be examined: Too many levels"):
        offer(pipeline, folder / "itself")
    with pytest.raises(RefusedError, match="xxx cannot be examined: File name too long"):
        offer(pipeline, folder / ("x" * 300))


def test_a_named_pipe_in_a_folder_is_refused_by_name(pipeline, folder):
    copy(folder, "sea.jpg", "sea.jpg")
    os.mkfifo(folder / "pipe.jpg")
    submission = offer(pipeline, folder)
    assert len(submission.upload_ids) == 1
    assert [(file.filename, file.error) for file in submission.refused] == [
        ("pipe.jpg", "it is a pipe, a socket or a device")
    ]


def test_hidden_files_in_folders_are_left_out(pipeline, folder):
    copy(folder, "sea.jpg", "sea.jpg")
    copy(folder, "night.jpg", ".trash/night.jpg")
    copy(folder, "night.jpg", "._night.jpg")
    assert offer(pipeline, folder).total_files == 1
