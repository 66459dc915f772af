#!/usr/bin/env python3
"""Decodes every file of a folder, and compares the results with those of other decoders.

    scripts/check_media.py ~/Pictures [--each]

It compares the upright picture (of a film, the frame in the middle) and the length of films. The
difference of two pictures is the mean difference of copies of 32 x 32 pixels, 0 to 255. The other
decoders are FFmpeg and ImageMagick, if they are installed. A file counts as different only if none
of them shows the same picture, because each has its own gaps. Neither of them does tone mapping, so
a difference in HDR is not an error of either side.

Each file is decoded in its own process. A file is a finding if it raises an exception other than
a refusal, kills its process or takes more than a minute. The run goes on, and its exit code is 1.
At the end it prints a table by kind of file.
"""

import argparse
import io
import json
import multiprocessing
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import read_head

SIDE = 32
#: A larger mean difference is reported. Scaling and colour management cause smaller ones.
LOOK_AT = 12.0
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Checked:
    """One file."""

    path: Path
    kind: str
    outcome: str
    """``ok``, the kind of the refusal, or a finding: ``crash …``, ``hang``."""
    seconds: float = 0.0
    note: str = ""
    picture: Image.Image | None = None
    """Our picture, of `SIDE` x `SIDE` pixels."""
    position: float | None = None
    """Position of that picture in a film (seconds)."""
    length: float | None = None
    """Length of a film (seconds)."""
    differences: dict[str, float] = field(default_factory=dict)
    """Mean difference to each other decoder."""

    @property
    def is_finding(self) -> bool:
        """Whether something happened that must not happen to any file."""
        return self.outcome.startswith(("crash", "hang"))

    @property
    def differs(self) -> bool:
        """Whether every independent decoder that decodes it shows something else."""
        return min(self.differences.values(), default=0.0) > LOOK_AT


def check(path: Path) -> Checked:
    """Decode one file with our code in its own process, and with the other decoders."""
    # This process decodes nothing: a fork would lose the threads that decoders start.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_decode_and_send, args=(path, sender))
    worker.start()
    sender.close()
    try:
        answered = receiver.poll(PATIENCE_SECONDS)
        checked = receiver.recv() if answered else Checked(path, _kind(path), "hang")
    except EOFError:  # the file has killed the process
        worker.join()
        checked = Checked(path, _kind(path), f"crash (exit code {worker.exitcode})")
    worker.kill()
    worker.join()
    return _compared(checked) if checked.picture else checked


def _decode_and_send(path: Path, sender: Connection) -> None:
    warnings.filterwarnings("ignore", message="rawpy is being used", category=RuntimeWarning)
    sender.send(decode_here(path))


def decode_here(path: Path) -> Checked:
    """Decode one file with the project's own code."""
    begin = time.perf_counter()
    kind = _kind(path)
    try:
        with path.open("rb") as file:
            media_type = accept(read_head(file))
            kind = media_type.format
            file.seek(0)
            content = decode(file, media_type, filename=path.name)
        content.make_thumbnail()
    except PermanentError as error:
        return Checked(path, kind, error.kind, time.perf_counter() - begin, str(error))
    except Exception as error:  # this script looks for such errors
        where = traceback.extract_tb(error.__traceback__)[-1]
        note = f"{error} ({Path(where.filename).name}:{where.lineno})"
        return Checked(
            path, kind, f"crash ({type(error).__name__})", time.perf_counter() - begin, note
        )
    return _shown(Checked(path, kind, "ok", time.perf_counter() - begin), content)


