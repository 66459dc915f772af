"""BMP: all versions of Windows, and OS/2.

This module reads BMP itself, because Pillow does not know all headers and masks, and it shifts the
pixels after a run that crosses the end of its row. Uncompressed files are read a strip at a time.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from batch_pipeline.media.stills.scaling import scale, scaling_bytes
from batch_pipeline.media.stills.still import Still

_FILE_HEADER = 14
_OS2_HEADER = 12
"""Length of the header of OS/2's first version, whose fields have half the length."""
_WINDOWS_HEADERS = {40, 52, 56, 108, 124}
_NONE, _RLE8, _RLE4, _MASKS, _JPEG, _PNG, _MASKS_WITH_ALPHA = 0, 1, 2, 3, 4, 5, 6
_RUN_LENGTHS = {_RLE8: 8, _RLE4: 4}
#: Codes after a zero byte; any other number counts the uncompressed pixels that follow.
_END_OF_ROW, _END_OF_PICTURE, _MOVE = 0, 1, 2
_NAMES = {_JPEG: "a JPEG inside it", _PNG: "a PNG inside it"}
_DEPTHS = {1, 2, 4, 8, 16, 24, 32}
_USUAL_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
#: Masks of whole bytes, by the position of the byte.
_WHOLE_BYTES = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
_MAX_COLOURS = 256
#: Maximum number of run lengths: a file of 100 MB in runs of no pixel would take a minute.
_MAX_RUNS = 10_000_000
#: With 4 bits a pixel: the two pixels of each byte, and the pixel of each hexadecimal digit.
_PAIRS = [bytes((byte >> 4, byte & 15)) for byte in range(256)]
_DIGITS = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))
#: How much is examined at a time (bytes).
_BLOCK_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class _Header:
    size: tuple[int, int]
    is_top_down: bool
    bits: int
    compression: int
    start: int
    """Start of the pixels (bytes)."""
    masks: tuple[int, int, int, int]
    """Bits of red, green, blue and alpha in a pixel of 16 or 32 bits."""
    palette: NDArray[np.uint8]
    """Shape (colours, 3): red, green, blue."""

    @property
    def row_bytes(self) -> int:
        """Return the length of a row; rows begin at whole words of 32 bits."""
        return (self.size[0] * self.bits + 31) // 32 * 4


def open_bmp(data: bytes) -> Still:
    """A bitmap of Windows or OS/2."""
    header = _read_header(data)
    if header.bits == _RUN_LENGTHS.get(header.compression):
        return RunLengthBmpStill(data, header)
    is_plain = header.compression in {_NONE, _MASKS, _MASKS_WITH_ALPHA}
    if not is_plain or header.bits not in _DEPTHS:
        way = _NAMES.get(header.compression, f"compression {header.compression}")
        raise ValueError(f"a BMP of {header.bits} bits a pixel with {way} is not supported")
    return BmpStill(data, header)


