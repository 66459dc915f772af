"""What is handed from the media path to the models: pictures as JPEG, and the facts beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

FileType = Literal["image", "video"]


@dataclass(frozen=True)
class MediaFacts:
    """What a file says about itself. Never a position: GPS data is not read.

    Width and height are pixels as shown to a person (EXIF orientation or rotation applied).
    """

    file_type: FileType
    format: str
    """Canonical name of the true format, e.g. ``jpeg``, ``heic``, ``mp4``."""
    width: int
    height: int
    captured_at: datetime | None = None
    """Local time on the camera's clock, without a zone, to the second."""
    date_source: str | None = None
    """Where `captured_at` was found, e.g. ``EXIF DateTimeOriginal``, ``file name``."""
    camera: str | None = None
    """Maker and model."""
    frame_count: int = 1
    """Frames of an animation; 1 for a still picture."""
    duration_seconds: float | None = None
    frame_rate: float | None = None
    codec: str | None = None
    clip: str | None = None
    """What moves beside a still: the film inside a motion photo, or the name of a Live Photo's."""
    warnings: tuple[str, ...] = ()
    """What is wrong with a file that is shown all the same, e.g. ``damaged: …``."""


@dataclass(frozen=True)
class Frame:
    """One picture as a vision model gets it: JPEG, RGB, no metadata."""

    jpeg: bytes
    position_seconds: float = 0.0
    """Distance from the start of the video; 0 for an image."""


@dataclass(frozen=True)
class MediaContent:
    """A decoded file: one decode feeds the thumbnail and the vision input."""

    facts: MediaFacts
    frames: tuple[Frame, ...]
    """One for an image; in the order of time for a video. Never empty."""
    make_thumbnail: Callable[[], bytes]
    """Encodes the JPEG preview, within 256 x 256 pixels, quality 85, without metadata."""
