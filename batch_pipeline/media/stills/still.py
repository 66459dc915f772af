"""An opened still picture, and how those are decoded that Pillow decodes whole.

Here: what every format has in common, damage included. What a format does better is in the module
of its name.
"""

import zlib
from collections.abc import Callable
from io import BytesIO

from PIL import Image
from PIL.ImageFile import ImageFile

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.stills.pieces import Piece
from batch_pipeline.media.stills.scaling import scale, scaling_bytes
from batch_pipeline.media.tone_mapping import SRGB, ColourSpace

#: Bytes that Pillow keeps for a pixel of each mode; of any other, 4.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
#: A picture that lacks no more at its end is shown with a warning (part of its rows, rows).
_SMALL_LOSS, _FEW_ROWS = 0.05, 32
#: The same for a file of which only the bytes can be counted (part of its bytes, bytes).
_SMALL_CUT, _FEW_BYTES = 0.02, 512
#: That a cut file is filled up with where it is shorter itself (bytes).
MOST_ZEROS = 64 * 1024**2


class IncompletePictureError(Exception):
    """Too much of a picture is missing to call it one."""

    def __init__(self, reason: str, rest: Image.Image | None = None) -> None:
        super().__init__(reason)
        self.rest = rest
        """What is there, scaled."""


class Still:
    """A still picture of which the header is read, and no pixel decoded."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        """Width and height as stored (pixels)."""
        self.frame_count = 1
        self.exif: list[Piece] = []
        self.xmp: bytes | None = None
        self.iptc: bytes | None = None
        self.made: str | None = None
        """When it was made, as a text of the format itself says."""
        self.changed: str | None = None
        """When the file was changed last, as the format itself says."""
        self.icc_profile: bytes | None = None
        self.space: ColourSpace = SRGB
        self.clip: str | None = None
        self.warnings: list[str] = []
        self.orientation: int | None = None
        """As EXIF numbers it, if EXIF is not to be asked: 1 where the decoder turns the picture."""
        self.is_cut = False
        """Whether the file ends before its own structure says so, if this tells."""
        self.file_bytes, self.missing_bytes = 0, 0
        """Of a cut file, if it says so: how long the whole is, and how much of that is missing."""

    def memory(self, target: tuple[int, int]) -> int:
        """What decoding takes at its peak, besides the file (bytes)."""
        raise NotImplementedError

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode, and scale to `target`; the result is of mode L, RGB, RGBA or CMYK.

        Raises:
            IncompletePictureError: too much is missing.
            Exception: anything at all, as decoders do on hostile files.
        """
        raise NotImplementedError

    def scaled_frame(self, index: int, target: tuple[int, int]) -> Image.Image:
        """As `scaled`, for a later frame of an animation; asked for in their order."""
        raise NotImplementedError

    def judge_loss(self, shown: Image.Image, missing: int, reason: str) -> None:
        """Take note of missing rows, or raise if they are too many.

        Args:
            shown: the picture, scaled.
            missing: how many of the file's rows are missing.
            reason: why they are.

        Raises:
            IncompletePictureError: a part of it is missing that a person would miss.
        """
        height = self.size[1]
        if missing > max(_SMALL_LOSS * height, _FEW_ROWS) or 2 * missing > height:
            raise IncompletePictureError(reason, shown)
        lost = f" {missing} of {height} rows are missing:" if missing else ""
        self.warnings.append(f"damaged:{lost} {reason}")

    def judge_missing_bytes(self, shown: Image.Image) -> None:
        """Take note of missing bytes, or raise if they are too many.

        Raises:
            IncompletePictureError: a part of it is missing that a person would miss.
        """
        if self.missing_bytes:
            reason = f"{self.missing_bytes:,} of {self.file_bytes:,} bytes are missing"
            if self.missing_bytes > max(_FEW_BYTES, _SMALL_CUT * self.file_bytes):
                raise IncompletePictureError(reason, shown)
            self.warnings.append(f"damaged: {reason}")


