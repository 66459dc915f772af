"""One upload among many cannot be read or written: only this one fails, with its reason."""

import ctypes
import errno
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from PIL import Image
from sqlalchemy import text

from batch_pipeline import storage
from batch_pipeline.services.backups.backup import back_up
from batch_pipeline.services.export import export_user
from batch_pipeline.storage import Storage
from batch_pipeline_tests.integration.conftest import program

from .conftest import Work, failures

#: As row F4 says.
MANY = 60
#: Where the same promise is kept for another error: more than are processed at the same time.
FEW = 12


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number:02}.png" for number in range(MANY + 1)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (4 * number, 250 - 4 * number, 90)).save(path)
    return paths


@contextmanager
def without_rights_of_root() -> Iterator[None]:
    """Run the block without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH in this thread."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "capabilities")

    check(libc.capget(header, before))
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~0b110
    check(libc.capset(header, less))
    try:
        yield
    finally:
        check(libc.capset(header, before))


@pytest.fixture
def permissions_hold(monkeypatch) -> None:
    """Use the storage like a user other than root; PostgreSQL's socket still needs root."""
    errors_named = Storage._errors_named

    @contextmanager
    def as_a_user(*arguments, **names):
        with without_rights_of_root(), errors_named(*arguments, **names):
            yield

    monkeypatch.setattr(Storage, "_errors_named", as_a_user)


def loop_of_links(original: Path) -> None:
    original.unlink()
    original.symlink_to(original)


def folder_in_its_place(original: Path) -> None:
    original.unlink()
    original.mkdir()


def pipe_in_its_place(original: Path) -> None:
    original.unlink()
    os.mkfifo(original)


#: Damage to one upload's original; the kind and the reason of its failure.
OF_FILES = {
    "loop of links": (loop_of_links, "source_unreadable", errno.ELOOP),
    "may not be read": (lambda original: original.chmod(0), "source_unreadable", errno.EACCES),
    "its folder may not be entered": (
        lambda original: original.parent.chmod(0),
        "source_unreadable",
        errno.EACCES,
    ),
    "its folder may not be written": (
        lambda original: original.parent.chmod(0o555),
        "thumbnail_not_stored",
        errno.EACCES,
    ),
    "folder": (folder_in_its_place, "source_missing", None),
    "named pipe": (pipe_in_its_place, "source_missing", None),
}


def assert_one_failed(
    work: Work, batch_id, number: int, kind: str, reason: str, *, attempts: int = 1
) -> None:
    siblings = len(work.uploads(batch_id)) - 1
    [result] = work.run_what_is_asked_for()
    assert work.counts(batch_id) == ("completed", siblings, 1)
    [said] = failures(result)
    assert f"{kind}: " in said, said
    assert reason in said
    failed = work.uploads(batch_id)[number]
    assert (failed.processing_status, failed.error_kind) == ("failed", kind)
    assert failed.attempts == attempts
    assert not work.tick().run_requests


@pytest.mark.parametrize(
    ("bad", "number", "siblings"),
    [
        ("loop of links", 30, MANY),
        ("may not be read", 0, MANY),  # before any sibling was read well
        ("its folder may not be entered", 6, FEW),
        ("its folder may not be written", 0, FEW),
        ("folder", 6, FEW),
        ("named pipe", 6, FEW),
    ],
)
@pytest.mark.usefixtures("permissions_hold")
def test_f4_one_file_that_cannot_be_used_fails_alone(work, pictures, bad, number, siblings):
    spoil, kind, code = OF_FILES[bad]
    reason = os.strerror(code) if code else "no file"
    work = work()
    batch_id = work.submit(*pictures[: siblings + 1])
    root = Path(work.pipeline.settings.storage_location)
    original = root / work.uploads(batch_id)[number].file_path
    spoil(original)
    try:
        assert_one_failed(work, batch_id, number, kind, reason)
    finally:
        original.parent.chmod(0o755)


