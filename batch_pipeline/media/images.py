"""Images: one decode, no larger than needed, feeds the vision input and the thumbnail.

Here: everything that touches Pillow's decoders. Which decoder opens a file is decided by what was
sniffed, never by Pillow, and the size is judged before a pixel is decoded.
"""

import io
import re
from datetime import datetime

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pillow_heif import HeifImageFile

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.content import Frame, MediaContent, MediaFacts
from batch_pipeline.media.pictures import camera_name, encode_jpeg, thumbnail_maker, vision_size
from batch_pipeline.media.sniffing import JPEG, MediaType, is_cut_short

#: More is refused before decoding. Pillow keeps up to 4 bytes a pixel, so this is 400 MB in one
#: thread. Pillow's own limit, a little lower, is no limit: up to twice its value it only warns.
MAX_PIXELS = 100_000_000
#: EXIF is one JPEG segment, which holds no more (bytes). Pillow joins several, and copies a block
#: once for each entry that points to it.
MAX_EXIF_BYTES = 65_536
#: Segments ahead of the picture of a JPEG. Depth maps and colour profiles take hundreds; Pillow
#: keeps each as an object: a file of 100 MB of empty ones would fill 2 GB and a minute.
MAX_JPEG_SEGMENTS = 4096


class _JpegFile(JpegImageFile):
    """Does not look for a resolution in EXIF as it opens: nobody asks, and broken EXIF warns."""

    def _read_dpi_from_exif(self) -> None:
        pass


#: The decoder of each format. The classes are called as they are: `Image.open` would ask every
#: registered plugin, and warn (an error in strict programs) of sizes that are within our own limit.
_DECODERS: dict[str, type[ImageFile]] = {
    "jpeg": _JpegFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "avif": AvifImageFile,
    "heic": HeifImageFile,
    "heif": HeifImageFile,
}
#: A frame of an animated GIF: its graphic control extension and the block behind it.
_GIF_FRAME = re.compile(rb"\x21\xf9\x04.{4}\x00[\x21\x2c]", re.DOTALL)
#: What undoes each EXIF orientation.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Orientations 5 to 8 stand the picture on its side.
_FIRST_QUARTER_TURN = 5
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_ICC_COLOR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
#: Pixels that are converted at a time when a large picture is made small.
_STRIP_PIXELS = 4_000_000


def decode_image(data: bytes, media_type: MediaType) -> MediaContent:
    """Decode a whole image file; of an animation, its first frame.

    Args:
        data: the file.
        media_type: what `sniff` said of it.

    Raises:
        PermanentError: ``too_many_pixels``, ``oversized_metadata``, ``truncated`` or
            ``unreadable_image``.
    """
    try:
        picture = _open(data, media_type)
        width, height = picture.size
        _check_size(width, height)
        target = vision_size(width, height)
        load_reduced(picture, target)
        exif = _read_exif(picture)  # behind the pixels: PNG and WebP may keep it there
        shown = _scaled_to_rgb(picture, target)
        frame_count = _frame_count(picture, data)
    except (PermanentError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything at all on hostile files
        raise _explain(error, data, media_type) from error
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    if orientation in _ORIENTATIONS:
        shown = shown.transpose(_ORIENTATIONS[orientation])
        if orientation >= _FIRST_QUARTER_TURN:
            width, height = height, width
    facts = MediaFacts(
        file_type="image",
        format=media_type.format,
        width=width,
        height=height,
        captured_at=_captured_at(exif),
        camera=camera_name(exif.get(ExifTags.Base.Make), exif.get(ExifTags.Base.Model)),
        frame_count=frame_count,
    )
    return MediaContent(
        facts=facts,
        frames=(Frame(encode_jpeg(shown)),),
        make_thumbnail=thumbnail_maker(shown, width, height),
    )


def load_reduced(picture: ImageFile, target: tuple[int, int]) -> None:
    """Decode an opened picture in place, as small as its decoder can without going below `target`.

    JPEG decodes at 1/2, 1/4 or 1/8 of its size for a fraction of the work; other formats decode
    whole.
    """
    if isinstance(picture, JpegImageFile):
        picture.draft(None, target)
    picture.load()


def _open(data: bytes, media_type: MediaType) -> ImageFile:
    if media_type is JPEG:
        _check_jpeg_metadata(data)
    return _DECODERS[media_type.format](io.BytesIO(data))


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise PermanentError("unreadable_image", f"the picture claims to be {width} x {height}")
    if width * height > MAX_PIXELS:
        raise PermanentError(
            "too_many_pixels",
            f"the picture is {width} x {height} = {width * height / 1e6:.1f} megapixels; "
            f"at most {MAX_PIXELS / 1e6:.0f} megapixels are accepted",
        )


def _check_jpeg_metadata(data: bytes) -> None:
    position, segments, exif_bytes = 2, 0, 0
    while data[position : position + 1] == b"\xff" and data[position + 1] != _START_OF_SCAN:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] == _APP1 and data[position + 4 : position + 8] == b"Exif":
            exif_bytes += length
        segments += 1
        if segments > MAX_JPEG_SEGMENTS or exif_bytes > MAX_EXIF_BYTES:
            raise PermanentError(
                "oversized_metadata",
                f"the JPEG has more than {MAX_JPEG_SEGMENTS} segments or {MAX_EXIF_BYTES} bytes of "
                "EXIF ahead of its picture; no camera writes that",
            )
        position += 2 + length


