"""TIFF in depths and layouts beyond those of ordinary pictures shows the same picture."""

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.sniffing import TIFF
from batch_pipeline.testing.media import encode_image, make_tiff, paint

PICTURE = np.asarray(paint((140, 84)))
GREY = np.asarray(paint((140, 84)).convert("L"))[..., None]
UNIT = PICTURE / np.float64(255)
BITS, PHOTOMETRIC, PREDICTOR, EXTRA, KIND = 258, 262, 317, 338, 339
UNSIGNED, FLOAT = 1, 3


def bits_packed(samples: np.ndarray, bits: int) -> np.ndarray:
    """Pack rows of samples with a number of bits each; return shape (rows, bytes, 1)."""
    places = np.arange(bits - 1, -1, -1)
    separate = (samples[..., None].astype(np.uint64) >> places.astype(np.uint64)) & np.uint64(1)
    return np.packbits(separate.reshape(len(samples), -1).astype(np.uint8), axis=1)[..., None]


def of_bits(samples: np.ndarray, bits: int) -> bytes:
    scaled = samples.astype(np.uint64) << np.uint64(bits) >> np.uint64(8)
    channels = samples.shape[-1]
    entries = {
        256: [samples.shape[1]], BITS: [bits] * channels, 277: [channels],
        PHOTOMETRIC: [2 if channels == 3 else 1],
    }  # fmt: skip
    return make_tiff(bits_packed(scaled, bits), entries=entries)


def differences(samples: np.ndarray) -> np.ndarray:
    """Apply predictor 2: each pixel minus the previous one."""
    found = samples.copy()
    found[:, 1:] -= samples[:, :-1]
    return found


def float_differences(samples: np.ndarray) -> np.ndarray:
    """Apply predictor 3: bytes of equal weight together, each minus the previous one."""
    rows, width, channels = samples.shape
    planes = samples.astype(">f4").view(np.uint8).reshape(rows, width * channels, 4)
    planes = planes.transpose(0, 2, 1).reshape(rows, -1, channels)
    found = planes.copy()
    found[:, 1:] -= planes[:, :-1]
    return found.reshape(rows, width * channels * 4, 1)


def kinds(kind: int) -> dict[int, list[int]]:
    return {KIND: [kind] * 3}


