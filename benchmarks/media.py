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
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageOps
from tools.results import Table, Target, add_results_option, machine, report

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


@dataclass(frozen=True)
class ImageFigure:
    """Megapixels of the file for each second of work."""

    format: str
    ours: float
    full_decode_twice: float

    @property
    def ratio(self) -> float:
        return self.ours / self.full_decode_twice


@dataclass(frozen=True)
class VideoFigure:
    """Seconds of work, and of video for each of them."""

    format: str
    seconds: float
    video_seconds_per_second: float


def measure_images(megapixels: float, rounds: int) -> list[ImageFigure]:
    photo = make_photo(megapixels)
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    formats: tuple[ImageFormat, ...] = ("png", "webp", "heic", "avif")
    files = {"jpeg": photo, **{name: encode_image(picture, name) for name in formats}}
    figures = []
    for name, data in files.items():
        ours, plain = seconds_of(our_path, full_decode_twice, data=data, rounds=rounds)
        figures.append(ImageFigure(name, megapixels / ours, megapixels / plain))
    return figures


def measure_videos(seconds: float, size: tuple[int, int], rounds: int) -> list[VideoFigure]:
    backdrop = np.asarray(paint(size))

    def pan(progress: float) -> Image.Image:
        return Image.fromarray(np.roll(backdrop, round(progress * size[0]), axis=1))

    formats: tuple[VideoFormat, ...] = ("mp4", "webm", "mpeg-ts")
    figures = []
    for name in formats:
        data = make_video(name, seconds, size, painter=pan, keyframe_interval=50)
        (taken,) = seconds_of(our_path, data=data, rounds=rounds)
        figures.append(VideoFigure(name, taken, seconds / taken))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=12, help="of each image (default 12)")
    parser.add_argument("--seconds", type=float, default=20, help="of each video (default 20)")
    parser.add_argument("--height", type=int, default=480, help="of each video (default 480)")
    parser.add_argument("--rounds", type=int, default=3, help="median of so many (default 3)")
    add_results_option(parser)
    given = parser.parse_args()
    size = (given.height * 16 // 9 // 2 * 2, given.height)
    where = machine()
    images = measure_images(given.megapixels, given.rounds)
    videos = measure_videos(given.seconds, size, given.rounds)
    tables = [
        Table(
            f"Images of {given.megapixels:g} megapixels",
            ("format", "ours MP/s", "twice full MP/s", "ratio"),
            [[f.format, f.ours, f.full_decode_twice, f"{f.ratio:.1f}"] for f in images],
        ),
        Table(
            f"Videos of {given.seconds:g} s, {size[0]} x {size[1]}, 25 frames a second",
            ("format", "video seconds per second", "seconds per video"),
            [[f.format, f.video_seconds_per_second, f"{f.seconds:.2f}"] for f in videos],
        ),
    ]
    figures = {
        "images": [asdict(figure) | {"ratio": figure.ratio} for figure in images],
        "videos": [asdict(figure) for figure in videos],
    }
    target = Target("JPEG photos, times faster than two full decodes", 3, images[0].ratio, True)
    report("media", where, figures, tables, targets=[target], folder=given.results)


if __name__ == "__main__":
    main()
