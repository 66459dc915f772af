"""How much time and memory decoding takes: `python benchmarks/media.py`.

Our code decodes a file once, for the vision input and the thumbnail. It runs with huge pages, as in
a run worker (`batch_pipeline.media.memory`), and with small ones. It is compared with alternatives,
which run with small pages, the default of the C library:

- `twice full`: a full decode for each of the two, by Pillow (`pillow-heif`, `pillow-jxl-plugin` and
  LibRaw where Pillow has no decoder of its own);
- `pyvips`: two thumbnails by libvips. It is not a dependency of the project: `pip install
  pyvips-binary pyvips`. Without it, the column says so;
- for videos `ffmpeg`, if it is installed: a call for each of ten frames, and one with its filter
  `thumbnail`.

Each runs in its own process; they take turns. The script prints the best of several rounds: wall
time, and processor time of all threads. Memory is the additional peak compared with a process that
has decoded a small picture. On a busy machine, compare the processor time. The files come from
`batch_pipeline.testing.media`; raw files have a preview. `--file` adds your own files.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from tools.results import Table, Target, add_results_option, machine, report

from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.decoding import decode
from batch_pipeline.testing.media import (
    ImageFormat,
    VideoFormat,
    encode_image,
    make_dng,
    make_photo,
    make_video,
    paint,
)

WORKER = Path(__file__).parent / "tools" / "decode_picture.py"
WAYS = ("ours", "ours, small pages", "twice full", "pyvips")
#: Formats that should take at most half the time of two full decodes.
TARGETS = ("jpeg", "png", "webp", "heic", "avif", "raw (dng) with a preview", "raw (dng) without")


def our_path(data: bytes) -> None:
    decode(io.BytesIO(data), accept(data)).make_thumbnail()


@dataclass(frozen=True)
class Cost:
    """Of one file."""

    seconds: float
    processor: float
    """Seconds of all threads."""
    mebibytes: float


@dataclass(frozen=True)
class ImageFigure:
    """What each decoder takes for a picture; one that is not installed or fails is missing."""

    format: str
    costs: dict[str, Cost]

    def ratio(self, way: str, of: str = "processor") -> float | None:
        """Return how many times more another decoder takes than ours."""
        if way not in self.costs:
            return None
        return float(getattr(self.costs[way], of) / getattr(self.costs["ours"], of))


@dataclass(frozen=True)
class VideoFigure:
    """Seconds of work for ten frames and a thumbnail, and the memory it takes (MiB).

    Our figure is the additional peak after another video was decoded; FFmpeg's is that of the whole
    process.
    """

    format: str
    seconds: float
    processor: float
    video_seconds_per_second: float
    memory: float
    ffmpeg_frames_seconds: float | None
    """Ten calls of `ffmpeg`, one for each frame; None if it is not installed."""
    ffmpeg_thumbnail_seconds: float | None
    """One call with its filter `thumbnail`, which looks at the first 100 frames."""
    ffmpeg_memory: float | None


def make_pictures(megapixels: float) -> dict[str, bytes]:
    """Make one photo in every format for which there is an encoder."""
    photo = make_photo(megapixels)
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    formats: tuple[ImageFormat, ...] = ("png", "webp", "heic", "avif")
    files = {"jpeg": photo, **{name: encode_image(picture, name) for name in formats}}
    for name, extension, options in (
        ("jpeg, progressive", "JPEG", {"quality": 90, "progressive": True}),
        ("tiff, LZW", "TIFF", {"compression": "tiff_lzw"}),
        ("jpeg 2000", "JPEG2000", {"quality_layers": [20], "irreversible": True}),
        ("bmp", "BMP", {}),
    ):
        output = io.BytesIO()
        picture.save(output, extension, **options)
        files[name] = output.getvalue()
    if find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401, PLC0415 - registers itself

        output = io.BytesIO()
        picture.save(output, "JXL", effort=3)
        files["jpeg xl"] = output.getvalue()
    if find_spec("rawpy"):
        width, height = (side // 2 * 2 for side in picture.size)
        files["raw (dng) with a preview"] = make_dng((width, height), preview=photo)
        files["raw (dng) without"] = make_dng((width, height))
    return files


def measure_images(files: dict[str, bytes], rounds: int, turns: int) -> list[ImageFigure]:
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        for name, data in files.items():
            path.write_bytes(data)
            measured: dict[str, list[Cost]] = {}
            for way in WAYS * turns:
                cost = measure_way(way, path, rounds)
                if cost is not None:
                    measured.setdefault(way, []).append(cost)
            best = {
                way: Cost(
                    *(min(getattr(cost, each.name) for cost in costs) for each in fields(Cost))
                )
                for way, costs in measured.items()
            }
            figures.append(ImageFigure(name, best))
    return figures


def measure_way(way: str, path: Path, rounds: int) -> Cost | None:
    """Measure one decoder; None if it cannot be used."""
    if way == "pyvips" and find_spec("pyvips") is None:
        return None
    command = [sys.executable, str(WORKER), way, str(path), str(rounds)]
    tunables = {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb={int(way == 'ours')}"}
    environment = os.environ | tunables
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        if way.startswith("ours"):
            raise RuntimeError(result.stderr)
        return None
    return Cost(**json.loads(result.stdout))


#: Kind of file: format, encoder, distance of key frames.
VIDEOS: dict[str, tuple[VideoFormat, str | None, int]] = {
    "mp4, H.264": ("mp4", None, 50),
    "mp4, H.264, one key frame": ("mp4", None, 100_000),
    "mkv, HEVC": ("mkv", "libx265", 50),
    "webm, VP8": ("webm", None, 50),
    "mpeg-ts, MPEG-2": ("mpeg-ts", None, 50),
    "wmv": ("wmv", None, 50),
}
#: Prints how much more memory the decode of a file takes than that of a small one (MiB).
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


def best_of(function: Callable[[bytes], None], data: bytes, rounds: int) -> tuple[float, float]:
    """Return the shortest wall time and processor time (seconds)."""
    wall, processor = [], []
    for _ in range(rounds):
        begin, begin_processor = time.perf_counter(), time.process_time()
        function(data)
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
    return min(wall), min(processor)


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
            taken, processor = best_of(our_path, data, rounds)
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
                VideoFigure(
                    name, taken, processor, seconds / taken, memory, frames, thumbnail, most
                )
            )
    return figures


def run_ffmpeg(*calls: str) -> tuple[float | None, float]:
    """Return the seconds of some sequential calls, and the largest memory of one (MiB; Linux)."""
    program = shutil.which("ffmpeg")
    if program is None:
        return None, 0.0
    peak, start = 0.0, time.perf_counter()
    for call in calls:
        command = [program, "-v", "error", "-y", "-threads", "1", *call.split()]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        # The system's figure for an ended process would include the memory of its parent.
        while process.poll() is None:
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.005)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, peak


def peak_memory(pid: int) -> float:
    """Return the peak memory of a running process so far (MiB); 0 if it is ending."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def shown(figure: float | None) -> str:
    return (
        "not installed" if figure is None else f"{figure:.2f}" if figure < 10 else f"{figure:.0f}"
    )


