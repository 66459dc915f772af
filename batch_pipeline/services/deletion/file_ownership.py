"""Proofs that a file on the storage is ours and may be removed.

Other programs keep files there, too: an upload API, a second deployment, the database from which
this one was restored. So a file may be in use although no row of ours names it. Three notes prove
that a file is ours:

- **The owner of the storage**, ``.batch_pipeline/owner.json``, names one database. It is written
  when the storage is empty, when it is the default one under the home folder, or by a person
  (``tidy --take-over``). Only the owner removes leftover files. A database has no identity before
  the last step of its restore, so a restore first leaves the note ``.batch_pipeline/restore`` in an
  empty storage. If the restore fails, the next one finds the note and still becomes the owner.
- **A submission in progress**, ``.batch_pipeline/submissions/<batch>.json``, lists the originals
  that it is about to store. It is written before the first of them, and removed before the rows are
  committed. As long as it exists, no database has rows for these files. The note is on the storage
  and not in the database. Otherwise a dump made during a submission would contain the note of a
  batch that was committed a moment later.
- **A thumbnail that we made** is recorded in the table ``made_thumbnails``, by the statement that
  stores its path. The record stays after the upload is deleted.

If rows of an original were once committed, it is never removed as a leftover. It does not matter
which program deleted the rows.

The note of the owner also shows that the storage is the right one. A folder on which nothing is
mounted, or that another setting names, has no note and none of the files that rows name. There
every file looks as if it had been removed. So nothing is decided about such a storage, and nothing
is deleted, until a person says that the files are gone (``tidy --take-over``).
"""

import json
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import Text, any_, cast, delete, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from batch_pipeline.database.identity import database_identity
from batch_pipeline.database.models import MadeThumbnail, Upload
from batch_pipeline.database.readings import newest_first
from batch_pipeline.database.session import Database
from batch_pipeline.errors import PermanentError, RefusedError
from batch_pipeline.settings import Settings
from batch_pipeline.storage import OWNER_NOTE, Storage, not_the_storage

_RESTORE = ".batch_pipeline/restore"
_SUBMISSIONS = ".batch_pipeline/submissions"
#: A long submission renews its note this often, so that it does not count as dead (seconds).
_RENEW_SECONDS = 60 * 60
#: Key of the advisory lock under which the owner is decided; any unused constant.
_CLAIM_LOCK = 4_920_118_633
#: Number of uploads whose files are looked for on a storage without a note.
_LOOKED_FOR = 20


@dataclass(frozen=True)
class AbandonedSubmission:
    """The note of a submission that ended before its rows were written."""

    batch_id: uuid.UUID
    paths: Sequence[str]


def paths_in_use(
    database: Database, paths: Collection[str], *, but_of: Collection[uuid.UUID] = ()
) -> set[str]:
    """Return those of the paths that rows of uploads name, except the rows `but_of`."""
    if not paths:
        return set()
    # One statement for all paths, because no index helps: each statement reads the whole table.
    is_one = any_(cast(list(paths), ARRAY(Text)))
    naming = select(Upload.id, Upload.file_path, Upload.thumbnail_path).where(
        or_(Upload.file_path == is_one, Upload.thumbnail_path == is_one)
    )
    with database.transaction() as connection:
        rows = connection.execute(naming).all()
    named = {path for row in rows if row.id not in but_of for path in row[1:] if path}
    return named & set(paths)


