"""Shared code of tests of films: decode by content, inspect the result."""

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

from batch_pipeline.media.content import Frame, MediaContent
from batch_pipeline.media.memory import DEFAULT_DECODE_BYTES
from batch_pipeline.media.sniffing import HEAD_BYTES, sniff
from batch_pipeline.media.videos import decode_video

#: Files that were once decoded wrongly.
CASES = Path(__file__).parents[2] / "cases" / "media"


def decode(data: bytes, max_bytes: int = DEFAULT_DECODE_BYTES) -> MediaContent:
    media_type = sniff(data[:HEAD_BYTES])
    assert media_type is not None
    return decode_video(io.BytesIO(data), media_type, max_bytes=max_bytes)


def decode_case(name: str) -> MediaContent:
    return decode((CASES / name).read_bytes())


def picture_of(frame: Frame) -> Image.Image:
    return Image.open(io.BytesIO(frame.jpeg))


def thumbnail_of(content: MediaContent) -> Image.Image:
    return Image.open(io.BytesIO(content.make_thumbnail()))


def pixel(picture: Image.Image, x: float, y: float) -> np.ndarray:
    """Mean colour around a place, in parts of width and height."""
    column, row = int(x * picture.width), int(y * picture.height)
    around = np.asarray(picture.convert("RGB"), dtype=float)
    return around[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].mean(axis=(0, 1))


def progress_shown(frame: Frame) -> float:
    """Progress that `paint_progress` painted into a frame, 0 to 1."""
    return (float(np.asarray(picture_of(frame).convert("L")).mean()) - 50) / 180


def joined(first: bytes, second: bytes, gap: int = 0) -> bytes:
    """Put the frames of two WebM films into one stream; their sizes may differ.

    Args:
        gap: time between them (seconds).
    """
    output = io.BytesIO()
    with av.open(output, "w", format="webm") as whole:
        stream, later = None, 0
        for film in (first, second):
            with av.open(io.BytesIO(film)) as part:
                if stream is None:
                    stream = whole.add_stream_from_template(part.streams.video[0])
                for packet in part.demux(video=0):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + later, packet.dts + later
                        packet.stream = stream
                        whole.mux(packet)
                later += round((float((part.duration or 0) / av.time_base) + gap) * 1000)
    return output.getvalue()
