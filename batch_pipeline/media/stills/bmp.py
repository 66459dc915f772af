"""BMP."""

from PIL.BmpImagePlugin import BmpImageFile

from batch_pipeline.media.stills.still import PillowStill, pillow_opener


class BmpStill(PillowStill):
    """A Windows bitmap."""

    def __init__(self, data: bytes) -> None:
        super().__init__(pillow_opener(BmpImageFile, data))
        self.is_cut = int.from_bytes(data[2:6], "little") > len(data)
