"""HEIC, HEIF and AVIF: pictures in boxes.

A gain map is not applied: the main picture is already the one for ordinary screens.
"""

import struct
from contextlib import suppress
from io import BytesIO

from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile
from pillow_heif import HeifFile

from batch_pipeline.media.apertures import (
    boxes_of_tracks,
    pixel_aspect,
    shown_part,
    square_pixels,
)
from batch_pipeline.media.stills.boxes import boxes, end_of_boxes
from batch_pipeline.media.stills.heif_grid import HeifGrid, read_grid
from batch_pipeline.media.stills.heif_items import exif_of, read_items, with_exif_hidden
from batch_pipeline.media.stills.parts import PartRows
from batch_pipeline.media.stills.scaling import scale, scaling_bytes
from batch_pipeline.media.stills.still import (
    PillowStill,
    Still,
    filled_up,
    motion_photo,
)
from batch_pipeline.media.tone_mapping import SRGB, ColourSpace

#: Brand of a file whose pictures are an animation.
_AVIF_SEQUENCE = b"avis"
#: How much of a file is searched for properties of the picture (bytes). They come before the
#: picture; later in the file, the same bytes would be pixels.
_PROPERTIES_BYTES = 1024**2
#: Memory of a pixel in a decoder of HEVC: 8 bits in 4:4:4, or 10 bits in 4:2:0 (bytes).
_HEVC_PLANE_BYTES = 3.0
#: Frames that a decoder of AV1 keeps, as later ones refer to them.
_KEPT_FRAMES = 8
#: Larger pictures are decoded tile by tile, if they have tiles (pixels): a whole picture of this
#: size would take 384 MB.
_WHOLE_PIXELS = 64_000_000


class HeifStill(Still):
    """The primary picture of a HEIF file, already turned; a burst is not an animation.

    `pillow_heif` decodes to its own block, which is converted a strip at a time. A large picture is
    decoded tile by tile, if it consists of tiles.
    """

    def __init__(self, data: bytes) -> None:
        end = end_of_boxes(data)
        self._heif = HeifFile(BytesIO(filled_up(data, end)))
        super().__init__(self._heif.size)
        self.file_bytes, self.missing_bytes = end, end - len(data)
        info = self._heif.info
        self.icc_profile = info.get("icc_profile")
        self.exif = [info["exif"]] if info.get("exif") else []
        self.xmp = info.get("xmp")
        self.orientation = 1
        nclx = info.get("nclx_profile")
        if nclx:
            self.space = ColourSpace.from_codes(
                primaries=int(nclx["color_primaries"]),
                transfer=int(nclx["transfer_characteristics"]),
            )
        self.clip = _embedded_clip(data)
        self._data, self._grid = data, None
        if self.size[0] * self.size[1] > _WHOLE_PIXELS and not self.missing_bytes:
            with suppress(LookupError, struct.error):  # the decoder reports what is wrong
                self._grid = read_grid(data)
        if self._grid is not None:
            self.size, self.orientation = self._grid.size, self._grid.orientation
        properties = _properties_of_primary(data)
        self._aspect = pixel_aspect(properties.get(b"pasp"))
        self._is_on_its_side = self._grid is None and properties.get(b"irot") in {b"\1", b"\3"}
        self._stored_size = self.size
        self.size = self._in_squares(self.size)

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the decoder's planes and its picture, or of a row of tiles."""
        width, height = self._stored_size
        if self._grid is not None:
            height = 2 * self._grid.tile_size[1]  # as read, and as scaled
        return round(width * height * (_HEVC_PLANE_BYTES + len(self._heif.mode))) + scaling_bytes(
            self.size, target
        )

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode the whole picture, or tile by tile."""
        if self._grid is not None:
            return self._scaled_by_tiles(self._grid, target)
        pixels, stride = memoryview(self._heif.data), self._heif.stride
        width, height = self._heif.size  # decoding may have changed it
        self.size = self._in_squares((width, height))
        mode = self._heif.mode

        def read_rows(top: int, bottom: int) -> Image.Image:
            rows = bytes(pixels[top * stride : bottom * stride])
            return Image.frombytes(mode, (width, bottom - top), rows, "raw", mode, stride)

        return scale((width, height), target, read_rows)

    def _in_squares(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size with square pixels; the decoder has already turned and cut a picture."""
        if self._is_on_its_side:
            height, width = square_pixels(size[1], size[0], self._aspect)
            return width, height
        return square_pixels(*size, self._aspect)

    def _scaled_by_tiles(self, grid: HeifGrid, target: tuple[int, int]) -> Image.Image:
        tile_width, tile_height = grid.tile_size
        mode, width = HeifFile(BytesIO(grid.tile(self._data, 0))).mode, self._stored_size[0]

        def open_row(top: int, rows: int) -> Image.Image:
            row = Image.new(mode, (width, rows))
            start = top // tile_height * grid.columns
            for number in range(start, start + grid.columns):
                tile = HeifFile(BytesIO(grid.tile(self._data, number)))
                if tile.size != grid.tile_size:
                    raise ValueError(f"a tile is {tile.size}, and claims {grid.tile_size}")
                picture = Image.frombuffer(mode, tile.size, tile.data, "raw", mode, tile.stride, 1)
                row.paste(picture, ((number - start) * tile_width, 0))
            return row

        rows = PartRows(open_row, self._stored_size, tile_height)
        return scale(self._stored_size, target, rows.read)


