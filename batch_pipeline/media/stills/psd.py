"""Photoshop documents, PSD and PSB.

The decoder gets a document that this module makes: 8 bits, only the colour channels, no layers.
Other channels are masks, special inks, or the transparency of a picture that Photoshop has already
put on white.
"""

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops
from PIL.ImageFile import ImageFile
from PIL.PsdImagePlugin import PsdImageFile

from batch_pipeline.media.stills.jpeg import JpegStill
from batch_pipeline.media.stills.pieces import Piece, joined
from batch_pipeline.media.stills.scaling import scale, scaling_bytes
from batch_pipeline.media.stills.still import PillowStill, oversized_metadata

#: Numbers of image resources.
_IPTC, _PROFILE, _EXIF, _XMP = 1028, 1039, 1058, 1060
_VERSION_INFO, _PREVIEW, _OLD_PREVIEW = 1057, 1036, 1033
_USED = {_IPTC, _PROFILE, _EXIF, _XMP, _VERSION_INFO, _PREVIEW, _OLD_PREVIEW}
#: Where the resource about the version says whether there is a composite.
_HAS_COMPOSITE = slice(4, 5)
#: Bytes before the JPEG of a preview.
_PREVIEW_HEAD = 28
_NO_COMPOSITE = (
    "the file was saved without a composite picture (in Photoshop, save it again with Maximize "
    "Compatibility)"
)
#: Maximum number of image resources: 100 MB of empty ones would take a minute and gigabytes.
_MAX_RESOURCES = 10_000
#: Bytes of a sample of 32 bits.
_FLOAT_BYTES = 4
_LARGE = 2
"""Version of a PSB, which has longer numbers for layers and rows."""
_HEADER_BYTES = 26
_BITMAP, _GREY, _INDEXED, _RGB, _CMYK, _INKS, _DUOTONE, _LAB = 0, 1, 2, 3, 4, 7, 8, 9
_CHANNELS = {_BITMAP: 1, _GREY: 1, _INDEXED: 1, _RGB: 3, _CMYK: 4, _DUOTONE: 1, _LAB: 3}
#: Modes in which pictures of single inks are shown, by the number of inks.
_SHOWN_INKS = {1: _GREY, 2: _GREY, 3: _RGB}
_RAW, _RUN_LENGTHS = 0, 1
_COUNT_LIMIT = 0xFFFF


