"""Converts high dynamic range and wide gamut to 8-bit sRGB for ordinary screens.

This is arithmetic on arrays of R'G'B' values, for stills and for frames of films. The decoder
converts between Y'CbCr and R'G'B'.

The operator, in linear light:

1. The transfer function gives light in nits (cd/m²). PQ: SMPTE ST 2084. HLG: ITU-R BT.2100, as on a
   display of 1,000 nits (system gamma 1.2).
2. A matrix goes from the primaries of the file to those of sRGB; what sRGB cannot show is clipped.
3. The brightest thousandth of the picture is its peak. White is the peak, but never below 100 nits
   (so that a night stays dark) nor above 203 (BT.2408's white of a page).
4. Up to 0.6 of white nothing changes. From there to the peak Reinhard's extended curve (Reinhard et
   al., "Photographic tone reproduction for digital images", 2002) rolls off, and the peak becomes
   white. It is applied to the largest of the three channels, and the others keep their ratio to it:
   hue and saturation stay. A picture that is no brighter than white is not changed at all.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Transfer = Literal["sdr", "pq", "hlg", "linear"]
Primaries = Literal["bt709", "bt470m", "bt601-625", "bt601-525", "bt2020", "p3"]

_Floats = NDArray[np.float32]
Codes = NDArray[np.uint8] | NDArray[np.uint16]
"""Shape ``(height, width, 3)``, R'G'B' over the full range of the type: 0 to 255 or 65,535."""

#: By ITU-T H.273, which HEIF, AVIF, PNG (cICP) and films share; any other code is ordinary.
_TRANSFER_CODES: dict[int, Transfer] = {8: "linear", 16: "pq", 18: "hlg"}
_PRIMARIES_CODES: dict[int, Primaries] = {
    4: "bt470m", 5: "bt601-625", 6: "bt601-525", 7: "bt601-525", 9: "bt2020", 11: "p3", 12: "p3",
}  # fmt: skip
#: Chromaticity (x, y) of red, green and blue.
_CHROMATICITIES: dict[Primaries, tuple[tuple[float, float], ...]] = {
    "bt709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "bt470m": ((0.670, 0.330), (0.210, 0.710), (0.140, 0.080)),
    "bt601-625": ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),
    "bt601-525": ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
#: White point for all of them, so that white stays white; also for DCI-P3, whose own is greenish.
_D65 = (0.3127, 0.3290)

#: Display of the HLG system (nits), and its gamma.
_HLG_PEAK, _HLG_GAMMA = 1000.0, 1.2
#: The light that becomes white is between these two values (nits).
_LEAST_WHITE, _PAGE_WHITE = 100.0, 203.0
#: Part of the picture that may be brighter than its peak, e.g. glints.
_GLINTS = 0.001
#: Where the curve begins to roll off (part of white).
_KNEE = 0.6
#: Pixels that are processed at a time: about 20 MiB of intermediate results.
_STRIP_PIXELS = 500_000


@dataclass(frozen=True)
class ColourSpace:
    """What the R'G'B' values of a picture mean."""

    transfer: Transfer = "sdr"
    primaries: Primaries = "bt709"

    @classmethod
    def from_codes(cls, primaries: int, transfer: int) -> "ColourSpace":
        """Make it from the code points of ITU-T H.273; unknown and reserved ones count as sRGB."""
        return cls(_TRANSFER_CODES.get(transfer, "sdr"), _PRIMARIES_CODES.get(primaries, "bt709"))

    @property
    def is_hdr(self) -> bool:
        """Return whether the values can be brighter than white."""
        return self.transfer in {"pq", "hlg"}


SRGB = ColourSpace()


