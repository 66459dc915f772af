"""Adds the transparency that a file stores beside its colours."""

import numpy as np
from PIL import Image


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
