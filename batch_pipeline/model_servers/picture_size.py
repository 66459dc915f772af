"""The size of pictures as models take them: tokens cost by the pixel, and some sides crash some.

Pictures come from ``media``, re-encoded and no longer than 1,568 pixels on a side.
"""

import io
import re
from dataclasses import dataclass

from PIL import Image, ImageOps

#: Models that look at patches of 28 pixels crash on a side that is shorter (pixels).
SMALLEST_SIDE = 32
_JPEG_QUALITY = 90
#: Families whose patches have 32 pixels, and which fail on others.
_PATCHES_OF_32 = re.compile(r"qwen-?3(\.\d)?(-?vl)?", re.IGNORECASE)


def side_multiple(model: str) -> int:
    """What the sides of a picture are to be multiples of, by the name of the model (pixels)."""
    return 32 if _PATCHES_OF_32.search(model) else 1


@dataclass(frozen=True)
class PictureSize:
    """What a model wants of the sides of a picture."""

    longest_side: int
    """Pixels."""
    multiple: int = 1
    """Both sides are multiples of this."""

    def fitted(self, jpeg: bytes) -> bytes:
        """Bring a picture to its size; the same bytes if it has it already.

        What is too long is scaled; what is too short gets a grey border, since a line of pixels
        drawn out to an area would be another picture.
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
