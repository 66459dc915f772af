"""How a frame is placed on the screen: cut, turned, mirrored, and stretched to square pixels."""

import struct
from collections.abc import Callable
from fractions import Fraction
from functools import partial

from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from batch_pipeline.media.apertures import (
    Box,
    boxes_of_tracks,
    part_after_crop,
    shown_part,
    square_pixels,
)
from batch_pipeline.media.sniffing import MKV, MOV, MP4, THREE_GP, WEBM, MediaType
from batch_pipeline.media.video_matroska import pixel_crop
from batch_pipeline.media.video_side_data import side_data_of
from batch_pipeline.media.video_streams import Source

#: Maximum number of boxes on the first level that are read, and maximum size of the box that
#: describes a film (bytes).
_MAX_BOXES, _MAX_FILM_BOX = 10_000, 64 * 1024**2

#: Films that consist of boxes.
ISO_FILMS = {MP4, MOV, THREE_GP}
_MATROSKA = {MKV, WEBM}

#: By the signs of the display matrix, which show if columns and rows are reversed on the screen.
_UPRIGHT = {
    (True, False): Image.Transpose.FLIP_LEFT_RIGHT,
    (False, True): Image.Transpose.FLIP_TOP_BOTTOM,
    (True, True): Image.Transpose.ROTATE_180,
}
#: The same if the rows of the frame are columns on the screen.
_ON_ITS_SIDE = {
    (False, False): Image.Transpose.TRANSPOSE,
    (True, False): Image.Transpose.ROTATE_270,
    (False, True): Image.Transpose.ROTATE_90,
    (True, True): Image.Transpose.TRANSVERSE,
}
#: The matrix of 0, 90, 180 and 270 degrees anticlockwise.
_TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))


def placement(frame: VideoFrame) -> Image.Transpose | None:
    """Return the operation that turns a frame as a player shows it; None if it needs none.

    All eight rotations and reflections are possible; other angles count as the nearest of them.
    """
    across_x, across_y, down_x, down_y = _display_matrix(frame)
    if abs(across_y) + abs(down_x) > abs(across_x) + abs(down_y):
        return _ON_ITS_SIDE[down_x < 0, across_y < 0]
    return _UPRIGHT.get((across_x < 0, down_y < 0))


def is_on_its_side(transpose: Image.Transpose | None) -> bool:
    """Return whether width and height are swapped."""
    return transpose in _ON_ITS_SIDE.values()


def square_pixel_size(part: Box, stream: VideoStream) -> tuple[int, int]:
    """Return width and height before any rotation, after stretching to square pixels (DVD, DV).

    Args:
        part: the part of the frame that is shown.
        stream: has the aspect of its pixels.
    """
    left, top, right, bottom = part
    return square_pixels(right - left, bottom - top, stream.sample_aspect_ratio or Fraction(1))


Aperture = Callable[[tuple[int, int]], Box]
"""Returns the part that is shown, from width and height of a frame."""


def aperture(source: Source, stream: VideoStream, media_type: MediaType) -> Aperture:
    """Read from the container which part of a frame is shown.

    MP4, QuickTime and 3GP have a box `clap` for this, Matroska and WebM elements `PixelCrop…`.
    """
    place = source.tell()
    try:
        if media_type in ISO_FILMS:
            clap = boxes_of_tracks(_film_box(source)).get(stream.id, {}).get(b"clap")
            return partial(shown_part, clap)
        if media_type in _MATROSKA:
            number = stream.container.streams.video.index(stream)
            return partial(part_after_crop, pixel_crop(source, number))
    finally:
        source.seek(place)
    return partial(shown_part, None)


def _film_box(source: Source) -> bytes:
    """Return the content of the `moov` box; empty if it is absurdly long."""
    start = 0
    for _ in range(_MAX_BOXES):
        source.seek(start)
        head = source.read(16)
        size, header = int.from_bytes(head[:4], "big"), 8
        if size == 1:  # a size of 64 bits follows the name
            size, header = int.from_bytes(head[8:16], "big"), 16
        if head[4:8] == b"moov":
            source.seek(start + header)
            return source.read(size - header) if header < size <= _MAX_FILM_BOX else b""
        if size < header:
            break
        start += size
    return b""


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return where a step to the right and a step down lead on the screen: (x, y) of each."""
    try:
        data = side_data_of(frame, "DISPLAYMATRIX")
    except ValueError:  # the frame also has side data that PyAV does not know
        return _TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return _TURNS[0]
    matrix = struct.unpack("=9i", data)
    return matrix[0], matrix[1], matrix[3], matrix[4]
