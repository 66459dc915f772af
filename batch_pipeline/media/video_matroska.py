"""Reads how much of each frame Matroska and WebM cut off, because FFmpeg ignores it."""

import io
from collections.abc import Iterator
from itertools import islice

from batch_pipeline.media.sniffing import SeekableFile, ebml_size

_SEGMENT, _TRACKS, _TRACK = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae"
_TRACK_TYPE, _IS_VIDEO, _CODEC, _VIDEO = b"\x83", 1, b"\x86", b"\xe0"
#: Elements for how much is cut at the left, top, right and bottom (pixels).
_CROPS = (b"\x54\xcc", b"\x54\xbb", b"\x54\xdd", b"\x54\xaa")
#: Maximum number of elements of one level that are read, and of the bytes of a number.
_MAX_ELEMENTS, _MAX_NUMBER_BYTES = 10_000, 8

_Element = tuple[bytes, int, int]
"""Identifier, and start and end of the content."""


def pixel_crop(source: SeekableFile, number: int) -> tuple[int, int, int, int]:
    """Return how much of the frames of a track is cut: left, top, right and bottom (pixels).

    Args:
        source: the file.
        number: the position of the track among the video tracks, from 0.
    """
    whole = (b"", 0, source.seek(0, io.SEEK_END))
    tracks = (
        track
        for segment in _inside(source, whole, _SEGMENT)
        for parent in _inside(source, segment, _TRACKS)
        for track in _inside(source, parent, _TRACK)
        if _is_film(source, track)
    )
    track = next(islice(tracks, number, None), None)
    return _crop_of(source, track) if track else (0, 0, 0, 0)


def _is_film(source: SeekableFile, track: _Element) -> bool:
    """Return whether FFmpeg makes a video stream of a track."""
    kinds = [_number(source, each) for each in _inside(source, track, _TRACK_TYPE)]
    return kinds == [_IS_VIDEO] and any(_inside(source, track, _CODEC))


def _crop_of(source: SeekableFile, track: _Element) -> tuple[int, int, int, int]:
    found = {
        element[0]: _number(source, element)
        for video in _inside(source, track, _VIDEO)
        for element in _inside(source, video)
        if element[0] in _CROPS
    }
    left, top, right, bottom = (found.get(each, 0) for each in _CROPS)
    return left, top, right, bottom


def _inside(
    source: SeekableFile, parent: _Element, identifier: bytes | None = None
) -> Iterator[_Element]:
    """Yield the elements in another one, or those with one identifier.

    No element ends after its parent, so none is visited twice. A broken one ends the loop.
    """
    _, place, end = parent
    for _ in range(_MAX_ELEMENTS):
        if place >= end:
            return
        source.seek(place)
        first = source.read(1)
        if not first or first == b"\0":
            return
        found = first + source.read(8 - first[0].bit_length())
        size = ebml_size(source)
        start = source.tell()
        place = end if size is None else min(end, start + size)
        if identifier in {None, found}:
            yield found, start, place


def _number(source: SeekableFile, element: _Element) -> int:
    _, start, end = element
    source.seek(start)
    return int.from_bytes(source.read(min(end - start, _MAX_NUMBER_BYTES)), "big")
