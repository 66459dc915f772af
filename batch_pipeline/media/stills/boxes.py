"""The boxes of ISO media files, which HEIF, AVIF, CR3, JPEG XL and JPEG 2000 are made of."""

from collections.abc import Iterator

_PICTURE_BOXES = {b"meta", b"mdat", b"moov", b"jxlc", b"jxlp", b"jp2c"}
#: More boxes on one level are not walked.
_MAX_BOXES = 10_000


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Name of each box on one level, and where its content begins and ends.

    What is broken ends the walk; a box may end behind the file if that was cut.
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
    """Where the last box with a part of the picture ends; behind the end of a file that was cut.

    What else follows may be anything.
    """
    return max([len(data), *(end for name, _, end in boxes(data) if name in _PICTURE_BOXES)])
