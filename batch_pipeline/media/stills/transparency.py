"""Adds the transparency that a file stores beside its colours, and replaces it by a ground."""

import numpy as np
from PIL import Image

#: Lower alpha is not visible (0-255).
LEAST_ALPHA = 16
#: Alpha that varies by less than this is not a shape on a transparent ground (0-255).
_LEAST_VARIATION = 64
#: A shape can be seen on white if this part of its pixels differs from white by at least the second
#: number (0-255). Soft shadows and pale yellow do.
_LEAST_PART, _LEAST_DIFFERENCE = 0.02, 24
_WHITE, _GREY = (255,) * 3, (128,) * 3


def with_alpha(picture: Image.Image, alpha: Image.Image, *, is_associated: bool) -> Image.Image:
    """Return a picture of mode RGBA.

    Args:
        picture: the colours, of mode L or RGB.
        alpha: 0 is transparent; of mode L and the same size.
        is_associated: whether the colours were already multiplied by it.
    """
    picture = picture.convert("RGB")
    if is_associated:
        whole = np.asarray(picture, dtype=np.uint16) * 255
        whole //= np.maximum(np.asarray(alpha), 1)[..., None]
        picture = Image.fromarray(whole.clip(0, 255).astype(np.uint8))
    picture.putalpha(alpha)
    return picture


def on_ground(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """Put a picture on white, or on mid-grey if almost nothing of it could be seen on white.

    Args:
        picture: the colours at their final size, of mode RGB.
        alpha: 0 is transparent; of mode L and the same size.
    """
    on_white = Image.new("RGB", picture.size, _WHITE)
    on_white.paste(picture, mask=alpha)
    opacity = np.asarray(alpha)
    visible = opacity >= LEAST_ALPHA
    if np.ptp(opacity) < _LEAST_VARIATION or not visible.any():
        return on_white
    difference = 255 - np.asarray(on_white).min(axis=2)[visible]
    if (difference >= _LEAST_DIFFERENCE).mean() >= _LEAST_PART:
        return on_white
    on_grey = Image.new("RGB", picture.size, _GREY)
    on_grey.paste(picture, mask=alpha)
    return on_grey
