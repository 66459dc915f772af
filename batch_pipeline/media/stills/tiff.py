"""TIFF and BigTIFF: the first page, read by parts.

The decoder gets files of ours: with the entries alone that say how pixels are stored, and with some
of the strips or tiles.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from batch_pipeline.media.stills.pieces import joined
from batch_pipeline.media.stills.scaling import (
    STRIP_PIXELS,
    in_working_mode,
    scale,
    scaling_bytes,
)
from batch_pipeline.media.stills.still import Still
from batch_pipeline.media.tiff_block import TiffBlock

_WIDTH, _LENGTH, _BITS, _SAMPLES, _PLANAR, _ICC_PROFILE = 256, 257, 258, 277, 284, 34675
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 278, 279
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
#: How pixels are stored: size, bits, compression, what 0 is, order of bits, samples, their planes,
#: options of compressions, predictor, palette, inks, meaning of further samples, format, tables of
#: JPEG, matrix of Y'CbCr. Not the orientation: the picture is turned when it is small.
_STORAGE = {
    _WIDTH, _BITS, 259, 262, 266, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, 292, 293, 317, 320,
    _TILE_WIDTH, _TILE_LENGTH, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532,
}  # fmt: skip
_SEPARATE_PLANES = 2
_LONG = 4
#: An entry that is longer says nothing of pixels (bytes).
_MAX_ENTRY_BYTES = 1024**2
#: Strips and tiles beyond are no picture's.
_MAX_STRIPS = 1_000_000

_Value = tuple[int, int, bytes]
"""Type, number of elements, and these."""


@dataclass(frozen=True)
class _Layout:
    """Where the pixels of a page are, in strips or tiles, row by row of these."""

    offsets: list[int]
    sizes: list[int]
    rows: int
    """Of pixels, in a strip or tile."""
    across: int
    """How many tiles lie side by side; 1 for strips."""
    is_tiled: bool


class TiffStill(Still):
    """The first page of a TIFF; the others are not an animation."""

    def __init__(self, data: bytes) -> None:
        tiff = TiffBlock.at(data)
        if tiff is None:
            raise ValueError("it does not begin as a TIFF does")
        self._tiff = tiff
        self._entries = {entry.tag: entry for entry in tiff.directory(tiff.first_directory)}
        super().__init__((self._number(_WIDTH), self._number(_LENGTH)))
        self._layout = layout = self._read_layout()
        ends = [offset + size for offset, size in zip(layout.offsets, layout.sizes, strict=False)]
        self.is_cut = max(ends, default=0) > len(data)
        self.exif = [data]
        profile = self._entries.get(_ICC_PROFILE)
        self.icc_profile = tiff.bytes_of(profile, 16 * _MAX_ENTRY_BYTES) if profile else None

    def memory(self, target: tuple[int, int]) -> int:
        """The largest part, packed and as Pillow keeps it, and a strip in conversion."""
        samples = max(1, self._number(_SAMPLES)) * max(1, self._number(_BITS) // 8)
        part = self.size[0] * self._rows_at_once() * (4 + 2 * samples)
        return part + scaling_bytes(self.size, target)

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode part by part."""
        rows = _Rows(self._open_part, self.size, self._rows_at_once())
        picture = scale(self.size, target, rows.read)
        if rows.error is not None:
            if rows.missing == self.size[1]:
                raise rows.error
            self.judge_loss(picture, rows.missing, " ".join(str(rows.error).split()))
        return picture

    def _number(self, tag: int) -> int:
        return next(iter(self._numbers(tag)), 0)

    def _numbers(self, tag: int) -> list[int]:
        entry = self._entries.get(tag)
        if entry is None:
            return []
        return self._tiff.numbers(entry._replace(elements=min(entry.elements, _MAX_STRIPS)))

    def _read_layout(self) -> _Layout:
        width, height = self.size
        if _TILE_OFFSETS in self._entries:
            across = -(-width // max(1, self._number(_TILE_WIDTH)))
            places, rows = (_TILE_OFFSETS, _TILE_SIZES), self._number(_TILE_LENGTH)
        else:
            across = 1
            places, rows = (_STRIP_OFFSETS, _STRIP_SIZES), self._number(_ROWS_PER_STRIP) or height
        offsets, sizes = map(self._numbers, places)
        if not sizes and len(offsets) == 1:  # some old writers leave it out
            sizes = [max(0, len(self._tiff.block) - offsets[0])]
        is_tiled = _TILE_OFFSETS in self._entries
        return _Layout(offsets, sizes, min(rows, height), across, is_tiled)

    def _rows_at_once(self) -> int:
        """How many rows a part has: of some strips, or all where these cannot be divided."""
        width, height = self.size
        layout = self._layout
        if layout.rows < 1 or self._number(_PLANAR) == _SEPARATE_PLANES:
            return height
        if len(layout.offsets) != -(-height // layout.rows) * layout.across:
            return height
        return min(height, max(1, STRIP_PIXELS // (width * layout.rows)) * layout.rows)

    def _open_part(self, top: int, rows: int) -> TiffImageFile:
        """Open some rows as a file of their own."""
        layout = self._layout
        strips = slice(0, None)
        if rows < self.size[1]:
            strips = slice(
                top // layout.rows * layout.across, -(-(top + rows) // layout.rows) * layout.across
            )
        places = zip(layout.offsets[strips], layout.sizes[strips], strict=True)
        packed = [self._tiff.block[offset : offset + size] for offset, size in places]
        values: dict[int, _Value] = {
            tag: (entry.kind, entry.elements, value)
            for tag, entry in self._entries.items()
            if tag in _STORAGE
            and len(value := self._tiff.bytes_of(entry, _MAX_ENTRY_BYTES)) == entry.size
        }
        sizes = [len(strip) for strip in packed]
        values[_LENGTH] = self._longs([rows])
        values[_TILE_SIZES if layout.is_tiled else _STRIP_SIZES] = self._longs(sizes)
        place = _TILE_OFFSETS if layout.is_tiled else _STRIP_OFFSETS
        values[place] = self._longs(sizes)  # to know how long the head is
        start = len(self._head(values))
        values[place] = self._longs(list(accumulate(sizes, initial=start))[:-1])
        return TiffImageFile(joined([self._head(values), *packed]))

    def _longs(self, numbers: list[int]) -> _Value:
        order = "<" if self._tiff.order == "little" else ">"
        return _LONG, len(numbers), struct.pack(f"{order}{len(numbers)}I", *numbers)

    def _head(self, values: dict[int, _Value]) -> bytes:
        """Write all of a TIFF that is ahead of its strips."""
        order, mark = ("<", b"II") if self._tiff.order == "little" else (">", b"MM")
        directory = struct.pack(f"{order}H", len(values))
        behind = 8 + 2 + 12 * len(values) + 4
        long_values = b""
        for tag, (kind, elements, value) in sorted(values.items()):
            directory += struct.pack(f"{order}HHI", tag, kind, elements)
            if len(value) <= 4:
                directory += value.ljust(4, b"\0")
            else:
                directory += struct.pack(f"{order}I", behind + len(long_values))
                long_values += value + bytes(len(value) % 2)
        header = mark + struct.pack(f"{order}HI", 42, 8)
        return header + directory + bytes(4) + long_values


class _Rows:
    """The rows of a page, decoded by parts as they are asked for."""

    def __init__(
        self, open_part: Callable[[int, int], TiffImageFile], size: tuple[int, int], at_once: int
    ) -> None:
        self._open_part = open_part
        self._size = size
        self._at_once = at_once
        self._part = Image.new("L", (1, 1))
        self._top = self._bottom = 0
        """Rows of the page that the part holds."""
        self.missing = 0
        """Rows that could not be decoded."""
        self.error: Exception | None = None

    def read(self, top: int, bottom: int) -> Image.Image:
        """Put rows together from the parts that they lie in; missing ones are black."""
        if self._bottom <= top:
            self._decode_next()
        strip = Image.new(self._part.mode, (self._size[0], bottom - top))
        row = top
        while True:
            end = min(bottom, self._bottom)
            rows = self._part.crop((0, row - self._top, self._size[0], end - self._top))
            strip.paste(rows, (0, row - top))
            row = end
            if row == bottom:
                return strip
            self._decode_next()

    def _decode_next(self) -> None:
        self._top = self._bottom
        self._bottom = min(self._top + self._at_once, self._size[1])
        picture = self._open_part(self._top, self._bottom - self._top)
        try:
            picture.load()
            part: Image.Image = picture
        except MemoryError:
            raise
        except Exception as error:
            self.error = self.error or error
            self.missing += self._bottom - self._top
            part = Image.new(picture.mode, picture.size)
        self._part = in_working_mode(part)