def shown_cost(cost: Cost | None) -> str:
    if cost is None:
        return "not installed"
    return f"{cost.seconds:.2f}, {cost.processor:.2f}, {cost.mebibytes:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=12, help="of each image (default 12)")
    parser.add_argument("--seconds", type=float, default=20, help="of each video (default 20)")
    parser.add_argument("--height", type=int, default=480, help="of each video (default 480)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default 3)")
    parser.add_argument("--turns", type=int, default=2, help="processes of each (default 2)")
    parser.add_argument("--file", type=Path, action="append", default=[], help="a picture to add")
    parser.add_argument("--pictures-only", action="store_true", help="do not measure videos")
    add_results_option(parser)
    given = parser.parse_args()
    size = (given.height * 16 // 9 // 2 * 2, given.height)
    where = machine()
    files = make_pictures(given.megapixels) | {path.name: path.read_bytes() for path in given.file}
    images = measure_images(files, given.rounds, given.turns)
    videos = [] if given.pictures_only else measure_videos(given.seconds, size, given.rounds)
    tables = [
        Table(
            f"Images of {given.megapixels:g} megapixels: seconds, seconds of the processor, MiB",
            ("format", *WAYS, *(f"{way}: times our processor" for way in WAYS[1:])),
            [
                [
                    figure.format,
                    *(shown_cost(figure.costs.get(way)) for way in WAYS),
                    *(shown(figure.ratio(way)) for way in WAYS[1:]),
                ]
                for figure in images
            ],
        ),
        Table(
            f"Videos of {given.seconds:g} s, {size[0]} x {size[1]}, 25 frames a second",
            (
                "format",
                "video seconds per second",
                "seconds per video",
                "of the processor",
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
                        (
                            f.seconds,
                            f.processor,
                            f.ffmpeg_frames_seconds,
                            f.ffmpeg_thumbnail_seconds,
                        ),
                    ),
                    *map(shown, (f.memory, f.ffmpeg_memory)),
                ]
                for f in videos
            ],
        ),
    ]
    figures = {
        "images": [
            asdict(figure)
            | {
                "ratio": figure.ratio("twice full", "seconds"),
                "ratio_of_processor": figure.ratio("twice full"),
            }
            for figure in images
        ],
        "videos": [asdict(figure) for figure in videos],
    }
    targets = [
        Target(
            f"{figure.format}, times faster than two full decodes",
            3 if figure.format == "jpeg" else 2,
            max(figure.ratio("twice full", of) or 0 for of in ("seconds", "processor")),
            True,
        )
        for figure in images
        if figure.format in TARGETS
    ]
    report("media", where, figures, tables, targets=targets, folder=given.results)


if __name__ == "__main__":
    main()
