"""Photoshop documents."""

from PIL.PsdImagePlugin import PsdImageFile

from batch_pipeline.media.stills.still import PillowStill, pillow_opener


class PsdStill(PillowStill):
    """The composite picture of a Photoshop document; its layers are not read."""

    #: Numbers of image resources.
    _IPTC, _EXIF, _XMP = 1028, 1058, 1060

    def __init__(self, data: bytes) -> None:
        super().__init__(pillow_opener(_PsdPlugin, data))
        for number, _, content in getattr(self._picture, "resources", ()):
            if number == self._EXIF:
                self.exif.append(content)
            elif number == self._XMP:
                self.xmp = content
            elif number == self._IPTC:
                self.iptc = content


class _PsdPlugin(PsdImageFile):
    """Does not read the layers to count them."""

    n_frames = 1
    is_animated = False
