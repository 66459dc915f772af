"""Reads stored thumbnails for pages and reports; a thumbnail with any error is left out."""

import logging

from batch_pipeline.errors import PermanentError, ServiceDownError
from batch_pipeline.media.previews import shrink_jpeg
from batch_pipeline.storage import Storage

log = logging.getLogger(__name__)


class Previews:
    """Reads thumbnails; distinguishes one unreadable file from a storage that is down."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._storage_answers = False

    def read(self, path: str | None, side: int) -> bytes | None:
        """Read a thumbnail as a JPEG of at most `side` pixels; None if none can be shown.

        Raises:
            ServiceDownError: the storage is down for all files.
        """
        if not path:
            return None
        try:
            return shrink_jpeg(self._bytes(path), side)
        except ServiceDownError:
            raise
        except Exception as error:  # the file is not a thumbnail that we made
            log.warning("the thumbnail %r cannot be shown: %s", path, error)
            return None

    def _bytes(self, path: str) -> bytes:
        try:
            return self._storage.read(path)
        except ServiceDownError as error:
            # One unreadable file looks like an outage. A check of the storage shows which it is.
            if not self._storage_answers:
                self._storage.check()
                self._storage_answers = True
            raise PermanentError(error.kind, str(error)) from error
