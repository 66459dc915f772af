"""The codestream of a JPEG 2000: its header, and FFmpeg's decoder for what Pillow cannot decode.

Pillow decodes one to four components that have a sample for each pixel. FFmpeg also decodes samples
that several pixels share (4:2:0), and codestreams of other programs that OpenJPEG refuses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from batch_pipeline.media.stills.boxes import boxes

_START, _SIZE, START_OF_TILE = b"\xff\x4f", b"\xff\x51", b"\xff\x90"
_CODING_STYLE, _CODING_STYLE_OF_COMPONENT = b"\xff\x52", b"\xff\x53"
#: Second bytes of markers without a length and content.
_BARE_MARKERS = range(0x30, 0x40)
#: Mark of a coding style that has sizes of precincts.
_HAS_PRECINCTS = 1
#: Modes of Pillow by number of components.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
#: Maximum number of segments of the main header that are read; real headers have a few hundred.
_MAX_SEGMENTS = 10_000
#: Maximum number of tiles: their numbers have 16 bits.
_MAX_TILES = 65_535
#: Memory (bytes): of a sample in FFmpeg's decoder together with its copy; of a tile's component at
#: each of its sizes; of a code block in any decoder.
_SAMPLE_BYTES, _TILE_BYTES, _BLOCK_BYTES = 8, 1200, 512


@dataclass(frozen=True)
class Component:
    """One component, e.g. the red of all pixels."""

    depth: int
    """Bits of a sample."""
    across: int
    """Columns of the picture for each sample."""
    down: int
    """Rows of the picture for each sample."""


@dataclass(frozen=True)
class Codestream:
    """The header of a codestream, and where it is."""

    start: int
    """Position in the file."""
    end: int
    first_tile: int
    """Position of the first tile."""
    edges: tuple[int, int, int, int]
    """Left, top, right and bottom edge. They give the size, and which pixels share samples."""
    tiles: int
    components: tuple[Component, ...]
    levels: int
    """How often the size can be halved."""
    block_pixels: int
    """Pixels of the smallest code block by the main header."""

    @classmethod
    def of(cls, data: bytes) -> "Codestream":
        """Read the header.

        Raises:
            ValueError: it is broken, or its components cannot be decoded.
        """
        start, end = next(
            ((start, end) for name, start, end in boxes(data) if name == b"jp2c"), (0, len(data))
        )
        segments = list(islice(_segments(data, start), _MAX_SEGMENTS))
        if not segments or segments[0][0] != _SIZE or len(segments[0][1]) < 36:
            raise ValueError("the codestream has no header")
        size = segments[0][1]
        numbers = [int.from_bytes(size[at : at + 4], "big") for at in range(2, 34, 4)]
        count, described = int.from_bytes(size[34:36], "big"), size[36:]
        if count not in _MODES:
            raise ValueError(f"it has {count} components for each pixel; 1 to 4 can be decoded")
        components = tuple(
            Component((described[at] & 0x7F) + 1, described[at + 1], described[at + 2])
            for at in range(0, len(described) - 2, 3)
        )
        if len(components) != count or any(0 in {each.across, each.down} for each in components):
            raise ValueError("the header does not describe its components")
        tiles = _tiles(numbers)
        if not 0 < tiles <= _MAX_TILES:
            raise ValueError(f"it claims {tiles} tiles; 1 to {_MAX_TILES} are possible")
        right, bottom, left, top = numbers[:4]
        styles = list(_styles(segments))
        if not styles:
            raise ValueError("the header does not say how its components are coded")
        return cls(
            start,
            end,
            segments[-1][2],
            (left, top, right, bottom),
            tiles,
            components,
            levels=min(levels for levels, _ in styles),
            block_pixels=min(pixels for _, pixels in styles),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of the picture (pixels)."""
        left, top, right, bottom = self.edges
        return right - left, bottom - top

    @property
    def has_shared_samples(self) -> bool:
        """Return whether several pixels share a sample of any component."""
        return any((each.across, each.down) != (1, 1) for each in self.components)

    @property
    def has_shared_colours(self) -> bool:
        """Return whether it is brightness with less exact colours, as in most JPEGs."""
        if len(self.components) < 3:
            return False
        light, *colours = ((each.across, each.down) for each in self.components[:3])
        return light == (1, 1) and colours[0] == colours[1] != light

    @property
    def block_bytes(self) -> int:
        """Return the memory of all code blocks in any decoder."""
        width, height = self.size
        return width * height * len(self.components) * _BLOCK_BYTES // self.block_pixels

    def spread_bytes(self, reduction: int) -> int:
        """Return the memory that `spread` takes, besides the code blocks."""
        width, height = self.size
        count = len(self.components)
        samples = (width * height * count) >> (2 * reduction)
        return samples * _SAMPLE_BYTES + self.tiles * count * (self.levels + 1) * _TILE_BYTES

    def spread(self, data: bytes, reduction: int) -> Image.Image:
        """Decode with FFmpeg, and give each pixel samples of its own.

        Args:
            data: the file.
            reduction: how often the size is halved.

        Returns:
            The components in the bands of a picture, shifted to 8 bits.

        Raises:
            ValueError: the codestream is broken, or has a combination that FFmpeg does not know.
        """
        decoder = av.CodecContext.create("jpeg2000", "r")
        decoder.options = {"lowres": str(reduction)}
        decoder.thread_count = 1
        try:
            frames = decoder.decode(av.Packet(data[self.start : self.end]))
        except av.FFmpegError as error:
            raise ValueError(f"the decoder stops: {error.strerror}") from error
        if not frames:
            raise ValueError("the decoder returns no picture")
        samples = _samples(frames[0])
        if len(samples) != len(self.components):
            raise ValueError("the decoder returns other components than the header has")
        bands = [
            Image.fromarray(self._spread(plane, component, reduction))
            for plane, component in zip(samples, self.components, strict=True)
        ]
        return Image.merge(_MODES[len(bands)], bands) if len(bands) > 1 else bands[0]

    def _spread(
        self, plane: NDArray[np.uint8], each: Component, reduction: int
    ) -> NDArray[np.uint8]:
        """Repeat samples for all pixels that share them."""
        left, top, right, bottom = self.edges
        columns = _places(left, right, each.across, reduction, plane.shape[1])
        rows = _places(top, bottom, each.down, reduction, plane.shape[0])
        return plane[rows][:, columns]


