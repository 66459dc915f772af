"""Reads the few entries that matter in IPTC's older form (IIM), and never a position."""

import re
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple

_PHOTOSHOP, _RESOURCE, _IPTC_RESOURCE = b"Photoshop 3.0\0", b"8BIM", 0x0404
_ENTRY_MARK, _RECORD = 0x1C, 2
#: More entries or resources, or longer entries (bytes), are not read.
_MOST_ENTRIES, _LONGEST = 1000, 4096


class Dataset(IntEnum):
    """The entries of record 2 that are read."""

    DATE_CREATED = 55
    TIME_CREATED = 60
    DIGITAL_DATE = 62
    DIGITAL_TIME = 63
    CITY = 90
    SUBLOCATION = 92
    STATE = 95
    COUNTRY = 101
    CAPTION = 120


_DATASETS = frozenset(Dataset)


class IptcDates(NamedTuple):
    """The dates of a block in EXIF's format, with zeros for an unknown month or day; or empty."""

    shot: str
    digitized: str


def iptc_of_photoshop(resources: bytes | memoryview) -> bytes:
    """Find the IPTC block in the resources that Photoshop writes; empty if there is none.

    A JPEG has these resources after a name in separate segments, a TIFF in an entry.
    """
    block = bytes(resources)
    position = len(_PHOTOSHOP) if block.startswith(_PHOTOSHOP) else 0
    for _ in range(_MOST_ENTRIES):
        if block[position : position + 4] != _RESOURCE or position + 12 > len(block):
            break
        number = int.from_bytes(block[position + 4 : position + 6], "big")
        # The length of a name, the name padded to an even number of bytes, then a size.
        named = 1 + block[position + 6]
        start = position + 6 + named + named % 2
        size = int.from_bytes(block[start : start + 4], "big")
        if number == _IPTC_RESOURCE:
            return block[start + 4 : start + 4 + size]
        position = start + 4 + size + size % 2
    return b""


def read_iptc(block: bytes) -> dict[Dataset, bytes]:
    """Read a block up to its first broken entry; no error is raised."""
    found: dict[Dataset, bytes] = {}
    for record, dataset, value in _entries(block):
        if record == _RECORD and dataset in _DATASETS:
            found.setdefault(Dataset(dataset), value)
    return found


def iptc_dates(found: Mapping[Dataset, bytes]) -> IptcDates:
    """Return the dates of a block."""
    return IptcDates(
        shot=_date(found, Dataset.DATE_CREATED, Dataset.TIME_CREATED),
        digitized=_date(found, Dataset.DIGITAL_DATE, Dataset.DIGITAL_TIME),
    )


def _date(found: Mapping[Dataset, bytes], day: Dataset, time: Dataset) -> str:
    digits = re.sub(rb"\D", b"", found.get(day, b"")).decode()
    if len(digits) != 8:
        return ""
    clock = re.match(rb"(\d\d)(\d\d)(\d\d)", found.get(time, b"").replace(b":", b""))
    shown = b" %s:%s:%s" % clock.groups() if clock else b""
    return f"{digits[:4]}:{digits[4:6]}:{digits[6:]}{shown.decode()}"


def _entries(block: bytes) -> Iterator[tuple[int, int, bytes]]:
    position = 0
    for _ in range(_MOST_ENTRIES):
        if position + 5 > len(block) or block[position] != _ENTRY_MARK:
            return
        _, record, dataset, size = struct.unpack_from(">BBBH", block, position)
        position += 5
        if size >= 0x8000:  # a longer length follows; only embedded pictures need it
            return
        yield record, dataset, block[position : position + min(size, _LONGEST)]
        position += size
