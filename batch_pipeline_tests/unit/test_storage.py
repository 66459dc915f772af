"""Storage: nothing outside of it is touched, and no file is ever half there."""

import errno
import os
import threading
import uuid

import pytest

from batch_pipeline.errors import ConfigurationError, PermanentError, ServiceDownError
from batch_pipeline.storage import PARTIAL_SUFFIX, Storage, storage_error

OUTSIDE = ["../secret", "a/../../secret", "/etc/hostname", "..", "", ".", "a\0b", "link/secret"]


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "storage"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    return Storage(str(root))


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leads_out_is_a_missing_file(storage, path):
    with pytest.raises(PermanentError) as refused:
        storage.open(path)
    assert refused.value.kind == "source_missing"


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_is_written_outside(storage, tmp_path, path):
    with pytest.raises((PermanentError, ServiceDownError)):
        storage.write(path, b"overwritten")
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_symbolic_link_as_the_file_itself_is_not_followed_out(storage, tmp_path):
    (tmp_path / "storage" / "thumb.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(PermanentError):
        storage.read("thumb.jpg")


@pytest.mark.parametrize("path", ["nothing.jpg", "no/folder/nothing.jpg"])
def test_a_missing_file_is_named_by_its_kind(storage, path):
    with pytest.raises(PermanentError, match="holds no file") as missing:
        storage.read(path)
    assert missing.value.kind == "source_missing"


def test_readers_see_the_old_file_or_the_new_one_while_it_is_replaced(storage):
    old, new = b"o" * 500_000, b"n" * 500_000
    storage.write("user/upload/thumb.jpg", old)
    done = threading.Event()

    def write():
        for number in range(40):
            storage.write("user/upload/thumb.jpg", new if number % 2 else old)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(storage.read("user/upload/thumb.jpg"))
    writer.join(10)
    assert seen <= {old, new}


@pytest.mark.parametrize("way", ["write", "put"])
def test_a_failed_write_leaves_the_old_file_and_no_partial_one(storage, tmp_path, way):
    storage.write("user/upload/a", b"old")
    folder = tmp_path / "storage" / "user" / "upload"
    (folder / "b").mkdir()
    (folder / "b" / "in the way").touch()
    source = tmp_path / "source"
    source.write_bytes(b"new")
    write = {
        "write": lambda path: storage.write(path, b"new"),
        "put": lambda path: storage.put(source, path),
    }[way]
    with pytest.raises(ServiceDownError) as failed:
        write("user/upload/b")  # a folder cannot be replaced by a file
    assert failed.value.kind == "storage_down"
    assert not [name for name in os.listdir(folder) if name.endswith(PARTIAL_SUFFIX)]
    assert storage.read("user/upload/a") == b"old"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, "storage_full"),
        (errno.EDQUOT, "storage_full"),
        (errno.EIO, "storage_down"),
        (errno.EROFS, "storage_down"),
    ],
)
def test_a_full_disk_is_told_from_a_broken_one(number, kind):
    assert storage_error(OSError(number, os.strerror(number))).kind == kind


def test_removing_an_upload_removes_its_folder_alone_and_may_be_repeated(storage):
    user, one, two = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    for upload in (one, two):
        storage.write(Storage.thumbnail_path(user, upload), b"thumbnail")
    for _ in range(2):
        storage.remove_upload(user, one)
    assert list(storage.stored_uploads()) == [(user, two)]


def test_an_object_store_has_no_partial_files():
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    storage.write("user/upload/thumb.jpg", b"thumbnail")
    assert storage.read("user/upload/thumb.jpg") == b"thumbnail"
    with pytest.raises(PermanentError):
        storage.read("user/../../elsewhere")


def test_an_unknown_kind_of_storage_is_refused_with_what_is_accepted():
    with pytest.raises(ConfigurationError, match="expected a path or an fsspec URL"):
        Storage("nosuch://bucket")
