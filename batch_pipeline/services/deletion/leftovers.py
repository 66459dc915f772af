"""Finds, and on request removes, files that are provably ours and no longer needed.

``file_ownership.py`` has the proofs. There are three kinds: originals of a submission that never
became a batch, thumbnails that we made of uploads that were deleted since, and files that a crash
left half written. No other files are considered. If another database owns the storage, nothing is
removed.
"""

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select

from batch_pipeline.database.models import MadeThumbnail, Upload, UploadBatch
from batch_pipeline.database.readings import one_of
from batch_pipeline.database.session import Database
from batch_pipeline.services.deletion.file_ownership import FileOwnership, paths_in_use
from batch_pipeline.storage import Storage

#: Younger files may belong to work in progress (seconds).
GRACE_SECONDS = 24 * 60 * 60
#: If more than this many files, and more than this share of all files recorded as ours, are left
#: over, a person has to confirm the removal. The cause is then probably a mistake: a table was
#: emptied, or a dump was restored.
MANY_FILES, LARGE_SHARE = 20, 0.1

_CHUNK = 1000
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ORIGINAL = re.compile(rf"{_UUID}/({_UUID})/original\.[a-z0-9]+")


@dataclass(frozen=True)
class Leftover:
    """A file that may be removed, and why."""

    path: str
    reason: str


@dataclass
class Leftovers:
    """The leftovers that were found, and what was done with them."""

    is_owner: bool
    """Whether this database owns the storage."""
    files: list[Leftover] = field(default_factory=list)
    removed: int = 0
    """How many of the files were removed."""
    need_a_person: bool = False
    """Whether there are so many files that they are only removed with `force`."""
    kept_because: str | None = None
    """Why the files were not removed, or why no search was made; None if they were removed."""
    submissions: dict[uuid.UUID, Sequence[str]] = field(default_factory=dict)
    """Originals by the batch id of their submission, whose note is removed after them."""
    thumbnails: list[uuid.UUID] = field(default_factory=list)
    """Uploads whose records are removed after their thumbnails."""
    recorded: int = 0
    """Number of files that are recorded as ours, left over or not."""


def remove_leftovers(
    database: Database,
    storage: Storage,
    ownership: FileOwnership,
    *,
    dry_run: bool = False,
    force: bool = False,
    grace_seconds: float = GRACE_SECONDS,
) -> Leftovers:
    """Find leftover files and remove them.

    Nothing is removed if this database does not own the storage, or if there are too many files.

    Args:
        database: the database with the rows of uploads and batches.
        storage: the storage to search.
        ownership: proves which files are ours.
        dry_run: change nothing.
        force: also remove more than a small share, because a person has checked the files.
        grace_seconds: younger files are left alone.

    Raises:
        ServiceDownError: storage or database cannot be used, or the storage holds none of the
            files that rows name. Files removed before that stay removed.
    """
    found = Leftovers(is_owner=ownership.would_own() if dry_run else ownership.claim())
    if not found.is_owner:
        found.kept_because = (
            "another database owns the storage, or nobody does, so nothing is removed; if only "
            "this database uses it: `batch-pipeline tidy --take-over`"
        )
        return found
    _find_abandoned_originals(database, storage, ownership, found, grace_seconds)
    _find_thumbnails_of_deleted_uploads(database, storage, found, grace_seconds)
    found.files += [
        Leftover(path, "half written when its writer died")
        for path in storage.partial_files(older_than_seconds=grace_seconds)
    ]
    are_many = len(found.files) > max(MANY_FILES, LARGE_SHARE * found.recorded)
    found.need_a_person = are_many and not force
    if found.need_a_person:
        found.kept_because = (
            f"{len(found.files)} of {found.recorded} files that are recorded as ours look like "
            "leftovers. That is too many to remove unchecked: look at `batch-pipeline tidy "
            "--dry-run`, then run `batch-pipeline tidy --force`"
        )
    elif dry_run:
        found.kept_because = "this was a dry run"
    else:
        _remove(storage, ownership, found)
    return found


def _find_abandoned_originals(
    database: Database,
    storage: Storage,
    ownership: FileOwnership,
    found: Leftovers,
    grace_seconds: float,
) -> None:
    for submission in ownership.abandoned_submissions(older_than_seconds=grace_seconds):
        originals = {
            uuid.UUID(match[1]): path
            for path in submission.paths
            if (match := _ORIGINAL.fullmatch(path))
        }
        with database.transaction() as connection:
            batch = select(UploadBatch.id).where(UploadBatch.id == submission.batch_id)
            if connection.scalar(batch) is not None:
                continue  # the storage was restored from a backup that is older than the rows
            known = set(connection.scalars(select(Upload.id).where(one_of(Upload.id, originals))))
        stored = [
            path
            for upload_id, path in originals.items()
            if upload_id not in known and storage.exists(path)
        ]
        found.recorded += len(stored)
        found.submissions[submission.batch_id] = stored
        found.files += [
            Leftover(path, f"original of submission {submission.batch_id}, which never ended")
            for path in stored
        ]


def _find_thumbnails_of_deleted_uploads(
    database: Database, storage: Storage, found: Leftovers, grace_seconds: float
) -> None:
    for chunk in _made_thumbnails(database, grace_seconds):
        found.recorded += len(chunk)
        with database.transaction() as connection:
            known = set(connection.scalars(select(Upload.id).where(Upload.id.in_(chunk))))
        paths = {
            upload_id: storage.thumbnail_path(user_id, upload_id)
            for upload_id, user_id in chunk.items()
            if upload_id not in known
        }
        # An upload API may have copied the row before it was deleted.
        in_use = paths_in_use(database, set(paths.values()))
        for upload_id, path in paths.items():
            if path in in_use:
                continue
            found.thumbnails.append(upload_id)
            if storage.exists(path):
                found.files.append(Leftover(path, "thumbnail of an upload that was deleted"))


def _made_thumbnails(
    database: Database, grace_seconds: float
) -> Iterator[dict[uuid.UUID, uuid.UUID]]:
    """Yield the uploads whose thumbnail we made, each with its user, in chunks."""
    old = MadeThumbnail.made_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, grace_seconds)
    notes = select(MadeThumbnail.upload_id, MadeThumbnail.user_id).where(old)
    last = None  # the nil UUID may be an id, too
    while True:
        part = notes.order_by(MadeThumbnail.upload_id)
        if last is not None:
            part = part.where(MadeThumbnail.upload_id > last)
        with database.transaction() as connection:
            rows = connection.execute(part.limit(_CHUNK)).all()
        if not rows:
            return
        last = rows[-1].upload_id
        yield {row.upload_id: row.user_id for row in rows}


def _remove(storage: Storage, ownership: FileOwnership, found: Leftovers) -> None:
    ownership.require_note()  # without the storage, every thumbnail would look gone
    originals = {path for paths in found.submissions.values() for path in paths}
    for leftover in found.files:
        if leftover.path not in originals:
            storage.remove(leftover.path)
            found.removed += 1
    for batch_id, paths in found.submissions.items():
        if not ownership.has_note(batch_id):
            continue  # a stalled submission has just become a batch
        for path in paths:
            storage.remove(path)
            found.removed += 1
        ownership.forget_submission(batch_id)
    for begin in range(0, len(found.thumbnails), _CHUNK):
        ownership.forget_thumbnails(found.thumbnails[begin : begin + _CHUNK])
