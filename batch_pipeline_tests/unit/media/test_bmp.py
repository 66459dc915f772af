"""BMP of every header, depth and mask shows the same picture."""

import io
import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.testing.media import paint

SIZE = (141, 84)  # an odd width: rows end in unused bytes
PICTURE = paint(SIZE)
ARRAY = np.asarray(PICTURE)
HEADERS = [40, 52, 56, 64, 108, 124, 16]
RLE8, RLE4, MASKS, MASKS_WITH_ALPHA = 1, 2, 3, 6


def header_of(length: int, bits: int, compression: int, *, top_down: bool, colours: int) -> bytes:
    width, height = SIZE
    if length == 12:
        return struct.pack("<IHHHH", 12, width, height, 1, bits)
    fields = struct.pack(
        "<IiiHHIIiiII",
        length, width, -height if top_down else height, 1, bits, compression, 0, 0, 0, colours, 0,
    )  # fmt: skip
    return fields.ljust(length, b"\0")[:length]


def bmp(
    rows: np.ndarray | bytes,
    bits: int,
    *,
    header: int = 40,
    compression: int = 0,
    masks: Sequence[int] = (),
    palette: np.ndarray | None = None,
    top_down: bool = False,
) -> bytes:
    """Write rows of bytes, from the top down; they are padded here."""
    count = 0 if palette is None else len(palette)
    head = bytearray(header_of(header, bits, compression, top_down=top_down, colours=count))
    packed_masks = struct.pack(f"<{len(masks)}I", *masks)
    if masks and header >= 52:
        head[40 : 40 + len(packed_masks)] = packed_masks
        packed_masks = b""
    colours = b""
    if palette is not None:
        room = np.zeros((len(palette), 3 if header == 12 else 4), np.uint8)
        room[:, :3] = palette[:, ::-1]
        colours = room.tobytes()
    if isinstance(rows, np.ndarray):
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
        rows = (padded if top_down else padded[::-1]).tobytes()
    ahead = bytes(head) + packed_masks + colours
    start = 14 + len(ahead)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + ahead + rows


