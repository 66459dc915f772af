"""Reads the few EXIF entries that matter, and never a position."""

from enum import IntEnum

from batch_pipeline.media.tiff_block import Entry, TiffBlock


class Tag(IntEnum):
    """The entries that are read."""

    DESCRIPTION = 0x010E
    MAKE = 0x010F
    MODEL = 0x0110
    ORIENTATION = 0x0112
    DATE_TIME = 0x0132
    XMP = 0x02BC
    IPTC = 0x83BB
    PHOTOSHOP = 0x8649
    DATE_TIME_ORIGINAL = 0x9003
    DATE_TIME_DIGITIZED = 0x9004
    MAKER_NOTE = 0x927C


_TAGS = frozenset(Tag)
Exif = dict[Tag, bytes | int]
"""Texts as stored, up to their first NUL; numbers as numbers."""

_DETAILS = 0x8769
"""Entry that points to the directory of the dates."""
_TEXT_TYPES = {1, 2, 7, 129}
#: Entries that are blocks with their own structure.
_LONG_VALUES = {Tag.XMP, Tag.IPTC, Tag.PHOTOSHOP, Tag.MAKER_NOTE}
#: Longer texts and longer blocks are cut (bytes).
_TEXT_BYTES, _LONG_BYTES = 1024, 4 * 1024**2


def read_exif(block: bytes | memoryview) -> Exif:
    """Read an EXIF block of an image file: a TIFF header, perhaps after ``Exif`` and two zeros.

    Broken entries are left out; no error is raised. This also reads a whole TIFF or raw file.
    """
    tiff = TiffBlock.at(block[6:] if bytes(block[:4]) == b"Exif" else block)
    found: Exif = {}
    if tiff is not None:
        details = _read_directory(found, tiff, tiff.first_directory)
        if details is not None:
            _read_directory(found, tiff, details)
    return found


def _read_directory(found: Exif, tiff: TiffBlock, start: int) -> int | None:
    """Read one directory; return the position of the directory with the details."""
    details = None
    for entry in tiff.directory(start):
        if entry.tag == _DETAILS:
            details = next(iter(tiff.numbers(entry._replace(elements=1))), None)
        elif entry.tag in _TAGS and entry.where < len(tiff.block):
            found.setdefault(Tag(entry.tag), _value(tiff, entry))
    return details


def _value(tiff: TiffBlock, entry: Entry) -> bytes | int:
    if entry.tag in _LONG_VALUES:
        return tiff.bytes_of(entry, _LONG_BYTES)
    if entry.kind in _TEXT_TYPES and entry.tag != Tag.ORIENTATION:
        return tiff.bytes_of(entry, _TEXT_BYTES).partition(b"\0")[0].strip()
    return next(iter(tiff.numbers(entry._replace(elements=1))), 0)
