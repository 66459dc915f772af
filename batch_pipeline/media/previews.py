"""Small previews of thumbnails, which fit into an event log."""

import io
from collections.abc import Sequence

from PIL import Image

_QUALITY = 70
#: Side (pixels) and quality of a tiny picture. The first pair that fits is used, mostly one of 96.
#: This takes 1-3 ms; a slower method of the encoder gains little.
_TINY, _TINY_METHOD = ((128, 40), (96, 40), (96, 15), (64, 30), (48, 15), (24, 10)), 2
#: Qualities of a contact sheet; the first that fits is used.
_SHEET_QUALITIES = (75, 60, 45, 30, 15)
#: Distance between the pictures of a contact sheet (pixels).
_GAP = 4


def shrink_jpeg(jpeg: bytes, side: int) -> bytes:
    """Fit one of our JPEGs into a square of `side` pixels, without metadata."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.draft("RGB", (side, side))
        picture.thumbnail((side, side))
        small = io.BytesIO()
        picture.save(small, "JPEG", quality=_QUALITY)
    return small.getvalue()


def tiny_webp(jpeg: bytes, max_bytes: int) -> bytes:
    """Shrink one of our JPEGs to a WebP of at most `max_bytes`, without metadata."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.draft("RGB", (_TINY[0][0], _TINY[0][0]))
        for side, quality in _TINY:
            picture.thumbnail((side, side))
            encoded = io.BytesIO()
            picture.save(encoded, "WEBP", quality=quality, method=_TINY_METHOD)
            if encoded.tell() <= max_bytes:
                break
    return encoded.getvalue()


def contact_sheet(jpegs: Sequence[bytes], *, side: int, columns: int, max_bytes: int) -> bytes:
    """Put our JPEGs on one sheet, row by row, each within a square of `side` pixels.

    The quality is the best that `max_bytes` allows.
    """
    rows = -(-len(jpegs) // columns)
    sheet = Image.new("RGB", (min(columns, len(jpegs)) * side, rows * side), "white")
    for number, jpeg in enumerate(jpegs):
        row, column = divmod(number, columns)
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            picture.thumbnail((side - _GAP, side - _GAP))
            left, top = ((side - length) // 2 for length in picture.size)
            sheet.paste(picture, (column * side + left, row * side + top))
    for quality in _SHEET_QUALITIES:
        encoded = io.BytesIO()
        sheet.save(encoded, "JPEG", quality=quality)
        if encoded.tell() <= max_bytes:
            break
    return encoded.getvalue()
