"""EXIF and its relatives, read for the few entries that matter: never a position, never a note.

Here: a reader of TIFF directories that takes what is sound and passes over what is not. A general
reader fails as a whole on one bad entry, and copies a block once for each entry that points to it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Tag(IntEnum):
    """The entries that are read."""

    MAKE = 0x010F
    MODEL = 0x0110
    ORIENTATION = 0x0112
    DATE_TIME = 0x0132
    XMP = 0x02BC
    DATE_TIME_ORIGINAL = 0x9003
    DATE_TIME_DIGITIZED = 0x9004
    MAKER_NOTE = 0x927C


Exif = dict[Tag, bytes | int]
"""Texts as they are stored, without what follows their first NUL; numbers as numbers."""

_DETAILS = 0x8769
"""Entry that points to the directory of the dates."""
#: Bytes of one element of each type; types 7 (undefined) and 129 (UTF-8) are texts like type 2.
_ELEMENT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8, 18: 8, 129: 1}
_TEXT_TYPES = {1, 2, 7, 129}
#: Longer texts are cut (bytes), but for XMP and notes.
_TEXT_BYTES = 1024
_LONG_BYTES = 4 * 1024**2
#: Olympus and Panasonic have numbers of their own for TIFF in their raw files.
_MAGIC = {0x2A, 0x2B, 0x55, 0x4F52, 0x5352}
_BIG = 0x2B


class _Entry(NamedTuple):
    tag: int
    kind: int
    elements: int
    where: int
    """Of the first element."""


@dataclass(frozen=True)
class _Tiff:
    """A block with TIFF directories."""

    block: bytes | memoryview
    order: str
    """Byte order as `struct` writes it."""
    big: bool
    """BigTIFF: counts and offsets of 8 bytes."""

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self.block[at : at + size], "little" if self.order == "<" else "big")

    def directory(self, start: int) -> Iterator[_Entry]:
        """Walk a directory; entries behind the end of the block end it."""
        wide = 8 if self.big else 4
        count_bytes, entry_bytes = (8, 20) if self.big else (2, 12)
        entries = min(self.number(start, count_bytes), 0xFFFF)
        for entry in range(
            start + count_bytes, start + count_bytes + entries * entry_bytes, entry_bytes
        ):
            if entry + entry_bytes > len(self.block):
                return
            kind = self.number(entry + 2, 2)
            count = self.number(entry + 4, wide)
            where = entry + 4 + wide
            if count * _ELEMENT_BYTES.get(kind, 1) > wide:
                where = self.number(where, wide)
            yield _Entry(self.number(entry, 2), kind, count, where)


def read_exif(block: bytes | memoryview) -> Exif:
    """Read a block as image files hold it: a TIFF header, perhaps behind ``Exif`` and two zeros.

    What is broken is left out; no error is raised. Also reads a whole TIFF or raw file.
    """
    tiff = _tiff(block)
    if tiff is None:
        return {}
    found: Exif = {}
    first = tiff.number(8, 8) if tiff.big else tiff.number(4, 4)
    details: int | None = None
    for entry in tiff.directory(first):
        if entry.tag == _DETAILS:
            details = tiff.number(entry.where, _ELEMENT_BYTES.get(entry.kind, 4))
        else:
            _keep(found, tiff, entry)
    if details is not None:
        for entry in tiff.directory(details):
            _keep(found, tiff, entry)
    return found


def _tiff(block: bytes | memoryview) -> _Tiff | None:
    start = 6 if bytes(block[:4]) == b"Exif" else 0
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[start : start + 2]))
    if order is None:
        return None
    block = memoryview(block)[start:]
    (magic,) = struct.unpack_from(f"{order}H", block.tobytes() if len(block) < 4 else block, 2)
    return _Tiff(block, order, magic == _BIG) if magic in _MAGIC else None


def _keep(found: Exif, tiff: _Tiff, entry: _Entry) -> None:
    tag, kind, count, where = entry
    try:
        name = Tag(tag)
    except ValueError:
        return
    if kind not in _ELEMENT_BYTES or name in found or where >= len(tiff.block):
        return
    if name is Tag.ORIENTATION:
        found[name] = tiff.number(where, _ELEMENT_BYTES[kind])
    elif name in {Tag.XMP, Tag.MAKER_NOTE}:
        found[name] = bytes(tiff.block[where : where + min(count, _LONG_BYTES)])
    elif kind in _TEXT_TYPES:
        text = bytes(tiff.block[where : where + min(count, _TEXT_BYTES)])
        found[name] = text.partition(b"\0")[0].strip()
