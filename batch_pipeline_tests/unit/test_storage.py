"""Storage: nothing outside of it is touched, and no file is ever incomplete."""

import errno
import os
import threading
import uuid
from pathlib import Path

import pytest
from aiobotocore.client import AioBaseClient
from fsspec.implementations.local import LocalFileSystem

from batch_pipeline.errors import ConfigurationError, PermanentError, ServiceDownError
from batch_pipeline.storage import OWNER_NOTE, PARTIAL_SUFFIX, Storage, storage_error

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
    """A storage with a file `secret` next to it."""
    if request.param == "local":
        return request.getfixturevalue("local")
    url = request.getfixturevalue("s3_url")
    Storage(url).write("secret", b"secret")
    return Storage(f"{url}/storage")


@pytest.fixture
def secret(request, storage, tmp_path):
    """Reads the file next to the storage."""
    if isinstance(storage._files, LocalFileSystem):
        return (tmp_path / "secret").read_bytes
    return lambda: Storage(request.getfixturevalue("s3_url")).read("secret")


@pytest.mark.slow
@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_out_of_the_storage_is_a_missing_file(storage, path):
    with pytest.raises(PermanentError) as refused:
        storage.open(path)
    assert refused.value.kind == "source_missing"


@pytest.mark.parametrize("path", ["/srv/uploads/a.jpg", "s3://bucket/uploads/a.jpg"])
def test_the_error_for_an_absolute_path_or_a_url_asks_for_a_relative_path(storage, path):
    with pytest.raises(PermanentError, match="expected a path relative to the storage") as refused:
        storage.open(path)
    assert refused.value.kind == "source_missing"


def test_a_server_that_cannot_be_reached_at_once_is_an_outage():
    with pytest.raises(ServiceDownError, match="the storage cannot be used") as down:
        Storage("ftp://127.0.0.1:1/uploads")
    assert down.value.kind == "storage_down"


def test_the_memory_of_one_process_is_refused_as_a_storage():
    with pytest.raises(ConfigurationError, match="no other process finds its files"):
        Storage("memory://uploads")


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_is_written_outside_the_storage(storage, secret, path):
    with pytest.raises((PermanentError, ServiceDownError)):
        storage.write(path, b"overwritten")
    assert secret() == b"secret"


def test_a_symbolic_link_out_of_the_storage_is_not_followed(local, tmp_path):
    (tmp_path / "storage" / "thumb.jpg").symlink_to(tmp_path / "secret")
    for path in ("thumb.jpg", "link/secret"):
        with pytest.raises(PermanentError):
            local.read(path)
        with pytest.raises((PermanentError, ServiceDownError)):
            local.write(path, b"overwritten")
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("path", ["nothing.jpg", "no/folder/nothing.jpg"])
def test_a_missing_file_is_named_by_its_kind(storage, path):
    storage.write("user/upload/original.jpg", b"x")
    for look in (storage.read, storage.open):
        with pytest.raises(PermanentError, match="holds no file") as missing:
            look(path)
        assert missing.value.kind == "source_missing"
    assert not storage.exists(path)


@pytest.mark.parametrize("path", ["x" * 300, "user/file/below", "loop", "user"])
def test_a_path_that_cannot_be_a_file_does_not_exist(local, tmp_path, path):
    local.write("user/file", b"content")
    (tmp_path / "storage" / "loop").symlink_to("loop")
    assert not local.exists(path)
    assert local.exists("user/file")


def test_a_missing_storage_is_not_taken_for_missing_files(tmp_path):
    storage = Storage(str(tmp_path / "not_mounted"))
    with pytest.raises(ServiceDownError) as down:
        storage.open("user/upload/original.jpg")
    assert down.value.kind == "storage_down"


def test_an_empty_storage_is_not_taken_for_missing_files(storage):
    """Nothing is mounted on the folder, or the bucket or prefix is the wrong one."""
    empty = Storage(f"{_location(storage)}/mount_point")
    if empty.is_local:
        Path(empty._root).mkdir()
    empty.write(".probe-of-another-thread", b"probe")
    for look in (empty.read, empty.open, empty.open_one):
        with pytest.raises(ServiceDownError, match="is it mounted") as down:
            look("user/upload/original.jpg")
        assert (down.value.kind, down.value.if_alone) == ("storage_down", None)
    empty.write("user/upload/thumb_256.jpg", b"x")
    with pytest.raises(PermanentError, match="holds no file"):
        empty.open("user/upload/original.jpg")


def test_a_file_that_one_host_writes_is_visible_to_another_at_once(storage):
    here, there = storage, Storage(_location(storage))
    path = Storage.thumbnail_path(USER, UPLOAD)
    assert not there.exists(path)
    assert there.names(f"{USER}/{UPLOAD}") == []
    for content in (b"first", b"the second is longer"):
        here.write(path, content)
        assert there.read(path) == content
        with there.open(path) as file:
            assert file.read() == content
    assert there.names(f"{USER}/{UPLOAD}") == ["thumb_256.jpg"]
    here.remove(path)
    assert not there.exists(path)
    assert there.names(f"{USER}/{UPLOAD}") == []


