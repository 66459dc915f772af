"""Pictures that are stored in strips or tiles, decoded some rows at a time."""

from collections.abc import Callable

from PIL import Image

from batch_pipeline.media.stills.scaling import in_working_mode


def _cropped(part: Image.Image, top: int, bottom: int) -> Image.Image:
    return part.crop((0, top, part.width, bottom))


class PartRows:
    """The rows of a picture, decoded in parts when they are needed, from top to bottom."""

    def __init__(
        self,
        open_part: Callable[[int, int], Image.Image],
        size: tuple[int, int],
        at_once: int,
        convert: Callable[[Image.Image, int, int], Image.Image] | None = None,
    ) -> None:
        self._open_part = open_part
        self._convert = convert or _cropped
        self._size = size
        self._at_once = at_once
        self._part = Image.new("L", (1, 1))
        self._top = self._bottom = 0
        """Rows of the picture in the current part."""
        self.missing = 0
        """Rows that could not be decoded."""
        self.error: Exception | None = None

    def read(self, top: int, bottom: int) -> Image.Image:
        """Return rows from one or more parts; missing rows are black."""
        if self._bottom <= top:
            self._decode_next()
        strip: Image.Image | None = None
        row = top
        while True:
            end = min(bottom, self._bottom)
            rows = self._convert(self._part, row - self._top, end - self._top)
            strip = strip or Image.new(rows.mode, (self._size[0], bottom - top))
            strip.paste(rows, (0, row - top))
            row = end
            if row == bottom:
                return strip
            self._decode_next()

    def _decode_next(self) -> None:
        self._top = self._bottom
        self._bottom = min(self._top + self._at_once, self._size[1])
        picture = self._open_part(self._top, self._bottom - self._top)
        try:
            picture.load()
            part: Image.Image = picture
        except MemoryError:
            raise
        except Exception as error:
            self.error = self.error or error
            self.missing += self._bottom - self._top
            part = Image.new(picture.mode, picture.size)
        self._part = in_working_mode(part)
