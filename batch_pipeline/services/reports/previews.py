"""Stored thumbnails, read to be shown: whatever is wrong with one, it is left out."""

import logging

from batch_pipeline.errors import PermanentError, ServiceDownError
from batch_pipeline.media.previews import shrink_jpeg
from batch_pipeline.storage import Storage

log = logging.getLogger(__name__)


class Previews:
    """Reads thumbnails of a storage, and tells one that cannot be read from one that is down."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._storage_answers = False

    def read(self, path: str | None, side: int) -> bytes | None:
        """Read a thumbnail as a JPEG within `side` pixels; None if there is none to be shown.

        Raises:
            ServiceDownError: the storage cannot be used, for no file at all.
        """
        if not path:
            return None
        try:
            return shrink_jpeg(self._bytes(path), side)
        except ServiceDownError:
            raise
        except Exception as error:  # whatever lies there, it is not a thumbnail of ours
            log.warning("the thumbnail %r cannot be shown: %s", path, error)
            return None

    def _bytes(self, path: str) -> bytes:
        try:
            return self._storage.read(path)
        except ServiceDownError as error:
            # One file that nobody can read looks like an outage; others tell which it is.
            if not self._storage_answers:
                self._storage.check()
                self._storage_answers = True
            raise PermanentError(error.kind, str(error)) from error
