"""Decode one picture repeatedly in a separate process; print seconds and memory as JSON.

Run by `benchmarks/media.py`: `python tools/decode_picture.py WAY FILE ROUNDS`.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.pictures import JPEG_QUALITY, THUMBNAIL_SIDE, VISION_SIDE, vision_size
from batch_pipeline.testing.media import make_image


def ours(data: bytes) -> None:
    decode(io.BytesIO(data), accept(data), max_bytes=1 << 40).make_thumbnail()


def full_decode_twice(data: bytes) -> None:
    """Make a thumbnail and a picture for a model, each with its own decode."""
    for fit in (vision_size, thumbnail_size):
        picture = ImageOps.exif_transpose(open_whole(data)).convert("RGB")
        picture = picture.resize(fit(*picture.size), Image.Resampling.LANCZOS)
        picture.save(io.BytesIO(), "JPEG", quality=JPEG_QUALITY)


def pyvips_twice(data: bytes) -> None:
    """Do the same with libvips, which decodes at a reduced scale if the format supports that."""
    import pyvips  # noqa: PLC0415 - no dependency of the project

    for side in (VISION_SIDE, THUMBNAIL_SIDE):
        picture = pyvips.Image.thumbnail_buffer(data, side, height=side, size="down")
        picture.write_to_buffer(f".jpg[Q={JPEG_QUALITY},keep=none]")


WAYS: dict[str, Callable[[bytes], None]] = {
    "ours": ours,
    "ours, small pages": ours,
    "twice full": full_decode_twice,
    "pyvips": pyvips_twice,
}


def open_whole(data: bytes) -> Image.Image:
    if accept(data).package == "rawpy":
        import rawpy  # noqa: PLC0415 - an extra

        with rawpy.imread(io.BytesIO(data)) as raw:
            return Image.fromarray(raw.postprocess(use_camera_wb=True))
    return Image.open(io.BytesIO(data))


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    scale = THUMBNAIL_SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def peak_memory() -> int:
    """Return this process's peak memory (bytes). That of `resource` would include its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    way, data = WAYS[sys.argv[1]], Path(sys.argv[2]).read_bytes()
    from pillow_heif import register_heif_opener  # noqa: PLC0415

    register_heif_opener()
    if find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401, PLC0415 - registers itself
    Image.MAX_IMAGE_PIXELS = None
    small = make_image(size=(64, 48))
    way(small)  # load everything that is loaded only once
    before = peak_memory()
    wall, processor = [], []
    for _ in range(int(sys.argv[3])):
        begin, begin_processor = time.perf_counter(), time.process_time()
        way(data)
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
    found = {"seconds": min(wall), "processor": min(processor)}
    print(json.dumps(found | {"mebibytes": (peak_memory() - before) / 2**20}))


if __name__ == "__main__":
    main()
