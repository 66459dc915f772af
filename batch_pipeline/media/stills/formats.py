"""Decides which decoder opens which format.

The sniffed type decides. Pillow does not, because it would try every registered plugin.
"""

from collections.abc import Callable

from batch_pipeline.media.stills.bmp import open_bmp
from batch_pipeline.media.stills.gif import GifStill
from batch_pipeline.media.stills.heif import AvifStill, HeifStill
from batch_pipeline.media.stills.jpeg import JpegStill
from batch_pipeline.media.stills.jpeg2000 import Jpeg2000Still
from batch_pipeline.media.stills.jxl import JxlStill
from batch_pipeline.media.stills.png import PngStill
from batch_pipeline.media.stills.psd import PsdStill
from batch_pipeline.media.stills.raw import open_raw
from batch_pipeline.media.stills.still import Still
from batch_pipeline.media.stills.tiff import TiffStill
from batch_pipeline.media.stills.webp import WebPStill

DECODERS: dict[str, Callable[[bytes], Still]] = {
    "jpeg": JpegStill,
    "png": PngStill,
    "webp": WebPStill,
    "gif": GifStill,
    "avif": AvifStill,
    "heic": HeifStill,
    "heif": HeifStill,
    "tiff": TiffStill,
    "bmp": open_bmp,
    "jpeg2000": Jpeg2000Still,
    "psd": PsdStill,
    "jxl": JxlStill,
    **dict.fromkeys(("dng", "cr2", "cr3", "nef", "arw", "raf", "rw2", "orf", "raw"), open_raw),
}
