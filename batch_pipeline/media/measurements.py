"""Measures of a picture that do not depend on its subject: colour, light, detail, motion.

The results are numbers and colour names. `model_servers.embedded` makes sentences of them. All
measures use small copies (at most 256 pixels a side) and are deterministic.

Sources:
    - Lightness L* and chroma: CIE 1976 L*a*b* from sRGB (IEC 61966-2-1), white point D65.
    - Colourfulness: Hasler and Süsstrunk, "Measuring colourfulness in natural images", Human
      Vision and Electronic Imaging VIII, 2003.
    - Sharpness: variance of the Laplacian; Pech-Pacheco et al., "Diatom autofocusing in
      brightfield microscopy", ICPR 2000.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONGEST_SIDE = 256

Pixels = NDArray[np.uint8]
"""Shape ``(height, width, 3)``, RGB."""
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ColourShare:
    """A colour and its share of the picture."""

    name: str
    """A basic colour: ``blue``, ``brown``, ``grey``, …"""
    tone: str
    """The tone of most of its pixels: ``light``, ``bright``, ``dark`` or empty."""
    share: float
    """0 to 1."""

    @property
    def phrase(self) -> str:
        """Return the colour in words: ``light blue``."""
        return f"{self.tone} {self.name}".strip()


@dataclass(frozen=True)
class Measurements:
    """Measures of one picture, or of the frames of a video taken together."""

    colours: tuple[ColourShare, ...]
    """Largest first; the shares add up to 1. Never empty."""
    upper: ColourShare
    """Most common colour of the upper third, with its share of that third."""
    lower: ColourShare
    """Most common colour of the lower third, with its share of that third."""
    brightness: float
    """Mean lightness L*, 0 (black) to 100 (white)."""
    contrast: float
    """Standard deviation of L*, 0 to 50."""
    sharpness: float
    """Variance of the Laplacian of L*; under 10 blurred or empty, over 150 full of detail."""
    colourfulness: float
    """Hasler and Süsstrunk's M on 8-bit values: 0 none, 33 moderate, 59 quite, over 82 highly."""
    motion: float
    """Mean share of the pixels that change between one frame and the next, 0 to 1."""
    brightness_change: float
    """Mean L* of the last frame minus that of the first."""


def small_copy(jpeg: bytes) -> Pixels:
    """Decode a frame at the size for measuring.

    Args:
        jpeg: a picture that the media path has encoded, not an upload.

    Returns:
        RGB, at most 256 pixels a side, proportions kept.
    """
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        # With draft, the decoder itself scales down, which is several times faster.
        picture.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
        small = picture.convert("RGB")
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), reducing_gap=2.0)
        return np.asarray(small)