def lab_of(offset: int) -> np.ndarray:
    """L*, a* and b* as bytes; below zero as two's complement, or with an offset."""
    lab = ImageCms.profileToProfile(
        Image.fromarray(PICTURE),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    stored = np.frombuffer(lab.tobytes(), np.uint8).reshape(PICTURE.shape)
    return stored ^ np.array([0, offset, offset], np.uint8)


def mixed_colour(across: int, down: int) -> bytes:
    """Y'CbCr in which several pixels share their colour, in uncompressed packets."""
    height, width, _ = PICTURE.shape
    ycc = np.asarray(Image.fromarray(PICTURE).convert("YCbCr"))
    grid = ycc.reshape(height // down, down, width // across, across, 3).swapaxes(1, 2)
    light = grid[..., 0].reshape(*grid.shape[:2], across * down)
    shared = grid[..., 1:].mean(axis=(2, 3)).round().astype(np.uint8)
    packets = np.concatenate([light, shared], axis=2).reshape(height // down, -1, 1)
    rows = {256: [width], 257: [height], BITS: [8] * 3, 277: [3], PHOTOMETRIC: [6]}
    sampling = {278: [16 * down], 530: [across, down]}
    return make_tiff(packets, packed=False, entries=rows | sampling)


def log_samples(*, is_grey: bool) -> bytes:
    """SGI's logarithmic samples: rows of byte planes, as literal runs."""
    linear = np.where(UNIT <= 0.04045, UNIT / 12.92, ((UNIT + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.moveaxis(np.maximum(linear @ np.array(to_xyz).T, 1e-6), -1, 0)
    light = np.floor(256 * (np.log2(y) + 64)).astype(np.uint32)
    total = x + 15 * y + 3 * z
    colour = np.floor(410 * 4 * x / total), np.floor(410 * 9 * y / total)
    whole = light << 16 | colour[0].astype(np.uint32) << 8 | colour[1].astype(np.uint32)
    planes = 2 if is_grey else 4
    samples = (light if is_grey else whole).astype(f">u{planes}")
    rows = []
    for row in samples:
        packets = b""
        for plane in row.view(np.uint8).reshape(-1, planes).T:
            for start in range(0, len(plane), 127):
                part = plane[start : start + 127].tobytes()
                packets += bytes([len(part)]) + part
        rows.append(packets)
    packed = b"".join(rows)
    count = 1 if is_grey else 3
    entries = {
        256: [140], 257: [84], BITS: [16] * count, 259: [34676], 277: [count],
        PHOTOMETRIC: [32844 if is_grey else 32845], 278: [84], KIND: [2] * count,
    }  # fmt: skip
    stored = np.frombuffer(packed, np.uint8)[None, :, None]
    return make_tiff(stored, packed=False, entries=entries)


def by_pillow(compression: str) -> bytes:
    output = io.BytesIO()
    Image.fromarray(PICTURE).save(output, "TIFF", compression=compression)
    return output.getvalue()


STORED = {
    "4 bits": lambda: of_bits(PICTURE, 4),
    "10 bits": lambda: of_bits(PICTURE, 10),
    "12 bits": lambda: of_bits(PICTURE, 12),
    "14 bits": lambda: of_bits(PICTURE, 14),
    "24 bits": lambda: of_bits(PICTURE, 24),
    "32 bits": lambda: make_tiff(PICTURE.astype(np.uint32) << 24),
    "64 bits": lambda: make_tiff(PICTURE.astype(np.uint64) << np.uint64(56)),
    "half floats": lambda: make_tiff(UNIT.astype(np.float16), entries=kinds(FLOAT)),
    "floats": lambda: make_tiff(UNIT.astype(np.float32), entries=kinds(FLOAT)),
    "floats in tiles": lambda: make_tiff(UNIT.astype(np.float32), tile=64, entries=kinds(FLOAT)),
    "doubles": lambda: make_tiff(UNIT, entries=kinds(FLOAT)),
    "floats, predictor": lambda: make_tiff(
        float_differences(UNIT.astype(np.float32)),
        entries={256: [140], BITS: [32] * 3, 277: [3], PREDICTOR: [3], **kinds(FLOAT)},
    ),
    "half floats, the other predictor": lambda: make_tiff(
        differences(UNIT.astype(np.float16).view(np.uint16)),
        entries={PREDICTOR: [2], **kinds(FLOAT)},
    ),
    "32 bits, predictor": lambda: make_tiff(
        differences(PICTURE.astype(np.uint32) << 24), entries={PREDICTOR: [2]}
    ),
    "32 bits, separate planes": lambda: make_tiff(PICTURE.astype(np.uint32) << 24, separate=True),
    "16 bits, separate planes": lambda: make_tiff(PICTURE.astype(np.uint16) * 257, separate=True),
    "16 bits, separate planes, not packed": lambda: make_tiff(
        PICTURE.astype(np.uint16) * 257, separate=True, packed=False
    ),
    "16 bits, separate inks, not packed": lambda: make_tiff(
        np.dstack([255 - PICTURE, np.zeros_like(GREY)]).astype(np.uint16) * 257,
        separate=True,
        packed=False,
    ),
    "inks with a sign": lambda: make_tiff(
        np.dstack([255 - PICTURE, np.zeros_like(GREY)]), entries={KIND: [2] * 4}
    ),
    "L*a*b*": lambda: make_tiff(lab_of(0), entries={PHOTOMETRIC: [8]}),
    "L*a*b* of 16 bits": lambda: make_tiff(
        lab_of(0).astype(np.uint16) << 8, entries={PHOTOMETRIC: [8], KIND: [1, 2, 2]}
    ),
    "L*a*b* and another": lambda: make_tiff(
        np.dstack([lab_of(0), GREY]), entries={PHOTOMETRIC: [8], EXTRA: [0]}
    ),
    "ICC L*a*b*": lambda: make_tiff(lab_of(128), entries={PHOTOMETRIC: [9]}),
    "logarithmic colours": lambda: log_samples(is_grey=False),
    "Y'CbCr": lambda: mixed_colour(1, 1),
    "Y'CbCr, shared colour": lambda: mixed_colour(2, 2),
    "LZMA": lambda: by_pillow("lzma"),
    "Zstandard": lambda: by_pillow("zstd"),
    "inks and another": lambda: make_tiff(
        np.dstack([255 - PICTURE, np.zeros_like(GREY), GREY]),
        entries={PHOTOMETRIC: [5], EXTRA: [0]},
    ),
}


def shown(data: bytes) -> np.ndarray:
    content = decode_image(data, TIFF)
    return np.asarray(Image.open(io.BytesIO(content.frames[0].jpeg)).convert("RGB"), dtype=int)


@pytest.mark.parametrize("make", STORED.values(), ids=STORED)
def test_every_depth_and_layout_shows_the_same_picture(make):
    difference = np.abs(shown(make()) - PICTURE.astype(int)).mean()

    is_coarse = make in {STORED[name] for name in ("4 bits", "logarithmic colours")}
    assert difference < (12 if is_coarse else 6)


def test_logarithmic_light_is_decoded():
    found = shown(log_samples(is_grey=True))

    light = np.asarray(Image.fromarray(PICTURE).convert("L"), dtype=int)[..., None]
    assert np.abs(found - light).mean() < 15


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_palettes_of_every_depth_are_decoded(bits):
    count = 1 << bits
    small = Image.fromarray(PICTURE).quantize(min(256, count), dither=Image.Dither.NONE)
    palette = np.zeros((count, 3), np.uint8)
    colours = np.array(small.getpalette(), np.uint8).reshape(-1, 3)[:count]
    palette[-len(colours) :] = colours
    indices = np.asarray(small)[..., None].astype(np.uint64) + count - len(colours)
    entries = {
        256: [140], BITS: [bits], 277: [1], PHOTOMETRIC: [3],
        320: [int(value) * 257 for value in palette.T.ravel()],
    }  # fmt: skip

    found = shown(make_tiff(bits_packed(indices, bits), entries=entries))

    assert np.abs(found - palette[indices[..., 0].astype(int)]).mean() < 10


def test_samples_below_zero_are_black():
    dark = np.where(GREY < 128, -1000, GREY.astype(int) * 128).astype(np.int16)
    data = make_tiff(dark, packed=False, entries={PHOTOMETRIC: [1], KIND: [2]})

    assert np.abs(shown(data) - np.where(GREY < 128, 0, GREY)).mean() < 8


@pytest.mark.parametrize(
    ("tag", "value", "name"),
    [
        (259, 50001, "WebP"),
        (259, 34712, "JPEG 2000"),
        (259, 12345, "12345"),
        (262, 32803, "filter"),
    ],
)
def test_an_unsupported_variant_is_refused_by_name(tag, value, name):
    data = make_tiff(PICTURE, entries={tag: [value]})

    with pytest.raises(PermanentError, match=name) as raised:
        decode_image(data, TIFF)

    assert raised.value.kind == "unreadable_image"


@pytest.mark.parametrize("bits", [3, 5, 6, 7, 12])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_grey_of_any_depth_is_decoded(bits, white_is_zero):
    samples = 255 - GREY if white_is_zero else GREY
    data = of_bits(samples, bits).replace(
        b"\x01\x06\0\x04\0\0\0\x01\0\0\0\x01",
        b"\x01\x06\0\x04\0\0\0\x01\0\0\0%c" % (not white_is_zero),
    )

    difference = np.abs(shown(data) - GREY.astype(int)).mean()

    assert difference < 2 + 256 / 2**bits


@pytest.mark.parametrize("alpha", [1, 2])
def test_grey_with_transparency_is_put_on_white(alpha):
    half = np.full_like(GREY, 128)
    stored = (GREY // 2 if alpha == 1 else GREY).astype(np.uint8)
    data = make_tiff(np.dstack([stored, half]), entries={PHOTOMETRIC: [1], EXTRA: [alpha]})

    expected = (GREY.astype(int) + 255) / 2
    assert np.abs(shown(data) - expected).mean() < 5


def test_a_cut_file_of_a_rare_depth_is_truncated_and_raises_nothing_else():
    data = of_bits(PICTURE, 12)
    for length in range(200, len(data), 997):
        damaged = bytearray(data)
        damaged[length : length + 8] = b"\xff" * 8
        with suppress(PermanentError):
            decode_image(bytes(damaged), TIFF)


def test_tiles_with_the_entries_of_strips_are_decoded():
    data = make_tiff(PICTURE, tile=64)
    for tile_tag, strip_tag in ((324, 273), (325, 279)):
        data = data.replace(
            struct.pack(">HHI", tile_tag, 4, 6), struct.pack(">HHI", strip_tag, 4, 6)
        )

    assert np.abs(shown(data) - PICTURE.astype(int)).mean() < 5


def test_jpeg_of_old_scanners_is_decoded():
    jpeg = encode_image(Image.fromarray(PICTURE), "jpeg", quality=95)
    entries = {
        256: 140, 257: 84, 258: 8, 259: 6, 262: 6, 273: 8, 277: 3, 278: 84, 279: len(jpeg),
        513: 8, 514: len(jpeg), 530: 2 | 2 << 16,
    }  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 3 if tag == 530 else 4, 2 if tag == 530 else 1, value)
        for tag, value in entries.items()
    )
    data = b"II*\0" + struct.pack("<I", 8 + len(jpeg)) + jpeg + directory + bytes(4)

    assert np.abs(shown(data) - PICTURE.astype(int)).mean() < 5
