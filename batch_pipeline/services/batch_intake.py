"""Submission: stores files of this machine as a batch, or refuses them with a clear reason.

Files are stored first. Then one transaction writes batch and uploads, so that there is neither a
row without its file nor a batch without uploads. A failed submission removes the files that it has
stored. Until shortly before the commit, a note on the storage records that no row needs the files
(``deletion/file_ownership.py``), so that they can also be removed after a crash.
"""

import hashlib
import os
import stat
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path, PurePath
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from batch_pipeline.database.failures import refuses_rows, repeated, sqlstate
from batch_pipeline.database.models import (
    SIDECAR_DATE,
    Priority,
    Upload,
    UploadBatch,
    insert_all,
)
from batch_pipeline.database.readings import LOCAL_USER, MAX_NAME
from batch_pipeline.errors import PermanentError, RefusedError, ServiceDownError
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.sniffing import ACCEPTED, MediaType, read_head
from batch_pipeline.services.deletion.file_ownership import FileOwnership
from batch_pipeline.services.progress.publishing import BatchProgress, ProgressPublisher
from batch_pipeline.services.sidecars import sidecar_date, without_sidecars
from batch_pipeline.settings import Settings
from batch_pipeline.storage import Storage
from batch_pipeline.visible_text import visible_line

#: Extensions of files that cameras, phones and photo programs write beside pictures.
_LEFT_OUT_SUFFIXES = frozenset({".aae", ".cos", ".dop", ".ini", ".json", ".pp3", ".xmp", ".db"})
#: SQLSTATE of a foreign key violation.
_FOREIGN_KEY = "23503"
#: How long an interrupted submission waits to learn whether its rows were committed.
_COMMIT_SECONDS = 10.0


@dataclass(frozen=True)
class RefusedFile:
    """A file that is not part of the batch, and why."""

    filename: str
    error: str
    path: Path
    """Its path as it was found; several folders may have a file of this name."""

    @property
    def reason(self) -> str:
        """The error without the accepted formats, which are printed once for all files."""
        return self.error.removesuffix(f"; {ACCEPTED}")


@dataclass(frozen=True)
class Submission:
    """The result of a submission."""

    batch_id: uuid.UUID | None
    """None: no file was accepted, so there is no batch."""
    upload_ids: Sequence[uuid.UUID]
    refused: Sequence[RefusedFile]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """As in `Offer`."""
    name: str | None = None
    """Name of the batch."""

    @property
    def total_files(self) -> int:
        """Number of offered files, without skipped files that accompany photos."""
        return len(self.upload_ids) + len(self.refused)

    @property
    def accepted_formats(self) -> str:
        """The list of accepted formats if the format of a file was refused; else empty."""
        return ACCEPTED if any(file.reason != file.error for file in self.refused) else ""