class BmpStill(Still):
    """A bitmap whose rows are not compressed."""

    def __init__(self, data: bytes, header: _Header) -> None:
        super().__init__(header.size)
        self._data, self._header = memoryview(data), header
        height = header.size[1]
        there = max(0, len(data) - header.start) // max(1, header.row_bytes)
        self._missing = max(0, height - there)
        self.is_cut = self._missing > 0
        self._has_alpha = self._is_transparent_anywhere()

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of a strip in conversion; with masks, channels are 64-bit numbers."""
        return 3 * scaling_bytes(self.size, target)

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Read strip by strip; missing rows are black."""
        picture = scale(self.size, target, self._read_rows)
        if self._missing:
            if self._missing == self.size[1]:
                raise ValueError("the pixels are missing")
            self.judge_loss(picture, self._missing, "the file ends too early")
        return picture

    def _read_rows(self, top: int, bottom: int) -> Image.Image:
        rows = self._stored(top, bottom)
        header, width = self._header, self.size[0]
        if header.bits in _USUAL_MASKS:
            masks = header.masks if self._has_alpha else header.masks[:3]
            if header.bits == 32 and all(mask in _WHOLE_BYTES for mask in masks):
                places = [_WHOLE_BYTES.index(mask) for mask in masks]
                whole = rows.reshape(len(rows), width, 4)
                return Image.fromarray(np.ascontiguousarray(whole[..., places]))
            pixels = rows.view(f"<u{header.bits // 8}")[:, :width].astype(np.uint64)
            return Image.fromarray(np.dstack([_channel(pixels, mask) for mask in masks]))
        if header.bits == 24:
            return Image.fromarray(
                np.ascontiguousarray(rows[:, : 3 * width].reshape(len(rows), width, 3)[..., ::-1])
            )
        indices = _indices(rows, header.bits)[:, :width]
        return Image.fromarray(header.palette[indices])

    def _stored(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Return some rows as they are in the file, from top to bottom."""
        header = self._header
        if not header.is_top_down:
            top, bottom = self.size[1] - bottom, self.size[1] - top
        start = header.start + top * header.row_bytes
        size = (bottom - top) * header.row_bytes
        packed = self._data[start : start + size]
        if len(packed) < size:
            packed = memoryview(bytes(packed).ljust(size, b"\0"))
        rows = np.frombuffer(packed, np.uint8).reshape(bottom - top, header.row_bytes)
        return rows if header.is_top_down else np.ascontiguousarray(rows[::-1])

    def _is_transparent_anywhere(self) -> bool:
        """Return whether alpha is used: writers without alpha leave all of it at zero."""
        mask = self._header.masks[3]
        if self._header.bits not in _USUAL_MASKS or not mask:
            return False
        depth = self._header.bits // 8
        for start in range(self._header.start, len(self._data), _BLOCK_BYTES):
            block = self._data[start : start + _BLOCK_BYTES]
            pixels = np.frombuffer(block[: len(block) // depth * depth], f"<u{depth}")
            if (pixels & mask).any():
                return True
        return False


class RunLengthBmpStill(Still):
    """A bitmap of 4 or 8 bits a pixel, compressed as run lengths."""

    def __init__(self, data: bytes, header: _Header) -> None:
        super().__init__(header.size)
        self._data, self._header = data, header
        self.is_cut = int.from_bytes(data[2:6], "little") > len(data)

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of an index for each pixel, and of a strip in conversion."""
        return self.size[0] * self.size[1] + 2 * scaling_bytes(self.size, target)

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Unpack everything; pixels that no run reaches get the first colour of the palette."""
        indices, missing = self._unpacked()
        if not self._header.is_top_down:
            indices = indices[::-1]
        palette = self._header.palette
        picture = scale(
            self.size, target, lambda top, bottom: Image.fromarray(palette[indices[top:bottom]])
        )
        if missing:
            if missing == self.size[1]:
                raise ValueError("the pixels are missing")
            self.judge_loss(picture, missing, "the run lengths end too early")
        return picture

    def _unpacked(self) -> tuple[NDArray[np.uint8], int]:
        """Return the indices as stored, and the number of missing rows."""
        width, height = self.size
        data, at, bits = self._data, self._header.start, self._header.bits
        pixels = bytearray(width * height)
        indices = np.frombuffer(pixels, np.uint8).reshape(height, width)
        x = y = 0
        for _ in range(_MAX_RUNS):
            if y >= height or at + 1 >= len(data):
                return indices, max(0, height - y - 1)
            count, value = data[at], data[at + 1]
            at += 2
            if count:
                run = bytes((value,)) * count if bits == 8 else _PAIRS[value] * (-(-count // 2))
            elif value == _END_OF_ROW:
                x, y = 0, y + 1
                continue
            elif value == _END_OF_PICTURE:
                return indices, 0
            elif value == _MOVE:
                right, down = data[at : at + 2].ljust(2, b"\xff")
                x, y = x + right, y + down
                at += 2
                continue
            else:
                count, size = value, -(-value * bits // 8)
                stored = data[at : at + size].ljust(size, b"\0")
                run = stored if bits == 8 else stored.hex().encode().translate(_DIGITS)
                at += size + size % 2
            end = min(x + count, width)
            if x < end:
                pixels[y * width + x : y * width + end] = run[: end - x]
            x += count
        raise ValueError(f"there are more than {_MAX_RUNS:,} run lengths")


def _read_header(data: bytes) -> _Header:
    length = int.from_bytes(data[14:18], "little")
    start = int.from_bytes(data[10:14], "little")
    if length == _OS2_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, colours, behind = _NONE, 0, _FILE_HEADER + length
    else:
        fields = data[_FILE_HEADER : _FILE_HEADER + length].ljust(124, b"\0")
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", fields, 4)
        (colours,) = struct.unpack_from("<I", fields, 32)
        behind = _FILE_HEADER + length
        if length not in _WINDOWS_HEADERS and compression not in {_NONE, *_RUN_LENGTHS}:
            raise ValueError(f"compression {compression} of OS/2 is not supported")
    masks = _USUAL_MASKS.get(bits, (0, 0, 0, 0))
    if compression in {_MASKS, _MASKS_WITH_ALPHA}:
        count = 4 if length >= 56 or compression == _MASKS_WITH_ALPHA else 3
        masks = (*struct.unpack_from(f"<{count}I", data, _FILE_HEADER + 40), 0)[:4]
        if length == 40:
            behind += 4 * count
    if width < 0:
        raise ValueError(f"the picture claims to be {width} pixels wide")
    size = (width, abs(height))
    room = data[behind : start if behind < start else behind + 4 * _MAX_COLOURS]
    # Some writers claim more colours than fit.
    palette = _palette(
        room, min(colours or 256, 1 << min(bits, 8)), 3 if length == _OS2_HEADER else 4
    )
    return _Header(size, height < 0, bits, compression, start, masks, palette)


def _palette(stored: bytes, count: int, entry_bytes: int) -> NDArray[np.uint8]:
    """Return the colours of the palette; black for colours that the file does not contain."""
    palette = np.zeros((_MAX_COLOURS, 3), np.uint8)
    count = min(count, len(stored) // entry_bytes)
    entries = np.frombuffer(stored[: count * entry_bytes], np.uint8).reshape(-1, entry_bytes)
    palette[:count] = entries[:, 2::-1]
    return palette


def _indices(rows: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return rows
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    found = (rows[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return found.reshape(len(rows), -1)


def _channel(pixels: NDArray[np.uint64], mask: int) -> NDArray[np.uint8]:
    if mask == 0:
        return np.zeros(pixels.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    values = (pixels & np.uint64(mask)) >> np.uint64(shift)
    if most == 255:
        return values.astype(np.uint8)
    return ((values * np.uint64(255) + np.uint64(most // 2)) // np.uint64(most)).astype(np.uint8)
