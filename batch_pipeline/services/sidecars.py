"""Sidecars: small XMP files beside photos and videos, in which programs store metadata.

This module finds the sidecar of a file. `batch_pipeline.media.metadata` reads its contents.
"""

import logging
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from batch_pipeline.media.metadata import XMP_BYTES, date_in_sidecar

log = logging.getLogger(__name__)

_ENDINGS = (".xmp", ".XMP")


def sidecar_of(path: Path) -> Path | None:
    """Find the sidecar of a file: ``IMG_1.jpg.xmp``, or ``IMG_1.xmp``, in the same folder."""
    names = [f"{stem}{ending}" for stem in (path.name, path.stem) for ending in _ENDINGS]
    beside = (path.with_name(name) for name in names)
    return next((each for each in beside if each != path and _is_file(each)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # with the ending, the name is longer than a file system allows
        return False


def without_sidecars(paths: Iterable[Path]) -> list[Path]:
    """Remove the sidecars of other files in the list; a sidecar without its file stays."""
    given = list(paths)
    sidecars = {sidecar_of(path) for path in given if path.suffix not in _ENDINGS}
    return [path for path in given if path not in sidecars]


def sidecar_date(path: Path) -> datetime | None:
    """Read the date in the sidecar of a file; None if there is no sidecar or no date."""
    sidecar = sidecar_of(path)
    if sidecar is None:
        return None
    try:
        with sidecar.open("rb") as file:
            return date_in_sidecar(file.read(XMP_BYTES))
    except OSError as error:  # the file itself is readable and may contain a date
        log.warning("the sidecar %s cannot be read: %s", sidecar, error.strerror)
        return None
