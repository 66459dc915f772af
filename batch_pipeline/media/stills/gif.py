"""GIF: frames are counted without decoding them."""

import re

from PIL.GifImagePlugin import GifImageFile

from batch_pipeline.media.stills.still import PillowStill, pillow_opener

#: A frame of an animated GIF: its graphic control extension and the block after it.
_FRAME = re.compile(rb"\x21\xf9\x04.{4}\x00[\x21\x2c]", re.DOTALL)


class _Plugin(GifImageFile):
    """Does not read every frame to count the frames."""

    n_frames = 1


class GifStill(PillowStill):
    """A GIF, animated or not."""

    def __init__(self, data: bytes) -> None:
        super().__init__(pillow_opener(_Plugin, data))
        self.frame_count = max(1, sum(1 for _ in _FRAME.finditer(data)))