def to_srgb(codes: Codes, space: ColourSpace) -> NDArray[np.uint8]:
    """Convert a picture to 8-bit sRGB.

    Scale the picture to its final size first: a million pixels take about 0.1 s, and 12 bytes of
    memory per pixel.

    Args:
        codes: shape ``(height, width, 3)``.
        space: the meaning of the codes.

    Returns:
        An array of the same shape.
    """
    if space == SRGB:
        return (codes if codes.dtype == np.uint8 else codes >> 8).astype(np.uint8, copy=False)
    light = np.empty(codes.shape, dtype=np.float32)
    for rows in _strips(codes):
        light[rows] = _linear(codes[rows], space)
    white, peak = (1.0, 1.0) if not space.is_hdr else _white_and_peak(light)
    shown = np.empty(codes.shape, dtype=np.uint8)
    for rows in _strips(codes):
        shown[rows] = _encode(_roll_off(light[rows] / white, peak / white))
    return shown


def _strips(codes: Codes) -> list[slice]:
    height, width = codes.shape[:2]
    step = max(1, _STRIP_PIXELS // max(1, width))
    return [slice(top, top + step) for top in range(0, height, step)]


def _linear(codes: Codes, space: ColourSpace) -> _Floats:
    """Return light with the primaries of sRGB: nits for PQ and HLG, else parts of white."""
    light = _light_of_codes(space.transfer, np.iinfo(codes.dtype).max + 1)[codes]
    if space.transfer == "hlg":  # scene light; the display's output depends on its luminance
        luminance = light @ _rgb_to_xyz(space.primaries)[1].astype(np.float32)
        light *= _HLG_PEAK * luminance[..., None] ** np.float32(_HLG_GAMMA - 1)
    if space.primaries != "bt709":
        light = light @ _to_bt709(space.primaries).T
    return np.maximum(light, 0, out=light)


@cache
def _light_of_codes(transfer: Transfer, count: int) -> _Floats:
    signal = np.linspace(0.0, 1.0, count)
    if transfer == "pq":
        root = signal ** (1 / 78.84375)
        light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        return (10_000 * light ** (1 / 0.1593017578125)).astype(np.float32)
    if transfer == "hlg":
        low = signal**2 / 3
        high = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
        return np.where(signal <= 0.5, low, high).astype(np.float32)
    if transfer == "linear":
        return signal.astype(np.float32)
    low, high = signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4
    return np.where(signal <= 0.04045, low, high).astype(np.float32)


def _rgb_to_xyz(primaries: Primaries) -> NDArray[np.float64]:
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in _CHROMATICITIES[primaries]]).T
    x, y = _D65
    return columns * np.linalg.solve(columns, (x / y, 1.0, (1 - x - y) / y))


@cache
def _to_bt709(primaries: Primaries) -> _Floats:
    matrix = np.linalg.solve(_rgb_to_xyz("bt709"), _rgb_to_xyz(primaries))
    return matrix.astype(np.float32)


def _white_and_peak(light: _Floats) -> tuple[float, float]:
    brightest = light.max(axis=-1).ravel()
    rank = min(brightest.size - 1, int(brightest.size * (1 - _GLINTS)))
    peak = float(np.partition(brightest, rank)[rank])
    white = min(max(peak, _LEAST_WHITE), _PAGE_WHITE)
    return white, max(peak, white)


def _roll_off(light: _Floats, peak: float) -> _Floats:
    """Map parts of white, which go up to `peak`, to the range 0 to 1."""
    if peak > 1:
        brightest = np.maximum(light.max(axis=-1, keepdims=True), _KNEE)
        above, span = (brightest - _KNEE) / (1 - _KNEE), (peak - _KNEE) / (1 - _KNEE)
        rolled = _KNEE + (1 - _KNEE) * above * (1 + above / span**2) / (1 + above)
        light = light * (rolled / brightest)
    return np.minimum(light, 1)


def _encode(light: _Floats) -> NDArray[np.uint8]:
    return _srgb_codes()[(light * 65_535 + 0.5).astype(np.uint16)]


@cache
def _srgb_codes() -> NDArray[np.uint8]:
    light = np.linspace(0.0, 1.0, 65_536)
    signal = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (signal * 255 + 0.5).astype(np.uint8)
