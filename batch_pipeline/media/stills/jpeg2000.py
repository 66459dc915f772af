"""JPEG 2000: decoded at a half, a quarter, … of its size if that is enough.

A cut file is completed with zeros, which a decoder reads as empty packets. The cut tile then shows
its existing part; later tiles stay black.
"""

from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from batch_pipeline.media.stills.boxes import boxes, end_of_boxes
from batch_pipeline.media.stills.scaling import scaling_bytes
from batch_pipeline.media.stills.still import (
    MOST_ZEROS,
    IncompletePictureError,
    PillowStill,
)

_START_OF_CODESTREAM, _SIZE, _START_OF_TILE = b"\xff\x4f", b"\xff\x51", b"\xff\x90"
_END_OF_CODESTREAM = b"\xff\xd9"
#: Length of the head of a tile part, with its marker (bytes).
_TILE_HEAD = 12


class Jpeg2000Still(PillowStill):
    """A JPEG 2000 file or bare codestream."""

    #: UUID of the box in which EXIF and XMP are kept.
    _EXIF = b"JpgTiffExif->JP2"
    _XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
    _CODING_STYLE = b"\xff\x52\x00"
    #: Memory of each sample in the decoder, at the reduced size (bytes).
    _SAMPLE_BYTES = 8

    def __init__(self, data: bytes) -> None:
        self._cut = _cut(data)
        self._data = self._cut.completed if self._cut else data
        super().__init__()
        style = data.find(self._CODING_STYLE)
        self._levels = data[style + 9] if 0 <= style < len(data) - 9 else 0
        for name, start, end in boxes(data):
            if name == b"uuid" and data[start : start + 16] == self._EXIF:
                self.exif.append(data[start + 16 : end])
            elif name == b"uuid" and data[start : start + 16] == self._XMP:
                self.xmp = data[start + 16 : end]
            elif name == b"jp2h":
                self.icc_profile = _profile_in_header(data, start, end)
        end = max(end_of_boxes(data), len(data) + (self._cut.missing_bytes if self._cut else 0))
        self.is_cut = end > len(data)
        self.file_bytes, self.missing_bytes = end, end - len(data)

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the reduced samples, Pillow's picture of them, and packed blocks."""
        width, height = self.size
        pixels = (width * height) >> (2 * self._reduction(target))
        samples = len(self._picture.getbands())
        reduced = (width >> self._reduction(target), height >> self._reduction(target))
        return (
            pixels * (self._SAMPLE_BYTES * samples + 4)
            + 2 * self.file_bytes
            + scaling_bytes(reduced, target)
        )

    def prepare(self, picture: ImageFile, target: tuple[int, int]) -> None:
        """Leave out the resolutions that are not needed."""
        picture.reduce = self._reduction(target)  # type: ignore[method-assign, assignment]

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode the picture, or the existing part of a cut file."""
        shown = super().scaled(target)
        if self._cut and self._cut.missing_tiles:
            missing, tiles = self._cut.missing_tiles, self._cut.tiles
            raise IncompletePictureError(f"{missing} of {tiles} tiles are missing", shown)
        return shown

    def _open(self) -> ImageFile:
        return Jpeg2KImageFile(BytesIO(self._data))

    def _salvage(self, error: Exception, target: tuple[int, int]) -> ImageFile | None:
        return None  # the decoder gives all or nothing

    def _reduction(self, target: tuple[int, int]) -> int:
        ratio = min(side // wanted for side, wanted in zip(self.size, target, strict=True))
        return min(self._levels, max(0, ratio.bit_length() - 1))


def _profile_in_header(data: bytes, start: int, end: int) -> bytes | None:
    for name, begin, stop in boxes(data, start, end):
        if name == b"colr" and data[begin : begin + 1] == b"\2":
            return data[begin + 3 : stop]
    return None


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


def _cut(data: bytes) -> _Cut | None:
    """Find what is missing of the tiles; None: nothing, or the decoder will report the problem."""
    place = next((start for name, start, _ in boxes(data) if name == b"jp2c"), 0)
    if data[place : place + 4] != _START_OF_CODESTREAM + _SIZE:
        return None
    tiles = _tiles(data[place + 8 : place + 40])
    place += 2
    while data[place : place + 2] != _START_OF_TILE:  # segments of the main header
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place : place + 1] != b"\xff" or length < 2:
            return None
        place += 2 + length
    seen = set()
    while data[place : place + 2] == _START_OF_TILE and place + _TILE_HEAD <= len(data):
        length = int.from_bytes(data[place + 6 : place + 10], "big")
        if length < _TILE_HEAD:  # 0: up to the end of the codestream, wherever that is
            return None
        seen.add(data[place + 4 : place + 6])
        place += length
    missing, rest = max(0, place - len(data)), data[place : place + 2]
    if missing > MOST_ZEROS or not _START_OF_TILE.startswith(rest):
        return None  # the end of the codestream, or something broken
    completed = data[:place] + bytes(missing) + _END_OF_CODESTREAM
    missing += len(_END_OF_CODESTREAM)
    return _Cut(completed, missing, tiles, tiles - len(seen))


def _tiles(size: bytes) -> int:
    """Count tiles by the numbers in the size segment after its capabilities; 0: unreadable."""
    numbers = [int.from_bytes(size[at : at + 4], "big") for at in range(0, len(size), 4)]
    if len(numbers) < 8 or 0 in numbers[4:6]:
        return 0
    width, height, _, _, tile_width, tile_height, left, top = numbers
    return -(-(width - left) // tile_width) * -(-(height - top) // tile_height)