def _segments(data: bytes, start: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield marker, content and end of each segment of the main header."""
    if data[start : start + 2] != _START:
        return
    place = start + 2
    while data[place : place + 1] == b"\xff" and data[place : place + 2] != START_OF_TILE:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if sum(data[place + 1 : place + 2]) in _BARE_MARKERS:
            length = 0
        elif length < 2:
            return
        end = place + 2 + length
        yield data[place : place + 2], data[place + 4 : end], end
        place = end


def _styles(segments: list[tuple[bytes, bytes, int]]) -> Iterator[tuple[int, int]]:
    """Yield halvings, and pixels of a code block, of each coding style."""
    count_bytes = 1 if int.from_bytes(segments[0][1][34:36], "big") < 257 else 2
    for marker, content, _ in segments:
        if marker == _CODING_STYLE:
            flags, style = content[:1], content[5:]
        elif marker == _CODING_STYLE_OF_COMPONENT:
            flags, style = content[count_bytes : count_bytes + 1], content[count_bytes + 1 :]
        else:
            continue
        if not flags or len(style) < 5:
            continue
        levels, block_width, block_height = style[0], style[1] + 2, style[2] + 2
        if flags[0] & _HAS_PRECINCTS and style[5:]:
            # Each size but the smallest has bands of half its width and height.
            block_width = min(block_width, *(max(0, (side & 15) - 1) for side in style[5:]))
            block_height = min(block_height, *(max(0, (side >> 4) - 1) for side in style[5:]))
        yield levels, 1 << min(32, block_width + block_height)


def _samples(frame: av.VideoFrame) -> list[NDArray[np.uint8]]:
    """Return the components of a frame, of shape (height, width), shifted to 8 bits."""
    bits = frame.format.components[0].bits
    samples: list[NDArray[np.uint8]] = []
    for plane in frame.planes:
        kind = np.dtype(np.uint8 if bits <= 8 else "<u2")
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1).view(kind)
        count = len(frame.format.components) if len(frame.planes) == 1 else 1
        pixels = rows[:, : plane.width * count].reshape(plane.height, plane.width, count)
        shifted = pixels if bits <= 8 else (pixels >> (bits - 8)).astype(np.uint8)
        samples += [shifted[..., each] for each in range(count)]
    return samples


def _places(start: int, end: int, shared: int, reduction: int, count: int) -> NDArray[np.int64]:
    """Return which of `count` samples belongs to each of the pixels between two edges."""
    pixels = np.arange(-(-start >> reduction), -(-end >> reduction)) << reduction
    samples = pixels // shared - -(-start // shared)
    return (samples >> reduction).clip(0, count - 1)


def _tiles(numbers: list[int]) -> int:
    """Count tiles by the numbers of the size segment; 0: unreadable."""
    width, height, _, _, tile_width, tile_height, left, top = numbers
    if 0 in {tile_width, tile_height}:
        return 0
    return -(-(width - left) // tile_width) * -(-(height - top) // tile_height)