class AvifStill(PillowStill):
    """An AVIF, animated or not."""

    def __init__(self, data: bytes) -> None:
        end = end_of_boxes(data)
        self._filled_up = filled_up(data, end)
        try:
            super().__init__()
        except ValueError:  # also for Exif that libavif does not understand
            self._filled_up = with_exif_hidden(self._filled_up)
            super().__init__()
            self.orientation = self._picture.getexif().get(ExifTags.Base.Orientation, 1)
            with suppress(LookupError, ValueError):  # broken metadata do no harm
                self.exif = [exif_of(data)]
        self.file_bytes, self.missing_bytes = end, end - len(data)
        self.space = _space(data)
        self._plane_bytes = _av1_plane_bytes(data)
        properties = _properties_of_track(data) or _properties_of_primary(data)
        self._stored_size = self.size
        self._shown = shown_part(properties.get(b"clap"), self.size)
        left, top, right, bottom = self._shown
        aspect = pixel_aspect(properties.get(b"pasp"))
        self.size = square_pixels(right - left, bottom - top, aspect)

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the decoder's planes, its picture, and Pillow's copy of that.

        For an animation, the decoder keeps the planes of earlier frames, also those of alpha.
        """
        width, height = self._stored_size
        planes = self._plane_bytes
        if self.frame_count > 1:
            planes = _KEPT_FRAMES * (planes + 1)
        return round(width * height * (planes + 8)) + scaling_bytes(self.size, target)

    def _open(self) -> ImageFile:
        return AvifImageFile(BytesIO(self._filled_up))

    def _shrink(self, picture: Image.Image, target: tuple[int, int]) -> Image.Image:
        left, top, right, bottom = self._shown

        def read_rows(first: int, last: int) -> Image.Image:
            return picture.crop((left, top + first, right, top + last))

        return scale((right - left, bottom - top), target, read_rows)


def _embedded_clip(data: bytes) -> str | None:
    """Name the film that a phone stores inside a HEIC, in a separate box."""
    for name, start, end in boxes(data):
        if name == b"mpvd":
            return motion_photo(end - start)
    return None


def _properties_of_primary(data: bytes) -> dict[bytes, bytes]:
    """Return the properties of the primary picture, by name; empty if they cannot be read."""
    try:
        items = read_items(data)
        return dict(items.properties[items.primary])
    except (LookupError, ValueError):  # the decoder reports what is wrong
        return {}


def _properties_of_track(data: bytes) -> dict[bytes, bytes]:
    """Return those of an animation: a film of one track, perhaps with a second for alpha."""
    if data[8:12] != _AVIF_SEQUENCE:
        return {}
    films = [data[start:end] for name, start, end in boxes(data) if name == b"moov"]
    tracks = boxes_of_tracks(films[0]) if films else {}
    return next(iter(tracks.values()), {})


def _space(data: bytes) -> ColourSpace:
    start = data.find(b"colrnclx", 0, _PROPERTIES_BYTES)
    if start < 0:
        return SRGB
    codes = data[start + 8 : start + 12]
    return ColourSpace.from_codes(
        primaries=int.from_bytes(codes[:2], "big"), transfer=int.from_bytes(codes[2:], "big")
    )


def _av1_plane_bytes(data: bytes) -> float:
    """Return a decoder's memory for a pixel of AV1, by the configuration of the first picture."""
    start = data.find(b"av1C", 0, _PROPERTIES_BYTES)
    flags = data[start + 6] if 0 <= start < len(data) - 6 else 0
    has_high_depth, is_half_wide, is_half_high = flags & 64, flags & 8, flags & 4
    chroma = 2 / ((2 if is_half_wide else 1) * (2 if is_half_high else 1))
    return (1 + chroma) * (2 if has_high_depth else 1)
