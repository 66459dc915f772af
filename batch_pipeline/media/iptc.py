"""IPTC, the newspapers' block of metadata (IIM), read for its dates alone."""

import re
from collections.abc import Iterator

_MARK, _APPLICATION_RECORD = 0x1C, 2
#: Numbers of the data sets: a day, and the time of that day.
_DATES = {"IPTC DateCreated": (55, 60), "IPTC DigitalCreationDate": (62, 63)}
#: Data sets that are walked at most.
_MAX_SETS = 10_000
#: The resource of a Photoshop block in which the IPTC block is.
_RESOURCE = 0x0404


def read_iptc_dates(block: bytes | memoryview) -> dict[str, str]:
    """Read the dates of a block, by their source, as EXIF writes them."""
    texts: dict[int, str] = {}
    for number, value in _data_sets(bytes(block)):
        texts.setdefault(number, value)
    found = {}
    for source, (day, time) in _DATES.items():
        digits = re.sub(r"\D", "", texts.get(day, ""))
        clock = re.match(r"\d{6}", texts.get(time, "").replace(":", ""))
        if len(digits) == 8:
            shown = f" {clock[0][:2]}:{clock[0][2:4]}:{clock[0][4:]}" if clock else ""
            found[source] = f"{digits[:4]}:{digits[4:6]}:{digits[6:]}{shown}"
    return found


def iptc_of_photoshop(block: bytes | memoryview) -> bytes | None:
    """Find the IPTC block among the image resources of Photoshop, as JPEG and TIFF hold them."""
    data, position = bytes(block), 0
    while data[position : position + 4] == b"8BIM":
        number = int.from_bytes(data[position + 4 : position + 6], "big")
        # A name behind its length, padded to an even number of bytes, then a size.
        name_bytes = next(iter(data[position + 6 : position + 7]), 0)
        start = position + 6 + (name_bytes + 2) // 2 * 2 + 4
        size = int.from_bytes(data[start - 4 : start], "big")
        if number == _RESOURCE:
            return data[start : start + size]
        position = start + size + size % 2
    return None


def _data_sets(data: bytes) -> Iterator[tuple[int, str]]:
    position = 0
    for _ in range(_MAX_SETS):
        if data[position : position + 1] != bytes([_MARK]) or position + 5 > len(data):
            return
        record, number = data[position + 1], data[position + 2]
        size = int.from_bytes(data[position + 3 : position + 5], "big")
        if size & 0x8000:  # a longer size follows; no date has one
            return
        start = position + 5
        if record == _APPLICATION_RECORD:
            yield number, data[start : start + size].decode("latin-1")
        position = start + size
