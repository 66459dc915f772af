"""Which part of a stored picture is shown, and how wide its pixels are.

HEIF, AVIF, MP4 and QuickTime say so in two boxes: the clean aperture (`clap`) and the pixel aspect
ratio (`pasp`). Both count ahead of any turn.
"""

import struct
from fractions import Fraction

from batch_pipeline.media.stills.boxes import boxes

Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge (pixels), as Pillow counts them."""

#: Pixels that are not square are stretched only within reason (width to height).
_MAX_ASPECT = 4
#: Fields of a sample entry of video, ahead of its boxes (bytes).
_SAMPLE_ENTRY_BYTES = 78
#: Version, flags and count at the start of a box that says how many are in it (bytes).
_COUNTED_BOX = 8


def square_pixels(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height once pixels are stretched to squares; an absurd aspect is taken as 1."""
    if not Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT:
        return width, height
    return max(1, round(width * aspect)), height


def pixel_aspect(pasp: bytes | None) -> Fraction:
    """Width of a pixel by its height, as the content of a `pasp` box says it; else 1."""
    if pasp is None or len(pasp) < 8:
        return Fraction(1)
    width, height = struct.unpack_from(">II", pasp)
    return Fraction(width, height) if width and height else Fraction(1)


def shown_part(clap: bytes | None, size: tuple[int, int]) -> Box:
    """What of a picture is shown, as the content of a `clap` box says it.

    All of it where there is no box, or one that leaves nothing.
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
        start = int((stored - side) / 2 + offset)  # the offset is that of the middle
        starts.append(max(0, start))
        ends.append(min(stored, start + int(side)))
    if starts[0] >= ends[0] or starts[1] >= ends[1]:
        return whole
    return starts[0], starts[1], ends[0], ends[1]


def boxes_of_tracks(moov: bytes) -> dict[int, dict[bytes, bytes]]:
    """The boxes beside the pixels of each track of a film, by its identifier and their names."""
    found = {}
    for _, start, end in _named(moov, b"trak", 0, len(moov)):
        identifier = 0
        for _, begin, stop in _named(moov, b"tkhd", start, end):
            place = begin + (20 if moov[begin : begin + 1] == b"\1" else 12)
            identifier = int.from_bytes(moov[place : min(place + 4, stop)], "big")
        found[identifier] = _boxes_of_entry(moov, start, end)
    return found


def _boxes_of_entry(moov: bytes, start: int, end: int) -> dict[bytes, bytes]:
    """Those of the first sample entry of a track."""
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
    """The boxes of one name; none ends behind what it is in, so that none is walked twice."""
    return [
        (found, begin, min(stop, end))
        for found, begin, stop in boxes(data, start, end)
        if found == name
    ]