class FileOwnership:
    """The notes of one database on one storage.

    Args:
        database: a migrated database.
        storage: the storage with the files.
        settings: without ``storage_url`` the storage is the default one, which no other program
            uses.
    """

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        self._database = database
        self._storage = storage
        self._is_default = not settings.storage_url

    @cached_property
    def identity(self) -> str:
        """Identity of the database."""
        return database_identity(self._database)

    def owner(self) -> str | None:
        """Return the identity of the database that owns the storage; None: it has no owner.

        Raises:
            ServiceDownError: the storage cannot be used.
        """
        if not self.is_marked():
            return None
        found = self._read(OWNER_NOTE).get("database")
        return found if isinstance(found, str) else None

    def is_marked(self) -> bool:
        """Return whether a note says who the owner is, a database or nobody; raises as `owner`."""
        return self._storage.exists(OWNER_NOTE)

    def claim(self) -> bool:
        """Claim the storage if that is allowed; returns whether this database owns it.

        Raises:
            ServiceDownError: storage or database cannot be used, or the storage has neither a note
                nor any of the files that rows name.
        """
        if not self.is_marked():
            self._require_named_files()
            identity = self.identity  # before a connection is held
            with self._database.transaction() as connection:
                connection.execute(select(func.pg_advisory_xact_lock(_CLAIM_LOCK)))
                is_ours = self._may_be_claimed()
                # Checked last: the claim of another process first creates the folder of the note.
                if not self.is_marked():
                    self._write_owner(identity if is_ours else None)
        return self.is_owner()

    def would_own(self) -> bool:
        """Return what `claim` would return, and raise the same errors; changes nothing."""
        if self.is_marked():
            return self.is_owner()
        self._require_named_files()
        return self._may_be_claimed()

    def require_note(self) -> None:
        """Check that the storage is still there; if it is not, its files only seem gone.

        Raises:
            ServiceDownError: the note that `claim` found or wrote is missing.
        """
        if not self.is_marked():
            raise not_the_storage(OWNER_NOTE)

    def is_owner(self) -> bool:
        """Return whether this database owns the storage; raises as `owner` does."""
        return self.owner() == self.identity

    def take_over(self) -> None:
        """Make this database the owner, even if another one owned the storage before."""
        self._write_owner(self.identity)
        self._storage.remove(_RESTORE)

    def begin_restore(self) -> bool:
        """Return whether only restores have written to the storage.

        If so, the caller takes it over at the end.

        Raises:
            ServiceDownError: the storage cannot be used.
        """
        if self._storage.is_empty():
            self._storage.write(_RESTORE, b"a restore has begun and has not ended")
        return self._storage.exists(_RESTORE) and not self.is_marked()

    def begin_submission(self, batch_id: uuid.UUID, paths: Sequence[str]) -> "SubmissionNote":
        """Record that files are about to be stored; while the note exists, no row names them."""
        note = SubmissionNote(self._database, self.identity, self._storage, batch_id, paths)
        note.write()
        return note

    def abandoned_submissions(self, *, older_than_seconds: float) -> Iterator[AbandonedSubmission]:
        """List submissions of this database that ended before their rows were written.

        Raises:
            ServiceDownError: storage or database cannot be used.
        """
        before = self._database.now() - timedelta(seconds=older_than_seconds)
        for name in self._storage.names(_SUBMISSIONS):
            try:
                note = self._read(f"{_SUBMISSIONS}/{name}")
                is_ours = note["database"] == self.identity
                is_old = datetime.fromisoformat(note["written_at"]) < before
                found = AbandonedSubmission(uuid.UUID(note["batch_id"]), list(note["paths"]))
            except PermanentError:
                continue  # its submission has just ended and removed the note
            except (KeyError, TypeError, ValueError):
                continue  # not a note that we wrote
            if is_ours and is_old:
                yield found

    def has_note(self, batch_id: uuid.UUID) -> bool:
        """Return whether there is a note of a submission; raises as `owner` does."""
        return self._storage.exists(_note_path(batch_id))

    def forget_submission(self, batch_id: uuid.UUID) -> None:
        """Remove the note of a submission."""
        self._storage.remove(_note_path(batch_id))

    def made_thumbnail(self, upload_id: uuid.UUID) -> bool:
        """Return whether we made the thumbnail of an upload."""
        note = select(MadeThumbnail.upload_id).where(MadeThumbnail.upload_id == upload_id)
        with self._database.transaction() as connection:
            return connection.scalar(note) is not None

    def forget_thumbnails(self, upload_ids: Sequence[uuid.UUID]) -> None:
        """Remove the records of thumbnails that were removed."""
        with self._database.transaction() as connection:
            connection.execute(delete(MadeThumbnail).where(MadeThumbnail.upload_id.in_(upload_ids)))

    def _may_be_claimed(self) -> bool:
        return self._is_default or self._storage.is_empty()

    def _require_named_files(self) -> None:
        """Refuse a storage that has none of the files of the newest uploads."""
        originals = (
            select(Upload.file_path, Upload.thumbnail_path)
            .where(or_(Upload.file_path.is_not(None), Upload.thumbnail_path.is_not(None)))
            .order_by(newest_first(Upload.created_at))
            .limit(_LOOKED_FOR)
        )
        # The records outlive the rows of uploads.
        made = (
            select(MadeThumbnail.user_id, MadeThumbnail.upload_id)
            .order_by(MadeThumbnail.made_at.desc())
            .limit(_LOOKED_FOR)
        )
        with self._database.transaction() as connection:
            paths = [path for row in connection.execute(originals) for path in row if path]
            paths += [Storage.thumbnail_path(*row) for row in connection.execute(made)]
        missing = None
        for path in paths:
            try:
                if self._storage.exists(path):
                    return
            except PermanentError:
                continue  # a path out of the storage says nothing about the storage
            missing = path
        if missing:
            raise not_the_storage(missing)

    def _write_owner(self, identity: str | None) -> None:
        note = {
            "database": identity,
            "since": datetime.now(UTC).isoformat(),
            "meaning": "batch-pipeline tidies here only for this database; docs/operations.md",
        }
        self._storage.write(OWNER_NOTE, json.dumps(note, indent=2).encode())

    def _read(self, path: str) -> dict[str, Any]:
        try:
            note = json.loads(self._storage.read(path))
        except ValueError:
            return {}
        return note if isinstance(note, dict) else {}


class SubmissionNote:
    """The note of a submission in progress."""

    def __init__(
        self,
        database: Database,
        identity: str,
        storage: Storage,
        batch_id: uuid.UUID,
        paths: Sequence[str],
    ) -> None:
        self._database, self._storage = database, storage
        self._path = _note_path(batch_id)
        self._contents = {
            "database": identity,
            "batch_id": str(batch_id),
            "paths": list(paths),
        }

    def write(self) -> None:
        """Write or renew the note."""
        note = self._contents | {"written_at": self._database.now().isoformat()}
        self._storage.write(self._path, json.dumps(note).encode())
        self._renew_at = time.monotonic() + _RENEW_SECONDS

    def keep_fresh(self) -> None:
        """Renew the note if an hour has passed since it was written; raises as `remove` does."""
        if time.monotonic() > self._renew_at:
            self._require()
            self.write()

    def remove(self) -> None:
        """Remove the note, before rows name the files.

        Raises:
            RefusedError: the note is already gone, and the files may be gone, too.
        """
        self._require()
        self._storage.remove(self._path)

    def _require(self) -> None:
        if not self._storage.exists(self._path):
            raise RefusedError(
                "the submission stalled for so long that its files were removed as leftovers: "
                "submit them again"
            )


def _note_path(batch_id: uuid.UUID) -> str:
    return f"{_SUBMISSIONS}/{batch_id}.json"
