"""A file that consists of pieces of other files, without copying them."""

import io
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Piece = bytes | memoryview


def joined(pieces: Iterable[Piece]) -> BinaryIO:
    """Return the pieces, one after the other, as a file for reading."""
    return io.BufferedReader(_Pieces(pieces))


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._ends = list(accumulate(len(piece) for piece in self._pieces))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        length = self._ends[-1] if self._ends else 0
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        index = bisect_right(self._ends, self._position)
        if index == len(self._pieces):
            return 0
        piece = self._pieces[index]
        start = self._position - (self._ends[index] - len(piece))
        room = memoryview(buffer).cast("B")
        part = piece[start : start + len(room)]
        room[: len(part)] = part
        self._position += len(part)
        return len(part)
