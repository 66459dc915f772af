"""How fast files become pictures: `python benchmarks/media.py`.

Images: our path (one reduced decode for the vision input and the thumbnail) against the plain way,
a full decode for each of the two. Both are measured in turns within one run, so that a busy machine
slows both: compare the ratio, not the rates. Megapixels are those of the file. Videos: seconds of
video for each second of work, as frames are taken by position and not one by one.

The files are made by `batch_pipeline.testing.media` and lie in memory: reading is not measured. One
thread (AVIF and HEIC decoders start their own).
"""

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from batch_pipeline.media.decoding import decode
from batch_pipeline.media.pictures import JPEG_QUALITY, THUMBNAIL_SIDE, vision_size
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.testing.media import (
    ImageFormat,
    VideoFormat,
    encode_image,
    make_photo,
    make_video,
    paint,
)


def our_path(data: bytes) -> None:
    media_type = sniff(data)
    assert media_type is not None
    decode(io.BytesIO(data), media_type).make_thumbnail()


def full_decode_twice(data: bytes) -> None:
    for fit in (vision_size, thumbnail_size):
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        picture = picture.resize(fit(*picture.size), Image.Resampling.LANCZOS)
        picture.save(io.BytesIO(), "JPEG", quality=JPEG_QUALITY)


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    scale = THUMBNAIL_SIDE / max(width, height)
    return round(width * scale), round(height * scale)


def seconds_of(*functions: Callable[[bytes], None], data: bytes, rounds: int) -> list[float]:
    """Median seconds of each function; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function(data)
            if turn > 0:  # the first warms up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def measure_images(megapixels: float, rounds: int) -> Table:
    table = Table(title=f"Images of {megapixels:g} megapixels")
    for heading in ("format", "ours MP/s", "twice full MP/s", "ratio"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    photo = make_photo(megapixels)
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    formats: tuple[ImageFormat, ...] = ("png", "webp", "heic", "avif")
    files = {"jpeg": photo, **{name: encode_image(picture, name) for name in formats}}
    for name, data in files.items():
        ours, plain = seconds_of(our_path, full_decode_twice, data=data, rounds=rounds)
        row = (megapixels / ours, megapixels / plain)
        table.add_row(name, *(f"{rate:.0f}" for rate in row), f"{plain / ours:.1f}")
    return table


def measure_videos(seconds: float, height: int, rounds: int) -> Table:
    size = (height * 16 // 9 // 2 * 2, height)
    table = Table(title=f"Videos of {seconds:g} s, {size[0]} x {size[1]}, 25 frames a second")
    table.add_column("format")
    table.add_column("video seconds per second", justify="right")
    table.add_column("seconds per video", justify="right")
    backdrop = np.asarray(paint(size))

    def pan(progress: float) -> Image.Image:
        return Image.fromarray(np.roll(backdrop, round(progress * size[0]), axis=1))

    formats: tuple[VideoFormat, ...] = ("mp4", "webm", "mpeg-ts")
    for name in formats:
        data = make_video(name, seconds, size, painter=pan, keyframe_interval=50)
        (taken,) = seconds_of(our_path, data=data, rounds=rounds)
        table.add_row(name, f"{seconds / taken:.0f}", f"{taken:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=12, help="of each image (default 12)")
    parser.add_argument("--seconds", type=float, default=20, help="of each video (default 20)")
    parser.add_argument("--height", type=int, default=480, help="of each video (default 480)")
    parser.add_argument("--rounds", type=int, default=3, help="median of so many (default 3)")
    given = parser.parse_args()
    console = Console()
    console.print(measure_images(given.megapixels, given.rounds))
    console.print(measure_videos(given.seconds, given.height, given.rounds))
    console.print(
        f"Python {platform.python_version()}, Pillow {PIL.__version__}, {platform.machine()}. "
        f"Repeat: python benchmarks/media.py --megapixels {given.megapixels:g} "
        f"--seconds {given.seconds:g} --height {given.height} --rounds {given.rounds}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
