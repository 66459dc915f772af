"""What images and videos share when a picture is in memory: sizes, JPEG, the camera's name.

These are helpers for `PIL.Image` pictures that are already small. `batch_pipeline.media.images` and
`batch_pipeline.media.videos` read files.
"""

import io
import re
from collections.abc import Callable

from PIL import Image

#: Longest side of a picture for a vision model (pixels); more costs tokens and shows little more.
VISION_SIDE = 1568
#: Vision models cut pictures into square patches. The side of most patches is this number or a
#: fraction of it (pixels). A picture of whole patches need not be scaled and encoded again, which
#: takes 42 ms for a photo.
VISION_PATCH = 28
#: Longest side of a thumbnail (pixels).
THUMBNAIL_SIDE = 256
JPEG_QUALITY = 85
#: A box filter first scales down to this many times the thumbnail. This saves 10 of 16 ms, and the
#: difference of 55 dB is not visible.
_THUMBNAIL_GAP = 3.0
#: Longer names of cameras are cut (characters).
_CAMERA_LENGTH = 80


def vision_size(width: int, height: int, patch: int = VISION_PATCH) -> tuple[int, int]:
    """Return the size at which a picture of `width` x `height` pixels goes to a vision model.

    Both sides are the nearest multiples of `patch` (pixels), never 0, and at most `VISION_SIDE`.
    """
    scale = min(1.0, VISION_SIDE / max(width, height))

    def whole_patches(side: int) -> int:
        return max(1, min(VISION_SIDE // patch, round(side * scale / patch))) * patch

    return whole_patches(width), whole_patches(height)


def encode_jpeg(picture: Image.Image) -> bytes:
    """Encode an RGB picture without its metadata."""
    # A picture keeps metadata of its file in `info`, and Pillow would write some (the comment).
    bare = picture.copy()
    bare.info = {}
    output = io.BytesIO()
    bare.save(output, "JPEG", quality=JPEG_QUALITY)
    return output.getvalue()


def thumbnail_maker(picture: Image.Image, width: int, height: int) -> Callable[[], bytes]:
    """Return the function that encodes the thumbnail of a picture.

    Args:
        picture: the picture at its vision size.
        width: width of the original as shown (pixels). With `height` it sets the thumbnail's shape;
            the shape of the vision size may differ a little, as it has whole patches.
        height: height of the original as shown (pixels).
    """
    scale = min(1.0, THUMBNAIL_SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))

    def make_thumbnail() -> bytes:
        preview = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=_THUMBNAIL_GAP)
        return encode_jpeg(preview)

    return make_thumbnail


def camera_name(make: object, model: object) -> str | None:
    """Join maker and model from a file; None if they have no characters that can be shown.

    Control and format characters (which may hide or reverse text) are removed, and the name is cut
    to fit a line.
    """
    maker, product = _printable(make), _printable(model)
    # "Canon" and "Canon EOS R5"; "EASTMAN KODAK COMPANY" and "KODAK DX4330".
    first_word = re.split(r"[\W_]", product.casefold())[0]
    if first_word and first_word in re.split(r"[\W_]+", maker.casefold()):
        maker = ""
    return f"{maker} {product}".strip()[:_CAMERA_LENGTH].rstrip() or None


def _printable(value: object) -> str:
    if not isinstance(value, str):
        return ""
    # The text is cut before the loop, because a hostile file may have megabytes.
    shown = "".join(c if c.isprintable() else " " for c in value[: 4 * _CAMERA_LENGTH])
    return " ".join(shown.split())
