#!/usr/bin/env python3
"""Decode every file of a folder and compare with independent decoders: a table by kind.

    scripts/check_media.py ~/Pictures [--each]

Compared are the upright picture (mean difference of a copy of 64 x 64 pixels, 0 to 255) and, of
films, the length. The others are FFmpeg and ImageMagick, as far as these programs are installed.
Neither tone-maps: a difference in HDR is no fault of either side.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import HEAD_BYTES

SIDE = 64
#: A larger mean difference is worth a look: scaling and colour management differ by less.
LOOK_AT = 12.0
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Checked:
    """One file."""

    path: Path
    kind: str
    outcome: str
    """``ok``, or the kind of the error."""
    seconds: float
    differences: dict[str, float]
    """By the other decoder."""
    note: str = ""


def check(path: Path) -> Checked:
    """Decode one file here and elsewhere."""
    begin = time.perf_counter()
    kind = path.suffix.lower().lstrip(".") or "none"
    try:
        with path.open("rb") as file:
            media_type = accept(file.read(HEAD_BYTES))
            kind = media_type.format
            file.seek(0)
            content = decode(file, media_type, filename=path.name)
    except PermanentError as error:
        return Checked(path, kind, error.kind, time.perf_counter() - begin, {}, str(error))
    seconds = time.perf_counter() - begin
    if content.facts.file_type == "video":
        return Checked(path, kind, "ok", seconds, {}, _compare_lengths(path, content))
    ours = _small(Image.open(io.BytesIO(content.frames[0].jpeg)))
    others = {name: decoder(path) for name, decoder in DECODERS.items() if shutil.which(name)}
    differences = {
        name: float(np.abs(ours - _small(other)).mean())
        for name, other in others.items()
        if other is not None
    }
    return Checked(path, kind, "ok", seconds, differences, "; ".join(content.facts.warnings))


def _small(picture: Image.Image) -> np.ndarray:
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=float)


def _by_ffmpeg(path: Path) -> Image.Image | None:
    size = f"scale={SIDE}:{SIDE}:flags=area"
    options = ["-frames:v", "1", "-vf", size, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return _picture(["ffmpeg", "-v", "error", "-i", str(path), *options])


def _by_imagemagick(path: Path) -> Image.Image | None:
    shape = ["-auto-orient", "-background", "white", "-flatten", "-resize", f"{SIDE}x{SIDE}!"]
    return _picture(["magick", f"{path}[0]", *shape, "-depth", "8", "rgb:-"])


def _picture(command: list[str]) -> Image.Image | None:
    """Run a decoder that prints RGB; None when it cannot decode the file."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    if len(result.stdout) != SIDE * SIDE * 3:
        return None
    return Image.frombytes("RGB", (SIDE, SIDE), result.stdout)


def _compare_lengths(path: Path, content: MediaContent) -> str:
    if not shutil.which("ffprobe"):
        return ""
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_entries", "format=duration"]
    result = subprocess.run(
        [*command, str(path)], capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    try:
        theirs = float(json.loads(result.stdout)["format"]["duration"])
    except (ValueError, KeyError):
        return ""
    ours = content.facts.duration_seconds or 0.0
    near = abs(ours - theirs) <= max(0.5, 0.02 * theirs)
    return "" if near else f"length {ours:.2f} s here, {theirs:.2f} s by ffprobe"


DECODERS = {"ffmpeg": _by_ffmpeg, "magick": _by_imagemagick}


def main() -> int:
    """Print a line for each file worth a look, and the table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--each", action="store_true", help="print a line for every file")
    options = arguments.parse_args()
    by_kind = defaultdict(list)
    for path in sorted(options.folder.rglob("*")):
        if not path.is_file():
            continue
        checked = check(path)
        by_kind[checked.kind].append(checked)
        differs = any(value > LOOK_AT for value in checked.differences.values())
        if options.each or differs or checked.note:
            values = " ".join(f"{name} {value:.1f}" for name, value in checked.differences.items())
            print(f"{path}: {checked.outcome} {values} {checked.note}".rstrip())
    print(f"\n{'kind':10} {'files':>6} {'ok':>6} {'differ':>7} {'mean s':>7}  failed as")
    for kind, files in sorted(by_kind.items()):
        good = [file for file in files if file.outcome == "ok"]
        differ = sum(any(d > LOOK_AT for d in file.differences.values()) for file in good)
        failed = defaultdict(int)
        for file in files:
            if file.outcome != "ok":
                failed[file.outcome] += 1
        seconds = sum(file.seconds for file in files) / len(files)
        reasons = ", ".join(f"{name} {count}" for name, count in sorted(failed.items()))
        print(f"{kind:10} {len(files):6} {len(good):6} {differ:7} {seconds:7.2f}  {reasons}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
