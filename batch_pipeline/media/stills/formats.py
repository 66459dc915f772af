"""Which decoder opens which format: the one place where this is decided.

What was sniffed decides, never Pillow, which would ask every plugin that is registered.
"""

from collections.abc import Callable

from batch_pipeline.media.stills.gif import GifStill
from batch_pipeline.media.stills.heif import AvifStill, HeifStill
from batch_pipeline.media.stills.jpeg import JpegStill
from batch_pipeline.media.stills.png import PngStill
from batch_pipeline.media.stills.still import Still
from batch_pipeline.media.stills.webp import WebPStill

DECODERS: dict[str, Callable[[bytes], Still]] = {
    "jpeg": JpegStill,
    "png": PngStill,
    "webp": WebPStill,
    "gif": GifStill,
    "avif": AvifStill,
    "heic": HeifStill,
    "heif": HeifStill,
}
