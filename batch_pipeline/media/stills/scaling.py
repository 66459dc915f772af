"""Scales large pictures down, a strip at a time."""

from collections.abc import Callable
from itertools import chain

import numpy as np
from PIL import Image, ImageCms

from batch_pipeline.media.stills.levels import GreyLevels, to_8_bits

#: Pixels that are converted at a time when a large picture is scaled down.
STRIP_PIXELS = 2_000_000
#: Memory of a strip while it is read, converted and reduced (bytes).
_STRIP_BYTES = 16 * STRIP_PIXELS
#: The result of the box filter is at least this many times the target.
_BOX_GAP = 1.2
#: Modes of Pillow that can be scaled without a change of colour.
_WORKING_MODES = {"L", "RGB", "RGBA", "CMYK"}

ReadRows = Callable[[int, int], Image.Image]
"""Returns rows of a picture, from the first number up to (not including) the second, in order."""


def scale(
    size: tuple[int, int],
    target: tuple[int, int],
    read_rows: ReadRows,
    levels: GreyLevels | None = None,
) -> Image.Image:
    """Scale to `target` pixels; the result is of mode L, RGB, RGBA or CMYK.

    Deep grey is converted by `levels`, without them by the range of its type.

    A box filter scales down to between 1.2 and 2.4 times the target, and a good filter does the
    rest. The result looks as good, and the full-size picture is converted only a strip at a time.
    For photos of 12 megapixels, the good filter alone took a third of the whole decode. After the
    box filter, Lanczos is as near to a picture scaled by Lanczos alone as bicubic is (both
    49.7 dB), and takes a quarter longer.
    """
    width, height = size
    factor = _factor(size, target)
    strip_height = max(1, STRIP_PIXELS // (width * factor)) * factor
    tops = range(0, height, strip_height)
    strips = (
        in_working_mode(read_rows(top, min(top + strip_height, height)), levels) for top in tops
    )
    first = next(strips)
    reduced = Image.new(first.mode, (-(-width // factor), -(-height // factor)))
    for top, strip in zip(tops, chain([first], strips), strict=True):
        reduced.paste(strip.reduce(factor), (0, top // factor))
    box = (0, 0, width / factor, height / factor)
    return reduced.resize(target, Image.Resampling.BICUBIC, box=box)


def scaling_bytes(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Return the memory that `scale` takes at its peak (bytes)."""
    factor = _factor(size, target)
    return 4 * size[0] * size[1] // factor**2 + _STRIP_BYTES


def in_working_mode(picture: Image.Image, levels: GreyLevels | None = None) -> Image.Image:
    """Convert to L, RGB, RGBA or CMYK."""
    if picture.mode in _WORKING_MODES and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        # 16 bits a pixel, or light from 0 to 1; Pillow's own conversion clips at 255.
        values = np.asarray(picture)
        return Image.fromarray(levels.to_8_bits(values) if levels else to_8_bits(values, 16))
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
        return converted or picture.getchannel("L")
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _factor(size: tuple[int, int], target: tuple[int, int]) -> int:
    return max(1, int(min(size[0] / target[0], size[1] / target[1]) / _BOX_GAP))
