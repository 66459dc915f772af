"""JPEG XL, decoded by the package `pillow-jxl-plugin` (extra `jxl`).

Its decoder decodes the whole file when it opens it, so this module reads the size first. The
decoder returns nothing of a cut file. PyAV cannot help: its FFmpeg has no decoder for JPEG XL.
"""

from dataclasses import dataclass
from functools import partial

from PIL import Image

from batch_pipeline.media.stills.boxes import boxes, end_of_boxes
from batch_pipeline.media.stills.jpeg import JpegStill
from batch_pipeline.media.stills.levels import GreyLevels
from batch_pipeline.media.stills.scaling import in_working_mode, scale, scaling_bytes
from batch_pipeline.media.stills.still import Still

_CODESTREAM = b"\xff\x0a"
#: The part of the header that is read is not longer.
_HEADER_BYTES = 32
#: Memory of a pixel while it is decoded, by the bytes of a sample (bytes): the decoder has two
#: copies of up to four samples.
_PIXEL_BYTES = {1: 14, 2: 18, 4: 36}
#: Ratios of width to height, by their number in the header.
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
#: Number of bits of a side, by a selector of two bits.
_SIDE_BITS = (9, 13, 18, 30)


class JxlStill(Still):
    """A JPEG XL, or the last frame of an animation. A JPEG that was packed into it is unpacked."""

    def __init__(self, data: bytes) -> None:
        header = _read_header(_codestream(data))
        super().__init__(header.size)
        self._data, self._sample_bytes = data, header.sample_bytes
        if header.is_animation:
            self.warnings.append(
                "the last frame of the animation is shown: the decoder returns no other"
            )
        self.orientation = 1
        self.is_cut = data[:2] != _CODESTREAM and end_of_boxes(data) > len(data)
        if data[:2] != _CODESTREAM:
            for name, start, end in boxes(data):
                if name == b"Exif":
                    offset = int.from_bytes(data[start : start + 4], "big")
                    self.exif.append(data[start + 4 + offset : end])
                elif name == b"xml ":
                    self.xmp = data[start:end]

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the whole picture."""
        width, height = self.size
        return width * height * _PIXEL_BYTES[self._sample_bytes] + scaling_bytes(self.size, target)

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode whole."""
        from pillow_jxl import Decoder  # noqa: PLC0415 - an extra

        try:
            is_jpeg, info, pixels, profile, _ = Decoder(num_threads=0)(self._data)
        except Exception as error:  # its message is only useful to developers of the decoder
            raise ValueError(
                "the decoder returns no picture, as for every JPEG XL that is cut or broken"
            ) from error
        if is_jpeg:
            jpeg = JpegStill(pixels)
            self.icc_profile, self.orientation = jpeg.icc_profile, None
            self.exif, self.xmp = jpeg.exif or self.exif, jpeg.xmp or self.xmp
            self.iptc, self.clip, self.warnings = jpeg.iptc, jpeg.clip, jpeg.warnings
            return jpeg.scaled(target)
        self.icc_profile = profile or None
        size = (info.width, info.height)
        if size != self.size:  # it was turned
            target = (target[1], target[0])
            self.size = size
        levels = GreyLevels(size)
        rows = partial(_rows, info.mode, size, pixels)
        return self.scaled_by_levels(levels, lambda: scale(size, target, rows, levels))


def _rows(mode: str, size: tuple[int, int], pixels: bytes, top: int, bottom: int) -> Image.Image:
    """Make a picture of some rows of the decoder's pixels."""
    width, height = size
    row_bytes = len(pixels) // height
    rows = pixels[top * row_bytes : bottom * row_bytes]
    sample_bytes = row_bytes // (2 * width)
    if mode == "LA" and sample_bytes > 1:  # the decoder does not convert grey to 8 bits
        deep = "I;16" if sample_bytes == 2 else "F"
        samples = Image.frombytes(deep, (2 * width, bottom - top), rows)
        rows = in_working_mode(samples).tobytes()
    elif mode == "F;16":  # it has made floats of 32 bits
        mode = "F"
    return Image.frombytes(mode, (width, bottom - top), rows)


def _codestream(data: bytes) -> bytes:
    """Return the first bytes of the picture itself."""
    if data[:2] == _CODESTREAM:
        return data[:_HEADER_BYTES]
    found = b""
    for name, start, end in boxes(data):
        if name == b"jxlc":
            return data[start : min(end, start + _HEADER_BYTES)]
        if name == b"jxlp" and len(found) < _HEADER_BYTES:  # its number comes first
            found += data[start + 4 : min(end, start + 4 + _HEADER_BYTES)]
    if not found:
        raise ValueError("there is no picture in the boxes")
    return found


@dataclass(frozen=True)
class _Header:
    """What the header of the codestream says."""

    size: tuple[int, int]
    sample_bytes: int
    """Bytes of a sample as the decoder unpacks it; 4 if that is not known."""
    is_animation: bool = False


def _read_header(codestream: bytes) -> _Header:
    if codestream[:2] != _CODESTREAM:
        raise ValueError("the picture has no header")
    bits = int.from_bytes(codestream[2:], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def take_one_of(*counts: int) -> int:
        return take(counts[take(2)])

    def take_size() -> tuple[int, int]:
        is_small = take(1)

        def side() -> int:
            return 8 * (1 + take(5)) if is_small else 1 + take_one_of(*_SIDE_BITS)

        height = side()
        ratio = take(3)
        if ratio:
            numerator, denominator = _RATIOS[ratio]
            return height * numerator // denominator, height
        return side(), height

    size, is_animation = take_size(), False
    if take(1):  # everything else is as usual
        return _Header(size, 1)
    if take(1):
        take(3)  # orientation
        if take(1):  # the size at which it should be shown
            take_size()
        if take(1):  # a preview; no program writes one
            return _Header(size, 4)
        is_animation = bool(take(1))
        if is_animation:
            take_one_of(0, 0, 10, 30)  # ticks in some seconds
            take_one_of(0, 0, 8, 10)  # the seconds
            take_one_of(0, 3, 16, 32)  # how often it is repeated
            take(1)  # whether frames have time codes
    is_float, selector = take(1), take(2)
    usual = (32, 16, 24) if is_float else (8, 10, 12)
    depth = usual[selector] if selector < len(usual) else 1 + take(6)
    return _Header(size, 1 if depth <= 8 else 2 if depth <= 16 else 4, is_animation)
