"""Stored thumbnails, read to be shown: whatever is wrong with one, it is left out."""

import logging
from collections.abc import Iterable

from batch_pipeline.errors import PermanentError, ServiceDownError
from batch_pipeline.media.previews import shrink_jpeg
from batch_pipeline.storage import Storage

log = logging.getLogger(__name__)


def stored_preview(storage: Storage, path: str | None, side: int) -> bytes | None:
    """Read a thumbnail as a JPEG within `side` pixels; None if there is none that can be shown.

    Raises:
        ServiceDownError: the storage cannot be reached.
    """
    if not path:
        return None
    try:
        jpeg = storage.read(path)
    except PermanentError as error:
        log.warning("%s", error)
        return None
    try:
        return shrink_jpeg(jpeg, side)
    except Exception as error:  # whatever lies there, it is not a thumbnail of ours
        log.warning("the thumbnail %r cannot be shown: %s", path, error)
        return None


def stored_previews(storage: Storage, paths: Iterable[str | None], side: int) -> list[bytes]:
    """Read thumbnails as `stored_preview` does; what cannot be read is left out.

    Raises:
        ServiceDownError: it is the storage that does not answer, not one of its files.
    """
    found, answers = [], False
    for path in paths:
        try:
            preview = stored_preview(storage, path, side)
        except ServiceDownError as error:
            log.warning("the thumbnail %r cannot be read: %s", path, error)
            if not answers:
                storage.check()
                answers = True
            continue
        if preview:
            found.append(preview)
    return found
