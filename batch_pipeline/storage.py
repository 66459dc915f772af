"""Originals and thumbnails on any fsspec path. A file is written completely or not at all.

Layout: ``<user_id>/<upload_id>/original.<ext>`` and ``…/thumb_256.jpg``. A name that a person gave
is never part of a path.
"""

import errno
import io
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from batch_pipeline.errors import (
    ConfigurationError,
    PermanentError,
    ServiceDownError,
    TransientError,
    UploadError,
)
from batch_pipeline.masking import mask_chain

THUMBNAIL_NAME = "thumb_256.jpg"
#: The note that names the owner of a storage; `services.deletion.file_ownership` explains it.
OWNER_NOTE = ".batch_pipeline/owner.json"
#: Ending of files that are being written, so that files left by a crash can be found and removed.
PARTIAL_SUFFIX = ".partial"
_OUR_NAMES = re.compile(r"original\.[a-z0-9]+|thumb_256\.jpg")
#: How much of a remote file is read at once, and the largest copy that stays in memory (bytes).
_BLOCK_BYTES, _IN_MEMORY_BYTES = 4 * 1024**2, 16 * 1024**2
#: Number of parts in the path of an upload's file: user, upload, name.
_PARTS = 3
#: Bytes that are copied at a time.
_COPY_BYTES = 1 << 20
#: How the names of the small files of `Storage.check` begin.
_PROBE = ".probe-"
#: Names that one request to S3 lists, if only the first one matters (S3 allows 1,000).
_NAMES_PER_PAGE = 100
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_SUCH_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
#: Errors of one file that a retry cannot fix. If other uploads have them too, it is an outage.
_LASTING = {errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
#: Errors that mean that no file of this name exists, and that none can exist.
_NO_NAME_OF_A_FILE = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR}