class PillowStill(Still):
    """A picture that Pillow decodes whole."""

    def __init__(self, open_picture: Callable[[], ImageFile]) -> None:
        self._open = open_picture
        self._picture = open_picture()
        super().__init__(self._picture.size)
        info = self._picture.info
        self.icc_profile = info.get("icc_profile")
        self.exif = [info["exif"]] if info.get("exif") else []
        self.xmp = info.get("xmp")
        self.frame_count = max(1, getattr(self._picture, "n_frames", 1))

    def memory(self, target: tuple[int, int]) -> int:
        """As Pillow keeps it, and a strip in conversion."""
        width, height = self.size
        return width * height * _PIXEL_BYTES.get(self._picture.mode, 4) + scaling_bytes(
            self.size, target
        )

    def scaled(self, target: tuple[int, int]) -> Image.Image:
        """Decode whole; what could be decoded of a damaged picture is there too."""
        try:
            self.prepare(self._picture, target)
            self._picture.load()
        except MemoryError:
            raise
        except Exception as error:
            self._picture = self._salvage(error, target)
        return self._shrink(self._picture, target)

    def prepare(self, picture: ImageFile, target: tuple[int, int]) -> None:
        """Have the decoder give less than everything, if it can."""

    def scaled_frame(self, index: int, target: tuple[int, int]) -> Image.Image:
        """Decode on to a later frame."""
        self._picture.seek(index)
        self._picture.load()
        return self._shrink(self._picture, target)

    def _shrink(self, picture: Image.Image, target: tuple[int, int]) -> Image.Image:
        width, _ = picture.size
        return scale(
            picture.size, target, lambda top, bottom: picture.crop((0, top, width, bottom))
        )

    def _salvage(self, error: Exception, target: tuple[int, int]) -> ImageFile:
        """Return a damaged picture if little is missing; otherwise raise what is there."""
        marks = [self._decode_over(mark, target) for mark in (0, 1)]
        if None in marks:
            raise error
        picture, first = marks[0]  # type: ignore[misc]
        _, second = marks[1]  # type: ignore[misc]
        same = [one == other for one, other in zip(first, second, strict=True)]
        if not any(same):
            raise error
        missing = same.count(False) * self.size[1] // len(same)
        reason = " ".join(str(error).split())
        self.judge_loss(self._shrink(picture, target), missing, reason)
        return picture

    def _decode_over(
        self, mark: int, target: tuple[int, int]
    ) -> tuple[ImageFile, list[int]] | None:
        """Decode as far as it goes onto a ground of one colour; None when nothing can be decoded.

        What a decoder did not reach shows that colour, so that two decodes over two colours tell
        what it reached.
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
        width = picture.width
        rows = [
            zlib.crc32(picture.crop((0, row, width, row + 1)).tobytes())
            for row in range(picture.height)
        ]
        return picture, rows


def filled_up(data: bytes, end: int) -> bytes:
    """Put zeros where a cut file is missing bytes: decoders then give what is ahead of them.

    Args:
        data: the file.
        end: where it ends by its own account; a file of which more is missing than is there, and
            more than 64 MiB, is returned as it is.
    """
    missing = end - len(data)
    return data + bytes(missing) if 0 < missing <= max(len(data), MOST_ZEROS) else data


def pillow_opener(plugin: type[ImageFile], data: bytes) -> Callable[[], ImageFile]:
    """Return the function that opens a file with one decoder.

    The classes are called as they are: `Image.open` would ask every registered plugin, and warn (an
    error in strict programs) of sizes that are within our own limits.
    """
    return lambda: plugin(BytesIO(data))


def motion_photo(film_bytes: int) -> str:
    """Name the film that a phone keeps inside a still."""
    return f"a film of {film_bytes:,} bytes inside the file (motion photo)"


def oversized_metadata(reason: str) -> PermanentError:
    """The error for side data that no camera writes."""
    return PermanentError("oversized_metadata", reason)
