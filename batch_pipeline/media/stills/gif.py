"""GIF: frames are counted without decoding them."""

import re
from io import BytesIO

from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile

from batch_pipeline.media.stills.still import PillowStill

#: A frame of an animated GIF: its graphic control extension and the block after it.
_FRAME = re.compile(rb"\x21\xf9\x04.{4}\x00[\x21\x2c]", re.DOTALL)


class _Plugin(GifImageFile):
    """Does not read every frame to count the frames."""

    n_frames = 1


class GifStill(PillowStill):
    """A GIF, animated or not."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        super().__init__()
        self.frame_count = max(1, sum(1 for _ in _FRAME.finditer(data)))

    def _open(self) -> ImageFile:
        return _Plugin(BytesIO(self._data))