def _shown(checked: Checked, content: MediaContent) -> Checked:
    frame = content.frames[len(content.frames) // 2]
    is_film = content.facts.file_type == "video"
    return replace(
        checked,
        note="; ".join(content.facts.warnings),
        picture=_small(Image.open(io.BytesIO(frame.jpeg))),
        position=frame.position_seconds if is_film else None,
        length=content.facts.duration_seconds or 0.0 if is_film else None,
    )


def _kind(path: Path) -> str:
    """Return the kind of a file whose content is not recognised."""
    return path.suffix.lower().lstrip(".") or "none"


def _small(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


def _compared(checked: Checked) -> Checked:
    others = {name: decoder(checked) for name, decoder in DECODERS.items()}
    ours = np.asarray(checked.picture, dtype=float)
    differences = {
        name: float(np.abs(ours - np.asarray(other, dtype=float)).mean())
        for name, other in others.items()
        if other is not None
    }
    notes = [checked.note, _compare_lengths(checked)]
    return replace(checked, differences=differences, note="; ".join(filter(None, notes)))


def _by_ffmpeg(checked: Checked) -> Image.Image | None:
    if not shutil.which("ffmpeg"):
        return None
    size = f"scale={SIDE}:{SIDE}:flags=area"
    options = ["-frames:v", "1", "-vf", size, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    place = ["-ss", f"{checked.position:.3f}"] if checked.position else []
    return _picture(["ffmpeg", "-v", "error", *place, "-i", str(checked.path), *options])


def _by_imagemagick(checked: Checked) -> Image.Image | None:
    program = _imagemagick()
    if program is None or checked.length is not None:
        return None
    shape = [
        "-auto-orient",
        "-background",
        "white",
        "-flatten",
        "-filter",
        "Box",
        "-resize",
        f"{SIDE}x{SIDE}!",
    ]
    colours = ["-colorspace", "sRGB", "-depth", "8", "rgb:-"]
    return _picture([program, f"{checked.path}[0]", *shape, *colours])


@cache
def _imagemagick() -> str | None:
    """Return the program of ImageMagick: `magick` (version 7) or `convert` (version 6).

    Other software also has a program named `convert`.
    """
    for name in ("magick", "convert", "convert-im6"):
        if shutil.which(name):
            said = subprocess.run([name, "-version"], capture_output=True, check=False).stdout
            if said.startswith(b"Version: ImageMagick"):
                return name
    return None


def _picture(command: list[str]) -> Image.Image | None:
    """Run a decoder that prints RGB values; None if it cannot decode the file."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    if len(result.stdout) != SIDE * SIDE * 3:
        return None
    return Image.frombytes("RGB", (SIDE, SIDE), result.stdout)


def _compare_lengths(checked: Checked) -> str:
    if checked.length is None or not shutil.which("ffprobe"):
        return ""
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_entries", "format=duration"]
    try:
        result = subprocess.run(
            [*command, str(checked.path)],
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        theirs = float(json.loads(result.stdout)["format"]["duration"])
    except (ValueError, KeyError, subprocess.TimeoutExpired):
        return ""
    near = abs(checked.length - theirs) <= max(0.5, 0.02 * theirs)
    return "" if near else f"length {checked.length:.2f} s here, {theirs:.2f} s by ffprobe"


DECODERS: dict[str, Callable[[Checked], Image.Image | None]] = {
    "ffmpeg": _by_ffmpeg,
    "imagemagick": _by_imagemagick,
}


def main() -> int:
    """Print a line for each file to look at, and the table."""
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
        if options.each or checked.differs or checked.note or checked.is_finding:
            values = " ".join(f"{name} {value:.1f}" for name, value in checked.differences.items())
            print(f"{path}: {checked.outcome} {values} {checked.note}".rstrip(), flush=True)
    print(
        f"\n{'kind':10} {'files':>6} {'ok':>6} {'compared':>8} {'differ':>7} {'mean s':>7}  others"
    )
    for kind, files in sorted(by_kind.items()):
        good = [file for file in files if file.outcome == "ok"]
        compared = sum(bool(file.differences) for file in good)
        differ = sum(file.differs for file in good)
        others: dict[str, int] = defaultdict(int)
        for file in files:
            if file.outcome != "ok":
                others[file.outcome] += 1
        seconds = sum(file.seconds for file in files) / len(files)
        reasons = ", ".join(f"{name} {count}" for name, count in sorted(others.items()))
        print(
            f"{kind:10} {len(files):6} {len(good):6} {compared:8} {differ:7} {seconds:7.2f}  "
            f"{reasons}"
        )
    findings = sum(file.is_finding for files in by_kind.values() for file in files)
    print(f"\n{findings} crashes and hangs")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
