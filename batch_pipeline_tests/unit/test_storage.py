"""Storage: nothing outside of it is touched, and no file is ever half there."""

import errno
import os
import threading
import uuid

import pytest
from fsspec.implementations.local import LocalFileSystem

from batch_pipeline.errors import ConfigurationError, PermanentError, ServiceDownError
from batch_pipeline.storage import PARTIAL_SUFFIX, Storage, storage_error

USER, UPLOAD = uuid.uuid4(), uuid.uuid4()
OUTSIDE = ["../secret", "a/../../secret", "/etc/hostname", "..", "", ".", "a\0b"]


@pytest.fixture
def local(tmp_path):
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "storage"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    return Storage(str(root))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.xdist_group("object_store"))])
def storage(request):
    """A storage beside which lies a file `secret`."""
    if request.param == "local":
        return request.getfixturevalue("local")
    url = request.getfixturevalue("s3_url")
    Storage(url).write("secret", b"secret")
    return Storage(f"{url}/storage")


@pytest.fixture
def secret(request, storage, tmp_path):
    """Reads the file beside the storage."""
    if isinstance(storage._files, LocalFileSystem):
        return (tmp_path / "secret").read_bytes
    return lambda: Storage(request.getfixturevalue("s3_url")).read("secret")


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leads_out_is_a_missing_file(storage, path):
    with pytest.raises(PermanentError) as refused:
        storage.open(path)
    assert refused.value.kind == "source_missing"


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_is_written_outside(storage, secret, path):
    with pytest.raises((PermanentError, ServiceDownError)):
        storage.write(path, b"overwritten")
    assert secret() == b"secret"


def test_a_symbolic_link_is_not_followed_out(local, tmp_path):
    (tmp_path / "storage" / "thumb.jpg").symlink_to(tmp_path / "secret")
    for path in ("thumb.jpg", "link/secret"):
        with pytest.raises(PermanentError):
            local.read(path)
        with pytest.raises((PermanentError, ServiceDownError)):
            local.write(path, b"overwritten")
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("path", ["nothing.jpg", "no/folder/nothing.jpg"])
def test_a_missing_file_is_named_by_its_kind(storage, path):
    for look in (storage.read, storage.open):
        with pytest.raises(PermanentError, match="holds no file") as missing:
            look(path)
        assert missing.value.kind == "source_missing"
    assert not storage.exists(path)


def test_without_the_folder_itself_no_file_is_taken_for_missing(tmp_path):
    storage = Storage(str(tmp_path / "not_mounted"))
    with pytest.raises(ServiceDownError) as down:
        storage.open("user/upload/original.jpg")
    assert down.value.kind == "storage_down"


def test_what_one_host_writes_another_sees_at_once(storage):
    here, there = storage, Storage(_location(storage))
    path = Storage.thumbnail_path(USER, UPLOAD)
    assert not there.exists(path)
    assert list(there.stored_uploads()) == []
    for content in (b"first", b"the second is longer"):
        here.write(path, content)
        assert there.read(path) == content
        with there.open(path) as file:
            assert file.read() == content
    assert list(there.stored_uploads()) == [(USER, UPLOAD)]
    assert 0 <= there.age_seconds(USER, UPLOAD) < 60
    here.remove_upload(USER, UPLOAD)
    assert not there.exists(path)
    assert there.age_seconds(USER, UPLOAD) == float("inf")


def test_a_large_file_is_put_and_read_in_any_order(storage, tmp_path):
    content = os.urandom(17 * 1024**2)  # more than is kept in memory
    (tmp_path / "film").write_bytes(content)
    storage.put(tmp_path / "film", "user/upload/original.mp4")
    with storage.open("user/upload/original.mp4") as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == content[-5:]
        file.seek(0)
        assert file.read() == content


def test_a_check_leaves_nothing_behind(storage):
    storage.check()
    assert [name for name in storage._files.find(storage._root) if "probe" in name] == []


def _location(storage):
    return storage._files.unstrip_protocol(storage._root)


def test_readers_see_the_old_file_or_the_new_one_while_it_is_replaced(storage):
    old, new = b"o" * 500_000, b"n" * 500_000
    storage.write("user/upload/thumb.jpg", old)
    done = threading.Event()

    def write():
        for number in range(10):
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
def test_a_failed_write_leaves_the_old_file_and_no_partial_one(local, tmp_path, way):
    storage = local
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


def test_an_unknown_kind_of_storage_is_refused_with_what_is_accepted():
    with pytest.raises(ConfigurationError, match="expected a path or an fsspec URL"):
        Storage("nosuch://bucket")
