"""Previews of previews: thumbnails made small enough to stand in an event log."""

import io

from PIL import Image

_QUALITY = 70


def shrink_jpeg(jpeg: bytes, side: int) -> bytes:
    """Fit a JPEG of ours into a square of `side` pixels; metadata does not come along."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.draft("RGB", (side, side))
        picture.thumbnail((side, side))
        small = io.BytesIO()
        picture.save(small, "JPEG", quality=_QUALITY)
    return small.getvalue()
