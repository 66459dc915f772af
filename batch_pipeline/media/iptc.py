"""IPTC's older form (IIM), read for the few entries that matter: never a position."""

import struct
from collections.abc import Iterator
from enum import IntEnum

_PHOTOSHOP, _RESOURCE, _IPTC_RESOURCE = b"Photoshop 3.0\0", b"8BIM", 0x0404
_ENTRY_MARK, _RECORD = 0x1C, 2
#: More entries, or longer ones (bytes), are not read.
_MOST_ENTRIES, _LONGEST = 1000, 4096


class Dataset(IntEnum):
    """The entries of record 2 that are read."""

    CITY = 90
    SUBLOCATION = 92
    STATE = 95
    COUNTRY = 101
    CAPTION = 120


_DATASETS = frozenset(Dataset)


def iptc_of_photoshop(segment: bytes | memoryview) -> bytes:
    """Find the IPTC block among the resources that Photoshop writes into a JPEG; empty if none."""
    block = bytes(segment)
    if not block.startswith(_PHOTOSHOP):
        return b""
    position = len(_PHOTOSHOP)
    while block[position : position + 4] == _RESOURCE and position + 12 <= len(block):
        number = int.from_bytes(block[position + 4 : position + 6], "big")
        named = 1 + block[position + 6]
        start = position + 6 + named + named % 2
        size = int.from_bytes(block[start : start + 4], "big")
        if number == _IPTC_RESOURCE:
            return block[start + 4 : start + 4 + size]
        position = start + 4 + size + size % 2
    return b""


def read_iptc(block: bytes) -> dict[Dataset, bytes]:
    """Read a block; what is broken ends it, no error is raised."""
    found: dict[Dataset, bytes] = {}
    for record, dataset, value in _entries(block):
        if record == _RECORD and dataset in _DATASETS:
            found.setdefault(Dataset(dataset), value)
    return found


def _entries(block: bytes) -> Iterator[tuple[int, int, bytes]]:
    position = 0
    for _ in range(_MOST_ENTRIES):
        if position + 5 > len(block) or block[position] != _ENTRY_MARK:
            return
        _, record, dataset, size = struct.unpack_from(">BBBH", block, position)
        position += 5
        if size >= 0x8000:  # a longer length follows, which only pictures within need
            return
        yield record, dataset, block[position : position + min(size, _LONGEST)]
        position += size