def _read_exif(picture: ImageFile) -> Image.Exif:
    """Camera, dates and orientation; empty when absent or broken. The GPS directory is not read."""
    if len(picture.info.get("exif") or b"") > MAX_EXIF_BYTES:
        return Image.Exif()
    try:
        return picture.getexif()
    except MemoryError:
        raise
    except Exception:  # beside the picture it is worth little: no reason to refuse the file
        return Image.Exif()


def _captured_at(exif: Image.Exif) -> datetime | None:
    try:
        details = exif.get_ifd(ExifTags.IFD.Exif)
        for tag in (ExifTags.Base.DateTimeOriginal, ExifTags.Base.DateTimeDigitized):
            if tag in details:
                return datetime.strptime(str(details[tag]).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except MemoryError:
        raise
    except Exception:  # as for the rest of EXIF; cameras without a clock write "0000:00:00 …"
        return None
    return None


def _frame_count(picture: ImageFile, data: bytes) -> int:
    if isinstance(picture, GifImageFile):
        # Pillow would walk through every frame to tell.
        return max(1, sum(1 for _ in _GIF_FRAME.finditer(data)))
    if isinstance(picture, HeifImageFile):
        return 1  # several pictures in one file, such as a burst, are not an animation
    return max(1, getattr(picture, "n_frames", 1))


def _scaled_to_rgb(picture: Image.Image, target: tuple[int, int]) -> Image.Image:
    """Scale to `target`, composite on white, convert to sRGB; the result carries no metadata."""
    width, height = picture.size
    # A box filter down to twice the target, then a good one: as good to the eye, and the full-size
    # picture is converted only a strip at a time (its RGBA alone would be 400 MB).
    factor = max(1, min(width // (2 * target[0]), height // (2 * target[1])))
    strip_height = max(1, _STRIP_PIXELS // (width * factor)) * factor
    strips = [
        _in_working_mode(picture.crop((0, top, width, min(top + strip_height, height)))).reduce(
            factor
        )
        for top in range(0, height, strip_height)
    ]
    reduced = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    for index, strip in enumerate(strips):
        reduced.paste(strip, (0, index * strip_height // factor))
    box = (0, 0, width / factor, height / factor)
    scaled = reduced.resize(target, Image.Resampling.LANCZOS, box=box)
    if scaled.mode == "RGBA":
        opaque = Image.new("RGB", target, "white")
        opaque.paste(scaled, mask=scaled.getchannel("A"))
        scaled = opaque
    return _to_srgb(scaled, picture.info.get("icc_profile"))


def _in_working_mode(picture: Image.Image) -> Image.Image:
    """Convert to L, RGB, RGBA or CMYK, which can be scaled without a change of colour."""
    if picture.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips at 255
        sixteen_bits = np.asarray(picture).astype(np.uint32)
        return Image.fromarray((sixteen_bits >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    if picture.mode == "1":
        return picture.convert("L")
    return picture if picture.mode in {"L", "RGB", "CMYK"} else picture.convert("RGB")


def _to_srgb(picture: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if icc_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            if profile.profile.xcolor_space.strip() == _ICC_COLOR_SPACES[picture.mode]:
                converted = ImageCms.profileToProfile(
                    picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                if converted is not None:  # None is for conversions in place
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken profile: the colours as they are stand nearest to what was meant
    return picture.convert("RGB")


def _explain(error: Exception, data: bytes, media_type: MediaType) -> PermanentError:
    name = media_type.format.upper()
    reason = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return PermanentError("too_many_pixels", f"the {name} picture is too large: {reason}")
    if "MAX_TEXT" in reason:  # the only mark that Pillow gives a PNG with a text bomb
        return PermanentError(
            "oversized_metadata", f"the {name} holds text that unpacks to an absurd size: {reason}"
        )
    if is_cut_short(io.BytesIO(data), media_type):
        return PermanentError(
            "truncated",
            f"the {name} ends before its picture does, after {len(data)} bytes: {reason}",
        )
    return PermanentError("unreadable_image", f"the {name} cannot be decoded: {reason}")
