"""How fast files become pictures: `python benchmarks/media.py`.

Images: our path (one reduced decode for the vision input and the thumbnail) against the plain way,
a full decode for each of the two. Both are measured in turns within one run, so that a busy machine
slows both: compare the ratio, not the rates. Megapixels are those of the file. Videos: ten frames
and a thumbnail, as frames are taken by position and not one by one, beside `ffmpeg` where it is
installed: a call for each frame, and one with its filter `thumbnail`.

The files are made by `batch_pipeline.testing.media` and lie in memory: reading is not measured. One
thread (AVIF and HEIC decoders start their own).
"""

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """Seconds of work for ten frames and a thumbnail, and the memory it takes (MiB).

    Ours rises above a process that has decoded another video before; FFmpeg's is the whole process.
    """

    format: str
    seconds: float
    video_seconds_per_second: float
    memory: float
    ffmpeg_frames_seconds: float | None
    """Of ten calls of `ffmpeg`, one for each frame; None where it is not installed."""
    ffmpeg_thumbnail_seconds: float | None
    """Of one call with its filter `thumbnail`, which looks at the first 100 frames."""
    ffmpeg_memory: float | None


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


#: Kind of file: format, encoder, distance of key frames.
VIDEOS: dict[str, tuple[VideoFormat, str | None, int]] = {
    "mp4, H.264": ("mp4", None, 50),
    "mp4, H.264, one key frame": ("mp4", None, 100_000),
    "mkv, HEVC": ("mkv", "libx265", 50),
    "webm, VP8": ("webm", None, 50),
    "mpeg-ts, MPEG-2": ("mpeg-ts", None, 50),
    "wmv": ("wmv", None, 50),
}
#: Prints what the decode of a file rises above that of a small one (MiB).
PEAK_OF_OURS = """
import sys
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import HEAD_BYTES, sniff

def peak(path):
    with open(path, "rb") as file:
        media_type = sniff(file.read(HEAD_BYTES))
        decode(file, media_type).make_thumbnail()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

before = peak(sys.argv[1])
print(peak(sys.argv[2]) - before)
"""


def measure_videos(seconds: float, size: tuple[int, int], rounds: int) -> list[VideoFigure]:
    backdrop = np.asarray(paint(size))

    def pan(progress: float) -> Image.Image:
        return Image.fromarray(np.roll(backdrop, round(progress * size[0]), axis=1))

    figures = []
    with tempfile.TemporaryDirectory() as folder:
        path, small = str(Path(folder) / "video"), str(Path(folder) / "small")
        Path(small).write_bytes(make_video("mp4", 1))
        for name, (video_format, encoder, distance) in VIDEOS.items():
            data = make_video(
                video_format,
                seconds,
                size,
                painter=pan,
                encoder=encoder,
                keyframe_interval=distance,
            )
            Path(path).write_bytes(data)
            (taken,) = seconds_of(our_path, data=data, rounds=rounds)
            child = [sys.executable, "-c", PEAK_OF_OURS, small, path]
            memory = float(subprocess.run(child, capture_output=True, check=True).stdout)
            frames, frames_memory = run_ffmpeg(
                *(
                    f"-ss {seconds * (part + 0.5) / 10} -i {path} -frames:v 1 {path}_{part}.jpg"
                    for part in range(10)
                )
            )
            thumbnail, thumbnail_memory = run_ffmpeg(
                f"-i {path} -vf thumbnail,scale=256:-2 -frames:v 1 {path}.jpg"
            )
            most = max(frames_memory, thumbnail_memory) if frames is not None else None
            figures.append(
                VideoFigure(name, taken, seconds / taken, memory, frames, thumbnail, most)
            )
    return figures


def run_ffmpeg(*calls: str) -> tuple[float | None, float]:
    """Seconds of some calls one after another, and the memory of the largest (MiB; Linux)."""
    program = shutil.which("ffmpeg")
    if program is None:
        return None, 0.0
    peak, start = 0.0, time.perf_counter()
    for call in calls:
        command = [program, "-v", "error", "-y", "-threads", "1", *call.split()]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        # What the system reports of a process that has ended counts in its parent's memory.
        while process.poll() is None:
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.005)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, peak


def peak_memory(pid: int) -> float:
    """Of a running process, so far (MiB); 0 for one that is ending."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def shown(figure: float | None) -> str:
    return (
        "not installed" if figure is None else f"{figure:.2f}" if figure < 10 else f"{figure:.0f}"
    )


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
            (
                "format",
                "video seconds per second",
                "seconds per video",
                "ffmpeg, ten frames: seconds",
                "ffmpeg, thumbnail: seconds",
                "MiB",
                "ffmpeg: MiB",
            ),
            [
                [
                    f.format,
                    f.video_seconds_per_second,
                    *map(
                        shown,
                        (f.seconds, f.ffmpeg_frames_seconds, f.ffmpeg_thumbnail_seconds),
                    ),
                    *map(shown, (f.memory, f.ffmpeg_memory)),
                ]
                for f in videos
            ],
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
