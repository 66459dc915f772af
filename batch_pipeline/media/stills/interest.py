"""Whether a frame shows something; many animations begin with a black or empty frame."""

from enum import IntEnum

import numpy as np
from PIL import Image, ImageStat

from batch_pipeline.media.stills.transparency import LEAST_ALPHA, on_ground

#: Below these spreads (standard deviation, 0-255) a frame has only one colour, or is black.
_UNIFORM_SPREAD, _BLACK_SPREAD = 6.0, 24.0
#: A dark frame is black if its mean is below the first value. A uniform frame is white if its mean
#: is above the second (0-255).
_BLACK_MEAN, _WHITE_MEAN = 32.0, 250.0


class Interest(IntEnum):
    """How much there is to see, from least to most."""

    NOTHING = 0
    """Black, white or transparent."""
    ONE_COLOUR = 1
    VARIED = 2


def interest_of(picture: Image.Image) -> Interest:
    """Judge a small picture of mode L, RGB, RGBA or CMYK."""
    if picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        if np.asarray(alpha).max() < LEAST_ALPHA:
            return Interest.NOTHING
        picture = on_ground(picture.convert("RGB"), alpha)
    statistics = ImageStat.Stat(picture.convert("RGB"))
    mean, spread = max(statistics.mean), max(statistics.stddev)
    if mean < _BLACK_MEAN and spread < _BLACK_SPREAD:
        return Interest.NOTHING
    if spread >= _UNIFORM_SPREAD:
        return Interest.VARIED
    return Interest.NOTHING if min(statistics.mean) > _WHITE_MEAN else Interest.ONE_COLOUR
