"""The tiles of a HEIF picture, each as a file of its own.

Phones store large pictures as a grid of tiles. `pillow_heif` decodes the whole of it at once, which
takes more than a gigabyte for 200 megapixels; one tile at a time takes next to nothing.
"""

import struct
from dataclasses import dataclass

from batch_pipeline.media.stills.boxes import boxes

#: EXIF orientation of each turn, counted in quarters against the clock.
_TURNS = {0: 1, 1: 8, 2: 3, 3: 6}
_HANDLER = b"\0\0\0\0pict" + bytes(13)
_FTYP = b"heic\0\0\0\0heicmif1"


@dataclass(frozen=True)
class HeifGrid:
    """A grid of tiles of equal size, row by row."""

    size: tuple[int, int]
    """Of the picture ahead of any turn (pixels); the last tiles may reach beyond it."""
    tile_size: tuple[int, int]
    columns: int
    orientation: int
    """Of the picture, as EXIF numbers it."""
    tiles: list[bytes]
    """Properties of each tile, as boxes."""
    places: list[list[tuple[int, int]]]
    """Where the bytes of each tile begin and end in the file."""
    codec: bytes

    def tile(self, data: bytes, number: int) -> bytes:
        """Make a file of one tile."""
        pixels = b"".join(data[start:end] for start, end in self.places[number])
        properties = self.tiles[number]
        count = sum(1 for _ in boxes(properties))
        associations = b"".join(struct.pack(">B", 0x80 | each) for each in range(1, count + 1))
        head = _box(b"ftyp", _FTYP)

        def meta(place: int) -> bytes:
            return _box(
                b"meta",
                bytes(4)
                + _box(b"hdlr", bytes(4) + _HANDLER)
                + _box(b"pitm", struct.pack(">IH", 0, 1))
                + _box(
                    b"iinf",
                    struct.pack(">IH", 0, 1)
                    + _box(b"infe", struct.pack(">IHH4sB", 2 << 24, 1, 0, self.codec, 0)),
                )
                + _box(
                    b"iprp",
                    _box(b"ipco", properties)
                    + _box(b"ipma", struct.pack(">IIHB", 0, 1, 1, count) + associations),
                )
                + _box(
                    b"iloc",
                    struct.pack(">IBBHHHHII", 0, 0x44, 0, 1, 1, 0, 1, place, len(pixels)),
                ),
            )

        place = len(head) + len(meta(0)) + 8
        return head + meta(place) + _box(b"mdat", pixels)


def read_grid(data: bytes) -> HeifGrid | None:
    """Read the grid of the primary picture; None where it is none, or is changed after decoding.

    Raises:
        Exception: anything at all, on hostile files.
    """
    parts = {
        name: data[start:end]
        for box, meta_start, meta_end in boxes(data)
        if box == b"meta"
        for name, start, end in boxes(data, meta_start + 4, meta_end)
    }
    wide = parts[b"pitm"][0] > 0
    primary = int.from_bytes(parts[b"pitm"][4 : 8 if wide else 6], "big")
    types = _types(parts[b"iinf"])
    if types[primary] != b"grid":
        return None
    places, in_idat = _places(parts[b"iloc"])
    tile_numbers = _tiles_of(parts[b"iref"], primary)
    properties, belongings = _properties(parts[b"iprp"])
    own = [properties[index] for index in belongings[primary]]
    turn = 0
    for name, content in own:
        if name == b"irot":
            turn = content[0] & 3
        elif name in {b"imir", b"clap"}:
            return None
    start, end = places[primary][0]
    source = parts.get(b"idat", b"") if primary in in_idat else data
    described = source[start:end]
    side = "I" if described[1] & 1 else "H"
    rows, columns, width, height = struct.unpack_from(f">BB{side}{side}", described, 2)
    if len(tile_numbers) != (rows + 1) * (columns + 1) or in_idat & set(tile_numbers):
        return None
    codec = types[tile_numbers[0]]
    colours = [each for each in own if each[0] == b"colr"]
    tiles = []
    for number in tile_numbers:
        found = [properties[index] for index in belongings[number]]
        if types[number] != codec or any(name in {b"irot", b"imir", b"clap"} for name, _ in found):
            return None
        if not any(name == b"colr" for name, _ in found):
            found += colours
        tiles.append(b"".join(_box(name, content) for name, content in found))
    return HeifGrid(
        (width, height),
        _claimed_size(properties, belongings[tile_numbers[0]]),
        columns + 1,
        _TURNS[turn],
        tiles,
        [places[number] for number in tile_numbers],
        codec,
    )


def _claimed_size(
    properties: dict[int, tuple[bytes, bytes]], belonging: list[int]
) -> tuple[int, int]:
    found = dict(properties[index] for index in belonging)
    width, height = struct.unpack_from(">II", found[b"ispe"], 4)
    return width, height


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


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
    """Properties by their number, and the numbers that belong to each item."""
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
    """Where each item is, and which of them are in the `idat` box."""
    version = iloc[0]
    offset_bytes, length_bytes = iloc[4] >> 4, iloc[4] & 15
    base_bytes, index_bytes = iloc[5] >> 4, iloc[5] & 15 if version else 0
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
        for _ in range(min(take(2), len(iloc))):
            take(index_bytes)
            start = base + take(offset_bytes)
            found.setdefault(item, []).append((start, start + take(length_bytes)))
    return found, in_idat
