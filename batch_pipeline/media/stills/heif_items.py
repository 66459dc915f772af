"""The items of a HEIF or AVIF file: their types, positions in the file, and properties."""

import re
from dataclasses import dataclass

from batch_pipeline.media.stills.boxes import boxes

_EXIF = b"Exif"
_TIFF = re.compile(rb"II\*\0|MM\0\*")


@dataclass(frozen=True)
class Items:
    """The data in the `meta` box about the pictures of a file."""

    primary: int
    """Number of the item that is shown."""
    types: dict[int, bytes]
    places: dict[int, list[tuple[int, int]]]
    """Start and end of the bytes of each item in the file, or in `idat`."""
    in_idat: set[int]
    idat: bytes
    references: bytes
    properties: dict[int, list[tuple[bytes, bytes]]]
    """Properties of each item, in their order: name and content."""

    def tiles_of(self, number: int) -> list[int]:
        """Return the numbers of the items that are the tiles of a grid."""
        return _tiles_of(self.references, number) if self.references else []


def read_items(data: bytes) -> Items:
    """Read the first `meta` box of a file.

    Raises:
        Exception: any error, on hostile files; `KeyError` if there is no such box.
    """
    parts = {
        name: data[start:end]
        for box, meta_start, meta_end in boxes(data)
        if box == b"meta"
        for name, start, end in boxes(data, meta_start + 4, meta_end)
    }
    wide = parts[b"pitm"][0] > 0
    places, in_idat = _places(parts[b"iloc"])
    properties, belongings = _properties(parts[b"iprp"])
    return Items(
        int.from_bytes(parts[b"pitm"][4 : 8 if wide else 6], "big"),
        _types(parts[b"iinf"]),
        places,
        in_idat,
        parts.get(b"idat", b""),
        parts.get(b"iref", b""),
        {
            item: [properties[index] for index in indices if index in properties]
            for item, indices in belongings.items()
        },
    )


def exif_of(data: bytes) -> bytes:
    """Return the Exif of a file from where it begins, whatever its item says about that.

    Raises:
        Exception: as `read_items`; `LookupError` if there is no Exif.
    """
    items = read_items(data)
    number = {kind: number for number, kind in items.types.items()}[_EXIF]
    start, end = items.places[number][0]
    block = (items.idat if number in items.in_idat else data)[start:end]
    found = _TIFF.search(block)
    if found is None:
        raise LookupError("the item is not a TIFF")
    return block[found.start() :]


def with_exif_hidden(data: bytes) -> bytes:
    """Return a file in which a decoder does not find the Exif."""
    for box, meta_start, meta_end in boxes(data):
        if box == b"meta":
            for name, start, end in boxes(data, meta_start + 4, meta_end):
                if name == b"iinf":
                    return data[:start] + data[start:end].replace(_EXIF, b"skip") + data[end:]
    return data


def _types(iinf: bytes) -> dict[int, bytes]:
    found = {}
    for name, start, end in boxes(iinf, 6 if iinf[0] == 0 else 8):
        entry = iinf[start:end]
        if name == b"infe" and entry[0] >= 2:
            wide = 4 if entry[0] > 2 else 2
            number = int.from_bytes(entry[4 : 4 + wide], "big")
            found[number] = entry[4 + wide + 2 : 4 + wide + 6]
    return found


def _tiles_of(iref: bytes, primary: int) -> list[int]:
    wide = 4 if iref[0] else 2
    for name, start, end in boxes(iref, 4):
        if name == b"dimg" and int.from_bytes(iref[start : start + wide], "big") == primary:
            first = start + wide + 2
            return [
                int.from_bytes(iref[place : place + wide], "big")
                for place in range(first, min(end, len(iref)), wide)
            ]
    return []


def _properties(iprp: bytes) -> tuple[dict[int, tuple[bytes, bytes]], dict[int, list[int]]]:
    """Return the properties by their number, and the numbers of each item's properties."""
    properties: dict[int, tuple[bytes, bytes]] = {}
    belongings: dict[int, list[int]] = {}
    for box, start, end in boxes(iprp):
        if box == b"ipco":
            for number, (name, begin, stop) in enumerate(boxes(iprp, start, end), start=1):
                properties[number] = (name, iprp[begin:stop])
        elif box == b"ipma":
            item_bytes = 4 if iprp[start] else 2
            index_bytes = 2 if iprp[start + 3] & 1 else 1
            count = int.from_bytes(iprp[start + 4 : start + 8], "big")
            place = start + 8
            for _ in range(min(count, len(iprp) - place)):
                item = int.from_bytes(iprp[place : place + item_bytes], "big")
                place += item_bytes
                many = iprp[place]
                place += 1
                for _ in range(many):
                    index = int.from_bytes(iprp[place : place + index_bytes], "big")
                    belongings.setdefault(item, []).append(
                        index & (0x7FFF if index_bytes == 2 else 0x7F)
                    )
                    place += index_bytes
    return properties, belongings


def _places(iloc: bytes) -> tuple[dict[int, list[tuple[int, int]]], set[int]]:
    """Return the position of each item, and which items are in the `idat` box."""
    version = iloc[0]
    offset_bytes, length_bytes = iloc[4] >> 4, iloc[4] & 15
    base_bytes, index_bytes = iloc[5] >> 4, iloc[5] & 15 if version else 0
    part_bytes = index_bytes + offset_bytes + length_bytes
    place = 6

    def take(size: int) -> int:
        nonlocal place
        place += size
        return int.from_bytes(iloc[place - size : place], "big")

    found: dict[int, list[tuple[int, int]]] = {}
    in_idat: set[int] = set()
    for _ in range(min(take(4 if version == 2 else 2), len(iloc))):
        item = take(4 if version == 2 else 2)
        if version and take(2) & 15 == 1:
            in_idat.add(item)
        take(2)
        base = take(base_bytes)
        count = take(2)
        # A file can claim any number of parts without bytes, which would fill the memory.
        most = (len(iloc) - place) // part_bytes if part_bytes else 1
        for _ in range(min(count, most)):
            take(index_bytes)
            start = base + take(offset_bytes)
            found.setdefault(item, []).append((start, start + take(length_bytes)))
    return found, in_idat