def test_a_storage_is_empty_until_something_lies_in_it(storage):
    inner = Storage(f"{_location(storage)}/inner")
    assert inner.is_empty()
    inner.write("lost+found/what fsck found", b"")
    inner.write(".probe-of-another-process", b"probe")
    assert inner.is_empty()
    inner.write("user/upload/original.jpg", b"x")
    assert not inner.is_empty()


@pytest.mark.xdist_group("object_store")
def test_a_missing_file_does_not_list_a_large_flat_bucket(s3_url, monkeypatch):
    storage, lists = Storage(s3_url), []
    storage._files.pipe({f"{storage._root}/{number}.jpg": b"x" for number in range(3)})
    call = AioBaseClient._make_api_call

    async def noted(client, operation, arguments):
        if operation.startswith("List"):
            arguments = {**arguments, "MaxKeys": 2}  # usually 1,000; so this bucket is large
            lists.append(arguments)
        return await call(client, operation, arguments)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", noted)
    with pytest.raises(PermanentError, match="holds no file"):
        storage.read("gone.jpg")
    assert lists
    assert not any("ContinuationToken" in arguments for arguments in lists)

    storage.write(OWNER_NOTE, b"{}")
    lists.clear()
    with pytest.raises(PermanentError, match="holds no file"):
        storage.read("gone.jpg")
    assert len(lists) <= 1  # s3fs itself looks whether the file is a folder


@pytest.mark.xdist_group("object_store")
def test_small_files_of_checks_on_the_first_page_do_not_hide_the_files_after_them(s3_url):
    storage = Storage(s3_url)
    storage._files.pipe({f"{storage._root}/.probe-{n}": b"probe" for n in range(150)})
    assert storage.is_empty()
    storage.write("user/upload/original.jpg", b"x")
    assert not storage.is_empty()


@pytest.mark.xdist_group("object_store")
def test_a_folder_that_the_console_of_s3_makes_is_empty(s3_url):
    storage = Storage(s3_url)
    bucket, _, prefix = storage._root.partition("/")
    storage._files.call_s3("put_object", Bucket=bucket, Key=f"{prefix}/")
    assert storage.is_empty()


@pytest.mark.xdist_group("object_store")
def test_a_bucket_without_a_prefix_is_not_empty_if_it_holds_a_file(s3_url):
    Storage(s3_url).write("user/upload/original.jpg", b"x")
    assert not Storage(s3_url.rpartition("/")[0]).is_empty()


@pytest.mark.xdist_group("object_store")
def test_a_bucket_that_does_not_exist_is_not_empty_but_an_outage(s3_url):
    with pytest.raises(ServiceDownError, match="bucket does not exist"):
        Storage(f"{s3_url.rpartition('/')[0]}-of-nobody/uploads").is_empty()


def test_a_large_file_is_put_and_read_in_any_order(storage, tmp_path):
    content = os.urandom(17 * 1024**2)  # more than is kept in memory
    (tmp_path / "film").write_bytes(content)
    storage.put(tmp_path / "film", "user/upload/original.mp4")
    with storage.open("user/upload/original.mp4") as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == content[-5:]
        file.seek(0)
        assert file.read() == content


def test_a_file_of_this_machine_that_cannot_be_read_is_not_an_outage_of_the_storage(storage):
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        storage.put(Path("/proc/self/mem"), "user/upload/original.jpg")  # no memory is at address 0
    assert storage.names("user/upload") == []


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
def test_a_full_disk_and_a_broken_disk_have_different_errors(number, kind):
    assert storage_error(OSError(number, os.strerror(number))).kind == kind


def test_removing_a_file_leaves_what_lies_beside_it_and_may_be_repeated(storage):
    user, one, two = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    for upload in (one, two):
        storage.write(Storage.thumbnail_path(user, upload), b"thumbnail")
    storage.write(f"{user}/{two}/avatar.png", b"of somebody else")
    for _ in range(2):
        storage.remove(Storage.thumbnail_path(user, one))
        storage.remove(Storage.thumbnail_path(user, two))
    assert storage.names(f"{user}/{two}") == ["avatar.png"]
    assert storage.names(f"{user}/{one}") == []


def test_only_incomplete_files_of_the_same_writer_are_listed(local, tmp_path):
    folder = tmp_path / "storage" / str(USER) / str(UPLOAD)
    folder.mkdir(parents=True)
    local.writer, number = "0a" * 16, "1b" * 16
    ours = {f"{name}.{local.writer}.{number}.partial" for name in ("thumb_256.jpg", "original.mp4")}
    others = {
        f"thumb_256.jpg.{'0c' * 16}.{number}.partial",
        f"holiday.mp4.{local.writer}.{number}.partial",
        f"thumb_256.jpg.{number}.partial",
        "film.mp4.partial",
    }
    for name in ours | others:
        (folder / name).touch()
    elsewhere = tmp_path / "storage" / "albums" / "2026"
    elsewhere.mkdir(parents=True)
    (elsewhere / min(ours)).touch()
    found = list(local.partial_files(older_than_seconds=-1))
    assert set(found) == {f"{USER}/{UPLOAD}/{name}" for name in ours}
    assert list(local.partial_files(older_than_seconds=60)) == []


def test_an_unknown_kind_of_storage_is_refused_with_what_is_accepted():
    with pytest.raises(ConfigurationError, match="expected a path or an fsspec URL"):
        Storage("nosuch://bucket")