class Storage:
    """A folder of files, local or remote; every path given and returned is relative to it.

    Raises:
        ConfigurationError: the location is not a path or URL, or only one process can use it.
        ServiceDownError: ``storage_down``: its server does not answer.
    """

    def __init__(self, location: str) -> None:
        try:
            # A cached listing would not show files that other hosts have written since.
            self._files, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(
                f"BATCH_PIPELINE_STORAGE_URL={location!r} cannot be used: {error}; "
                "expected a path or an fsspec URL: file:///srv/uploads, s3://bucket/uploads"
            ) from error
        except Exception as error:  # some clients connect at once, such as that of FTP
            raise storage_error(error) from error
        if isinstance(self._files, MemoryFileSystem):
            raise ConfigurationError(
                f"BATCH_PIPELINE_STORAGE_URL={location!r} is the memory of one process, so no "
                "other process finds its files: expected a path or the URL of a shared storage"
            )
        self._root = str(root).rstrip("/")
        self.is_local = isinstance(self._files, LocalFileSystem)
        """True: files are on this machine, or appear to be. Remote files are read from a copy."""
        self._real_root = _real_folder(self._root) if self.is_local else ""
        self.writer = "nobody"
        """Part of the names of files being written: only the same writer removes them."""

    @staticmethod
    def original_path(user_id: uuid.UUID, upload_id: uuid.UUID, extension: str) -> str:
        """Return the path of the submitted file."""
        return f"{user_id}/{upload_id}/original.{extension}"

    @staticmethod
    def thumbnail_path(user_id: uuid.UUID, upload_id: uuid.UUID) -> str:
        """Return the path of the thumbnail."""
        return f"{user_id}/{upload_id}/{THUMBNAIL_NAME}"

    def open(self, path: str) -> BinaryIO:
        """Open a stored file for reading. A remote file is copied; closing removes the copy.

        While the copy is read, an outage of the storage cannot look like a damaged file.

        Raises:
            PermanentError: ``source_missing``: no such file, or the path leaves the storage.
            ServiceDownError: ``storage_down``: the storage does not answer, or holds nothing at
                all; ``storage_full``: this machine has no room for the copy.
        """
        full = self._inside(path)
        with self._errors_named(path):
            if self.is_local:
                _require_file(full, path)
                return cast("BinaryIO", self._files.open(full, "rb"))
            copy = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
            try:
                with self._files.open(full, "rb", block_size=_BLOCK_BYTES) as file:
                    shutil.copyfileobj(file, copy, _BLOCK_BYTES)
            except BaseException:
                copy.close()
                raise
            copy.seek(0)
            return cast("BinaryIO", copy)

    def open_one(self, path: str) -> "OneFile":
        """Open a stored file like `open`, but distinguish an error of this file from an outage.

        Raises:
            UploadError: there is no such file, or only this one cannot be read. Reading the file
                raises it, too.
            ServiceDownError: the storage cannot be used.
        """
        with self._alone():
            return OneFile(self, path, self.open(path))

    def read(self, path: str) -> bytes:
        """Read a whole stored file; raises the same errors as `open`."""
        full = self._inside(path)
        with self._errors_named(path):
            if self.is_local:
                _require_file(full, path)
            return bytes(self._files.cat_file(full))

    def write(self, path: str, data: bytes) -> None:
        """Write a file so that readers see either all of it or nothing.

        Raises:
            ServiceDownError: ``storage_full`` or ``storage_down``.
        """
        full = self._inside(path)
        with self._errors_named(written=path):
            if self.is_local:
                self._write_locally(Path(full), io.BytesIO(data))
            else:
                self._files.pipe_file(full, data)  # object stores show only complete objects

    def put(self, source: Path, path: str) -> None:
        """Copy a file of this machine into the storage; raises the same errors as `write`.

        Raises:
            OSError: the file of this machine cannot be read.
        """
        full = self._inside(path)
        try:
            with self._errors_named():
                if not self.is_local:
                    self._files.put_file(str(source), full)
                    return
                with source.open("rb") as data:
                    self._write_locally(Path(full), data)
        except ServiceDownError:
            _require_readable(source)  # clients of object stores do not say which side failed
            raise

    def exists(self, path: str) -> bool:
        """Return whether a file exists (a folder does not count); raises ``storage_down``."""
        full = self._inside(path)
        with self._errors_named():
            # Not `exists`: it returns false if the storage does not answer.
            try:
                return bool(self._files.info(full)["type"] != "directory")
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno in _NO_NAME_OF_A_FILE:
                    return False
                raise

    def remove(self, path: str) -> None:
        """Remove a file, if it exists, and the folder of its upload, if that is empty."""
        full = self._inside(path)
        with self._errors_named(), suppress(FileNotFoundError):
            self._files.rm_file(full)
        if self.is_local and len(PurePosixPath(path).parts) == _PARTS:
            with suppress(OSError):  # the folder is not empty
                Path(full).parent.rmdir()

    def remove_empty_folder(self, folder: str) -> None:
        """Remove a folder if it is empty; object stores have no folders."""
        if self.is_local:
            with suppress(OSError):
                Path(self._inside(folder)).rmdir()

    def names(self, folder: str) -> list[str]:
        """List the names of the files in a folder; empty if there is no such folder."""
        with self._errors_named():
            try:
                entries = self._files.ls(self._inside(folder), detail=True)
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(e["name"]).name for e in entries if e["type"] == "file")

    def is_empty(self) -> bool:
        """Return whether the storage is missing, or holds no file that somebody has stored.

        Files that file systems make, and the small files of `check`, do not count.
        """
        # This is one request. To list the top of the storage, some object stores list everything.
        if not self.is_local and self.exists(OWNER_NOTE):
            return False
        with self._errors_named():
            try:
                return all(
                    name == "lost+found" or name.startswith(_PROBE) for name in self._top_names()
                )
            except FileNotFoundError:
                if self._is_s3:  # no such bucket; a missing folder is an empty page
                    raise
                return True

    def partial_files(self, *, older_than_seconds: float) -> Iterator[str]:
        """List the incomplete files that `writer` left when it crashed."""
        if not self.is_local:
            return  # object stores have no incomplete objects
        for partial in Path(self._root).glob(f"*/*/*.{self.writer}.*{PARTIAL_SUFFIX}"):
            name, writer, number, _ = partial.name.rsplit(".", 3)
            is_ours = _OUR_NAMES.fullmatch(name) and writer == self.writer and _is_uuid(number)
            if not is_ours or not all(map(_is_uuid, partial.parts[-3:-1])):
                continue
            with suppress(FileNotFoundError):  # the writer is alive and has just renamed the file
                if time.time() - partial.stat().st_mtime > older_than_seconds:
                    yield str(partial.relative_to(self._root))

    def check(self, folder: str = ".") -> None:
        """Write, read and remove a small file in a folder.

        Raises:
            ServiceDownError: one of the three failed.
        """
        probe = f"{folder}/{_PROBE}{uuid.uuid4().hex}"
        self.write(probe, b"probe")
        try:
            self.read(probe)
        except PermanentError as error:
            raise ServiceDownError(
                "storage_down", "the storage does not keep what is written"
            ) from error
        finally:
            self.remove(probe)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raise the error of one file instead of an outage, if other files can be used."""
        try:
            yield
        except ServiceDownError as error:
            if error.if_alone is None:
                raise
            self.check()
            raise error.if_alone from error

    @contextmanager
    def _errors_named(self, path: str = "", *, written: str = "") -> Iterator[None]:
        """Turn errors of a file system into our errors, for a file that is read or written."""
        try:
            yield
        except _NO_SUCH_FILE as error:
            if not path:
                raise storage_error(error, written=written) from error
            # Checked only now, because a large storage takes long to list. If nothing is mounted
            # on a folder, every file is missing, and no single upload is the cause.
            if self.is_empty():
                raise not_the_storage(path) from error
            raise _missing(path) from error
        except OSError as error:
            raise storage_error(error, path, written=written) from error
        except Exception as error:  # clients of object stores have their own error classes
            if self.is_local:
                raise
            raise storage_error(error, path, written=written) from error

    @property
    def _is_s3(self) -> bool:
        return hasattr(self._files, "call_s3")

    def _top_names(self) -> Iterator[str]:
        """List the names at the top, if possible only as many as the caller takes.

        An upload API may keep a million files there.
        """
        if self.is_local:
            with os.scandir(self._root) as entries:
                for entry in entries:
                    yield entry.name
        elif self._is_s3:  # the `ls` of s3fs reads all pages
            yield from self._top_names_on_s3()
        else:
            for path in self._files.ls(self._root, detail=False):
                yield PurePosixPath(path).name

    def _top_names_on_s3(self) -> Iterator[str]:
        bucket, prefix, _ = self._files.split_path(self._root)  # knows ARNs, too
        folder = f"{prefix}/" if prefix else ""
        page = {"Bucket": bucket, "Prefix": folder, "Delimiter": "/", "MaxKeys": _NAMES_PER_PAGE}
        while True:
            found = self._files.call_s3("list_objects_v2", **page, **self._files.req_kw)
            keys = [entry["Key"] for entry in found.get("Contents", [])]
            keys += [entry["Prefix"] for entry in found.get("CommonPrefixes", [])]
            # A folder made in the console of S3 is an object with the name of the folder.
            yield from (PurePosixPath(key).name for key in keys if key != folder)
            if not found.get("IsTruncated"):
                return
            page["ContinuationToken"] = found["NextContinuationToken"]

    def _write_locally(self, target: Path, data: BinaryIO) -> None:
        partial = self._partial(target)
        try:
            with _opened_for_writing(partial) as file:
                shutil.copyfileobj(data, file, _COPY_BYTES)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _partial(self, target: Path) -> Path:
        number = uuid.uuid4().hex
        return target.with_name(f"{target.name}.{self.writer}.{number}{PARTIAL_SUFFIX}")

    def _inside(self, path: str) -> str:
        parts = PurePosixPath(path)
        if parts.is_absolute() or "://" in path:
            raise _missing(path, "; expected a path relative to the storage")
        if ".." in parts.parts or "\0" in path or not parts.parts:
            raise _missing(path)
        full = f"{self._root}/{parts}"
        if self.is_local:
            # A symbolic link may lead out of the storage although the path does not show it.
            real = os.path.realpath(full)
            if not real.startswith(self._real_root):
                self._real_root = _real_folder(self._root)  # the storage itself may have moved
                if not real.startswith(self._real_root):
                    raise _missing(path)
        return full


def _real_folder(path: str) -> str:
    """Return the real path of a folder, with a slash at the end."""
    return os.path.join(os.path.realpath(path), "")


def _require_file(full: str, path: str) -> None:
    """Refuse anything but a file: a read from a named pipe would wait for ever."""
    if not stat.S_ISREG(os.stat(full).st_mode):
        raise _missing(path)


def _require_readable(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(_COPY_BYTES):
            pass


def _opened_for_writing(path: Path) -> BinaryIO:
    """Open a file, and make its folder if it is missing."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _missing(path: str, expected: str = "") -> PermanentError:
    return PermanentError("source_missing", f"the storage holds no file {path!r}{expected}")


