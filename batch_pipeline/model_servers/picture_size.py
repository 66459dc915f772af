"""Fits pictures to a model: larger pictures cost more tokens, and some sizes crash some models.

Pictures come from ``media``: re-encoded, with sides of 1,568 pixels at most.
"""

import io
import re
from dataclasses import dataclass

from PIL import Image, ImageOps

from batch_pipeline.media.pictures import VISION_PATCH
from batch_pipeline.settings import Settings

#: Models with patches of 28 pixels crash on shorter sides (pixels).
SMALLEST_SIDE = 32
_JPEG_QUALITY = 90
#: Model families with patches of 32 pixels; they fail if a side is not a multiple of that.
_PATCHES_OF_32 = re.compile(r"qwen-?3(\.\d)?(-?vl)?", re.IGNORECASE)


def side_multiple(model: str) -> int:
    """Return the number that sides must be multiples of, from the model's name (pixels)."""
    return 32 if _PATCHES_OF_32.search(model) else 1


def picture_size(settings: Settings) -> "PictureSize":
    """Return the size of pictures for the vision model of the settings."""
    return PictureSize(
        settings.vision_longest_side,
        settings.vision_side_multiple or side_multiple(settings.vision_model),
    )


@dataclass(frozen=True)
class PictureSize:
    """The sides of pictures that a model needs."""

    longest_side: int
    """Pixels."""
    multiple: int = 1
    """Both sides are multiples of this."""

    @property
    def patch(self) -> int:
        """The multiple to decode with, so that most pictures fit as they are (pixels)."""
        return self.multiple if VISION_PATCH % self.multiple else VISION_PATCH

    def fitted(self, jpeg: bytes) -> bytes:
        """Fit a picture to the size; returns the same bytes if it already fits.

        A side that is too long is scaled. A side that is too short gets a grey border: stretching a
        thin line to an area would make a different picture.
        """
        with Image.open(io.BytesIO(jpeg)) as picture:
            scale = min(1.0, self.longest_side / max(picture.size))
            width, height = (self._side(side * scale) for side in picture.size)
            smallest = -(-SMALLEST_SIDE // self.multiple) * self.multiple
            framed = max(width, smallest), max(height, smallest)
            if picture.size == framed:
                return jpeg
            shown = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        if shown.size != framed:
            shown = ImageOps.pad(shown, framed, color="grey")
        written = io.BytesIO()
        shown.save(written, "JPEG", quality=_JPEG_QUALITY)
        return written.getvalue()

    def _side(self, pixels: float) -> int:
        most = self.longest_side // self.multiple
        return max(1, min(most, round(pixels / self.multiple))) * self.multiple