@contextmanager
def as_root(*command: object, undone_by: tuple[object, ...]) -> Iterator[None]:
    """Run a command that needs root and support by the file system; otherwise skip the test."""
    done = subprocess.run([*map(str, command)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"{command[0]} is not possible here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run([*map(str, undone_by)], check=True)


@pytest.mark.parametrize("number", [0, 6])
def test_f4_one_folder_that_is_immutable_fails_alone(work, pictures, number):
    work = work()
    batch_id = work.submit(*pictures[: FEW + 1])
    root = Path(work.pipeline.settings.storage_location)
    folder = (root / work.uploads(batch_id)[number].file_path).parent
    with as_root("chattr", "+i", folder, undone_by=("chattr", "-i", folder)):
        reason = os.strerror(errno.EPERM)
        assert_one_failed(work, batch_id, number, "thumbnail_not_stored", reason)


def test_f4_an_immutable_original_is_processed_like_any_other(work, pictures):
    work = work()
    batch_id = work.submit(*pictures[:2])
    root = Path(work.pipeline.settings.storage_location)
    original = root / work.uploads(batch_id)[0].file_path
    with as_root("chattr", "+i", original, undone_by=("chattr", "-i", original)):
        work.run_what_is_asked_for()
    assert work.counts(batch_id) == ("completed", 2, 0)


@contextmanager
def on_a_broken_disk(original: Path, image: Path) -> Iterator[None]:
    """Mount a separate disk as the file's folder; its second half cannot be read."""
    content, folder = original.read_bytes(), original.parent
    with image.open("wb") as file:
        file.truncate(8 * 1024**2)
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-O", "^has_journal", image], check=True)
    mount = ("mount", "-o", "loop", image, folder)
    with as_root(*mount, undone_by=("umount", "-l", folder)):
        original.write_bytes(content + bytes(200_000))
        with original.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.truncate(image, 1024**2)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            original.read_bytes()
        yield


@pytest.mark.parametrize("number", [0, 6])
def test_f4_one_file_whose_read_fails_with_an_io_error_fails_alone(
    work, pictures, number, tmp_path
):
    program("mkfs.ext4")
    work = work()
    batch_id = work.submit(*pictures[: FEW + 1])
    root = Path(work.pipeline.settings.storage_location)
    original = root / work.uploads(batch_id)[number].file_path
    with on_a_broken_disk(original, tmp_path / "disk"):
        # It is retried first, since the error may be temporary.
        reason = os.strerror(errno.EIO)
        assert_one_failed(work, batch_id, number, "source_unreadable", reason, attempts=2)


def test_f4_a_backup_and_an_export_leave_out_one_file_whose_read_fails(work, pictures, tmp_path):
    program("mkfs.ext4")
    work = work()
    pipeline = work.pipeline
    uploads = work.uploads(work.submit(*pictures[:3]))
    bad = uploads[1].file_path
    with on_a_broken_disk(Path(pipeline.settings.storage_location) / bad, tmp_path / "disk"):
        backup = back_up(pipeline.settings, tmp_path / "backup.tar", with_files=True)
        export = export_user(
            pipeline.database,
            pipeline.storage,
            uploads[0].user_id,
            tmp_path / "export",
            originals=True,
        )
    assert (backup.files, backup.missing, backup.unreadable) == (2, [], [bad])
    with tarfile.open(tmp_path / "backup.tar") as archive:
        kept = [name for name in archive.getnames() if name.startswith("files/")]
    assert sorted(kept) == sorted(f"files/{row.file_path}" for row in (uploads[0], uploads[2]))
    assert (export.originals, export.missing, export.unreadable) == (2, [], [bad])
    assert len(list((tmp_path / "export" / "originals").iterdir())) == 2


def test_f4_a_name_that_is_too_long_fails_alone(work, pictures):
    work = work()
    batch_id = work.submit(*pictures[: FEW + 1])
    with work.pipeline.database.transaction() as connection:
        connection.execute(
            text("UPDATE uploads SET file_path = :path WHERE id = :id"),
            {"path": f"{'x' * 300}.jpg", "id": work.uploads(batch_id)[5].id},
        )
    reason = os.strerror(errno.ENAMETOOLONG)
    assert_one_failed(work, batch_id, 5, "source_unreadable", reason)


def cold(client, bucket: str, key: str) -> None:
    """Archive the object, like a lifecycle rule of the bucket."""
    source = {"Bucket": bucket, "Key": key}
    client.copy_object(Bucket=bucket, Key=key, CopySource=source, StorageClass="GLACIER")


def refused(client, bucket: str, key: str) -> None:
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": f"arn:aws:s3:::{bucket}/{key}",
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


@pytest.mark.xdist_group("object_store")
@pytest.mark.parametrize(
    "bad",
    [pytest.param((cold, "storage class"), marks=pytest.mark.proof), (refused, "Forbidden")],
)
def test_f4_one_object_that_cannot_be_downloaded_fails_alone(
    work, s3_url, object_store, pictures, bad
):
    spoil, reason = bad
    work = work(storage_url=s3_url)
    batch_id = work.submit(*pictures[: FEW + 1])
    client = boto3.client("s3", endpoint_url=object_store.url)
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    spoil(client, bucket, f"{prefix}/{work.uploads(batch_id)[7].file_path}")
    try:
        assert_one_failed(work, batch_id, 7, "source_unreadable", reason)
    finally:
        client.delete_bucket_policy(Bucket=bucket)


@pytest.mark.xdist_group("object_store")
def test_f4_one_object_whose_copy_has_no_room_on_this_machine_fails_alone(
    work, s3_url, pictures, tmp_path, monkeypatch
):
    work = work(storage_url=s3_url)
    batch_id = work.submit(*pictures[: FEW + 1])
    stored, large = work.pipeline.storage, work.uploads(batch_id)[7].file_path
    stored.write(large, stored.read(large) + bytes(3 * 1024**2))
    mount = ("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path)
    with as_root(*mount, undone_by=("umount", "-l", tmp_path)):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(storage, "_IN_MEMORY_BYTES", 2 * 1024**2)
        reason = f"{tmp_path} has no room for a copy"
        assert_one_failed(work, batch_id, 7, "source_unreadable", reason, attempts=2)


@pytest.mark.parametrize("what", ["originals", "storage"])
@pytest.mark.usefixtures("permissions_hold")
def test_an_error_of_every_upload_is_an_outage_and_fails_none(work, pictures, what):
    """Files belong to another user: our probe can be written, but no original can be read."""
    work = work()
    batch_id = work.submit(*pictures[:8])
    root = Path(work.pipeline.settings.storage_location)
    paths = [root / upload.file_path for upload in work.uploads(batch_id)]
    closed = paths if what == "originals" else [root]
    for path in closed:
        path.chmod(0)
    [result] = work.run_what_is_asked_for()
    assert any("storage_down: " in said for said in failures(result))
    assert work.column(batch_id, "processing_status") == ["pending"] * 8
    assert work.column(batch_id, "attempts") == [0] * 8
    for path in closed:
        path.chmod(0o755)
    work.end_the_pause()
    [result] = work.run_what_is_asked_for()
    assert work.counts(batch_id) == ("completed", 8, 0)


def test_an_upload_that_is_alone_and_cannot_be_read_fails_with_its_reason(work, pictures):
    work = work()
    batch_id = work.submit(pictures[0])
    [upload] = work.uploads(batch_id)
    loop_of_links(Path(work.pipeline.settings.storage_location) / upload.file_path)
    work.run_what_is_asked_for()
    assert work.counts(batch_id) == ("completed", 0, 1)
    assert work.column(batch_id, "error_kind") == ["source_unreadable"]


def test_an_upload_that_cannot_be_read_beside_one_without_a_path_fails_with_its_reason(
    work, pictures
):
    work = work()
    batch_id = work.submit(*pictures[:2])
    bad, empty = work.uploads(batch_id)
    root = Path(work.pipeline.settings.storage_location)
    loop_of_links(root / bad.file_path)
    with work.pipeline.database.transaction() as connection:
        connection.execute(text("ALTER TABLE uploads ALTER file_path DROP NOT NULL"))
        connection.execute(text("ALTER TABLE uploads ALTER user_id DROP NOT NULL"))
        empty_columns = text("UPDATE uploads SET file_path = NULL, user_id = NULL WHERE id = :id")
        connection.execute(empty_columns, {"id": empty.id})
    work.run_what_is_asked_for()
    assert work.counts(batch_id) == ("completed", 0, 2)
    kinds = {row.id: row.error_kind for row in work.uploads(batch_id)}
    assert kinds == {bad.id: "source_unreadable", empty.id: "source_missing"}
