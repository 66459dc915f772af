"""The directories of TIFF, which EXIF, TIFF files and most raw files use for their entries.

This reader takes valid entries and skips broken ones. A general reader fails completely at one bad
entry, and copies a block once for each entry that points to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: Bytes of one element of each type; 7 (undefined) and 129 (UTF-8) are texts.
ELEMENT_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8,
    13: 4, 16: 8, 17: 8, 18: 8, 129: 1,
}  # fmt: skip
_BIG = 0x2B
#: TIFF, BigTIFF, and the numbers of raw files: Panasonic's one, Olympus' three.
_MAGIC = {0x2A, _BIG, 0x55, 0x4F52, 0x5352, 0x4F4D}
_MAX_ENTRIES = 0xFFFF


class Entry(NamedTuple):
    """One entry of a directory."""

    tag: int
    kind: int
    """Type of its elements, see `ELEMENT_BYTES`."""
    elements: int
    where: int
    """Position of the first element; it may be after the end of the block."""

    @property
    def size(self) -> int:
        """Return the size of all elements (bytes)."""
        return ELEMENT_BYTES.get(self.kind, 1) * self.elements


@dataclass(frozen=True)
class TiffBlock:
    """A block with directories."""

    block: memoryview
    order: Literal["little", "big"]
    big: bool
    """BigTIFF: counts and offsets of 8 bytes."""

    @classmethod
    def at(cls, data: bytes | memoryview) -> "TiffBlock | None":
        """Read the start of a block; None if it is not one. Positions count from its start."""
        order: Literal["little", "big"] | None = None
        if bytes(data[:2]) == b"II":
            order = "little"
        elif bytes(data[:2]) == b"MM":
            order = "big"
        if order is None:
            return None
        magic = int.from_bytes(data[2:4], order)
        return cls(memoryview(data), order, magic == _BIG) if magic in _MAGIC else None

    @property
    def first_directory(self) -> int:
        """Return the position of the first directory."""
        return self.number(8, 8) if self.big else self.number(4, 4)

    def header_before(self, directory: bytes) -> bytes:
        """Put the header of this block directly before its first directory."""
        wide = 8 if self.big else 4
        return bytes(self.block[:wide]) + (2 * wide).to_bytes(wide, self.order) + directory

    def number(self, at: int, size: int) -> int:
        """Read an unsigned number of `size` bytes; after the end of the block it is 0."""
        return int.from_bytes(self.block[at : at + size], self.order)

    def numbers(self, entry: Entry) -> list[int]:
        """Read the elements of an entry that are in the block, as unsigned numbers."""
        size = ELEMENT_BYTES.get(entry.kind, 1)
        end = min(entry.where + size * entry.elements, len(self.block) - size + 1)
        return [self.number(at, size) for at in range(entry.where, end, size)]

    def bytes_of(self, entry: Entry, most: int) -> bytes:
        """Read the elements of an entry as bytes, at most `most` bytes."""
        return bytes(self.block[entry.where : entry.where + min(entry.size, most)])

    def next_directory(self, start: int) -> int:
        """Return the position of the directory after another one; 0 if it is the last."""
        return self.number(self._places(start).stop, 8 if self.big else 4)

    def directory(self, start: int) -> Iterator[Entry]:
        """Yield the entries of a directory, up to the end of the block."""
        wide = 8 if self.big else 4
        places = self._places(start)
        for at in range(places.start, min(places.stop, len(self.block)), places.step):
            kind, elements = self.number(at + 2, 2), self.number(at + 4, wide)
            where = at + 4 + wide
            if elements * ELEMENT_BYTES.get(kind, 1) > wide:
                where = self.number(where, wide)
            yield Entry(self.number(at, 2), kind, elements, where)

    def _places(self, start: int) -> range:
        """Return the positions of the entries of a directory."""
        count_bytes, entry_bytes = (8, 20) if self.big else (2, 12)
        count = min(self.number(start, count_bytes), _MAX_ENTRIES)
        begin = start + count_bytes
        return range(begin, begin + count * entry_bytes, entry_bytes)
