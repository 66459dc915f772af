"""Photoshop documents."""

from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.PsdImagePlugin import PsdImageFile

from batch_pipeline.media.stills.pieces import joined
from batch_pipeline.media.stills.scaling import scale, scaling_bytes
from batch_pipeline.media.stills.still import PillowStill

#: Of a sample of 32 bits.
_FLOAT_BYTES = 4


class PsdStill(PillowStill):
    """The composite picture of a Photoshop document; its layers are not read."""

    #: Numbers of image resources.
    _IPTC, _EXIF, _XMP = 1028, 1058, 1060

    def __init__(self, data: bytes) -> None:
        self._sample_bytes = max(1, int.from_bytes(data[22:24], "big") // 8)
        super().__init__(lambda: _PsdPlugin(_as_bytes(data, self._sample_bytes)))
        self.size = (self.size[0] // self._sample_bytes, self.size[1])
        for number, _, content in getattr(self._picture, "resources", ()):
            if number == self._EXIF:
                self.exif.append(content)
            elif number == self._XMP:
                self.xmp = content
            elif number == self._IPTC:
                self.iptc = content

    def memory(self, target: tuple[int, int]) -> int:
        """As Pillow keeps it, deep samples as bytes beside each other, and a strip."""
        width, height = self.size
        return width * height * 4 * self._sample_bytes + 2 * scaling_bytes(self.size, target)

    def _shrink(self, picture: Image.Image, target: tuple[int, int]) -> Image.Image:
        if self._sample_bytes == 1:
            return super()._shrink(picture, target)

        def read_rows(top: int, bottom: int) -> Image.Image:
            return self._shallow(picture.crop((0, top, picture.width, bottom)))

        return scale(self.size, target, read_rows)

    def _shallow(self, rows: Image.Image) -> Image.Image:
        """Samples of 8 bits of those that Pillow has taken for several."""
        values = np.asarray(rows)
        values = values.reshape(rows.height, -1, self._sample_bytes, len(rows.getbands()))
        if self._sample_bytes == _FLOAT_BYTES:  # light from 0 to 1, not in steps that look equal
            packed = np.ascontiguousarray(np.moveaxis(values, 2, 3))
            light = np.nan_to_num(packed.view(">f4")[..., 0].astype(np.float32)).clip(0, 1)
            levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
            shallow = np.rint(levels * 255).astype(np.uint8)
        else:
            shallow = np.ascontiguousarray(values[:, :, 0])
        if rows.mode == "L":
            return Image.fromarray(shallow[..., 0])
        return Image.frombytes(rows.mode, (shallow.shape[1], rows.height), shallow.tobytes())


def _as_bytes(data: bytes, sample_bytes: int) -> BinaryIO:
    """The document as one of 8 bits; where its samples are deeper, of as many more columns."""
    if sample_bytes == 1:
        return BytesIO(data)
    width = int.from_bytes(data[18:22], "big") * sample_bytes
    depth = (8).to_bytes(2, "big")
    return joined([data[:18], width.to_bytes(4, "big"), depth, memoryview(data)[24:]])


class _PsdPlugin(PsdImageFile):
    """Does not read the layers to count them."""

    n_frames = 1
    is_animated = False