class PsdStill(PillowStill):
    """The composite picture of a Photoshop document, else its preview; its layers are not read."""

    def __init__(self, data: bytes) -> None:
        self._document = document = _Document.of(data)
        super().__init__()
        self.size = document.size
        found = _resources(document.resources)
        self.icc_profile, self.xmp, self.iptc = map(found.get, (_PROFILE, _XMP, _IPTC))
        self.exif = [found[_EXIF]] if _EXIF in found else []
        if self._document.sample_bytes == _FLOAT_BYTES:
            # The profile is for linear light, which is converted here. The colours are sRGB's.
            self.icc_profile = None
        self._preview = None
        if found.get(_VERSION_INFO, b"")[_HAS_COMPOSITE] == b"\0":
            self._preview = _preview(found)
            self.icc_profile = self._preview.icc_profile
            self.warnings.append(f"only its small preview is shown: {_NO_COMPOSITE}")
        elif document.said_mode == _INKS:
            self.warnings.append("colours are not true: the document is of single inks")

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of Pillow's picture, with deep samples as several bytes, and a strip."""
        if self._preview is not None:
            return self._preview.memory(target)
        width, height = self.size
        pixel_bytes = 4 * self._document.sample_bytes
        return width * height * pixel_bytes + 2 * scaling_bytes(self.size, target)

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode the composite or, if the file has none, the preview."""
        if self._preview is not None:
            return self._preview.scaled(target)
        return super().scaled(target)

    def _open(self) -> ImageFile:
        return _PsdPlugin(self._document.for_decoder())

    def _shrink(self, picture: Image.Image, target: tuple[int, int]) -> Image.Image:
        def read_rows(top: int, bottom: int) -> Image.Image:
            rows = picture.crop((0, top, picture.width, bottom))
            if picture.mode == "1":  # a set bit is black
                return ImageChops.invert(rows.convert("L"))
            return rows if self._document.sample_bytes == 1 else self._shallow(rows)

        return scale(self.size, target, read_rows)

    def _shallow(self, rows: Image.Image) -> Image.Image:
        """Return samples of 8 bits; Pillow has read each deeper sample as several."""
        values = np.asarray(rows)
        values = values.reshape(rows.height, -1, self._document.sample_bytes, len(rows.getbands()))
        if self._document.sample_bytes == _FLOAT_BYTES:  # linear light from 0 to 1
            packed = np.ascontiguousarray(np.moveaxis(values, 2, 3))
            light = np.nan_to_num(packed.view(">f4")[..., 0].astype(np.float32)).clip(0, 1)
            levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
            shallow = np.rint(levels * 255).astype(np.uint8)
        else:
            shallow = np.ascontiguousarray(values[:, :, 0])
        if rows.mode == "L":
            return Image.fromarray(shallow[..., 0])
        return Image.frombytes(rows.mode, (shallow.shape[1], rows.height), shallow.tobytes())


@dataclass(frozen=True)
class _Document:
    """The parts of a document."""

    size: tuple[int, int]
    bits: int
    said_mode: int
    said_channels: int
    count_bytes: int
    """Bytes of a row's length in the table before the rows."""
    palette: memoryview
    """With its length."""
    resources: memoryview
    pixels: memoryview
    """The data after the number of the compression."""
    compression: int

    @classmethod
    def of(cls, data: bytes) -> "_Document":
        """Read the parts.

        Raises:
            ValueError: they are not those of a document, or are of a kind that is not supported.
        """
        if len(data) < _HEADER_BYTES:
            raise ValueError("image file is truncated in its header")
        version, channels, height, width, bits, mode = struct.unpack_from(">H6xHIIHH", data, 4)
        is_large = version == _LARGE
        view = memoryview(data)
        places = [_HEADER_BYTES]  # of palette, resources, layers, and of what follows
        for length_bytes in (4, 4, 8 if is_large else 4):
            length = int.from_bytes(view[places[-1] : places[-1] + length_bytes], "big")
            places.append(places[-1] + length_bytes + length)
        place = places[-1]
        compression = int.from_bytes(view[place : place + 2], "big")
        if place + 2 > len(data):
            raise ValueError("image file is truncated before its pixels")
        if compression not in {_RAW, _RUN_LENGTHS}:
            raise ValueError(
                f"a PSD whose composite has compression {compression} is not supported"
            )
        is_known = mode in {*_CHANNELS, _INKS} and bits in ({1} if mode == _BITMAP else {8, 16, 32})
        if not is_known or channels < _CHANNELS.get(mode, 1):
            raise ValueError(
                f"a PSD of mode {mode} with {channels} channels of {bits} bits is not supported"
            )
        return cls(
            (width, height),
            bits,
            mode,
            channels,
            4 if is_large else 2,
            view[places[0] : places[1]],
            view[places[1] + 4 : places[2]],
            view[place + 2 :],
            compression,
        )

    @property
    def sample_bytes(self) -> int:
        """Return the bytes of a sample; 1 also for a bitmap, whose samples are bits."""
        return max(1, self.bits // 8)

    @property
    def mode(self) -> int:
        """Return the mode in which the picture is shown."""
        if self.said_mode == _INKS:
            return _SHOWN_INKS.get(self.said_channels, _CMYK)
        return self.said_mode

    def for_decoder(self) -> BinaryIO:
        """Return a PSD of 8 bits; deeper samples become more columns."""
        width, height = self.size
        channels = _CHANNELS.get(self.mode, 1)
        header = struct.pack(
            ">4sH6xHIIHH",
            b"8BPS",
            1,
            channels,
            height,
            width * self.sample_bytes,
            min(self.bits, 8),
            self.mode,
        )
        pixels: list[Piece] = [self.pixels]
        if self.compression == _RUN_LENGTHS:
            table_bytes = self.said_channels * height * self.count_bytes
            pixels = [self._table(channels), self.pixels[table_bytes:]]
        # Without resources and layers.
        behind_palette = bytes(8) + struct.pack(">H", self.compression)
        return joined([header, self.palette, behind_palette, *pixels])

    def _table(self, channels: int) -> bytes:
        """Return the lengths of the decoded rows in the form of a PSD."""
        height = self.size[1]
        stored = self.pixels[: channels * height * self.count_bytes]
        counts = np.frombuffer(
            stored[: len(stored) // self.count_bytes * self.count_bytes], f">u{self.count_bytes}"
        )
        counts = counts.astype(np.int64)
        if (counts > _COUNT_LIMIT).any():
            # The decoder adds the lengths up to find a channel, so each may be their mean.
            means = []
            for channel in range(channels):
                total = int(counts[channel * height : (channel + 1) * height].sum())
                most = np.full(height, total // height)
                most[: total % height] += 1
                means.append(most)
            counts = np.concatenate(means)
            if counts.max() > _COUNT_LIMIT:
                raise ValueError(
                    "a PSB with packed rows of more than 65,535 bytes is not supported"
                )
        return counts.astype(">u2").tobytes()


def _resources(block: memoryview) -> dict[int, bytes]:
    """Return the image resources that are used, by their number.

    Raises:
        PermanentError: ``oversized_metadata``.
    """
    found: dict[int, bytes] = {}
    place = 0
    for _ in range(_MAX_RESOURCES):
        if place + 12 > len(block):
            return found
        number = int.from_bytes(block[place + 4 : place + 6], "big")
        name_bytes = 1 + block[place + 6]
        start = place + 6 + name_bytes + name_bytes % 2 + 4
        size = int.from_bytes(block[start - 4 : start], "big")
        if number in _USED:
            found.setdefault(number, bytes(block[start : start + size]))
        place = start + size + size % 2
    raise oversized_metadata(f"the PSD has more than {_MAX_RESOURCES} image resources")


def _preview(found: dict[int, bytes]) -> JpegStill:
    """Return the preview among the image resources.

    Raises:
        ValueError: there is none that can be decoded.
    """
    for number, kind in ((_PREVIEW, JpegStill), (_OLD_PREVIEW, _BlueFirst)):
        with suppress(SyntaxError, ValueError, OSError):  # the next one may be whole
            return kind(found.get(number, b"")[_PREVIEW_HEAD:])
    raise ValueError(f"there is no picture and no preview: {_NO_COMPOSITE}")


class _BlueFirst(JpegStill):
    """The preview of Photoshop 4 and older: blue, green, red."""

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode, and put red first."""
        return Image.merge("RGB", super().scaled(target).convert("RGB").split()[::-1])


class _PsdPlugin(PsdImageFile):
    """Does not read the layers just to count them."""

    n_frames = 1
    is_animated = False
