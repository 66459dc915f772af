"""PNG: large files are read a strip at a time; files are read even if they have broken metadata.

The decoder gets only the chunks of the picture, with correct checksums. Texts and EXIF are read
here.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from batch_pipeline.media.stills.levels import GreyLevels
from batch_pipeline.media.stills.pieces import Piece, joined
from batch_pipeline.media.stills.scaling import STRIP_PIXELS, scale, scaling_bytes
from batch_pipeline.media.stills.still import PillowStill, oversized_metadata
from batch_pipeline.media.tone_mapping import ColourSpace

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Maximum size of all unpacked texts together (bytes); more cannot be texts.
_MAX_TEXT_BYTES = 16 * 1024**2
#: Maximum number of chunks: 100 MB of empty chunks would take minutes to read, and gigabytes.
_MAX_CHUNKS = 100_000
#: Maximum number of warnings about different chunks.
_MAX_WARNINGS = 10
_PICTURE_CHUNKS = {
    b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT",
}  # fmt: skip
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
_TIME_KEY = b"Creation Time"
_XMP_KEY, _EXIF_KEYS = b"XML:com.adobe.xmp", (b"Raw profile type exif", b"Raw profile type APP1")
#: How much is read and inflated at a time (bytes).
_BLOCK_BYTES, _INFLATED_BYTES = 65_536, 1024**2
#: Memory for undoing the filters of a strip (bytes).
_UNFILTER_BYTES = 24 * STRIP_PIXELS
#: Smaller pictures are decoded as a whole, which is a fifth faster (pixels; four bytes each).
_WHOLE_PIXELS = 24_000_000
#: Memory of a pixel of an animation (bytes): the frame, the one before it, and copies of both.
_ANIMATION_BYTES = 16
#: Samples of a pixel by colour type.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@dataclass
class _Anatomy:
    """The parts of a PNG."""

    header: bytes = b""
    picture: list[Piece] = field(default_factory=list)
    """The chunks that a decoder needs."""
    end_of_piece: int = 0
    """Where the last piece ends in the file, if it is a part of the file."""
    pixels: list[Piece] = field(default_factory=list)
    """The contents of the IDAT chunks."""
    exif: list[Piece] = field(default_factory=list)
    xmp: bytes | None = None
    made: str | None = None
    """Time of creation, from a text."""
    changed: str | None = None
    """Time of the last change, from the file."""
    profile: bytes | None = None
    space: ColourSpace | None = None
    animated: bool = False
    text_bytes: int = 0
    warnings: list[str] = field(default_factory=list)


class PngStill(PillowStill):
    """A PNG, animated or not."""

    def __init__(self, data: bytes) -> None:
        self._anatomy = take_apart(data)
        super().__init__()
        self.exif, self.xmp = self._anatomy.exif, self._anatomy.xmp
        self.made, self.changed = self._anatomy.made, self._anatomy.changed
        self.icc_profile = self._anatomy.profile
        self.space = self._anatomy.space or self.space
        self.warnings = self._anatomy.warnings

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of a few strips, or of all if interlaced, animated or 16 bits deep."""
        if self._anatomy.animated:
            return self.size[0] * self.size[1] * _ANIMATION_BYTES + scaling_bytes(self.size, target)
        if not self._in_strips():
            return super().memory(target)
        return scaling_bytes(self.size, target) + _UNFILTER_BYTES

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode as a whole, or in strips if the picture is large."""
        if not self._in_strips():
            return super().scaled(target)
        rows, levels = _Rows(self._anatomy, self._picture), GreyLevels(self.size)

        def scaled() -> Image.Image:
            nonlocal rows
            rows = _Rows(self._anatomy, self._picture)
            return scale(self.size, target, rows.read, levels)

        picture = self.scaled_by_levels(levels, scaled)
        if rows.missing:
            self.judge_loss(picture, rows.missing, rows.reason)
        return picture

    def _in_strips(self) -> bool:
        width, height = self.size
        in_rows = self._anatomy.header[12:13] == b"\0" and not self._anatomy.animated
        return in_rows and width * height > _WHOLE_PIXELS and _bytes_ahead(self._anatomy) <= 4

    def _open(self) -> ImageFile:
        return PngImageFile(joined([_SIGNATURE, *self._anatomy.picture, chunk(b"IEND", b"")]))


class _Rows:
    """The rows of a PNG that is not interlaced, inflated when they are needed.

    Pillow undoes PNG's filters: some rows at a time become a separate PNG. It begins with the row
    before them, because the filters refer to it.
    """

    def __init__(self, anatomy: _Anatomy, picture: ImageFile) -> None:
        self._picture = picture
        self._bytes_ahead = _bytes_ahead(anatomy)
        # A whole number of filter units; the last unit may extend beyond the end of a row.
        self._columns = -(-_row_bytes(anatomy) // self._bytes_ahead)
        self._row_bytes = _row_bytes(anatomy)
        self._inflated = _inflate(anatomy.pixels)
        self._ready = bytearray()
        self._above = bytes(self._row_bytes)
        self.missing = 0
        """Rows that could not be read."""
        self.reason = "its compressed pixels end too early"

    def read(self, top: int, bottom: int) -> Image.Image:
        """Decode the next rows; missing ones are black."""
        rows = bottom - top
        filtered = self._take(rows * (1 + self._row_bytes))
        found = len(filtered) // (1 + self._row_bytes)
        self.missing += rows - found
        raw = self._unfilter(filtered, found) + bytes((rows - found) * self._row_bytes)
        self._above = raw[-self._row_bytes :]
        arguments = self._picture.tile[0].args
        raw_mode = arguments[0] if isinstance(arguments, tuple) else arguments
        size = (self._picture.width, rows)
        strip = Image.frombytes(self._picture.mode, size, raw, "raw", raw_mode)
        strip.info = self._picture.info
        if self._picture.palette is not None:
            raw_mode, colours = self._picture.palette.getdata()
            strip.putpalette(colours, raw_mode)
        return strip

    def _take(self, count: int) -> bytes:
        try:
            while len(self._ready) < count and (more := next(self._inflated, b"")):
                self._ready += more
        except zlib.error as error:
            self.reason = str(error)
            self._inflated = iter(())
        taken = bytes(self._ready[:count])
        del self._ready[:count]
        return taken

    def _unfilter(self, filtered: bytes, rows: int) -> bytes:
        colour = {1: 0, 2: 4, 3: 2, 4: 6}[self._bytes_ahead]
        header = struct.pack(">IIBBBBB", self._columns, rows + 1, 8, colour, 0, 0, 0)
        pixels = zlib.compress(b"\0" + self._above + filtered[: rows * (1 + self._row_bytes)], 0)
        parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
        with PngImageFile(joined([_SIGNATURE, *parts])) as picture:
            return picture.tobytes()[self._row_bytes :]


def take_apart(data: bytes) -> _Anatomy:
    """Divide a PNG into its picture and its metadata.

    Raises:
        PermanentError: ``oversized_metadata``.
    """
    found = _Anatomy()
    wrong: dict[str, None] = {}
    kind = b""
    for number, (start, kind, content, is_sound) in enumerate(_chunks(data)):
        if number >= _MAX_CHUNKS:
            raise oversized_metadata(f"the PNG has more than {_MAX_CHUNKS} chunks")
        if not is_sound and len(wrong) < _MAX_WARNINGS:
            wrong[f"damaged: the checksum of a {kind.decode('ascii')} chunk is wrong"] = None
        if kind == b"IHDR":
            found.header = bytes(content)
        elif kind == b"acTL":
            frames = int.from_bytes(content[:4], "big")
            is_first_sound_one = len(content) == 8 and 0 < frames < 2**31 and not found.animated
            if not is_first_sound_one:
                continue
            found.animated = True
        elif kind == b"IDAT":
            found.pixels.append(content)
        if kind in _PICTURE_CHUNKS and _has_right_length(kind, content, found):
            _keep_picture(found, data, start, kind, content, is_sound=is_sound)
        elif kind not in _PICTURE_CHUNKS:
            _keep_metadata(found, kind, content)
    if kind != b"IEND":
        wrong["damaged: the PNG ends without its IEND chunk"] = None
    found.warnings = list(wrong)
    return found


def _keep_picture(
    found: _Anatomy, data: bytes, start: int, kind: bytes, content: memoryview, *, is_sound: bool
) -> None:
    end = start + 8 + len(content) + 4
    if not is_sound or end > len(data):
        head = len(content).to_bytes(4, "big") + kind
        tail = zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big")
        found.picture += [head, content, tail]
        return
    # As it is in the file, in one piece with the chunks before it.
    begin = start
    if start == found.end_of_piece:
        begin -= len(found.picture.pop())
    found.picture.append(memoryview(data)[begin:end])
    found.end_of_piece = end


def chunk(kind: bytes, content: bytes) -> bytes:
    """Write a chunk."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, memoryview, bool]]:
    """Yield start, kind and content of each chunk up to IEND, and whether its checksum is right.

    The last chunk may be cut.
    """
    view = memoryview(data)
    position = len(_SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if not kind.isalpha() or (end > len(data) and kind != b"IDAT"):
            # The length is wrong: find the pixels by the name of their chunk.
            position = data.find(b"IDAT", position + 8) - 4
            if position < 0:
                return
            continue
        content = view[position + 8 : end]
        checksum = int.from_bytes(data[end : end + 4], "big")
        # A cut chunk has no checksum, so it cannot be wrong.
        is_whole = end + 4 <= len(data)
        is_sound = not is_whole or zlib.crc32(content, zlib.crc32(kind)) == checksum
        yield position, kind, content, is_sound
        if kind == b"IEND":
            return
        position = end + 4


def _has_right_length(kind: bytes, content: Piece, found: _Anatomy) -> bool:
    colour = found.header[9] if len(found.header) > 9 else 0
    if kind == b"tRNS":
        return {0: 2, 2: 6}.get(colour, len(content)) == len(content) > 0
    return kind != b"fcTL" or len(content) == 26


def _keep_metadata(found: _Anatomy, kind: bytes, content: memoryview) -> None:
    if kind == b"eXIf":
        found.exif.append(content)
    elif kind == b"cICP" and len(content) >= 2:
        found.space = ColourSpace.from_codes(primaries=content[0], transfer=content[1])
    elif kind == b"tIME" and len(content) == 7:
        year, *rest = struct.unpack(">HBBBBB", content)
        found.changed = "{:04}:{:02}:{:02} {:02}:{:02}:{:02}".format(year, *rest)
    elif len(content) > _MAX_TEXT_BYTES:
        return  # not copied: nothing that we look for is this large
    elif kind == b"iCCP":
        _, _, packed = bytes(content).partition(b"\0")
        found.profile = _unpack(found, packed[1:])
    elif kind in _TEXT_CHUNKS:
        _keep_text(found, kind, content)


def _keep_text(found: _Anatomy, kind: bytes, content: memoryview) -> None:
    key, _, text = bytes(content).partition(b"\0")
    if kind == b"iTXt":
        compressed = text[:1] == b"\1"
        *_, text = text[2:].split(b"\0", 2)
    else:
        compressed, text = kind == b"zTXt", text[1:] if kind == b"zTXt" else text
    if compressed:
        text = _unpack(found, text)
    if key == _XMP_KEY:
        found.xmp = text
    elif key == _TIME_KEY:  # not `date:create`, which ImageMagick reads from the file system
        found.made = found.made or text.decode("latin-1")
    elif key in _EXIF_KEYS:  # of ImageMagick: name, length and hexadecimal digits, on lines
        with suppress(ValueError):
            *_, digits = text.split(None, 2)
            found.exif.append(bytes.fromhex(digits.decode("ascii", "replace")))


def _unpack(found: _Anatomy, packed: bytes) -> bytes:
    """Decompress; broken data gives the part before the error.

    Raises:
        PermanentError: ``oversized_metadata``.
    """
    text = bytearray()
    with suppress(zlib.error):
        for part in _inflate([packed]):
            text += part
            found.text_bytes += len(part)
            if found.text_bytes > _MAX_TEXT_BYTES:
                raise oversized_metadata(
                    "the PNG holds text that unpacks to an absurd size: more than "
                    f"{_MAX_TEXT_BYTES // 1024**2} MiB"
                )
    return bytes(text)


def _inflate(pieces: list[Piece]) -> Iterator[bytes]:
    """Decompress a stream, about a megabyte at a time."""
    decompressor = zlib.decompressobj()
    for piece in pieces:
        for start in range(0, len(piece), _BLOCK_BYTES):
            block: Piece = piece[start : start + _BLOCK_BYTES]
            while len(block) and not decompressor.eof:
                yield decompressor.decompress(block, _INFLATED_BYTES)
                block = decompressor.unconsumed_tail


def _bytes_ahead(anatomy: _Anatomy) -> int:
    """Return how far the filters look to the left (bytes): a pixel, at least one byte."""
    depth, colour = anatomy.header[8:10]
    return max(1, depth * _CHANNELS.get(colour, 4) // 8)


def _row_bytes(anatomy: _Anatomy) -> int:
    width, _, depth, colour = struct.unpack_from(">IIBB", anatomy.header)
    return int(-(-width * depth * _CHANNELS[colour] // 8))