def not_the_storage(path: str) -> ServiceDownError:
    """Return the error for a storage that has none of the files that it should have.

    It has no `if_alone`, because one upload cannot be the cause.

    Args:
        path: one of the files.
    """
    return ServiceDownError(
        "storage_down",
        f"the storage holds none of its files, such as {path!r}: is it mounted, and is "
        "BATCH_PIPELINE_STORAGE_URL right? If they are gone for ever, run `batch-pipeline tidy "
        "--take-over`",
    )


class OneFile:
    """A stored file of `Storage.open_one`: a bad sector shows only when the file is read."""

    def __init__(self, storage: Storage, path: str, file: BinaryIO) -> None:
        self._storage, self._path, self._file = storage, path, file

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes; raises the errors of `Storage.open_one`."""
        with self._storage._alone(), self._storage._errors_named(self._path):
            return self._file.read(size)

    def size(self) -> int:
        """Return the length of the file in bytes; reading then begins at its start."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        return size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def storage_error(error: Exception, path: str = "", *, written: str = "") -> ServiceDownError:
    """Return the error for a storage that is full or cannot be used.

    Args:
        error: the error that the file system raised.
        path: the file that should be read.
        written: the file that should be written.
    """
    mask_chain(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        if not path:
            return ServiceDownError("storage_full", f"the storage is full: {error}")
        # Reading writes only the copy of a large remote file; copies of others may still fit.
        said = f"{tempfile.gettempdir()} has no room for a copy of {path!r}: {error}"
        alone = TransientError("source_unreadable", said)
        return ServiceDownError("storage_full", said, if_alone=alone)
    return ServiceDownError(
        "storage_down",
        f"the storage cannot be used: {error}",
        if_alone=_fault_of_one_file(error, path, written),
    )


def _fault_of_one_file(error: Exception, path: str, written: str) -> UploadError | None:
    if written:
        return PermanentError(
            "thumbnail_not_stored", f"{written!r} cannot be written, others can: {error}"
        )
    if not path:
        return None
    message = f"{path!r} cannot be read, others can: {error}"
    if isinstance(error, PermissionError) or getattr(error, "errno", None) in _LASTING:
        return PermanentError("source_unreadable", message)
    return TransientError("source_unreadable", message)
