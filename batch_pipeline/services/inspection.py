"""Shows what the pipeline reads from a file, and stores nothing; useful for a bug report."""

import errno
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from batch_pipeline.errors import PermanentError, RefusedError
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import MediaType, read_head
from batch_pipeline.model_servers.picture_size import picture_size
from batch_pipeline.services.sidecars import sidecar_date
from batch_pipeline.settings import Settings

#: Errors for which the pipeline says `source_missing`; `open_file` raises the last for a pipe.
_NOT_A_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL}


@dataclass
class Inspection:
    """Everything that was read from one file."""

    file: str
    file_size: int | None = None
    """Bytes; None for a file that cannot be read."""
    media_type: MediaType | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Metadata as it would be stored, including warnings and the source of dates."""
    written: list[str] = field(default_factory=list)
    """Paths of the pictures that were written."""
    error_kind: str | None = None
    error_message: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each stage."""

    def shape(self) -> dict[str, Any]:
        """Return the inspection as a dictionary for JSON."""
        found = self.media_type
        return {
            "file": self.file,
            "file_size": self.file_size,
            "file_type": found and found.file_type,
            "format": found and found.format,
            "mime_type": found and found.mime_type,
            "facts": self.facts,
            "written": self.written,
            "error_kind": self.error_kind,
            "error_message": self.error_message,
            "seconds": self.seconds,
        }


def inspect_file(path: Path, settings: Settings, output: Path | None = None) -> Inspection:
    """Inspect a file in the same way as the pipeline; errors of the file are part of the result.

    Args:
        path: the file.
        settings: limits and accepted formats.
        output: folder to write the thumbnail and the frames to; None writes nothing.

    Raises:
        RefusedError: `output` cannot be written.
    """
    seen = Inspection(str(path))
    try:
        _inspect(seen, path, settings, output)
    except PermanentError as error:
        seen.error_kind, seen.error_message = error.kind, str(error)
        if error.preview is not None and output is not None:
            _write(seen, output, f"{output_stem(path)}_preview.jpg", error.preview)
    except OSError as error:
        is_missing = error.errno in _NOT_A_FILE
        seen.error_kind = "source_missing" if is_missing else "source_unreadable"
        seen.error_message = error.strerror or str(error)
    return seen


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading; a named pipe is refused, because it could wait for ever.

    Raises:
        OSError: the file cannot be opened, or it is a pipe, a socket or a device.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder says what is wrong
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device; name a file")
    return path.open("rb")


def _inspect(seen: Inspection, path: Path, settings: Settings, output: Path | None) -> None:
    with open_file(path) as file:
        seen.file_size = path.stat().st_size
        with _timed(seen, "sniff"):
            media_type = seen.media_type = accept(read_head(file), settings.accepted_format_names)
        file.seek(0)
        with _timed(seen, "decode"):
            content = decode(
                file,
                media_type,
                filename=path.name,
                sidecar_date=sidecar_date(path),
                max_bytes=settings.max_decode_mib * 1024**2,
                max_file_bytes=settings.max_file_bytes,
                patch=picture_size(settings).patch,
            )
    seen.facts = content.facts.as_stored()
    with _timed(seen, "thumbnail"):
        thumbnail = content.make_thumbnail()
    if output is None:
        return
    stem = output_stem(path)
    _write(seen, output, f"{stem}_thumbnail.jpg", thumbnail)
    for number, frame in enumerate(content.frames, start=1):
        position = f"_at_{frame.position_seconds:.2f}s" if media_type.file_type == "video" else ""
        _write(seen, output, f"{stem}_frame_{number:02}{position}.jpg", frame.jpeg)


def output_stem(path: Path) -> str:
    """Return the beginning of the names of a file's pictures.

    It is the file's name. Characters that a file system may not accept are replaced.
    """
    # File systems count bytes, of which a character has up to four.
    return re.sub(r"[^\w.-]", "_", path.name).encode()[:200].decode(errors="ignore")


def _write(seen: Inspection, folder: Path, name: str, jpeg: bytes) -> None:
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_bytes(jpeg)
    except OSError as error:  # it says nothing about the inspected file
        raise RefusedError(f"{target} cannot be written: {error.strerror or error}") from error
    seen.written.append(str(target))


@contextmanager
def _timed(seen: Inspection, stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        seen.seconds[stage] = round(time.perf_counter() - begin, 3)
