"""What the components of a JPEG 2000 mean: palette, order of channels, colour space, transparency.

The boxes of the JP2 header say it (ISO/IEC 15444-1, annex I, and 15444-2, annex M). A bare
codestream has none: then it is grey or RGB, and any further component is the transparency.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from batch_pipeline.media.stills.boxes import boxes
from batch_pipeline.media.stills.scaling import in_working_mode
from batch_pipeline.media.stills.transparency import with_alpha

_Array = NDArray[np.uint8]

#: Methods of a `colr` box: a number of a colour space, or an ICC profile.
_BY_NUMBER, _BY_PROFILE = 1, {2, 3}
#: Numbers of colour spaces.
_WHITE_IS_ZERO, _YCC, _CMY, _CMYK, _YCCK, _LAB, _BLACK_IS_ZERO = 0, {3, 18, 24}, 11, 12, 13, 14, 15
_SRGB, _GREY, _ESRGB = 16, 17, 20
_KNOWN = {_WHITE_IS_ZERO, *_YCC, _CMY, _CMYK, _YCCK, _LAB, _BLACK_IS_ZERO, _SRGB, _GREY, _ESRGB}
#: Numbers for the colours of ICC profiles.
_OF_PROFILES = {b"GRAY": _GREY, b"RGB ": _SRGB, b"CMYK": _CMYK}
#: Number of colours, if it is not three.
_COUNTS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _GREY: 1, _CMYK: 4, _YCCK: 4}
#: Kinds of channels in a `cdef` box.
_COLOUR, _ALPHA, _ASSOCIATED_ALPHA = 0, 1, 2
#: Range and offset of L*, a* and b* if the file has none; offsets are parts of all levels.
_LAB_RANGES, _LAB_OFFSETS = (100, 170, 200), (0, 1 / 2, 3 / 8)
#: Black of e-sRGB, and its levels up to white (of 256).
_ESRGB_BLACK, _ESRGB_WHITE = 96, 127.5


@dataclass(frozen=True)
class Palette:
    """Colours of a picture whose component has their numbers."""

    colours: _Array
    """Shape ``(colours, columns)``."""
    channels: tuple[tuple[int, int | None], ...]
    """Of each channel: its component, and the column of the palette if it goes through one."""


@dataclass(frozen=True)
class Jpeg2000Colours:
    """What the components mean."""

    depths: tuple[int, ...]
    """Bits of each component."""
    space: int | None = None
    parameters: bytes = b""
    """Of the colour space."""
    profile: bytes | None = None
    palette: Palette | None = None
    definitions: tuple[tuple[int, int, int], ...] = ()
    """Channel, kind of channel, and the colour that it is or belongs to, from 1."""

    @classmethod
    def of(cls, data: bytes, depths: tuple[int, ...], *, are_mixed: bool) -> "Jpeg2000Colours":
        """Read the boxes of a file.

        Args:
            data: the file.
            depths: bits of each component.
            are_mixed: whether several pixels share their second and third component.
        """
        found: dict[bytes, bytes] = {}
        space, unknown, parameters, profile = None, None, b"", None
        for name, start, end in _header_boxes(data):
            content = data[start:end]
            if name != b"colr":
                found.setdefault(name, content)
            elif space is not None or len(content) < 3:  # the first that is known counts
                continue
            elif content[0] in _BY_PROFILE:
                profile = content[3:]
                space = _OF_PROFILES.get(profile[16:20])
            elif content[0] == _BY_NUMBER:
                number = int.from_bytes(content[3:7], "big")
                if number in _KNOWN:
                    space, parameters = number, content[7:]
                else:
                    unknown = number
        space = unknown if space is None else space
        if are_mixed:
            space = min(_YCC)
        return cls(
            depths,
            space,
            parameters,
            profile,
            _palette(found.get(b"pclr", b""), found.get(b"cmap", b"")),
            _definitions(found.get(b"cdef", b"")),
        )

    @property
    def warnings(self) -> list[str]:
        """Return what is not shown as the file says."""
        if self.space is None or self.space in _KNOWN:
            return []
        return [f"the colours are not true: colour space {self.space} is shown as grey or sRGB"]

    def picture(self, components: Image.Image) -> Image.Image:
        """Make a picture of mode L, RGB, RGBA or CMYK.

        Args:
            components: in its bands, shifted to 8 bits (16 bits of a single one).
        """
        channels = self._channels(_bands(components))
        count = _COUNTS.get(self.space or _SRGB, 3)
        if len(channels) < count:
            count = 3 if len(channels) >= 3 else 1
        places, alpha, kind = list(range(count)), count, _ALPHA
        if self.definitions:
            alpha = len(channels)
        for channel, meaning, colour in self.definitions:
            if meaning == _COLOUR and 1 <= colour <= count and channel < len(channels):
                places[colour - 1] = channel
            elif meaning in {_ALPHA, _ASSOCIATED_ALPHA}:
                alpha, kind = channel, meaning
        picture = self._colours([channels[place] for place in places])
        if alpha >= len(channels) or picture.mode == "CMYK":
            return picture
        mask = Image.fromarray(channels[alpha])
        return with_alpha(picture, mask, is_associated=kind == _ASSOCIATED_ALPHA)

    def _channels(self, components: list[NDArray[np.uint16]]) -> list[_Array]:
        if self.palette is None:
            return [
                _all_levels(each, depth)
                for each, depth in zip(components, self.depths, strict=False)
            ]
        channels = []
        for component, column in self.palette.channels:
            if component >= len(components):
                continue
            depth = self.depths[component]
            if column is None or column >= self.palette.colours.shape[1]:
                channels.append(_all_levels(components[component], depth))
                continue
            numbers = components[component] >> (16 - min(16, depth))
            colours = self.palette.colours[:, column]
            channels.append(colours[np.minimum(numbers, len(colours) - 1)])
        return channels

    def _colours(self, colours: list[_Array]) -> Image.Image:
        if len(colours) == 1:
            grey = colours[0]
            return Image.fromarray(255 - grey if self.space == _WHITE_IS_ZERO else grey)
        convert = _CONVERSIONS.get(self.space or _SRGB)
        if self.space == _LAB:
            return self._lab(colours)
        merged = np.dstack(colours)
        return convert(merged) if convert else Image.fromarray(merged)

    def _lab(self, colours: list[_Array]) -> Image.Image:
        """Convert L*, a* and b*; the illuminant is assumed to be D50."""
        fields = [
            int.from_bytes(self.parameters[place : place + 4], "big") for place in range(0, 24, 4)
        ]
        has_own = len(self.parameters) >= 24
        lab = []
        for index, levels in enumerate(colours):
            reach, offset = float(_LAB_RANGES[index]), _LAB_OFFSETS[index]
            if has_own:
                reach, offset = fields[2 * index], fields[2 * index + 1] / 2 ** self.depths[index]
            value = (levels.astype(np.float32) / 255 - offset * 256 / 255) * reach
            value = value * 2.55 if index == 0 else value
            low, high = (0, 255) if index == 0 else (-128, 127)
            lab.append(np.rint(value).clip(low, high).astype(np.int16).astype(np.uint8))
        height, width = lab[0].shape
        return in_working_mode(Image.frombytes("LAB", (width, height), np.dstack(lab).tobytes()))


def _from_ycc(colours: _Array) -> Image.Image:
    return Image.fromarray(colours, "YCbCr").convert("RGB")


def _from_ycck(colours: _Array) -> Image.Image:
    inks = 255 - np.asarray(_from_ycc(np.ascontiguousarray(colours[..., :3])))
    return Image.fromarray(np.dstack([inks, colours[..., 3]]), "CMYK")


def _from_esrgb(colours: _Array) -> Image.Image:
    light = (colours.astype(np.float32) - _ESRGB_BLACK) * (255 / _ESRGB_WHITE)
    return Image.fromarray(np.rint(light).clip(0, 255).astype(np.uint8))


_CONVERSIONS: dict[int, Callable[[_Array], Image.Image]] = {
    **dict.fromkeys(_YCC, _from_ycc),
    _CMY: lambda colours: Image.fromarray(255 - colours),
    _CMYK: lambda colours: Image.fromarray(colours, "CMYK"),
    _YCCK: _from_ycck,
    _ESRGB: _from_esrgb,
}


def _header_boxes(data: bytes) -> list[tuple[bytes, int, int]]:
    header = next(((start, end) for name, start, end in boxes(data) if name == b"jp2h"), None)
    return list(boxes(data, *header)) if header else []


def _bands(picture: Image.Image) -> list[NDArray[np.uint16]]:
    """Return the components, shifted to 16 bits."""
    if picture.mode.startswith("I"):
        return [np.asarray(picture).astype(np.uint16)]
    return [np.asarray(band).astype(np.uint16) * np.uint16(256) for band in picture.split()]


def _all_levels(values: NDArray[np.uint16], depth: int) -> _Array:
    """Spread fewer than 256 levels, so that the last of them is 255."""
    if depth >= 8:
        return (values >> 8).astype(np.uint8)
    return ((values >> (16 - depth)) * 255 // ((1 << depth) - 1)).astype(np.uint8)


def _palette(pclr: bytes, cmap: bytes) -> Palette | None:
    count, columns = int.from_bytes(pclr[:2], "big"), sum(pclr[2:3])
    depths = [(bits & 0x7F) + 1 for bits in pclr[3 : 3 + columns]]
    sizes = [-(-bits // 8) for bits in depths]
    rows = np.frombuffer(pclr, np.uint8, offset=min(len(pclr), 3 + columns))
    if not count or not columns or len(rows) < count * sum(sizes):
        return None
    rows = rows[: count * sum(sizes)].reshape(count, -1)
    colours, place = [], 0
    for said, size in zip(depths, sizes, strict=True):
        bits = said
        value = np.zeros(count, np.uint64)
        for byte in range(size):
            value = (value << np.uint64(8)) | rows[:, place + byte]
        if value.max() >> np.uint64(bits):  # some files claim too few bits
            bits = 8 * size
        top = value << np.uint64(16 - bits) if bits <= 16 else value >> np.uint64(bits - 16)
        colours.append(_all_levels(top.astype(np.uint16), bits))
        place += size
    channels = tuple(
        (int.from_bytes(cmap[at : at + 2], "big"), cmap[at + 3] if cmap[at + 2] else None)
        for at in range(0, len(cmap) - 3, 4)
    )
    return Palette(np.stack(colours, axis=1), channels or tuple((0, at) for at in range(columns)))


def _definitions(cdef: bytes) -> tuple[tuple[int, int, int], ...]:
    numbers = [int.from_bytes(cdef[at : at + 2], "big") for at in range(2, len(cdef) - 1, 2)]
    triples = [tuple(numbers[at : at + 3]) for at in range(0, len(numbers) - 2, 3)]
    return tuple((channel, kind, colour) for channel, kind, colour in triples)
