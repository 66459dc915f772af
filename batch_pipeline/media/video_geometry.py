"""How a frame is placed on the screen: turned, mirrored, and with pixels that are not square."""

import struct
from fractions import Fraction

from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from batch_pipeline.media.video_side_data import side_data_of

#: Pixels that are not square are stretched only within reason (width to height).
_MAX_ASPECT = 4

#: By the signs of the display matrix that say whether columns and rows run backwards on the screen.
_UPRIGHT = {
    (True, False): Image.Transpose.FLIP_LEFT_RIGHT,
    (False, True): Image.Transpose.FLIP_TOP_BOTTOM,
    (True, True): Image.Transpose.ROTATE_180,
}
#: The same where the rows of the frame are columns on the screen.
_ON_ITS_SIDE = {
    (False, False): Image.Transpose.TRANSPOSE,
    (True, False): Image.Transpose.ROTATE_270,
    (False, True): Image.Transpose.ROTATE_90,
    (True, True): Image.Transpose.TRANSVERSE,
}
#: The matrix of 0, 90, 180 and 270 degrees against the clock.
_TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))


def placement(frame: VideoFrame) -> Image.Transpose | None:
    """What brings a frame into the position in which a player shows it; None for as it is.

    All eight turns and mirrorings; an angle between them is taken as the nearest.
    """
    across_x, across_y, down_x, down_y = _display_matrix(frame)
    if abs(across_y) + abs(down_x) > abs(across_x) + abs(down_y):
        return _ON_ITS_SIDE[down_x < 0, across_y < 0]
    return _UPRIGHT.get((across_x < 0, down_y < 0))


def is_on_its_side(transpose: Image.Transpose | None) -> bool:
    """Whether width and height change places."""
    return transpose in _ON_ITS_SIDE.values()


def square_pixel_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height ahead of any turn, with pixels that are not square stretched (DVD, DV)."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT:
        aspect = Fraction(1)
    return max(1, round(frame.width * aspect)), frame.height


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Where a step to the right and a step down lead on the screen: (x, y) of each."""
    try:
        data = side_data_of(frame, "DISPLAYMATRIX")
    except ValueError:  # beside it lies a kind of data that PyAV has no name for
        return _TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return _TURNS[0]
    matrix = struct.unpack("=9i", data)
    return matrix[0], matrix[1], matrix[3], matrix[4]
