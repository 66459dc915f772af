"""Raw files of cameras, decoded by the package `rawpy` (LibRaw; extra `raw`).

If the camera's own JPEG in the file is large enough, it is used: it is what the photographer saw,
and costs little. Otherwise the sensor's values are developed at half their size.
"""

from io import BytesIO
from typing import Any

from PIL import Image

from batch_pipeline.media.stills.boxes import boxes
from batch_pipeline.media.stills.jpeg import JpegStill, take_apart
from batch_pipeline.media.stills.scaling import scale, scaling_bytes
from batch_pipeline.media.stills.still import Still
from batch_pipeline.media.stills.tiff import TiffStill, has_full_picture

#: EXIF orientation of each of LibRaw's rotations.
_ORIENTATIONS = {3: 3, 5: 8, 6: 6}
#: The preview may be smaller than wanted, or differ in shape, by this share.
_TOLERANCE = 0.05
#: Memory of a sensor pixel in development at half size (bytes): its value, a quarter of a pixel of
#: four values, and a quarter of a pixel of three.
_PIXEL_BYTES = 2 + 4 * 2 / 4 + 3 / 4
#: The same for a sensor pixel that has all colours.
_FULL_PIXEL_BYTES = 8 + _PIXEL_BYTES
#: The UUID of the box in which Canon keeps EXIF, and the boxes in it.
_CANON = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48")
_CANON_EXIF = {b"CMT1", b"CMT2"}


def open_raw(data: bytes) -> Still:
    """A raw file; if it turns out to be an ordinary TIFF, it is decoded as one."""
    try:
        return RawStill(data)
    except _NotRawError:
        if has_full_picture(data):
            return TiffStill(data)
        raise


class _NotRawError(ValueError):
    """LibRaw does not know the file."""


class RawStill(Still):
    """A raw file."""

    def __init__(self, data: bytes) -> None:
        import rawpy  # noqa: PLC0415 - an extra

        try:
            self._raw: Any = rawpy.imread(BytesIO(data))
        except rawpy.LibRawFileUnsupportedError as error:
            raise _NotRawError(_reason(error)) from error
        except rawpy.LibRawError as error:
            raise ValueError(_reason(error)) from error
        sizes = self._raw.sizes
        super().__init__((sizes.width, sizes.height))
        self.orientation = _ORIENTATIONS.get(sizes.flip, 1)
        self._has_all_colours = self._raw.raw_type != rawpy.RawType.Flat
        self._preview = self._read_preview(rawpy)
        self.exif = _exif_blocks(data)
        if self._preview is not None:
            self.exif += self._preview.exif
            self.xmp = self._preview.xmp

    def memory(self, target: tuple[int, int]) -> int:
        """Return the memory for the preview if that is used, else for the development."""
        if self._preview is not None and self._is_large_enough(self._preview, target):
            return self._preview.memory(target)
        width, height = self.size
        pixel = _FULL_PIXEL_BYTES if self._has_all_colours else _PIXEL_BYTES
        return round(width * height * pixel) + scaling_bytes(self.size, target)

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Take the preview or develop."""
        if self._preview is not None and self._is_large_enough(self._preview, target):
            return self._scaled_preview(self._preview, target)
        try:
            pixels = self._raw.postprocess(
                half_size=True, use_camera_wb=True, output_bps=8, user_flip=0
            )
        except MemoryError:
            raise
        except Exception as error:
            if self._preview is None:
                raise ValueError(_reason(error)) from error
            self.warnings.append(f"damaged: only its small preview can be shown: {_reason(error)}")
            return self._scaled_preview(self._preview, target)
        self._raw.close()
        height, width = pixels.shape[:2]
        return scale(
            (width, height), target, lambda top, bottom: Image.fromarray(pixels[top:bottom])
        )

    def _scaled_preview(self, preview: JpegStill, target: tuple[int, int]) -> Image.Image:
        self.icc_profile = preview.icc_profile
        return preview.scaled(target)

    def _read_preview(self, rawpy: Any) -> JpegStill | None:
        try:
            preview = self._raw.extract_thumb()
            return JpegStill(preview.data) if preview.format is rawpy.ThumbFormat.JPEG else None
        except MemoryError:
            raise
        except Exception:  # no preview, or a broken one: the sensor's values are used
            return None

    def _is_large_enough(self, preview: JpegStill, target: tuple[int, int]) -> bool:
        width, height = preview.size
        shape = width * self.size[1] / (height * self.size[0])
        return (
            width >= target[0] * (1 - _TOLERANCE)
            and height >= target[1] * (1 - _TOLERANCE)
            and abs(shape - 1) <= _TOLERANCE
        )


def _reason(error: Exception) -> str:
    """Return the message of an error; LibRaw's messages are bytes."""
    reason = error.args[0] if error.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(error)


def _exif_blocks(data: bytes) -> list[bytes | memoryview]:
    if data[4:8] == b"ftyp":
        return [
            data[begin:stop]
            for name, start, end in boxes(data)
            if name == b"moov"
            for inner, inner_start, inner_end in boxes(data, start, end)
            if inner == b"uuid" and data[inner_start : inner_start + 16] == _CANON
            for part, begin, stop in boxes(data, inner_start + 16, inner_end)
            if part in _CANON_EXIF
        ]
    if data.startswith(b"FUJIFILM"):  # the preview in the header has it
        start, length = (int.from_bytes(data[at : at + 4], "big") for at in (84, 88))
        return [b"".join(block) for block in take_apart(data[start : start + length]).exif]
    return [data]