@dataclass(frozen=True)
class AcceptedFile:
    """A file that will be part of the batch."""

    upload_id: uuid.UUID
    path: Path
    filename: str
    media_type: MediaType
    size: int
    written_at: int
    """When it was last changed (nanoseconds)."""
    checksum: str
    sidecar_date: datetime | None

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is unchanged since it was examined, judged by its size and time."""
        try:
            now = self.path.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.written_at)


@dataclass(frozen=True)
class Offer:
    """The examined files of a submission; nothing is stored yet."""

    accepted: Sequence[AcceptedFile]
    refused: Sequence[RefusedFile]
    left_out: Mapping[str, int]
    """Skipped files that accompany photos, counted by extension; that is not a failure."""
    folder_name: str | None
    """A name for the batch: that of the offered folder, or of the folder with all files."""


def submit(
    paths: Iterable[Path],
    *,
    user_id: uuid.UUID = LOCAL_USER,
    publisher: ProgressPublisher,
    storage: Storage,
    settings: Settings,
    name: str | None = None,
    priority: Priority = Priority.NORMAL,
    on_stored: Callable[[int, int], None] = lambda stored, total: None,
) -> Submission:
    """Store files and folders as one batch.

    Args:
        paths: files, and folders with their subfolders. Hidden files in folders are skipped, and
            links to folders are not followed. XMP files beside a photo or video are not uploads,
            but may contain its date.
        user_id: owner of the batch.
        publisher: announces the new batch.
        storage: where the files go.
        settings: the limits.
        name: name of the batch; by default that of the folder.
        priority: priority among the batches of its user.
        on_stored: called with the number of files stored so far and the total number.

    Raises:
        RefusedError: the submission as a whole is over a limit, or a path does not exist; nothing
            was stored.
        ServiceDownError: storage or database cannot be used; nothing was kept.
    """
    offer = examine(paths, settings)
    return store(
        offer,
        user_id=user_id,
        publisher=publisher,
        storage=storage,
        settings=settings,
        name=name,
        priority=priority,
        on_stored=on_stored,
    )


def examine(paths: Iterable[Path], settings: Settings) -> Offer:
    """Examine files and folders, without storage and database.

    Raises:
        RefusedError: the submission as a whole is over a limit, or a path does not exist.
    """
    paths = list(paths)
    offered, unreadable = collect_files(paths)
    offered = without_sidecars(offered)
    _require_few([path for path in offered if not _left_out_suffix(path.name)], settings)
    accepted, refused = _examine(offered, settings)
    _require_few(accepted, settings)
    total_bytes = sum(file.size for file in accepted)
    if total_bytes > settings.max_batch_bytes:
        raise RefusedError(
            f"the files hold {total_bytes:,} bytes, a batch may hold "
            f"{settings.max_batch_bytes:,}: {_in_parts('BATCH_PIPELINE_MAX_BATCH_BYTES')}"
        )
    left_out = Counter(suffix for file in refused if (suffix := _left_out_suffix(file.filename)))
    refused = [file for file in refused if not _left_out_suffix(file.filename)]
    return Offer(accepted, [*unreadable, *refused], left_out, _folder_name(paths))


def _require_few(files: Sequence[object], settings: Settings) -> None:
    if len(files) > settings.max_files_per_batch:
        raise RefusedError(
            f"{len(files)} files were offered, a batch may hold {settings.max_files_per_batch}: "
            f"{_in_parts('BATCH_PIPELINE_MAX_FILES_PER_BATCH')}"
        )


def _in_parts(limit: str) -> str:
    return f"submit them in parts, for example by subfolder, or raise {limit}"


def _left_out_suffix(filename: str) -> str | None:
    suffix = PurePath(filename).suffix.lower()
    return suffix if suffix in _LEFT_OUT_SUFFIXES else None


def _folder_name(paths: Sequence[Path]) -> str | None:
    folders = {(path if path.is_dir() else path.parent).resolve() for path in paths}
    return folders.pop().name or None if len(folders) == 1 else None


def _shown_name(name: str | None) -> str | None:
    """Return a name as one line of limited length; None if nothing is left of it."""
    return visible_line(_storable_name(name or "")).strip()[:MAX_NAME] or None


def store(
    offer: Offer,
    *,
    user_id: uuid.UUID = LOCAL_USER,
    publisher: ProgressPublisher,
    storage: Storage,
    settings: Settings,
    name: str | None = None,
    priority: Priority = Priority.NORMAL,
    on_stored: Callable[[int, int], None] = lambda stored, total: None,
) -> Submission:
    """Store the files that `examine` accepted as one batch.

    Arguments and errors are those of `submit`.
    """
    accepted, refused = list(offer.accepted), list(offer.refused)
    if not accepted:
        return Submission(None, [], refused, offer.left_out)
    batch_id = uuid.uuid4()
    shown_name = _shown_name(name or offer.folder_name)
    ownership = FileOwnership(publisher.database, storage, settings)
    ownership.claim()
    targets = [_stored_path(storage, user_id, file) for file in accepted]
    note = ownership.begin_submission(batch_id, targets)
    in_flight = False
    try:
        for number, (file, target) in enumerate(zip(offer.accepted, targets, strict=True), 1):
            in_flight = not storage.is_local
            reason = _put(storage, file, target)
            in_flight = False
            if reason:
                storage.remove(target)
                accepted.remove(file)
                refused.append(RefusedFile(file.filename, reason, file.path))
            note.keep_fresh()
            on_stored(number, len(targets))
        note.remove()
        if not accepted:
            return Submission(None, [], refused, offer.left_out)
        with _refusals_named(user_id):
            _insert(publisher, storage, batch_id, user_id, accepted, shown_name, priority)
    except BaseException:
        # An error or a Ctrl-C may come after the commit; then the batch needs the files.
        if not _is_committed(publisher, batch_id):
            with suppress(ServiceDownError):  # the first error names the cause
                for target in targets:
                    storage.remove(target)
                # A Ctrl-C does not stop the client of an object store, which may still complete the
                # object. Then the tidy finds it by the note.
                if not in_flight:
                    ownership.forget_submission(batch_id)
        raise
    upload_ids = [file.upload_id for file in accepted]
    return Submission(batch_id, upload_ids, refused, offer.left_out, shown_name)


def _put(storage: Storage, file: AcceptedFile, target: str) -> str:
    """Store a file; returns why it cannot be accepted any more, empty if it was stored."""
    try:
        if file.is_unchanged:
            storage.put(file.path, target)
    except OSError as error:  # such as a memory card that was pulled out
        return f"it cannot be read: {error.strerror}"
    # With the checksum of the old bytes, the file could get the description of another file.
    if not file.is_unchanged:
        return "it was changed or moved while it was submitted: submit it again"
    return ""


def collect_files(paths: Iterable[Path]) -> tuple[list[Path], list[RefusedFile]]:
    """List the files of paths and their subfolders, each once, in a stable order.

    ``IMG_1.jpg`` comes before ``IMG_1 (1).jpg``, because the first of equal files is accepted.
    Also returns the folders that cannot be read, links that lead to no file, and pipes, sockets and
    devices.

    Raises:
        RefusedError: a path does not exist, or is neither a file nor a folder.
    """
    found: dict[Path, None] = {}
    unreadable: list[RefusedFile] = []

    def note(error: OSError) -> None:
        reason = f"the folder cannot be searched: {error.strerror}"
        folder = Path(error.filename)
        unreadable.append(RefusedFile(_storable_name(str(folder)), reason, folder))

    for path in paths:
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            for folder, subfolders, names in os.walk(path, onerror=note):
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                visible = [name for name in names if not name.startswith(".")]
                visible.sort(key=lambda name: (PurePath(name).stem, name))
                found.update(dict.fromkeys(Path(folder, name) for name in visible))
        elif stat.S_ISREG(mode):
            found[path] = None
        else:
            problem = "is neither a file nor a folder" if mode else "does not exist"
            raise RefusedError(f"{path} {problem}: name files, or folders of them")
    files: list[Path] = []
    for path in found:
        try:
            if path.is_file():
                files.append(path)
                continue
            if path.is_symlink():
                reason = "it is a link that leads to no file"
            else:  # it may also have been deleted meanwhile
                reason = "it is a pipe, a socket or a device" if path.exists() else ""
        except OSError as error:  # a folder that may be listed but not entered
            reason = f"it cannot be examined: {error.strerror}"
        if reason:
            unreadable.append(RefusedFile(_storable_name(path.name), reason, path))
    return files, unreadable


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0
    except OSError as error:  # not allowed, too long a name, a link to itself
        raise RefusedError(f"{path} cannot be examined: {error.strerror}") from error


def _examine(
    offered: Sequence[Path], settings: Settings
) -> tuple[list[AcceptedFile], list[RefusedFile]]:
    accepted: list[AcceptedFile] = []
    refused: list[RefusedFile] = []
    seen: dict[str, Path] = {}
    for path in offered:
        filename = _storable_name(path.name)
        try:
            file = _examine_one(path, filename, settings)
            if file.checksum in seen:
                first = seen[file.checksum]
                where = first.name if first.parent == path.parent else str(first)
                raise RefusedError(f"the same content as {_storable_name(where)}")
        except RefusedError as error:
            refused.append(RefusedFile(filename, str(error), path))
            continue
        except OSError as error:
            refused.append(RefusedFile(filename, f"it cannot be read: {error.strerror}", path))
            continue
        seen[file.checksum] = path
        accepted.append(file)
    return accepted, refused


def _examine_one(path: Path, filename: str, settings: Settings) -> AcceptedFile:
    found = path.stat()
    if found.st_size > settings.max_file_bytes:
        raise RefusedError(
            f"{found.st_size:,} bytes; a file may have {settings.max_file_bytes:,} "
            "(BATCH_PIPELINE_MAX_FILE_BYTES)"
        )
    with path.open("rb") as file:
        try:
            media_type = accept(read_head(file), settings.accepted_format_names)
        except PermanentError as error:
            raise RefusedError(str(error)) from error
        file.seek(0)
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return AcceptedFile(
        uuid.uuid4(),
        path,
        filename,
        media_type,
        found.st_size,
        found.st_mtime_ns,
        checksum,
        sidecar_date(path),
    )


@repeated
def _insert(  # noqa: PLR0917 - `repeated` passes them on
    publisher: ProgressPublisher,
    storage: Storage,
    batch_id: uuid.UUID,
    user_id: uuid.UUID,
    accepted: Sequence[AcceptedFile],
    name: str | None,
    priority: Priority,
) -> None:
    with publisher.transaction() as transaction:
        connection = transaction.connection
        connection.execute(select(func.pg_advisory_xact_lock(_lock_of(batch_id))))
        batch: dict[str, Any] = {
            "id": batch_id,
            "user_id": user_id,
            "total_uploads": len(accepted),
            "name": name,
        }
        if priority is not Priority.NORMAL:
            batch["priority"] = priority
        connection.execute(insert_all(UploadBatch, batch), batch)
        submitted_at = connection.scalar(func.now())
        uploads = [
            {
                "id": file.upload_id,
                "user_id": user_id,
                "batch_id": batch_id,
                "filename": file.filename,
                "file_path": _stored_path(storage, user_id, file),
                "file_type": file.media_type.file_type,
                "file_size": file.size,
                "mime_type": file.media_type.mime_type,
                "checksum": file.checksum,
                "metadata": _facts_from_outside(file),
                # Uploads are processed oldest first; microseconds keep the order of submission.
                "created_at": submitted_at + timedelta(microseconds=number),
            }
            for number, file in enumerate(accepted)
        ]
        connection.execute(insert_all(Upload, uploads[0]), uploads)
        progress = BatchProgress(batch_id, user_id, "pending", len(accepted), 0, 0, 0, name)
        transaction.announce(progress, user_id)


def _facts_from_outside(file: AcceptedFile) -> dict[str, str]:
    date = file.sidecar_date
    return {} if date is None else {SIDECAR_DATE: date.isoformat()}


@contextmanager
def _refusals_named(user_id: uuid.UUID) -> Iterator[None]:
    """Explain why tables of an upload API refuse our rows."""
    try:
        yield
    except DBAPIError as error:
        if not refuses_rows(error):
            raise
        reason = str(error.orig).strip()
        if sqlstate(error) == _FOREIGN_KEY:
            raise RefusedError(
                f"the upload API that owns these tables knows no user {user_id}: name one of its "
                f"users with --user ({reason})"
            ) from error
        raise RefusedError(
            f"the tables belong to an upload API that refuses our rows: {reason}\n"
            "Submit through that API, or give the required columns a default (ALTER TABLE … ALTER "
            "COLUMN … SET DEFAULT …)"
        ) from error


def _is_committed(publisher: ProgressPublisher, batch_id: uuid.UUID) -> bool:
    """Return whether the batch was committed; true if that is unknown, so that files are kept."""
    give_up_at = time.monotonic() + _COMMIT_SECONDS
    try:
        while time.monotonic() < give_up_at:
            with publisher.transaction() as transaction:
                connection = transaction.connection
                # A commit whose reply was lost may still be in progress on the server.
                if connection.scalar(select(func.pg_try_advisory_xact_lock(_lock_of(batch_id)))):
                    found = select(UploadBatch.id).where(UploadBatch.id == batch_id)
                    return connection.scalar(found) is not None
            time.sleep(0.1)
    except ServiceDownError:
        pass
    return True


def _lock_of(batch_id: uuid.UUID) -> int:
    """Return the key of the lock that the transaction of a submission holds."""
    return int.from_bytes(batch_id.bytes[:8], signed=True)


def _stored_path(storage: Storage, user_id: uuid.UUID, file: AcceptedFile) -> str:
    return storage.original_path(user_id, file.upload_id, file.media_type.extension)


def _storable_name(name: str) -> str:
    """Replace bytes that are not UTF-8. Names on disk may contain them, but text columns cannot."""
    return name.encode("utf-8", "replace").decode("utf-8")
