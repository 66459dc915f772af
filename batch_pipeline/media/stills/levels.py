"""Makes 8 bits of deeper grey, so that a picture that uses few of its levels is visible.

Microscopes, X-ray and depth cameras store 10 to 14 bits in 16, and maps store metres. Shown over
the range of their type, such pictures are black, or white if they are floats above 1. The usual
conversion also finds the levels of a picture; if they are few, a second conversion uses them.
"""

from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]

#: A picture uses few levels if its largest is at most this part of the range of its type.
_FEW_LEVELS = 1 / 8
#: Floats may be this much below 0 or above 1, as after sharpening.
_OVERSHOOT = 0.05
#: Part of the pixels that may be far brighter or darker, as broken points of a sensor are.
_OUTLIERS = 1e-5
#: Part of the pixels that may be darker than black, and as many brighter than white.
_CLIPPED = 0.001
#: How many pixels, evenly spread, are examined.
_MOST_SAMPLES = 1_000_000
#: Values of whole numbers with a sign and of floats for "nothing was measured here"; floats also
#: have larger ones.
_NO_DATA, _LARGEST_FLOAT = (-9999, -99999, -32767, -32768), 1e30
#: Pixels that are converted at a time.
_BLOCK_PIXELS = 250_000


def to_8_bits(values: _Array, bits: int) -> _Array:
    """Convert samples by the range of their type; values below zero become black.

    Args:
        values: whole numbers of 0 to 2**bits - 1, or floats of 0 to 1.
        bits: at least 8; not used for floats.
    """
    if values.dtype.kind == "f":
        with np.errstate(all="ignore"):  # broken files have any numbers
            values = values.astype(np.float32)
        light = np.nan_to_num(values, posinf=1.0, neginf=0.0).clip(0, 1)
        shown: _Array = np.rint(light * 255)
        return shown.astype(np.uint8)
    return (values.clip(0) >> (bits - 8)).clip(0, 255).astype(np.uint8)


class GreyLevels:
    """Which levels of a picture are shown from black to white: one decision for all its parts."""

    def __init__(
        self,
        size: tuple[int, int],
        bits: int = 16,
        *,
        said: tuple[float | None, float | None] = (None, None),
        no_data: float | None = None,
    ) -> None:
        """Begin with the whole range of the type.

        Args:
            size: of the picture (pixels).
            bits: of a whole number, without its sign.
            said: the least and the largest level by the entries of the file.
            no_data: the value that means "nothing was measured here".
        """
        self._bits, self._said, self._no_data = bits, said, no_data
        self._step = max(1, ceil(sqrt(size[0] * size[1] / _MOST_SAMPLES)))
        self._rows = 0
        self._samples: list[_Array] = []
        self._shown: tuple[float, float] | None = None

    def to_8_bits(self, values: _Array) -> NDArray[np.uint8]:
        """Convert the next rows of the picture; shape (rows, width) or (rows, width, 1)."""
        if self._shown is None:
            rows = values[-self._rows % self._step :: self._step, :: self._step]
            self._samples.append(rows.ravel())
            self._rows += len(values)
        converted = np.empty(values.shape, np.uint8)
        height = max(1, _BLOCK_PIXELS // values.shape[1])
        for top in range(0, len(values), height):
            block = values[top : top + height]
            converted[top : top + height] = (
                to_8_bits(block, self._bits)
                if self._shown is None
                else self._stretched(block, *self._shown)
            )
        return converted

    def adjust(self) -> str | None:
        """Choose the levels after all rows were converted once.

        Returns:
            A warning if the rows have to be converted again; None if the picture is right.
        """
        if self._shown is not None or not self._samples:
            return None
        samples = np.concatenate(self._samples)
        self._samples = []
        is_float = samples.dtype.kind == "f"
        self._shown = self._choice(samples[self._is_measured(samples)])
        if self._shown is None:
            return None
        black, white = map(_in_words, self._shown)
        of = "" if is_float else f" of {2**self._bits - 1:,}"
        return f"the levels {black} to {white}{of} are shown from black to white"

    def _choice(self, samples: _Array) -> tuple[float, float] | None:
        """Return what black and white should be; None: as the type says."""
        if not samples.size:
            return None
        ranks = (0, _OUTLIERS, _CLIPPED, 1 - _CLIPPED, 1 - _OUTLIERS, 1)
        found = np.quantile(samples, ranks, method="nearest")
        least, darkest, black, white, brightest, most = map(float, found)
        top = 1.0 if samples.dtype.kind == "f" else 2.0**self._bits - 1
        is_unusual = brightest <= top * _FEW_LEVELS
        if samples.dtype.kind == "f":
            is_unusual |= brightest > top + _OVERSHOOT or darkest < -_OVERSHOOT
        said = self._said_levels(black, white, top)
        if said and (is_unusual or _is_a_depth(said[1])):
            return said
        if not is_unusual or least == most:
            return None
        return (black, white) if black < white else (least, most)

    def _said_levels(self, black: float, white: float, top: float) -> tuple[float, float] | None:
        """Return the levels that the file says, if its pixels are among them."""
        least, most = self._said
        if most is None or most == top:
            return None
        if least is None:
            least = min(0.0, black)
        return (least, most) if least <= black and white <= most and least < most else None

    def _stretched(self, values: _Array, black: float, white: float) -> _Array:
        with np.errstate(all="ignore"):
            light = (values.astype(np.float64) - black) * (255 / (white - black))
        light[~self._is_measured(values)] = 0
        stretched: _Array = np.rint(light.clip(0, 255)).astype(np.uint8)
        return stretched

    def _is_measured(self, values: _Array) -> NDArray[np.bool_]:
        measured = np.ones(values.shape, np.bool_)
        if values.dtype.kind == "f":
            measured = np.abs(values) < _LARGEST_FLOAT  # false for what is no number
        if values.dtype.kind in "if":
            measured &= ~np.isin(values, _NO_DATA)
        if self._no_data is not None:
            measured &= values != self._no_data
        return measured


def _is_a_depth(most: float) -> bool:
    """Return whether a largest level says how many bits are used, as 4,095 and 16,383 do.

    By the standard of TIFF, other levels are statistics, which do not affect how a picture looks.
    """
    return most > 255 and most.is_integer() and (int(most) & (int(most) + 1)) == 0


def _in_words(level: float) -> str:
    return f"{level:,.0f}" if abs(level) >= 1000 or level.is_integer() else f"{level:.3g}"
