"""What images and videos share once there is a picture in memory: sizes, JPEG, the camera's name.

Here: helpers on `PIL.Image` pictures that are already small. Reading files is the matter of
`batch_pipeline.media.images` and `batch_pipeline.media.videos`.
"""

import io
import re
from collections.abc import Callable

from PIL import Image

#: Longest side of what a vision model gets (pixels); more costs tokens and shows it little more.
VISION_SIDE = 1568
#: Vision models cut pictures into patches of this side (pixels); whole patches save them a rescale.
VISION_PATCH = 28
#: Longest side of a preview (pixels).
THUMBNAIL_SIDE = 256
JPEG_QUALITY = 85
#: A box filter goes down to so many times the preview. It saves 10 of 16 ms, and 55 dB away nobody
#: sees it.
_THUMBNAIL_GAP = 3.0
#: Longer names of cameras are cut (characters).
_CAMERA_LENGTH = 80


def vision_size(width: int, height: int) -> tuple[int, int]:
    """Size at which a picture of `width` x `height` pixels goes to a vision model.

    Both sides are multiples of `VISION_PATCH`, rounded down but never to nothing, and at most
    `VISION_SIDE`.
    """
    scale = min(1.0, VISION_SIDE / max(width, height))

    def whole_patches(side: int) -> int:
        return max(VISION_PATCH, int(side * scale) // VISION_PATCH * VISION_PATCH)

    return whole_patches(width), whole_patches(height)


def encode_jpeg(picture: Image.Image) -> bytes:
    """Encode an RGB picture; no metadata of it is written."""
    # A picture keeps in `info` what its file said, and Pillow writes some of that (the comment).
    bare = picture.copy()
    bare.info = {}
    output = io.BytesIO()
    bare.save(output, "JPEG", quality=JPEG_QUALITY)
    return output.getvalue()


def thumbnail_maker(picture: Image.Image, width: int, height: int) -> Callable[[], bytes]:
    """Return the function that encodes the preview of a picture.

    Args:
        picture: the picture at its vision size.
        width: of the original as shown (pixels); with `height` it gives the preview its shape,
            from which whole patches may have departed a little.
        height: of the original as shown (pixels).
    """
    scale = min(1.0, THUMBNAIL_SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))

    def make_thumbnail() -> bytes:
        preview = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=_THUMBNAIL_GAP)
        return encode_jpeg(preview)

    return make_thumbnail


def camera_name(make: object, model: object) -> str | None:
    """Join maker and model as a file gives them; None when it gives nothing that can be shown.

    Control and format characters (which may hide or reverse text) are removed, and the name is cut
    at a length that fits a line.
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
    # Ahead of the loop, as a hostile file may give megabytes.
    shown = "".join(c if c.isprintable() else " " for c in value[: 4 * _CAMERA_LENGTH])
    return " ".join(shown.split())
