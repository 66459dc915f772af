"""JPEG 2000: decoded at a half, a quarter, … where that is enough."""

from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from batch_pipeline.media.stills.boxes import boxes, end_of_boxes
from batch_pipeline.media.stills.scaling import scaling_bytes
from batch_pipeline.media.stills.still import PillowStill, pillow_opener


class Jpeg2000Still(PillowStill):
    """A JPEG 2000 file or bare codestream."""

    #: UUID of the box in which EXIF and XMP are kept.
    _EXIF = b"JpgTiffExif->JP2"
    _XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
    _CODING_STYLE = b"\xff\x52\x00"
    #: Of each sample as the decoder keeps it, at the reduced size (bytes).
    _SAMPLE_BYTES = 8

    def __init__(self, data: bytes) -> None:
        super().__init__(pillow_opener(Jpeg2KImageFile, data))
        style = data.find(self._CODING_STYLE)
        self._levels = data[style + 9] if 0 <= style < len(data) - 9 else 0
        for name, start, end in boxes(data):
            if name == b"uuid" and data[start : start + 16] == self._EXIF:
                self.exif.append(data[start + 16 : end])
            elif name == b"uuid" and data[start : start + 16] == self._XMP:
                self.xmp = data[start + 16 : end]
            elif name == b"jp2h":
                self.icc_profile = _profile_in_header(data, start, end)
        self.is_cut = end_of_boxes(data) > len(data)
        self._file_bytes = len(data)

    def memory(self, target: tuple[int, int]) -> int:
        """The reduced samples, Pillow's picture of them, and the packed blocks."""
        width, height = self.size
        pixels = (width * height) >> (2 * self._reduction(target))
        samples = len(self._picture.getbands())
        reduced = (width >> self._reduction(target), height >> self._reduction(target))
        return (
            pixels * (self._SAMPLE_BYTES * samples + 4)
            + 2 * self._file_bytes
            + scaling_bytes(reduced, target)
        )

    def prepare(self, picture: ImageFile, target: tuple[int, int]) -> None:
        """Leave out the resolutions that are not needed."""
        picture.reduce = self._reduction(target)  # type: ignore[method-assign, assignment]

    def _salvage(self, error: Exception, target: tuple[int, int]) -> ImageFile:
        raise error  # the decoder gives all or nothing

    def _reduction(self, target: tuple[int, int]) -> int:
        ratio = min(side // wanted for side, wanted in zip(self.size, target, strict=True))
        return min(self._levels, max(0, ratio.bit_length() - 1))


def _profile_in_header(data: bytes, start: int, end: int) -> bytes | None:
    for name, begin, stop in boxes(data, start, end):
        if name == b"colr" and data[begin : begin + 1] == b"\2":
            return data[begin + 3 : stop]
    return None
