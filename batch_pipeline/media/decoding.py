"""The way from a stored file to pictures: chooses the decoder.

Kinds of `PermanentError` on this way. All of them mean that the file itself is the reason:

====================== ===================================================================
``empty_file``         no bytes at all
``file_too_large``     a picture has more bytes than allowed; it was not read
``truncated``          the file is shorter than its own structure says
``unreadable_image``   an image decoder gave up
``unreadable_video``   a container cannot be opened, or none of its frames decoded
``no_video_stream``    a container with only sound, or sound and a cover picture
``too_many_pixels``    a picture or frame needs more memory than allowed, or claims more pixels than
                       its file can hold; nothing was decoded
``oversized_metadata`` texts or EXIF are larger than any camera writes
====================== ===================================================================

Errors of the storage while reading, and `MemoryError`, are passed on unchanged.
"""

import io
from dataclasses import replace
from datetime import datetime
from typing import BinaryIO

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.memory import DECODES, DEFAULT_DECODE_BYTES, return_large_blocks
from batch_pipeline.media.metadata import with_date_from_outside
from batch_pipeline.media.pictures import VISION_PATCH
from batch_pipeline.media.sniffing import MediaType
from batch_pipeline.media.videos import decode_video


def decode(
    source: BinaryIO,
    media_type: MediaType,
    *,
    filename: str = "",
    sidecar_date: datetime | None = None,
    max_bytes: int = DEFAULT_DECODE_BYTES,
    max_file_bytes: int | None = None,
    patch: int = VISION_PATCH,
) -> MediaContent:
    """Decode a file into the pictures that the models and the thumbnail need.

    Any number of threads may call this. Each core decodes at most one file at a time.

    Args:
        source: the file, seekable; the caller closes it.
        media_type: the result of `sniff`.
        filename: the name of the file when it was uploaded; it may contain a date.
        sidecar_date: the date in a file beside this one.
        max_bytes: memory that decoding may use, besides the file.
        max_file_bytes: size of the largest picture, which is read into memory as a whole; None: any
            size. Videos are read in parts, so their size does not matter.
        patch: sides of the pictures for the vision model are multiples of this (pixels).

    Raises:
        PermanentError: with one of the kinds above.
    """
    size = source.seek(0, io.SEEK_END)
    if size == 0:
        raise PermanentError("empty_file", "the file is empty: 0 bytes")
    is_image = media_type.file_type == "image"
    if is_image and max_file_bytes is not None and size > max_file_bytes:
        raise PermanentError(
            "file_too_large",
            f"{size:,} bytes; a picture may have {max_file_bytes:,} "
            "(BATCH_PIPELINE_MAX_FILE_BYTES)",
        )
    source.seek(0)
    return_large_blocks()
    with DECODES:
        if is_image:
            # Read first: an OSError here is from the storage, a later one from the decoder.
            content = decode_image(source.read(), media_type, max_bytes=max_bytes, patch=patch)
        else:
            content = decode_video(source, media_type, max_bytes=max_bytes, patch=patch)
    facts = with_date_from_outside(content.facts, sidecar_date, filename)
    return replace(content, facts=facts)
