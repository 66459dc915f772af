"""GIF: frames are counted without decoding them.

The decoder gets the picture without comments and other texts.
"""

import re

from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile

from batch_pipeline.media.stills.pieces import Piece, joined
from batch_pipeline.media.stills.scaling import scaling_bytes
from batch_pipeline.media.stills.still import PillowStill, oversized_metadata

#: A frame of an animated GIF: its graphic control extension and the block after it.
_FRAME = re.compile(rb"\x21\xf9\x04.{4}\x00[\x21\x2c]", re.DOTALL)
#: Maximum number of blocks: 100 MB in blocks of one byte would take minutes and gigabytes.
_MAX_BLOCKS = 1_000_000
_EXTENSION, _PICTURE, _END = b"!,;"
#: The beginning of a graphic control extension, and its length.
_CONTROL, _CONTROL_BYTES = b"\x21\xf9\x04", 8
#: Memory of a pixel of an animation (bytes): the frame with its palette and in colours, the frame
#: before it, and what takes its place afterwards.
_ANIMATION_BYTES = 17


class _Plugin(GifImageFile):
    """Does not read every frame to count the frames."""

    n_frames = 1


class GifStill(PillowStill):
    """A GIF, animated or not."""

    def __init__(self, data: bytes) -> None:
        self._blocks = _Blocks(data)
        super().__init__()
        self.frame_count = max(1, sum(1 for _ in _FRAME.finditer(data)))

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the picture; for an animation, all memory that a later frame takes."""
        if self.frame_count == 1:
            return super().memory(target)
        width, height = self._blocks.canvas
        return width * height * _ANIMATION_BYTES + scaling_bytes(self.size, target)

    def _open(self) -> ImageFile:
        return _Plugin(joined(self._blocks.pieces))


class _Blocks:
    """The blocks of a GIF that a decoder needs; texts are left out.

    Raises:
        PermanentError: ``oversized_metadata``.
    """

    def __init__(self, data: bytes) -> None:
        self.canvas = _two_numbers(data, 6)
        """Width and height that hold the screen and every frame."""
        self.pieces: list[Piece] = []
        self._data, self._read = data, 0
        kept_from = 0
        at = 13 + _palette_bytes(data[10:11])
        while at < len(data) and data[at] != _END:
            self._count()
            start, kind = at, data[at]
            if kind == _PICTURE:
                self._enlarge_canvas(start)
                at = self._past_data(at + 10 + _palette_bytes(data[at + 9 : at + 10]) + 1)
                continue
            at = self._past_data(at + 2) if kind == _EXTENSION else at + 1
            if not (data.startswith(_CONTROL, start) and at == start + _CONTROL_BYTES):
                if start > kept_from:
                    self.pieces.append(memoryview(data)[kept_from:start])
                kept_from = at
        self.pieces.append(memoryview(data)[kept_from : at + 1])

    def _past_data(self, at: int) -> int:
        """Return the end of data that is divided into blocks of up to 255 bytes."""
        while at < len(self._data) and self._data[at]:
            at += 1 + self._data[at]
            self._count()
        return at + 1

    def _count(self) -> None:
        self._read += 1
        if self._read > _MAX_BLOCKS:
            raise oversized_metadata(f"the GIF has more than {_MAX_BLOCKS:,} blocks")

    def _enlarge_canvas(self, at: int) -> None:
        corner, size = _two_numbers(self._data, at + 1), _two_numbers(self._data, at + 5)
        width, height = self.canvas
        self.canvas = max(width, corner[0] + size[0]), max(height, corner[1] + size[1])


def _two_numbers(data: bytes, at: int) -> tuple[int, int]:
    first, second = (int.from_bytes(data[n : n + 2], "little") for n in (at, at + 2))
    return first, second


def _palette_bytes(flags: bytes) -> int:
    """Return the size of the palette after a header with these flags."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 128 else 0
