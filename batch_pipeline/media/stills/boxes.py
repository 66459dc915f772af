"""The boxes of ISO media files; HEIF, AVIF, CR3, JPEG XL and JPEG 2000 consist of them."""

from collections.abc import Iterator

_PICTURE_BOXES = {b"meta", b"mdat", b"moov", b"jxlc", b"jxlp", b"jp2c"}
#: Maximum number of boxes on one level that are read.
_MAX_BOXES = 10_000


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box on one level, and the start and end of its content.

    A broken box ends the loop. In a cut file, a box may end after the end of the file.
    """
    end = len(data) if end is None else end
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, header = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:  # a size of 64 bits follows the name
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:  # to the end
            size = end - start
        if size < header:
            return
        yield data[start + 4 : start + 8], start + header, start + size
        start += size


def end_of_boxes(data: bytes) -> int:
    """Return the end of the last box with a part of the picture; any other data may follow.

    In a cut file, this is after the end of the file.
    """
    return max([len(data), *(end for name, _, end in boxes(data) if name in _PICTURE_BOXES)])
