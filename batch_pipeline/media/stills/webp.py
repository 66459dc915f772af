"""WebP: the decoder gets the picture without the metadata, which is read here."""

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from batch_pipeline.media.sniffing import WEBP, is_cut_short
from batch_pipeline.media.stills.pieces import Piece, joined
from batch_pipeline.media.stills.still import PillowStill, oversized_metadata

_PICTURE_CHUNKS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
#: Maximum number of chunks; each frame is one. 100 MB of empty chunks would take gigabytes.
_MAX_CHUNKS = 100_000
#: Memory of a pixel (bytes): libwebp has two canvases even for a still picture, and Pillow copies
#: one of them.
_CANVAS_BYTES = 10


class WebPStill(PillowStill):
    """A WebP, animated or not."""

    def __init__(self, data: bytes) -> None:
        self._pieces: list[Piece] = []
        exif: list[Piece] = []
        xmp = profile = None
        missing = 0
        for number, (name, content, size) in enumerate(_chunks(data)):
            if number >= _MAX_CHUNKS:
                raise oversized_metadata(f"the WebP has more than {_MAX_CHUNKS} chunks")
            if name in _PICTURE_CHUNKS:
                missing = size - len(content)
                filled = bytes(missing + size % 2) if missing <= 3 * len(content) else b""
                self._pieces += [name + struct.pack("<I", len(content) + missing), content, filled]
            elif name == b"EXIF":
                exif.append(content)
            elif name == b"XMP ":
                xmp = bytes(content)
            elif name == b"ICCP":
                profile = bytes(content)
        super().__init__()
        self.exif, self.xmp, self.icc_profile = exif, xmp, profile
        self.file_bytes, self.missing_bytes = len(data) + missing, missing
        if not missing and is_cut_short(BytesIO(data), WEBP):
            self.warnings.append("damaged: the WebP ends within the data after its picture")

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the canvases and of Pillow's picture."""
        width, height = self.size
        return width * height * _CANVAS_BYTES + super().memory(target)

    def _open(self) -> ImageFile:
        size = 4 + sum(map(len, self._pieces))
        return WebPImageFile(joined([b"RIFF", struct.pack("<I", size), b"WEBP", *self._pieces]))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yield name, content and size of each chunk; the last may be cut, with shorter content."""
    view = memoryview(data)
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + size
        yield data[position : position + 4], view[position + 8 : end], size
        position = end + size % 2
