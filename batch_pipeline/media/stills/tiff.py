"""TIFF and BigTIFF: one page, read in parts.

The decoder gets files that this module makes, with some of the strips or tiles, and only with
entries that describe how pixels are stored. If Pillow does not know a depth or layout, it decodes
the bytes as if they were grey pixels, and `tiff_samples` makes a picture of these.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import accumulate

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from batch_pipeline.media.stills.levels import GreyLevels
from batch_pipeline.media.stills.parts import PartRows
from batch_pipeline.media.stills.pieces import Piece, joined
from batch_pipeline.media.stills.scaling import (
    STRIP_PIXELS,
    scale,
    scaling_bytes,
)
from batch_pipeline.media.stills.still import IncompletePictureError, Still
from batch_pipeline.media.stills.tiff_samples import SampleFormat
from batch_pipeline.media.tiff_block import ELEMENT_BYTES, Entry, TiffBlock

_WIDTH, _LENGTH, _BITS, _SAMPLES, _PLANAR, _ICC_PROFILE = 256, 257, 258, 277, 284, 34675
_COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _PREDICTOR, _COLOUR_MAP = 259, 262, 266, 317, 320
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 278, 279
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
#: How pixels are stored: size, bits, compression, meaning of 0, order of bits, samples, planes,
#: options of compressions, predictor, palette, inks, meaning of extra samples, format, tables of
#: JPEG, matrix of Y'CbCr. Not the orientation: the picture is turned when it is small.
_STORAGE = {
    _WIDTH, _BITS, 259, 262, 266, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, 292, 293, 317, 320,
    _TILE_WIDTH, _TILE_LENGTH, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532,
}  # fmt: skip
#: The same for grey pixels of 8 bits.
_STORAGE_OF_BYTES = {_COMPRESSION, _FILL_ORDER, _ROWS_PER_STRIP, _TILE_LENGTH}
#: Compressions of bytes, which do not depend on pixels.
_COMPRESSIONS_OF_BYTES = {1, 5, 8, 32773, 32946, 34925, 50000}
_SEPARATE_PLANES = 2
_NO_COMPRESSION, _OLD_JPEG, _DEFLATE = 1, 6, 8
_GREYS = {0, 1}
_GREY, _RGB, _YCBCR, _LOG_LIGHT, _LOG_COLOURS = 1, 2, 6, 32844, 32845
_UNSIGNED = 1
#: Names for error messages about how pixels are stored.
_COMPRESSIONS = {
    1: "no compression", 2: "CCITT run lengths", 3: "CCITT G3", 4: "CCITT G4", 5: "LZW",
    6: "JPEG of the old kind", 7: "JPEG", 8: "Deflate", 9: "JBIG", 10: "JBIG", 32766: "NeXT",
    32773: "PackBits", 32809: "ThunderScan", 32946: "Deflate", 33003: "JPEG 2000",
    33005: "JPEG 2000", 34661: "JBIG", 34676: "SGI LogLuv", 34677: "SGI LogLuv of 24 bits",
    34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG", 34925: "LZMA", 50000: "Zstandard",
    50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
_PHOTOMETRICS = {
    0: "grey, white is 0", 1: "grey", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "inks",
    6: "Y'CbCr", 8: "L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "colour filter array",
    32844: "logarithmic light", 32845: "logarithmic light and colours", 34892: "linear raw",
}  # fmt: skip
_SUBFILE_TYPE, _ORIENTATION, _SUB_DIRECTORIES = 254, 274, 330
_IS_PREVIEW, _IS_MASK = 1, 4
#: Storage of pictures after a preview that are neither raw data nor the JPEG beside them.
_ORDINARY_PHOTOMETRICS = {0, 1, 2, 3, 5, 6, 8, 9, 32844, 32845}
_ORDINARY_COMPRESSIONS = set(_COMPRESSIONS) - {_OLD_JPEG}
#: How many pages and SubIFDs are examined to find a picture after a preview.
_MAX_DIRECTORIES = 16
#: Entries for the least and the largest level, the newer ones first, and GDAL's for no level.
_LEAST_LEVELS, _MOST_LEVELS, _NO_DATA = (340, 280), (341, 281), 42113
#: Types of elements that are not unsigned numbers: texts, with a sign, floats.
_TEXT, _REAL_KINDS = 2, {6: "i", 8: "i", 9: "i", 11: "f", 12: "f"}
#: Longer texts are not numbers (bytes).
_NUMBER_BYTES = 64
_SHORT, _LONG = 3, 4
#: Longer entries do not describe pixels (bytes).
_MAX_ENTRY_BYTES = 1024**2
#: Maximum number of strips or tiles; no picture has more.
_MAX_STRIPS = 1_000_000

_Value = tuple[int, int, bytes]
"""Type, number of elements, and the elements."""


@dataclass(frozen=True)
class _Layout:
    """Where the pixels of a page are: its strips or tiles, row by row."""

    offsets: list[int]
    sizes: list[int]
    rows: int
    """Rows of pixels in a strip or tile."""
    across: int
    """How many tiles are side by side; 1 for strips."""
    is_tiled: bool


class TiffStill(Still):
    """The first page of a TIFF that is not a preview; the others are not an animation."""

    def __init__(self, data: bytes) -> None:
        tiff = TiffBlock.at(data)
        if tiff is None:
            raise ValueError("it does not begin as a TIFF does")
        self._tiff = tiff
        page = _page_of_preview(tiff)
        self._entries = _entries_at(tiff, page or tiff.first_directory)
        super().__init__((self._number(_WIDTH), self._number(_LENGTH)))
        if page and _ORIENTATION in self._entries:  # the one in EXIF is that of the preview
            self.orientation = self._number(_ORIENTATION)
        self._layout = layout = self._read_layout()
        ends = [offset + size for offset, size in zip(layout.offsets, layout.sizes, strict=False)]
        self.is_cut = max(ends, default=0) > len(data)
        self.exif = [data]
        self._samples = self._read_sample_format() if not self._pillow_knows_pixels() else None
        profile = self._entries.get(_ICC_PROFILE)
        self.icc_profile = tiff.bytes_of(profile, 16 * _MAX_ENTRY_BYTES) if profile else None

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the largest part, packed and in Pillow, and a strip in conversion."""
        samples = max(1, self._number(_SAMPLES)) * max(1, self._number(_BITS) // 8)
        part = self.size[0] * self._rows_at_once() * (4 + 2 * samples)
        if self._samples is not None:  # each bit in a byte, each sample in eight
            strip = min(STRIP_PIXELS, self.size[0] * self.size[1])
            part += strip * self._samples.samples * (self._samples.bits + 16)
        return part + scaling_bytes(self.size, target)

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode part by part."""
        try:
            return self._scaled(target)
        except (MemoryError, IncompletePictureError):
            raise
        except Exception as error:
            raise ValueError(f"{error} ({self._in_words()})") from error

    def _scaled(self, target: tuple[int, int]) -> Image.Image:
        levels = self._read_levels()
        rows = self._rows(levels)
        if levels is None:
            picture = scale(self.size, target, rows.read)
        else:

            def scaled() -> Image.Image:
                nonlocal rows
                rows = self._rows(levels)
                return scale(self.size, target, rows.read)

            picture = self.scaled_by_levels(levels, scaled)
        if rows.error is not None:
            if rows.missing == self.size[1]:
                raise rows.error
            self.judge_loss(picture, rows.missing, " ".join(str(rows.error).split()))
        return picture

    def _rows(self, levels: GreyLevels | None) -> PartRows:
        at_once = self._rows_at_once()
        if self._samples is None:
            return PartRows(self._open_part, self.size, at_once)
        return PartRows(
            partial(self._open_bytes, self._samples),
            self.size,
            at_once,
            partial(self._picture_of_bytes, self._samples, levels),
        )

    def _read_levels(self) -> GreyLevels | None:
        """Return how deep grey is shown; None if it is something else."""
        if self._samples is None or not self._samples.is_deep_grey:
            return None
        least, most = (
            next(filter(lambda level: level is not None, map(self._real_number, tags)), None)
            for tags in (_LEAST_LEVELS, _MOST_LEVELS)
        )
        return GreyLevels(
            self.size,
            self._samples.value_bits,
            said=(least, most),
            no_data=self._real_number(_NO_DATA),
        )

    def _real_number(self, tag: int) -> float | None:
        """Return the first element of an entry, also of one with a sign, a float or a text."""
        entry = self._entries.get(tag)
        if entry is None:
            return None
        if entry.kind == _TEXT:
            with suppress(ValueError):
                return float(self._tiff.bytes_of(entry, _NUMBER_BYTES).partition(b"\0")[0])
        letter, size = _REAL_KINDS.get(entry.kind, "u"), ELEMENT_BYTES.get(entry.kind, 0)
        value = self._tiff.bytes_of(entry, size)
        if size in {1, 2, 4, 8} and len(value) == size:
            order = "<" if self._tiff.order == "little" else ">"
            return float(np.frombuffer(value, f"{order}{letter}{size}")[0])
        return None

    def _number(self, tag: int) -> int:
        return _number(self._tiff, self._entries, tag)

    def _numbers(self, tag: int, most: int = _MAX_STRIPS) -> list[int]:
        return _numbers(self._tiff, self._entries, tag, most)

    def _read_layout(self) -> _Layout:
        width, height = self.size
        is_tiled = _TILE_WIDTH in self._entries and _TILE_LENGTH in self._entries
        # Some writers store the positions of tiles in the entries for strips.
        places = (_TILE_OFFSETS, _TILE_SIZES)
        if _TILE_OFFSETS not in self._entries:
            places = (_STRIP_OFFSETS, _STRIP_SIZES)
        if is_tiled:
            across = -(-width // max(1, self._number(_TILE_WIDTH)))
            rows = self._number(_TILE_LENGTH)
        else:
            across, rows = 1, self._number(_ROWS_PER_STRIP) or height
        offsets, sizes = map(self._numbers, places)
        if not any(sizes) and len(offsets) == 1:  # some old writers omit it
            sizes = [max(0, len(self._tiff.block) - offsets[0])]
        return _Layout(offsets, sizes, min(rows, height), across, is_tiled)

    def _rows_at_once(self) -> int:
        """Return the rows of a part: those of some strips, or all if they cannot be divided."""
        width, height = self.size
        layout = self._layout
        if layout.rows < 1 or self._number(_PLANAR) == _SEPARATE_PLANES or self._is_old_jpeg():
            return height
        if len(layout.offsets) != -(-height // layout.rows) * layout.across:
            return height
        return min(height, max(1, STRIP_PIXELS // (width * layout.rows)) * layout.rows)

    def _in_words(self) -> str:
        compression = self._number(_COMPRESSION) or _NO_COMPRESSION
        photometric = self._number(_PHOTOMETRIC)
        planes = " in planes" if self._number(_PLANAR) == _SEPARATE_PLANES else ""
        return (
            f"it is stored as {_PHOTOMETRICS.get(photometric, f'photometric {photometric}')}, "
            f"{self._number(_SAMPLES) or 1} samples of {self._number(_BITS) or 1} bits{planes}, "
            f"{_COMPRESSIONS.get(compression, f'compression {compression}')}"
        )

    def _pillow_knows_pixels(self) -> bool:
        is_deep = self._number(_BITS) > 8
        if is_deep and self._number(_SAMPLES) <= 1 and self._number(_PHOTOMETRIC) in _GREYS:
            return False  # it does not know which level is white, or that white is zero
        if is_deep and self._number(_PLANAR) == _SEPARATE_PLANES:
            return False  # it swaps their bytes
        if is_deep and self._number(_SAMPLE_FORMAT) > _UNSIGNED:
            return False  # it reads values below zero as light
        try:
            return self._open_part(0, self._rows_at_once()).mode != "La"
        except MemoryError:
            raise
        except Exception:  # it raises all kinds of errors on hostile files
            return False

    def _read_sample_format(self) -> SampleFormat | None:
        """Return how samples are stored; None if unknown: then Pillow reports the problem."""
        extra = self._numbers(_EXTRA_SAMPLES)
        found = SampleFormat(
            bits=self._number(_BITS) or 1,
            samples=self._number(_SAMPLES) or 1,
            kind=self._number(_SAMPLE_FORMAT) or 1,
            predictor=self._number(_PREDICTOR) or 1,
            # Files without this entry are read as if black was zero.
            photometric=self._number(_PHOTOMETRIC) if _PHOTOMETRIC in self._entries else _GREY,
            alpha=extra[0] if extra else 0,
            order="<" if self._tiff.order == "little" else ">",
            palette=tuple(self._numbers(_COLOUR_MAP)),
        )
        is_known = (
            found.is_known
            and len(set(self._numbers(_BITS))) <= 1
            and (self._number(_COMPRESSION) or 1) in _COMPRESSIONS_OF_BYTES
        )
        return found if is_known else None

    def _planes(self) -> int:
        return self._number(_SAMPLES) if self._number(_PLANAR) == _SEPARATE_PLANES else 1

    def _width_of_part(self) -> int:
        """Return the width of a strip or tile (pixels)."""
        return self._number(_TILE_WIDTH) if self._layout.is_tiled else self.size[0]

    def _open_bytes(self, samples: SampleFormat, top: int, rows: int) -> Image.Image:
        """Open some rows as a picture whose pixels are their bytes; planes below each other."""
        planes, layout = self._planes(), self._layout
        row_bytes = samples.row_bytes(self._width_of_part(), planes)
        values = self._storage(_STORAGE_OF_BYTES)
        values[_WIDTH] = self._longs([row_bytes * layout.across])
        values[_BITS], values[_SAMPLES], values[_PHOTOMETRIC] = map(self._shorts, (8, 1, 1))
        if layout.is_tiled:
            values[_TILE_WIDTH] = self._longs([row_bytes])
        if planes == 1:
            return self._file_of(values, self._strips(top, rows), rows)
        height, strips = self.size[1], len(layout.offsets) // planes
        whole = Image.new("L", (row_bytes * layout.across, planes * height))
        for plane in range(planes):
            part = self._file_of(dict(values), slice(plane * strips, (plane + 1) * strips), height)
            whole.paste(part, (0, plane * height))
        return whole

    def _picture_of_bytes(
        self,
        samples: SampleFormat,
        levels: GreyLevels | None,
        part: Image.Image,
        top: int,
        bottom: int,
    ) -> Image.Image:
        """Make a picture from some rows of the result of `_open_bytes`."""
        planes, across = self._planes(), self._layout.across
        in_a_pixel = samples.samples // planes
        in_planes = []
        for start in range(0, planes * self.size[1], self.size[1]):
            rows = part.crop((0, start + top, part.width, start + bottom))
            data = np.asarray(rows).reshape((bottom - top) * across, -1)
            values = samples.samples_of(data, self._width_of_part(), in_a_pixel)
            in_planes.append(values.reshape(bottom - top, -1, in_a_pixel)[:, : self.size[0]])
        whole = np.concatenate(in_planes, axis=2)
        return samples.picture(levels.to_8_bits(whole) if levels else samples.to_8_bits(whole))

    def _storage(self, tags: set[int]) -> dict[int, _Value]:
        return {
            tag: (entry.kind, entry.elements, value)
            for tag, entry in self._entries.items()
            if tag in tags
            and len(value := self._tiff.bytes_of(entry, _MAX_ENTRY_BYTES)) == entry.size
        }

    def _open_part(self, top: int, rows: int) -> TiffImageFile:
        """Open some rows as a separate file."""
        if self._is_old_jpeg():
            return TiffImageFile(BytesIO(self._tiff.block))
        values = self._storage(_STORAGE)
        if self._is_logarithmic():  # libtiff can return samples of 8 bits with gamma
            count = 1 if self._number(_PHOTOMETRIC) == _LOG_LIGHT else 3
            values[_BITS], values[_SAMPLES] = self._shorts(*[8] * count), self._shorts(count)
            values[_SAMPLE_FORMAT] = self._shorts(*[_UNSIGNED] * count)
        return self._file_of(values, self._strips(top, rows), rows)

    def _is_old_jpeg(self) -> bool:
        """Return whether it is JPEG of scanners of the nineties, with parts all over the file."""
        return self._number(_COMPRESSION) == _OLD_JPEG

    def _strips(self, top: int, rows: int) -> slice:
        """Return the strips or tiles that contain some rows."""
        layout = self._layout
        if rows == self.size[1]:
            return slice(0, None)
        return slice(
            top // layout.rows * layout.across, -(-(top + rows) // layout.rows) * layout.across
        )

    def _file_of(self, values: dict[int, _Value], strips: slice, rows: int) -> TiffImageFile:
        """Put strips or tiles after a head that describes how they are stored."""
        layout = self._layout
        places = zip(layout.offsets[strips], layout.sizes[strips], strict=True)
        packed: list[Piece] = [self._tiff.block[offset : offset + size] for offset, size in places]
        sizes = [len(strip) for strip in packed]
        if self._numbers(_COMPRESSION) == [_NO_COMPRESSION] and self._is_mixed_colour():
            # Pillow knows these samples only where libtiff unpacks them.
            packed = [zlib.compress(strip, 0) for strip in packed]
            sizes = [len(strip) for strip in packed]
            values[_COMPRESSION] = self._shorts(_DEFLATE)
        values[_LENGTH] = self._longs([rows])
        values[_TILE_SIZES if layout.is_tiled else _STRIP_SIZES] = self._longs(sizes)
        place = _TILE_OFFSETS if layout.is_tiled else _STRIP_OFFSETS
        values[place] = self._longs(sizes)  # to know how long the head is
        start = len(self._head(values))
        values[place] = self._longs(list(accumulate(sizes, initial=start))[:-1])
        plugin = _LogFile if self._is_logarithmic() else TiffImageFile
        return plugin(joined([self._head(values), *packed]))

    def _is_mixed_colour(self) -> bool:
        """Return whether several pixels share their stored colour."""
        return self._number(_PHOTOMETRIC) == _YCBCR

    def _is_logarithmic(self) -> bool:
        return self._number(_PHOTOMETRIC) in {_LOG_LIGHT, _LOG_COLOURS}

    def _shorts(self, *numbers: int) -> _Value:
        order = "<" if self._tiff.order == "little" else ">"
        return _SHORT, len(numbers), struct.pack(f"{order}{len(numbers)}H", *numbers)

    def _longs(self, numbers: list[int]) -> _Value:
        order = "<" if self._tiff.order == "little" else ">"
        return _LONG, len(numbers), struct.pack(f"{order}{len(numbers)}I", *numbers)

    def _head(self, values: dict[int, _Value]) -> bytes:
        """Write the part of a TIFF before its strips."""
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


def has_full_picture(data: bytes) -> bool:
    """Return whether an ordinary picture that is no preview follows a preview."""
    tiff = TiffBlock.at(data)
    page = _page_of_preview(tiff) if tiff else None
    if tiff is None or page is None:
        return False
    return not _number(tiff, _entries_at(tiff, page), _SUBFILE_TYPE) & _IS_PREVIEW


def _page_of_preview(tiff: TiffBlock) -> int | None:
    """Return the directory of the picture whose preview is the first page; None if there is none.

    It is never that of a mask, nor of a camera's raw data or JPEG. If a writer calls all pages
    previews, it is the largest.
    """
    most_pixels, largest = 0, None
    for start in _directories(tiff):
        entries = _entries_at(tiff, start)
        kind, photometric, compression = (
            _number(tiff, entries, tag) for tag in (_SUBFILE_TYPE, _PHOTOMETRIC, _COMPRESSION)
        )
        pixels = _number(tiff, entries, _WIDTH) * _number(tiff, entries, _LENGTH)
        if start == tiff.first_directory:
            if not kind & _IS_PREVIEW:
                return None
            most_pixels = pixels
        elif (
            not kind & _IS_MASK
            and pixels > most_pixels
            and photometric in _ORDINARY_PHOTOMETRICS
            and (compression or _NO_COMPRESSION) in _ORDINARY_COMPRESSIONS
        ):
            if not kind & _IS_PREVIEW:
                return start
            most_pixels, largest = pixels, start
    return largest


def _directories(tiff: TiffBlock) -> Iterator[int]:
    """Yield the directories of pages, each before those of its SubIFDs."""
    waiting, seen = [tiff.first_directory], set[int]()
    while waiting and len(seen) < _MAX_DIRECTORIES:
        start = waiting.pop(0)
        if start in seen or not 0 < start < len(tiff.block):
            continue
        seen.add(start)
        yield start
        inside = _numbers(tiff, _entries_at(tiff, start), _SUB_DIRECTORIES, _MAX_DIRECTORIES)
        waiting = [*inside, tiff.next_directory(start), *waiting]


def _entries_at(tiff: TiffBlock, start: int) -> dict[int, Entry]:
    return {entry.tag: entry for entry in tiff.directory(start)}


def _number(tiff: TiffBlock, entries: dict[int, Entry], tag: int) -> int:
    return next(iter(_numbers(tiff, entries, tag, 1)), 0)


def _numbers(tiff: TiffBlock, entries: dict[int, Entry], tag: int, most: int) -> list[int]:
    entry = entries.get(tag)
    if entry is None:
        return []
    return tiff.numbers(entry._replace(elements=min(entry.elements, most)))


class _LogFile(TiffImageFile):
    """Makes Pillow read logarithmic samples in the form to which libtiff converts them."""

    def _setup(self) -> None:
        is_grey = self.tag_v2.get(_PHOTOMETRIC) == _LOG_LIGHT
        self.tag_v2[_PHOTOMETRIC] = _GREY if is_grey else _RGB
        super()._setup()