def indexed(colours: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return indices, palette, and the picture that they form."""
    small = PICTURE.quantize(colours, dither=Image.Dither.NONE)
    palette = np.array(small.getpalette(), np.uint8).reshape(-1, 3)[:colours]
    indices = np.asarray(small)
    return indices, palette, palette[indices]


def packed(indices: np.ndarray, bits: int) -> np.ndarray:
    places = np.arange(bits - 1, -1, -1)
    separate = (indices[..., None] >> places) & 1
    return np.packbits(separate.reshape(len(indices), -1).astype(np.uint8), axis=1)


def masked(masks: Sequence[int], bits: int, alpha: int = 255) -> np.ndarray:
    """Pixels of 16 or 32 bits, as bytes."""
    channels = np.dstack([ARRAY, np.full(ARRAY.shape[:2], alpha, np.uint8)]).astype(np.uint64)
    pixels = np.zeros(ARRAY.shape[:2], np.uint64)
    for channel, mask in zip(np.moveaxis(channels, -1, 0), masks, strict=False):
        if mask:
            shift = (mask & -mask).bit_length() - 1
            most = mask >> shift
            pixels |= np.rint(channel * (most / 255)).astype(np.uint64) << np.uint64(shift)
    return pixels.astype(f"<u{bits // 8}").view(np.uint8)


def run_lengths(indices: np.ndarray, bits: int) -> bytes:
    """Encode each row: runs of equal indices, some literal indices, and a run past its end."""
    packets = b""
    for number, row in enumerate(indices[::-1]):
        if number % 2:
            chunks = np.split(row, range(100, len(row), 100))
            for chunk in chunks:
                stored = packed(chunk[None], bits).tobytes()
                packets += bytes([0, len(chunk)]) + stored + bytes(len(stored) % 2)
        else:
            starts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
            for start, end in pairwise(starts):
                value = int(row[start]) * (17 if bits == 4 else 1)
                over = 7 if end == len(row) else 0
                packets += bytes([end - start + over, value])
        packets += b"\0\0"
    return packets + b"\0\1"


def decode(data: bytes) -> MediaContent:
    media_type = sniff(data)
    assert media_type is not None
    assert media_type.format == "bmp"
    return decode_image(data, media_type)


def difference(data: bytes, expected: np.ndarray) -> float:
    content = decode(data)
    assert (content.facts.width, content.facts.height) == SIZE
    assert content.facts.warnings == ()
    shown = Image.open(io.BytesIO(content.frames[0].jpeg)).convert("RGB")
    truth = Image.fromarray(expected.astype(np.uint8)).resize(shown.size, Image.Resampling.BOX)
    return float(np.abs(np.asarray(shown, dtype=int) - np.asarray(truth, dtype=int)).mean())


@pytest.mark.parametrize("header", [12, *HEADERS])
@pytest.mark.parametrize("top_down", [False, True])
def test_every_header_and_direction_is_decoded(header, top_down):
    if header == 12 and top_down:
        pytest.skip("heights of OS/2 have no sign")
    rows = ARRAY[..., ::-1].reshape(SIZE[1], -1)

    assert difference(bmp(rows, 24, header=header, top_down=top_down), ARRAY) < 5


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("header", [12, 40, 124])
def test_palettes_of_every_depth_are_decoded(bits, header):
    indices, palette, expected = indexed(1 << bits)

    data = bmp(packed(indices, bits), bits, header=header, palette=palette)

    assert difference(data, expected) < 10


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0x7C00, 0x3E0, 0x1F)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0xF00, 0xF0, 0xF)),
        (16, (0x1F, 0x7E0, 0xF800)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0xFFC00000, 0x3FF000, 0xFFC)),
    ],
)
@pytest.mark.parametrize("header", [40, 56, 108])
def test_colours_under_any_masks_are_decoded(bits, masks, header):
    data = bmp(masked(masks, bits), bits, header=header, compression=MASKS, masks=masks)

    assert difference(data, ARRAY) < 12


@pytest.mark.parametrize(("header", "compression"), [(56, 3), (108, 3), (124, 3), (40, 6)])
@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_declared_alpha_is_put_on_white(header, compression, alpha):
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    data = bmp(masked(masks, 32, alpha), 32, header=header, compression=compression, masks=masks)

    share = (alpha or 255) / 255  # writers that know no alpha leave zeros
    assert difference(data, ARRAY * share + 255 * (1 - share)) < 5


def test_the_fourth_byte_of_a_pixel_without_masks_is_not_alpha():
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)

    assert difference(bmp(masked(masks, 32, alpha=90), 32, header=124), ARRAY) < 5


@pytest.mark.parametrize(("bits", "compression"), [(8, RLE8), (4, RLE4)])
@pytest.mark.parametrize("header", [40, 64, 124])
def test_run_lengths_are_decoded(bits, compression, header):
    indices, palette, expected = indexed(1 << bits)

    data = bmp(
        run_lengths(indices, bits), bits, header=header, compression=compression, palette=palette
    )

    assert difference(data, expected) < 10


@pytest.mark.parametrize(("compression", "name"), [(4, "JPEG"), (5, "PNG"), (9, "compression 9")])
def test_an_unsupported_variant_is_refused_by_name(compression, name):
    with pytest.raises(PermanentError, match=name) as raised:
        decode(bmp(b"pixels", 0, compression=compression))

    assert raised.value.kind == "unreadable_image"


@pytest.mark.parametrize("bits", [24, 8])
def test_a_cut_file_is_truncated_with_a_preview(bits):
    indices, palette, _ = indexed(256)
    whole = (
        bmp(ARRAY[..., ::-1].reshape(SIZE[1], -1), 24)
        if bits == 24
        else bmp(run_lengths(indices, 8), 8, compression=RLE8, palette=palette)
    )

    with pytest.raises(PermanentError) as raised:
        decode(whole[: len(whole) // 2])

    assert raised.value.kind == "truncated"
    assert raised.value.preview
