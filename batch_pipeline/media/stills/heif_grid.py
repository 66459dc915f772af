"""The tiles of a HEIF picture, each as a separate file.

Phones store large pictures as a grid of tiles. `pillow_heif` decodes the whole grid at once, which
takes more than a gigabyte for 200 megapixels; one tile at a time takes very little.
"""

import struct
from dataclasses import dataclass

from batch_pipeline.media.stills.heif_items import read_items

#: EXIF orientation of each rotation, counted in quarter turns anticlockwise.
_TURNS = {0: 1, 1: 8, 2: 3, 3: 6}
#: Longest properties of one tile; a colour profile is the longest of them (bytes).
_MAX_PROPERTIES_BYTES = 16 * 1024**2
_HANDLER = b"\0\0\0\0pict" + bytes(13)
_FTYP = b"heic\0\0\0\0heicmif1"

Property = tuple[bytes, bytes]
"""Name and content."""


@dataclass(frozen=True)
class HeifGrid:
    """A grid of tiles of equal size, row by row."""

    size: tuple[int, int]
    """Size of the picture before any rotation (pixels); the last tiles may extend beyond it."""
    tile_size: tuple[int, int]
    columns: int
    orientation: int
    """Orientation of the picture, in EXIF's numbers."""
    tiles: list[list[Property]]
    """Properties of each tile. Most tiles have the same, so they are not copied."""
    places: list[list[tuple[int, int]]]
    """Start and end of the bytes of each tile in the file."""
    codec: bytes

    def tile(self, data: bytes, number: int) -> bytes:
        """Make a file of one tile."""
        pixels = b"".join(data[start:end] for start, end in self.places[number])
        count = len(self.tiles[number])
        properties = b"".join(_box(name, content) for name, content in self.tiles[number])
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
    """Read the grid of the primary picture; None if it has none, or is changed after decoding.

    Raises:
        Exception: any error, on hostile files.
    """
    items = read_items(data)
    primary = items.primary
    if items.types[primary] != b"grid":
        return None
    tile_numbers = items.tiles_of(primary)
    own = items.properties[primary]
    turn = 0
    for name, content in own:
        if name == b"irot":
            turn = content[0] & 3
        elif name in {b"imir", b"clap"}:
            return None
    start, end = items.places[primary][0]
    source = items.idat if primary in items.in_idat else data
    described = source[start:end]
    side = "I" if described[1] & 1 else "H"
    rows, columns, width, height = struct.unpack_from(f">BB{side}{side}", described, 2)
    if len(tile_numbers) != (rows + 1) * (columns + 1) or items.in_idat & set(tile_numbers):
        return None
    codec = items.types[tile_numbers[0]]
    colours = [each for each in own if each[0] == b"colr"]
    tiles = []
    for number in tile_numbers:
        found = list(items.properties[number])
        turned = any(name in {b"irot", b"imir", b"clap"} for name, _ in found)
        if items.types[number] != codec or turned:
            return None
        if not any(name == b"colr" for name, _ in found):
            found += colours
        if sum(len(content) for _, content in found) > _MAX_PROPERTIES_BYTES:
            return None
        tiles.append(found)
    return HeifGrid(
        (width, height),
        _claimed_size(items.properties[tile_numbers[0]]),
        columns + 1,
        _TURNS[turn],
        tiles,
        [items.places[number] for number in tile_numbers],
        codec,
    )


def _claimed_size(properties: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", dict(properties)[b"ispe"], 4)
    return width, height


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content
