"""An opened still picture, and the decoding of formats that Pillow decodes as a whole.

This module has what all formats share, including damage. The module of a format has the parts that
it does differently.
"""

import zlib
from collections.abc import Callable

from PIL import Image
from PIL.ImageFile import ImageFile

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.stills.levels import GreyLevels
from batch_pipeline.media.stills.pieces import Piece
from batch_pipeline.media.stills.scaling import scale, scaling_bytes
from batch_pipeline.media.tone_mapping import SRGB, ColourSpace

#: Bytes that Pillow uses for a pixel of each mode; 4 for any other mode.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
#: A picture that lacks only this much at its end is used with a warning (part of its rows, rows).
_SMALL_LOSS, _FEW_ROWS = 0.05, 32
#: The same for a file whose missing rows are unknown (part of its bytes, bytes).
_SMALL_CUT, _FEW_BYTES = 0.02, 512
#: Maximum number of zeros that fill up a cut file, unless the file itself is longer (bytes).
MOST_ZEROS = 64 * 1024**2


class IncompletePictureError(Exception):
    """Too much of a picture is missing to use it."""

    def __init__(self, reason: str, rest: Image.Image | None = None) -> None:
        super().__init__(reason)
        self.rest = rest
        """The existing part of the picture, scaled."""


class Still:
    """A still picture. Its header is read, but no pixel is decoded yet."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        """Width and height as stored (pixels)."""
        self.frame_count = 1
        self.exif: list[Piece] = []
        self.xmp: bytes | None = None
        self.iptc: bytes | None = None
        self.made: str | None = None
        """When it was made, from a text of the format itself."""
        self.changed: str | None = None
        """When the file was last changed, from the format itself."""
        self.icc_profile: bytes | None = None
        self.space: ColourSpace = SRGB
        self.clip: str | None = None
        self.warnings: list[str] = []
        self.orientation: int | None = None
        """In EXIF's numbers, if EXIF must not be used: 1 if the decoder turns the picture."""
        self.is_cut = False
        """Whether the file is shorter than its own structure says, if that is known."""
        self.file_bytes, self.missing_bytes = 0, 0
        """Length of the complete file, and how much is missing, if a cut file says so."""

    def memory(self, target: tuple[int, int]) -> int:
        """Return the memory that decoding takes at its peak, besides the file (bytes)."""
        raise NotImplementedError

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode, and scale to `target`; the result is of mode L, RGB, RGBA or CMYK.

        Raises:
            IncompletePictureError: too much is missing.
            Exception: any error, because decoders raise all kinds on hostile files.
        """
        raise NotImplementedError

    def scaled_frame(self, index: int, target: tuple[int, int]) -> Image.Image:
        """Do the same as `scaled` for a later frame of an animation; call it in their order."""
        raise NotImplementedError

    def scaled_by_levels(
        self, levels: GreyLevels, scaled: Callable[[], Image.Image]
    ) -> Image.Image:
        """Scale once or, if the picture uses few of its levels, twice, with a warning.

        Args:
            levels: decide how the result of `scaled` looks.
            scaled: decodes and scales the picture from its first row.
        """
        picture = scaled()
        warning = levels.adjust()
        if warning is None:
            return picture
        if warning not in self.warnings:
            self.warnings.append(warning)
        return scaled()

    def judge_loss(self, shown: Image.Image, missing: int, reason: str) -> None:
        """Warn about missing rows, or raise an error if they are too many.

        Args:
            shown: the picture, scaled.
            missing: how many of the file's rows are missing.
            reason: why they are missing.

        Raises:
            IncompletePictureError: so much is missing that a person would notice.
        """
        height = self.size[1]
        if missing > max(_SMALL_LOSS * height, _FEW_ROWS) or 2 * missing > height:
            raise IncompletePictureError(reason, shown)
        lost = f" {missing} of {height} rows are missing:" if missing else ""
        self.warnings.append(f"damaged:{lost} {reason}")

    def judge_missing_bytes(self, shown: Image.Image) -> None:
        """Warn about missing bytes, or raise an error if they are too many.

        Raises:
            IncompletePictureError: so much is missing that a person would notice.
        """
        if self.missing_bytes:
            reason = f"{self.missing_bytes:,} of {self.file_bytes:,} bytes are missing"
            if self.missing_bytes > max(_FEW_BYTES, _SMALL_CUT * self.file_bytes):
                raise IncompletePictureError(reason, shown)
            self.warnings.append(f"damaged: {reason}")


class PillowStill(Still):
    """A picture that Pillow decodes as a whole.

    No object here is part of a reference cycle. Decoded pictures are large, and must not wait for
    Python's garbage collector.
    """

    def __init__(self) -> None:
        self._picture = self._open()
        super().__init__(self._picture.size)
        info = self._picture.info
        self.icc_profile = info.get("icc_profile")
        self.exif = [info["exif"]] if info.get("exif") else []
        self.xmp = info.get("xmp")
        self.frame_count = max(1, getattr(self._picture, "n_frames", 1))

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of Pillow's picture, and of a strip in conversion."""
        width, height = self.size
        return width * height * _PIXEL_BYTES.get(self._picture.mode, 4) + scaling_bytes(
            self.size, target
        )

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode as a whole; this also returns the decoded part of a slightly damaged picture."""
        try:
            self.prepare(self._picture, target)
            self._picture.load()
        except MemoryError:
            raise
        except Exception as error:
            rest = self._salvage(error, target)
            if rest is None:
                raise
            self._picture = rest
        return self._shrink(self._picture, target)

    def _open(self) -> ImageFile:
        """Open the file with its plugin.

        `Image.open` would try every registered plugin, and warn (an error in strict programs) about
        sizes that are within our own limits.
        """
        raise NotImplementedError

    def prepare(self, picture: ImageFile, target: tuple[int, int]) -> None:
        """Make the decoder return a smaller picture, if it can."""

    def scaled_frame(self, index: int, target: tuple[int, int]) -> Image.Image:
        """Continue decoding to a later frame."""
        self._picture.seek(index)
        self._picture.load()
        return self._shrink(self._picture, target)

    def _shrink(self, picture: Image.Image, target: tuple[int, int]) -> Image.Image:
        width, _ = picture.size
        levels = GreyLevels(picture.size)
        return self.scaled_by_levels(
            levels,
            lambda: scale(
                picture.size,
                target,
                lambda top, bottom: picture.crop((0, top, width, bottom)),
                levels,
            ),
        )

    def _salvage(self, error: Exception, target: tuple[int, int]) -> ImageFile | None:
        """Return a damaged picture; None if nothing of it can be decoded.

        Raises:
            IncompletePictureError: so much is missing that a person would notice.
        """
        marks = [self._decode_over(mark, target) for mark in (0, 1)]
        if None in marks:
            return None
        picture, first = marks[0]  # type: ignore[misc]
        _, second = marks[1]  # type: ignore[misc]
        same = [one == other for one, other in zip(first, second, strict=True)]
        if not any(same):
            return None
        missing = same.count(False) * self.size[1] // len(same)
        reason = " ".join(str(error).split())
        self.judge_loss(self._shrink(picture, target), missing, reason)
        return picture

    def _decode_over(
        self, mark: int, target: tuple[int, int]
    ) -> tuple[ImageFile, list[int]] | None:
        """Decode as far as possible over a background of one colour; None if nothing is decoded.

        Parts that the decoder did not reach keep that colour, so two decodes over two colours show
        which parts it reached.
        """
        picture = self._open()
        self.prepare(picture, target)
        prepare = picture.load_prepare

        def prepare_marked() -> None:
            prepare()
            bands = len(picture.getbands())
            colour = (mark,) * bands if bands > 1 else mark
            picture.im.paste(colour, (0, 0, *picture.size))

        picture.load_prepare = prepare_marked  # type: ignore[method-assign]
        try:
            picture.load()
        except MemoryError:
            raise
        except Exception:
            if picture._im is None:
                return None
            picture.tile = []
        finally:
            del picture.load_prepare  # it refers to the picture
        width = picture.width
        rows = [
            zlib.crc32(picture.crop((0, row, width, row + 1)).tobytes())
            for row in range(picture.height)
        ]
        return picture, rows


def filled_up(data: bytes, end: int) -> bytes:
    """Fill a cut file up with zeros, so that decoders return the part before the cut.

    Args:
        data: the file.
        end: where the file should end by its own structure. If more is missing than exists, and
            more than 64 MiB, the file is returned unchanged.
    """
    missing = end - len(data)
    return data + bytes(missing) if 0 < missing <= max(len(data), MOST_ZEROS) else data


def motion_photo(film_bytes: int) -> str:
    """Name the film that a phone stores inside a still."""
    return f"a film of {film_bytes:,} bytes inside the file (motion photo)"


def oversized_metadata(reason: str) -> PermanentError:
    """Return the error for metadata that is larger than any camera writes."""
    return PermanentError("oversized_metadata", reason)