def measure(frames: Sequence[Pixels]) -> Measurements:
    """Measure one picture, or the frames of a video in the order of time.

    Args:
        frames: at least one; where a video changes its size on the way, later frames are fitted
            to the first.

    Raises:
        ValueError: no frames.
    """
    if not frames:
        raise ValueError("no frames to measure")
    stack = np.stack([_fitted(frame, frames[0].shape) for frame in frames])
    lightness, chroma = _lightness_and_chroma(stack)
    names, tones = _name_colours(stack, lightness, chroma)
    third = max(1, stack.shape[1] // 3)
    means = lightness.mean(axis=(1, 2))
    return Measurements(
        colours=_shares(names, tones),
        upper=_shares(names[:, :third], tones[:, :third])[0],
        lower=_shares(names[:, -third:], tones[:, -third:])[0],
        brightness=float(lightness.mean()),
        contrast=float(lightness.std(axis=(1, 2)).mean()),
        sharpness=_sharpness(lightness),
        colourfulness=_colourfulness(stack),
        motion=_motion(lightness),
        brightness_change=float(means[-1] - means[0]),
    )


def _fitted(frame: Pixels, shape: tuple[int, ...]) -> Pixels:
    if frame.shape == shape:
        return frame
    return np.asarray(Image.fromarray(frame).resize((shape[1], shape[0])))


# Light ----------------------------------------------------------------------------------------

_SRGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
_WHITE = _SRGB_TO_XYZ.sum(axis=1)
#: sRGB's transfer curve as a table: there are only 256 values.
_LINEAR = np.array(
    [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.arange(256) / 255]
)


def _lightness_and_chroma(stack: Pixels) -> tuple[_Floats, _Floats]:
    """Return L* (0 to 100) and chroma (0 grey, up to about 130) of every pixel."""
    xyz = _LINEAR[stack] @ (_SRGB_TO_XYZ / _WHITE[:, None]).T
    curved = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(curved, -1, 0)
    return 116 * y - 16, np.hypot(500 * (x - y), 200 * (y - z))


def _sharpness(lightness: _Floats) -> float:
    if min(lightness.shape[1:]) < 3:
        return 0.0
    laplacian = (
        lightness[:, :-2, 1:-1]
        + lightness[:, 2:, 1:-1]
        + lightness[:, 1:-1, :-2]
        + lightness[:, 1:-1, 2:]
        - 4 * lightness[:, 1:-1, 1:-1]
    )
    return float(laplacian.var(axis=(1, 2)).mean())


def _colourfulness(stack: Pixels) -> float:
    red, green, blue = np.moveaxis(stack.astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def _motion(lightness: _Floats) -> float:
    """Return the share of pixels that change by more than 6 of L*; noise does less."""
    if len(lightness) < 2:
        return 0.0
    return float((np.abs(np.diff(lightness, axis=0)) > 6).mean())


# Colour names -----------------------------------------------------------------------------------

#: Greys in order of lightness: upper bound of L*, then the name.
_GREYS = ((18, "black"), (85, "grey"), (101, "white"))
#: Hues of HSV in degrees: upper bound, then the name; red again past the last.
_HUES = (
    (14, "red"),
    (40, "orange"),
    (68, "yellow"),
    (165, "green"),
    (190, "turquoise"),
    (255, "blue"),
    (290, "purple"),
    (342, "pink"),
    (361, "red"),
)
_NAMES = (
    *("black", "grey", "white", "red", "orange", "yellow"),
    *("green", "turquoise", "blue", "purple", "pink", "brown", "beige"),
)
_TONES = ("", "dark", "light", "bright")
_NAME_INDEX = {name: index for index, name in enumerate(_NAMES)}


def _name_colours(
    stack: Pixels, lightness: _Floats, chroma: _Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return an index into `_NAMES` and one into `_TONES` for every pixel."""
    hue = _hue(stack)
    coloured = np.array([_NAME_INDEX[name] for _, name in _HUES])[
        np.searchsorted([bound for bound, _ in _HUES], hue, side="right")
    ]
    # What people call brown is dark or dull orange, beige is pale orange, pink is light red.
    warm = (hue < 45) | (hue >= 342)
    brown = (coloured == _NAME_INDEX["orange"]) & (lightness < 58) & (chroma < 62)
    brown |= (coloured == _NAME_INDEX["yellow"]) & (hue < 52) & (lightness < 45)
    brown |= (coloured == _NAME_INDEX["red"]) & warm & (lightness < 40) & (chroma < 30)
    coloured[brown] = _NAME_INDEX["brown"]
    beige = np.isin(coloured, (_NAME_INDEX["orange"], _NAME_INDEX["yellow"]))
    coloured[beige & (hue < 56) & (lightness > 62) & (chroma < 45)] = _NAME_INDEX["beige"]
    pink = (coloured == _NAME_INDEX["red"]) & (lightness > 62)
    coloured[pink] = _NAME_INDEX["pink"]

    # The eye sees less colour in what is very dark or very light.
    least_chroma = np.where((lightness < 20) | (lightness > 88), 9.0, 11.0)
    grey = (chroma < least_chroma) | (lightness < 5)
    greys = np.array([_NAME_INDEX[name] for _, name in _GREYS])[
        np.searchsorted([bound for bound, _ in _GREYS], lightness, side="right")
    ]
    names = np.where(grey, greys, coloured)

    # Full blue and purple are darker by nature than any other full colour (L* 32 against 53 to 97).
    deep = np.isin(names, (_NAME_INDEX["blue"], _NAME_INDEX["purple"]))
    tones = np.zeros(names.shape, dtype=np.intp)
    tones[(lightness >= np.where(deep, 36, 46)) & (chroma >= 45)] = _TONES.index("bright")
    tones[(lightness >= 70) & (chroma < 45)] = _TONES.index("light")
    tones[lightness < np.where(deep, 30, 35)] = _TONES.index("dark")
    tones[np.isin(names, [_NAME_INDEX[name] for name in ("black", "white", "beige")])] = 0
    return names, tones


def _hue(stack: Pixels) -> _Floats:
    """Return the hue of HSV in degrees, 0 for grey."""
    rgb = stack.astype(np.float64)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    highest = rgb.max(axis=-1)
    spread = highest - rgb.min(axis=-1)
    safe = np.where(spread == 0, 1.0, spread)
    hue = np.select(
        [highest == red, highest == green],
        [((green - blue) / safe) % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    return np.where(spread == 0, 0.0, hue * 60)


def _shares(names: NDArray[np.intp], tones: NDArray[np.intp]) -> tuple[ColourShare, ...]:
    table = np.zeros((len(_NAMES), len(_TONES)), dtype=np.int64)
    np.add.at(table, (names.ravel(), tones.ravel()), 1)
    totals = table.sum(axis=1)
    order = np.argsort(-totals, kind="stable")
    return tuple(
        ColourShare(
            name=_NAMES[index],
            tone=_TONES[int(table[index].argmax())],
            share=float(totals[index] / names.size),
        )
        for index in order
        if totals[index]
    )
