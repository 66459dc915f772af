"""Which part of a stored picture is shown, and how wide its pixels are.

HEIF, AVIF, MP4 and QuickTime have two boxes for this: the clean aperture (`clap`) and the pixel
aspect ratio (`pasp`). Both apply before any rotation. Matroska says how much is cut at each edge.
"""

import struct
from fractions import Fraction

from batch_pipeline.media.stills.boxes import boxes

Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge (pixels), in Pillow's convention."""

#: Largest aspect (width to height) to which pixels that are not square are stretched.
_MAX_ASPECT = 4
#: Fields of a video sample entry, before its boxes (bytes).
_SAMPLE_ENTRY_BYTES = 78
#: Version, flags and count at the start of a box that counts its entries (bytes).
_COUNTED_BOX = 8


def square_pixels(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return width and height after stretching pixels to squares; an absurd aspect counts as 1."""
    if not Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT:
        return width, height
    return max(1, round(width * aspect)), height


def pixel_aspect(pasp: bytes | None) -> Fraction:
    """Return a pixel's width divided by its height, from the content of a `pasp` box; else 1."""
    if pasp is None or len(pasp) < 8:
        return Fraction(1)
    width, height = struct.unpack_from(">II", pasp)
    return Fraction(width, height) if width and height else Fraction(1)


def shown_part(clap: bytes | None, size: tuple[int, int]) -> Box:
    """Return the part of a picture that is shown, from the content of a `clap` box.

    It is the whole picture if there is no box, or if the box leaves nothing.
    """
    whole = (0, 0, *size)
    if clap is None or len(clap) < 32:
        return whole
    numbers = struct.unpack_from(">IIIIiIiI", clap)
    if not all(numbers[1::2]):
        return whole
    sides = [Fraction(*numbers[0:2]), Fraction(*numbers[2:4])]
    offsets = [Fraction(*numbers[4:6]), Fraction(*numbers[6:8])]
    starts, ends = [], []
    for stored, side, offset in zip(size, sides, offsets, strict=True):
        start = int((stored - side) / 2 + offset)  # the offset belongs to the middle of the part
        starts.append(max(0, start))
        ends.append(min(stored, start + int(side)))
    if starts[0] >= ends[0] or starts[1] >= ends[1]:
        return whole
    return starts[0], starts[1], ends[0], ends[1]


def part_after_crop(crop: tuple[int, int, int, int], size: tuple[int, int]) -> Box:
    """Return the part of a picture that is left when pixels are cut off at its edges.

    It is the whole picture if nothing would be left.

    Args:
        crop: pixels cut at the left, top, right and bottom.
        size: width and height of the picture.
    """
    left, top, right, bottom = crop
    width, height = size
    if left + right >= width or top + bottom >= height:
        return 0, 0, width, height
    return left, top, width - right, height - bottom


def boxes_of_tracks(moov: bytes) -> dict[int, dict[bytes, bytes]]:
    """Return the boxes that describe each track of a film, by track identifier and box name."""
    found = {}
    for _, start, end in _named(moov, b"trak", 0, len(moov)):
        identifier = 0
        for _, begin, stop in _named(moov, b"tkhd", start, end):
            place = begin + (20 if moov[begin : begin + 1] == b"\1" else 12)
            identifier = int.from_bytes(moov[place : min(place + 4, stop)], "big")
        found[identifier] = _boxes_of_entry(moov, start, end)
    return found


def _boxes_of_entry(moov: bytes, start: int, end: int) -> dict[bytes, bytes]:
    """Return the boxes of a track's first sample entry."""
    spans = [(start, end)]
    for name in (b"mdia", b"minf", b"stbl", b"stsd"):
        spans = [(begin, stop) for span in spans for _, begin, stop in _named(moov, name, *span)]
    if not spans:
        return {}
    begin, end = spans[0]
    entries = boxes(moov, begin + _COUNTED_BOX, end)
    _, entry, stop = next(entries, (b"", end, end))
    inside = boxes(moov, entry + _SAMPLE_ENTRY_BYTES, min(stop, end))
    return {name: moov[first:last] for name, first, last in inside}


def _named(data: bytes, name: bytes, start: int, end: int) -> list[tuple[bytes, int, int]]:
    """Return the boxes of one name. No box ends after its parent, so none is visited twice."""
    return [
        (found, begin, min(stop, end))
        for found, begin, stop in boxes(data, start, end)
        if found == name
    ]
