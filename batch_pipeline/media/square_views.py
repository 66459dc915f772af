"""Two square views of a picture, which are the input of a small picture classifier."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Share of the shorter side that the middle view keeps; the classifier was tested with this value.
_MIDDLE = 0.875


def square_views(jpeg: bytes, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut out the middle of a picture, and squeeze the whole picture into a square.

    Args:
        jpeg: a picture that the media path has encoded, not an upload.
        side: side of the views (pixels).

    Returns:
        The middle and the whole, each of shape ``(side, side, 3)``, RGB.
    """
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        picture.draft("RGB", (2 * side, 2 * side))
        rgb = picture.convert("RGB")
    width, height = rgb.size
    kept = max(1.0, min(width, height) * _MIDDLE)
    left, top = (width - kept) / 2, (height - kept) / 2
    middle = (left, top, left + kept, top + kept)
    return _resized(rgb, side, middle), _resized(rgb, side, (0.0, 0.0, width, height))


def _resized(
    picture: Image.Image, side: int, box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    size = (side, side)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=2.0))
