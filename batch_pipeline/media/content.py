"""What the media path passes to the models: pictures as JPEG, and facts about the file."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

FileType = Literal["image", "video"]


@dataclass(frozen=True)
class MediaFacts:
    """Facts from the metadata of a file. Never a position: GPS data is not read.

    Width and height are pixels as a person sees the picture (EXIF orientation or rotation applied).
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
    caption: str | None = None
    """Text that people wrote about the picture. Not stored."""
    place: str | None = None
    """Names of place and country that people wrote. Not stored, and never shown."""
    frame_count: int = 1
    """Frames of an animation; 1 for a still picture."""
    duration_seconds: float | None = None
    frame_rate: float | None = None
    codec: str | None = None
    clip: str | None = None
    """The film of a still: the film inside a motion photo, or the name of a Live Photo's film."""
    warnings: tuple[str, ...] = ()
    """Problems of a file that is processed anyway, e.g. ``damaged: …``."""

    def as_stored(self) -> dict[str, Any]:
        """Return the facts as the metadata of an upload, without unknown values."""
        values = {
            "format": self.format,
            "width": self.width,
            "height": self.height,
            "captured_at": self.captured_at.isoformat() if self.captured_at else None,
            "date_source": self.date_source,
            "camera": self.camera,
            "frame_count": self.frame_count if self.frame_count > 1 else None,
            "duration_seconds": self.duration_seconds,
            "frame_rate": self.frame_rate,
            "clip": self.clip,
            "warnings": list(self.warnings) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


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
    """One frame for an image; several in the order of time for a video. Never empty."""
    make_thumbnail: Callable[[], bytes]
    """Encodes the JPEG thumbnail, within 256 x 256 pixels, quality 85, without metadata."""
