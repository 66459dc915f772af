"""Converts TIFF samples in depths and layouts that Pillow does not know to pictures of 8 bits.

This module makes samples from unpacked bytes. In `batch_pipeline.media.stills.tiff`, Pillow unpacks
them as if the bytes were grey pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from batch_pipeline.media.stills.levels import to_8_bits
from batch_pipeline.media.stills.scaling import in_working_mode
from batch_pipeline.media.stills.transparency import with_alpha

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_NO_PREDICTOR, _DIFFERENCES, _FLOAT_DIFFERENCES = 1, 2, 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS = 0, 1, 2, 3, 5
_LAB, _ICC_LAB = 8, 9
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_COLOURS = {
    _WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _INKS: 4, _LAB: 3, _ICC_LAB: 3,
}  # fmt: skip
_FLOAT_BITS, _WHOLE_BITS = {16, 32, 64}, {8, 16, 32, 64}

_Array = NDArray[Any]


@dataclass(frozen=True)
class SampleFormat:
    """How samples are stored."""

    bits: int
    samples: int
    """Samples of a pixel."""
    kind: int
    """1: unsigned, 2: signed, 3: floating. Below zero is black; with 8 bits the sign is ignored."""
    predictor: int
    photometric: int
    alpha: int
    """Meaning of the sample after the colours; 0 if there is none."""
    order: str
    """``<`` or ``>``."""
    palette: tuple[int, ...] = ()
    """Red, green and blue of all colours, 16 bits each."""

    @property
    def is_known(self) -> bool:
        """Return whether `picture` supports these samples."""
        if self.samples < _COLOURS.get(self.photometric, self.samples + 1):
            return False
        if self.photometric in {_LAB, _ICC_LAB} and (
            self.kind == _FLOAT or self.bits not in {8, 16}
        ):
            return False
        if self.predictor == _FLOAT_DIFFERENCES or self.kind == _FLOAT:
            return self.kind == _FLOAT and self.bits in _FLOAT_BITS
        if self.predictor == _DIFFERENCES and self.bits not in _WHOLE_BITS:
            return False
        return 1 <= self.bits <= 64

    def row_bytes(self, width: int, planes: int) -> int:
        """Return the bytes of a row of `width` pixels in one of `planes` planes."""
        return -(-width * self.samples // planes * self.bits // 8)

    def samples_of(self, rows: NDArray[np.uint8], width: int, in_a_pixel: int) -> _Array:
        """Unpack rows of bytes, each a whole row of a strip or tile.

        Args:
            rows: shape (rows, bytes).
            width: pixels of a row.
            in_a_pixel: samples of a pixel that are side by side.

        Returns:
            Shape (rows, width, in_a_pixel).
        """
        count = width * in_a_pixel
        if self.predictor == _FLOAT_DIFFERENCES:
            values = self._float_differences(rows, in_a_pixel)
        elif self.bits in _WHOLE_BITS:
            values = np.ascontiguousarray(rows).view(f"{self.order}u{self.bits // 8}")
        else:
            values = self._bits_joined(rows, count)
        values = values[:, :count].reshape(len(rows), width, in_a_pixel)
        if self.predictor == _DIFFERENCES:
            # For floats too, they are differences of whole numbers.
            values = np.cumsum(values, axis=1, dtype=values.dtype.newbyteorder("="))
        if values.dtype.kind == "u" and self.bits in _WHOLE_BITS:
            letter = "i" if self._is_signed else "f" if self.kind == _FLOAT else "u"
            values = values.view(values.dtype.str.replace("u", letter))
        return values

    @property
    def is_deep_grey(self) -> bool:
        """Return whether a pixel is one sample of grey that has more than 8 bits."""
        is_grey = self.photometric in {_WHITE_IS_ZERO, _BLACK_IS_ZERO}
        return is_grey and self.samples == 1 and self.bits > 8

    @property
    def value_bits(self) -> int:
        """Return the bits of a sample without its sign."""
        return self.bits - self._is_signed

    def picture(self, values: _Array) -> Image.Image:
        """Make a picture of mode L, RGB, RGBA or CMYK.

        Args:
            values: samples of shape (rows, width, n), as the result of `to_8_bits`.
        """
        colours = np.ascontiguousarray(values[..., : _COLOURS[self.photometric]], dtype=np.uint8)
        if self.photometric == _WHITE_IS_ZERO:
            colours = 255 - colours
        if self.photometric == _PALETTE:
            colours = self._palette_colours(values[..., 0])
        if colours.shape[-1] == 1:
            picture = Image.fromarray(colours[..., 0])
        elif self.photometric in {_LAB, _ICC_LAB}:
            picture = self._lab_colours(colours)
        else:
            picture = Image.fromarray(colours, "CMYK" if self.photometric == _INKS else "RGB")
        has_alpha = values.shape[-1] > _COLOURS[self.photometric] and self.alpha
        if not has_alpha or self.photometric == _INKS:
            return picture
        alpha = np.ascontiguousarray(values[..., _COLOURS[self.photometric]], dtype=np.uint8)
        is_associated = self.alpha == _ASSOCIATED_ALPHA
        return with_alpha(picture, Image.fromarray(alpha), is_associated=is_associated)

    def to_8_bits(self, values: _Array) -> _Array:
        """Convert samples to 0 to 255, but not the indices of a palette."""
        if self.photometric == _PALETTE:
            return values
        if self.photometric in {_LAB, _ICC_LAB}:  # a* and b* below zero keep their upper byte
            return (values >> (self.bits - 8)).astype(np.uint8)
        if self.kind == _FLOAT or self.value_bits >= 8:
            return to_8_bits(values, self.value_bits)
        return (values.astype(np.uint16) * 255 // ((1 << self.bits) - 1)).astype(np.uint8)

    def _lab_colours(self, colours: NDArray[np.uint8]) -> Image.Image:
        """Convert L*, a* and b* to RGB; a* and b* have a sign, or in ICC an offset of 128."""
        if self.photometric == _ICC_LAB:
            colours = colours ^ np.array([0, 128, 128], np.uint8)
        height, width, _ = colours.shape
        lab = Image.frombytes("LAB", (width, height), np.ascontiguousarray(colours).tobytes())
        return in_working_mode(lab)

    def _bits_joined(self, rows: NDArray[np.uint8], count: int) -> _Array:
        bits = np.unpackbits(rows, axis=1)[:, : count * self.bits]
        bits = bits.reshape(len(rows), count, self.bits)
        if self.bits % 8 == 0 and self.order == "<":  # whole bytes are in the order of the file
            bits = bits.reshape(len(rows), count, -1, 8)[:, :, ::-1].reshape(bits.shape)
        joined = np.zeros((len(rows), count), np.uint64)
        for place in range(self.bits):
            joined = (joined << np.uint64(1)) | bits[..., place]
        return joined.astype(np.int64) if self._is_signed else joined

    @property
    def _is_signed(self) -> bool:
        return self.kind == _SIGNED and self.bits > 8

    def _float_differences(self, rows: NDArray[np.uint8], in_a_pixel: int) -> _Array:
        """Undo Adobe's predictor: bytes of the same weight are together, as differences."""
        size = self.bits // 8
        whole = rows[:, : rows.shape[1] // (size * in_a_pixel) * size * in_a_pixel]
        differences = whole.reshape(len(rows), -1, in_a_pixel)
        sums = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(len(rows), size, -1)
        joined: _Array = np.ascontiguousarray(sums.transpose(0, 2, 1)).view(f">f{size}")
        return joined[..., 0]

    def _palette_colours(self, indices: _Array) -> NDArray[np.uint8]:
        table = np.array(self.palette, np.uint16).reshape(3, -1).T >> 8
        return table.astype(np.uint8)[np.minimum(indices, len(table) - 1).astype(np.intp)]
