"""JPEG 2000: decoded at a half, a quarter, … of its size if that is enough.

A cut file is completed with zeros, which a decoder reads as empty packets. The cut tile then shows
its existing part; later tiles stay black, or grey if pixels share samples.
"""

import struct
from dataclasses import dataclass, replace
from io import BytesIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from batch_pipeline.media.stills.boxes import boxes, end_of_boxes
from batch_pipeline.media.stills.jpeg2000_codestream import START_OF_TILE, Codestream
from batch_pipeline.media.stills.jpeg2000_colours import Jpeg2000Colours
from batch_pipeline.media.stills.scaling import scale, scaling_bytes
from batch_pipeline.media.stills.still import (
    MOST_ZEROS,
    IncompletePictureError,
    PillowStill,
)

_START_OF_DATA, _END_OF_CODESTREAM = b"\xff\x93", b"\xff\xd9"
#: Length of the head of a tile part, with its marker (bytes).
_TILE_HEAD = 12
#: Bytes of an empty tile, one for each packet; few tiles have more packets.
_EMPTY_PACKETS = 1024


class Jpeg2000Still(PillowStill):
    """A JPEG 2000 file or bare codestream, of one to four components."""

    #: UUID of the box in which EXIF and XMP are kept.
    _EXIF = b"JpgTiffExif->JP2"
    _XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
    #: Memory of each sample in Pillow's decoder, at the reduced size (bytes).
    _SAMPLE_BYTES = 8

    def __init__(self, data: bytes) -> None:
        self._codestream = Codestream.of(data)
        self._cut = _cut(data, self._codestream)
        if self._cut:
            self._data = self._cut.completed
            self._codestream = replace(self._codestream, end=len(self._data))
        else:
            self._data = data
        super().__init__()
        self._colours = Jpeg2000Colours.of(
            data,
            tuple(each.depth for each in self._codestream.components),
            are_mixed=self._codestream.has_shared_colours,
        )
        self.icc_profile = self._colours.profile
        self.warnings += self._colours.warnings
        for name, start, end in boxes(data):
            if name == b"uuid" and data[start : start + 16] == self._EXIF:
                self.exif.append(data[start + 16 : end])
            elif name == b"uuid" and data[start : start + 16] == self._XMP:
                self.xmp = data[start + 16 : end]
        end = max(end_of_boxes(data), len(data) + (self._cut.missing_bytes if self._cut else 0))
        self.is_cut = end > len(data)
        self.file_bytes, self.missing_bytes = end, end - len(data)

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the reduced samples, Pillow's picture of them, and packed blocks."""
        width, height = self.size
        reduction = self._reduction(target)
        if self._codestream.has_shared_samples:
            decoded = self._codestream.spread_bytes(reduction)
        else:
            decoded = self._pillow_bytes(reduction)
        reduced = (width >> reduction, height >> reduction)
        return (
            decoded
            + self._codestream.block_bytes
            + 2 * max(self.file_bytes, len(self._data))
            + scaling_bytes(reduced, target)
        )

    def prepare(self, picture: ImageFile, target: tuple[int, int]) -> None:
        """Leave out the resolutions that are not needed."""
        picture.reduce = self._reduction(target)  # type: ignore[method-assign, assignment]

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode the picture, or the existing part of a cut file."""
        shown = self._shrink(self._components(target), target)
        if self._cut and self._cut.missing_tiles:
            missing, tiles = self._cut.missing_tiles, self._cut.tiles
            raise IncompletePictureError(f"{missing} of {tiles} tiles are missing", shown)
        return shown

    def _open(self) -> ImageFile:
        # Pillow gets only the codestream, because it shows some colour spaces, palettes and orders
        # of channels wrongly and refuses others.
        return Jpeg2KImageFile(BytesIO(self._data[self._codestream.start : self._codestream.end]))

    def _components(self, target: tuple[int, int]) -> Image.Image:
        """Decode with Pillow, or with FFmpeg if Pillow cannot."""
        reduction = self._reduction(target)
        if self._codestream.has_shared_samples:
            return self._codestream.spread(self._data, reduction)
        try:
            self.prepare(self._picture, target)
            self._picture.load()
        except MemoryError:
            raise
        except Exception:
            needed = self._codestream.spread_bytes(reduction)
            if self.is_cut or needed > self._pillow_bytes(reduction):
                raise
            return self._codestream.spread(self._data, reduction)
        return self._picture

    def _pillow_bytes(self, reduction: int) -> int:
        width, height = self.size
        samples = len(self._codestream.components)
        return ((width * height) >> (2 * reduction)) * (self._SAMPLE_BYTES * samples + 4)

    def _shrink(self, picture: Image.Image, target: tuple[int, int]) -> Image.Image:
        width, _ = picture.size
        return scale(
            picture.size,
            target,
            lambda top, bottom: self._colours.picture(picture.crop((0, top, width, bottom))),
        )

    def _reduction(self, target: tuple[int, int]) -> int:
        if self._colours.palette:  # a mean of two palette indices means nothing
            return 0
        ratio = min(side // wanted for side, wanted in zip(self.size, target, strict=True))
        return min(self._codestream.levels, max(0, ratio.bit_length() - 1))


@dataclass(frozen=True)
class _Cut:
    """The missing parts of a file that was cut within its tiles."""

    completed: bytes
    """The file, with zeros for the rest of its last tile part."""
    missing_bytes: int
    """Missing bytes of that part, and of the end marker."""
    tiles: int
    missing_tiles: int
    """Number of tiles without even a head."""


def _cut(data: bytes, codestream: Codestream) -> _Cut | None:
    """Find what is missing of the tiles; None: nothing, or the decoder will report the problem."""
    place, seen = codestream.first_tile, set()
    if data[place : place + 2] != START_OF_TILE:
        return None
    while data[place : place + 2] == START_OF_TILE and place + _TILE_HEAD <= len(data):
        length = int.from_bytes(data[place + 6 : place + 10], "big")
        if length < _TILE_HEAD:  # 0: up to the end of the codestream, wherever that is
            return None
        seen.add(int.from_bytes(data[place + 4 : place + 6], "big"))
        place += length
    missing, rest = max(0, place - len(data)), data[place : place + 2]
    if missing > MOST_ZEROS or not START_OF_TILE.startswith(rest):
        return None  # the end of the codestream, or something broken
    absent = set(range(codestream.tiles)) - seen
    empty_tiles = b"".join(map(_empty_tile, absent)) if codestream.has_shared_samples else b""
    completed = data[:place] + bytes(missing) + empty_tiles + _END_OF_CODESTREAM
    missing += len(_END_OF_CODESTREAM)
    return _Cut(completed, missing, codestream.tiles, len(absent))


def _empty_tile(number: int) -> bytes:
    """Return a tile of empty packets; FFmpeg gives nothing of a picture that lacks a tile."""
    packets = bytes(_EMPTY_PACKETS)
    head = struct.pack(">2sHHIBB", START_OF_TILE, 10, number, _TILE_HEAD + 2 + len(packets), 0, 1)
    return head + _START_OF_DATA + packets
