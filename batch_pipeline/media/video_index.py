"""Counts what an MP4 or QuickTime file claims to contain, before FFmpeg makes an index of it.

FFmpeg's index has an entry for each frame and each piece of sound. A few bytes can claim millions
of them: all of the same size, in a fragment without sizes, or played again and again by an edit
list.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.video_memory import FrameMemory
from batch_pipeline.media.video_streams import Source

#: Memory of an entry (bytes). Measured: 36.
_ENTRY_BYTES = 40
#: More boxes are refused, because each takes a read; fragments of a second have ten boxes at most.
_MOST_BOXES = 500_000
#: Boxes that contain boxes. FFmpeg reads them at any place, not only where they belong.
_PARENTS = frozenset(
    (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf", b"udta")
)
#: Kinds of tracks.
_SOUND = b"soun"
_KINDS = {_SOUND, b"vide", b"subp", b"clcp"}
#: How much of a box is read for its numbers (bytes).
_HEAD_BYTES = 20


@dataclass
class _Track:
    """What the boxes of a track claim."""

    frames: int = 0
    """Also pieces of sound."""
    parts: int = 1
    """Of the edit list; each may show all frames."""
    kind: bytes = b""
    has_chunks_alone: bool = False
    """Each value of uncompressed sound counts as a frame; FFmpeg's index has only the chunks."""

    @property
    def entries(self) -> int:
        """Return how many entries FFmpeg's index of the track has at most."""
        return 0 if self.kind == _SOUND and self.has_chunks_alone else self.frames * self.parts


def require_bounded_index(source: Source, memory: FrameMemory) -> None:
    """Refuse a file whose index would not fit into the memory.

    Raises:
        PermanentError: ``too_many_pixels``.
    """
    entries = _claimed_entries(source)
    if entries * _ENTRY_BYTES > memory.max_bytes:
        raise PermanentError(
            "too_many_pixels",
            f"the video claims to have {entries:,} frames and pieces of sound; their index takes "
            f"{entries * _ENTRY_BYTES / 1024**2:,.0f} MiB, at most "
            f"{memory.max_bytes / 1024**2:.0f} MiB may be used (BATCH_PIPELINE_MAX_DECODE_MIB)",
        )


def _claimed_entries(source: Source) -> int:
    of_fragments, tracks = 0, [_Track()]
    for name, head in _boxes(source):
        track, number = tracks[-1], int.from_bytes(head[4:8], "big")
        match name:
            case b"trak":
                tracks.append(_Track())
            case b"hdlr" if head[8:12] in _KINDS:  # QuickTime has a second one, for the data
                track.kind = head[8:12]
            case b"stsz" | b"stz2":
                track.frames = max(track.frames, int.from_bytes(head[8:12], "big"))
            case b"stts":
                track.has_chunks_alone = number == 1 and head[12:16] == b"\0\0\0\1"
            case b"elst":
                track.parts = max(track.parts, number)
            case b"trun":
                of_fragments += number
    return of_fragments + sum(track.entries for track in tracks)


def _boxes(source: Source) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name of each box, and the first bytes of its content, in the order of the file."""
    place, ends = 0, [source.seek(0, io.SEEK_END)]
    for _ in range(_MOST_BOXES):
        while place + 8 > ends[-1]:
            place = ends.pop()
            if not ends:
                return
        source.seek(place)
        head = source.read(16 + _HEAD_BYTES)
        name, size, content = head[4:8], int.from_bytes(head[:4], "big"), 8
        if size == 1:  # a size of 64 bits follows the name
            size, content = int.from_bytes(head[8:16], "big"), 16
        end = ends[-1] if size == 0 else min(place + size, ends[-1])
        if 0 < size < content:  # broken: nothing else follows in its parent
            place = ends[-1]
            continue
        yield name, head[content : content + _HEAD_BYTES]
        if name in _PARENTS:
            ends.append(end)
            place += content
        else:
            place = end
    raise PermanentError("too_many_pixels", f"the video has more than {_MOST_BOXES:,} boxes")
