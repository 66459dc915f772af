"""Files that nothing refers to: of uploads that were deleted or never recorded, and half written.

A submission stores its files before it writes their rows, hence the long grace.
"""

from dataclasses import dataclass
from itertools import islice

from sqlalchemy import select

from batch_pipeline.database.models import Upload
from batch_pipeline.database.session import Database
from batch_pipeline.storage import Storage

#: What is younger may belong to a submission that is still under way (seconds).
GRACE_SECONDS = 24 * 60 * 60

_CHUNK = 1000


@dataclass(frozen=True)
class Removed:
    """How much was removed."""

    folders: int
    partial_files: int


def remove_leftovers(
    database: Database, storage: Storage, *, grace_seconds: float = GRACE_SECONDS
) -> Removed:
    """Remove folders of uploads that are in no row, and files that a crash left half written.

    Raises:
        ServiceDownError: storage or database cannot be used; what was removed stays removed.
    """
    folders = 0
    stored = storage.stored_uploads()
    while chunk := list(islice(stored, _CHUNK)):
        with database.transaction() as connection:
            known = set(
                connection.scalars(
                    select(Upload.id).where(Upload.id.in_([upload_id for _, upload_id in chunk]))
                )
            )
        for user_id, upload_id in chunk:
            if upload_id not in known and storage.age_seconds(user_id, upload_id) > grace_seconds:
                storage.remove_upload(user_id, upload_id)
                folders += 1
    return Removed(folders, storage.remove_partial_files(older_than_seconds=grace_seconds))
