"""Grey of more than 8 bits is visible, also if a file uses few of its levels; a warning says so."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.stills import png
from batch_pipeline.testing.media import encode_image, make_tiff, paint


def stretched(values: np.ndarray) -> np.ndarray:
    """Put a thousandth of the values at 0, and another at 1."""
    black, white = np.quantile(values, [0.001, 0.999])
    return ((values - black) / (white - black)).clip(0, 1)


SCENE = stretched(np.asarray(paint((280, 168)).convert("L"), dtype=np.float64))
"""From 0 to 1."""
LOWER_HALF = stretched(SCENE[84:]) * 255
EXPECTED = SCENE * 255
BITS, PHOTOMETRIC, KIND = 258, 262, 339
LEAST, MOST, S_LEAST, S_MOST, NO_DATA = 280, 281, 340, 341, 42113
SIGNED, FLOAT = 2, 3


def tiff(values: np.ndarray, **entries: list[int]) -> bytes:
    """A grey TIFF of one sample; entries are named `tag_` and a number."""
    kind = {"i": SIGNED, "f": FLOAT}.get(values.dtype.kind, 1)
    more = {int(name.removeprefix("tag_")): numbers for name, numbers in entries.items()}
    return make_tiff(values[..., None], entries={PHOTOMETRIC: [1], KIND: [kind], **more})


def little_tiff(values: np.ndarray, bits: int, *, photometric: int | None = 1) -> bytes:
    """A little-endian grey TIFF without compression."""
    pixels = values.tobytes()
    entries = {
        256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1, 262: photometric, 273: 0,
        277: 1, 278: values.shape[0], 279: len(pixels),
    }  # fmt: skip
    if photometric is None:
        del entries[262]
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    written = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, value in sorted(entries.items()):
        written += struct.pack("<HHII", tag, 4, 1, value)
    return written + bytes(4) + pixels


def grey_png(values: np.ndarray) -> bytes:
    return encode_image(Image.fromarray(values.astype(np.uint16)), "png")


def shown(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    content = decode_image(data, accept(data))
    picture = Image.open(io.BytesIO(content.frames[0].jpeg)).convert("L")
    size = (SCENE.shape[1], SCENE.shape[0])
    return np.asarray(picture.resize(size), dtype=float), content.facts.warnings


def warning(black: str, white: str, of: str = "") -> tuple[str, ...]:
    return (f"the levels {black} to {white}{of} are shown from black to white",)


FEW_LEVELS: dict[str, Callable[[], bytes]] = {
    "TIFF of 16 bits": lambda: tiff((SCENE * 4095).astype(np.uint16)),
    "little-endian": lambda: little_tiff((SCENE * 4095).astype("<u2"), 16),
    "tiles": lambda: make_tiff(
        (SCENE * 4095).astype(np.uint16)[..., None], tile=64, entries={PHOTOMETRIC: [1]}
    ),
    "PNG": lambda: grey_png(SCENE * 4095),
    "signed": lambda: tiff((SCENE * 1000).astype(np.int16)),
    "signed of 32 bits": lambda: tiff((SCENE * 1000).astype(np.int32)),
    "elevation below zero": lambda: tiff((SCENE * 1500 - 500).astype(np.int16)),
    "32 bits": lambda: tiff((SCENE * 70_000).astype(np.uint32)),
    "little-endian 32 bits": lambda: little_tiff((SCENE * 70_000).astype("<u4"), 32),
    "floats up to 3000": lambda: tiff((SCENE * 3000).astype(np.float32)),
    "floats up to 255": lambda: tiff((SCENE * 255).astype(np.float32)),
    "small floats": lambda: tiff((SCENE / 100).astype(np.float32)),
    "doubles around zero": lambda: tiff(SCENE * 20 - 10),
    "white is zero": lambda: make_tiff(
        ((1 - SCENE) * 4095).astype(np.uint16)[..., None], entries={PHOTOMETRIC: [0]}
    ),
}


@pytest.mark.parametrize("make", FEW_LEVELS.values(), ids=FEW_LEVELS)
def test_a_picture_of_few_levels_is_shown_from_black_to_white_and_says_so(make):
    found, warnings = shown(make())

    assert np.abs(found - EXPECTED).mean() < 6
    assert len(warnings) == 1
    assert warnings[0].endswith("are shown from black to white")


def test_a_jpeg_xl_of_few_levels_is_visible():
    pytest.importorskip("pillow_jxl")
    output = io.BytesIO()
    Image.fromarray((SCENE * 4095).astype(np.uint16)).save(output, "JXL", lossless=True, effort=1)

    found, warnings = shown(output.getvalue())

    light = SCENE ** (1 / 2.4)  # the encoder says that it is light
    assert np.corrcoef(found.ravel(), light.ravel())[0, 1] > 0.98
    assert np.quantile(found, 0.99) > 240
    assert [text.split(" are ")[1] for text in warnings] == ["shown from black to white"]


WHOLE_RANGE: dict[str, Callable[[], bytes]] = {
    "TIFF of 16 bits": lambda: tiff((SCENE * 65535).astype(np.uint16)),
    "little-endian": lambda: little_tiff((SCENE * 65535).astype("<u2"), 16),
    "little-endian, white is zero": lambda: little_tiff(
        ((1 - SCENE) * 65535).astype("<u2"), 16, photometric=0
    ),
    "little-endian, does not say what zero is": lambda: little_tiff(
        (SCENE * 65535).astype("<u2"), 16, photometric=None
    ),
    "little-endian 32 bits": lambda: little_tiff((SCENE * (2**32 - 1)).astype("<u4"), 32),
    "PNG": lambda: grey_png(SCENE * 65535),
    "signed": lambda: tiff((SCENE * 32767).astype(np.int16)),
    "floats": lambda: tiff(SCENE.astype(np.float32)),
    "floats that overshoot": lambda: tiff((SCENE * 1.04 - 0.02).astype(np.float32)),
}


@pytest.mark.parametrize("make", WHOLE_RANGE.values(), ids=WHOLE_RANGE)
def test_an_ordinary_picture_keeps_its_levels(make):
    found, warnings = shown(make())

    assert np.abs(found - EXPECTED).mean() < 4
    assert warnings == ()


def test_twelve_packed_bits_of_a_little_endian_file_are_not_black():
    values = np.full((16, 32), 0xABC, np.uint16)
    packed = np.tile(np.array([0xAB, 0xCA, 0xBC], np.uint8), (16, 16))
    data = bytearray(little_tiff(packed, 12))
    width = data.index(struct.pack("<HHI", 256, 4, 1)) + 8
    data[width : width + 4] = struct.pack("<I", values.shape[1])

    found, warnings = shown(bytes(data))

    assert abs(found.mean() - 0xAB) < 2
    assert warnings == ()


def test_the_warning_names_the_levels():
    ramp = np.linspace(0, 1, 100_000).reshape(250, 400)

    assert shown(tiff(np.rint(ramp * 4095).astype(np.uint16)))[1] == warning(
        "4", "4,091", " of 65,535"
    )
    assert shown(tiff((ramp * 3000).astype(np.float32)))[1] == warning("3", "2,997")
    assert shown(tiff((ramp * 2 - 1).astype(np.float32)))[1] == warning("-0.998", "0.998")
    assert shown(tiff(np.rint(ramp * 900 - 400).astype(np.int16)))[1] == warning(
        "-399", "499", " of 32,767"
    )


@pytest.mark.parametrize(
    ("data", "levels"),
    [
        (tiff((SCENE * 4095).astype(np.uint16), tag_281=[4095]), ("0", "4,095", " of 65,535")),
        (tiff((SCENE * 9000).astype(np.uint16), tag_281=[16383]), ("0", "16,383", " of 65,535")),
        (
            tiff((SCENE * 3000 + 500).astype(np.uint16), tag_280=[200], tag_281=[5000]),
            ("200", "5,000", " of 65,535"),
        ),
        (tiff((SCENE * 3000).astype(np.uint16), tag_341=[4000]), ("0", "4,000", " of 65,535")),
    ],
    ids=["12 bits", "14 bits", "both ends", "the other entry"],
)
def test_levels_that_the_file_says_are_used(data, levels):
    found, warnings = shown(data)

    assert warnings == warning(*levels)
    black, white = (float(level.replace(",", "")) for level in levels[:2])
    scale = {"4,095": 4095, "16,383": 9000, "5,000": 3000, "4,000": 3000}[levels[1]]
    offset = 500 if levels[1] == "5,000" else 0
    expected = (SCENE * scale + offset - black) / (white - black) * 255
    assert np.abs(found - expected).mean() < 4


def test_float_levels_that_the_file_says_are_used():
    data = tiff((SCENE * 3000).astype(np.float32), tag_340=[0], tag_341=[77])
    limit = struct.pack(">f", 6000.0)
    entry = struct.pack(">HHII", S_MOST, 4, 1, 77)
    data = data.replace(entry, struct.pack(">HHI", S_MOST, 11, 1) + limit)

    found, warnings = shown(data)

    assert warnings == warning("0", "6,000")
    assert np.abs(found - EXPECTED / 2).mean() < 3


@pytest.mark.parametrize("most", [255, 65535, 30_000], ids=["too low", "all", "a statistic"])
def test_a_wrong_statement_of_the_levels_changes_nothing(most):
    ordinary = tiff((SCENE * 30_000).astype(np.uint16), tag_281=[most])
    found, warnings = shown(ordinary)
    assert np.abs(found - SCENE * 30_000 / 257).mean() < 3
    assert warnings == ()

    few = tiff((SCENE * 4095).astype(np.uint16), tag_281=[most])
    if most != 30_000:
        assert np.abs(shown(few)[0] - EXPECTED).mean() < 6


@pytest.mark.parametrize("no_data", [np.nan, np.inf, -np.inf, -9999.0, -3.4028235e38])
def test_points_without_data_do_not_count(no_data):
    values = (SCENE * 800 + 200).astype(np.float32)
    values[:84] = no_data

    found, warnings = shown(tiff(values))

    assert np.abs(found[84:] - LOWER_HALF).mean() < 8
    assert found[:78].mean() < 3, "they are black"
    assert len(warnings) == 1


@pytest.mark.parametrize("no_data", [-9999, -32768])
def test_whole_numbers_without_data_do_not_count(no_data):
    values = (SCENE * 800 + 200).astype(np.int16)
    values[:84] = no_data

    assert np.abs(shown(tiff(values))[0][84:] - LOWER_HALF).mean() < 8


def test_the_value_that_a_file_names_as_no_data_does_not_count():
    values = (SCENE * 800 + 200).astype(np.uint16)
    values[:84] = 7777
    data = tiff(values, tag_42113=[77])
    entry = struct.pack(">HHII", NO_DATA, 4, 1, 77)
    data = data.replace(entry, struct.pack(">HHI", NO_DATA, 2, 5) + struct.pack(">I", len(data)))

    found, _ = shown(data + b"7777\0")

    assert np.abs(found[84:] - LOWER_HALF).mean() < 8
    assert found[:78].mean() < 3


@pytest.mark.parametrize(
    ("values", "level"),
    [
        (np.full((60, 80), 1000, np.uint16), 3),
        (np.zeros((60, 80), np.uint16), 0),
        (np.full((60, 80), 5, np.float32), 255),
        (np.full((60, 80), np.nan, np.float32), 0),
        (np.full((60, 80), -9999, np.int16), 0),
    ],
    ids=["dark", "zero", "float", "no number", "no data"],
)
def test_a_picture_of_one_level_stays_as_it_is(values, level):
    found, warnings = shown(tiff(values))

    assert abs(found.mean() - level) < 2
    assert warnings == ()


def test_a_small_bright_spot_keeps_a_dark_picture_dark():
    night = (SCENE * 3000).astype(np.uint16)
    night[50:56, 50:56] = 60_000

    found, warnings = shown(tiff(night))

    assert np.median(found) < 12
    assert warnings == ()


def test_a_few_bright_pixels_on_black_are_visible():
    values = np.zeros(SCENE.shape, np.uint16)
    values[50:54, 50:54] = 3000

    found, warnings = shown(tiff(values))

    assert found[52, 52] > 240
    assert warnings == warning("0", "3,000", " of 65,535")


def test_colours_keep_their_levels():
    values = (np.asarray(paint((140, 84))).astype(np.uint16)) * 16
    content = decode_image(make_tiff(values), accept(make_tiff(values)))

    assert content.facts.warnings == ()
    assert np.asarray(Image.open(io.BytesIO(content.frames[0].jpeg))).max() < 32


@pytest.mark.parametrize("form", ["strips", "tiles", "png", "png in strips"])
def test_all_parts_of_a_large_picture_share_their_levels(form, monkeypatch):
    # Given a picture whose upper half is much darker than its lower half, in several parts
    monkeypatch.setattr(png, "_WHOLE_PIXELS", 10**9 if form == "png" else 1_000_000)
    ramp = np.repeat(np.linspace(0, 4000, 2600), 2000).reshape(2600, 2000).astype(np.uint16)
    if form.startswith("png"):
        data = grey_png(ramp)
    else:
        data = make_tiff(ramp[..., None], tile=256 * (form == "tiles"), entries={PHOTOMETRIC: [1]})

    found, warnings = shown(data)

    expected = np.linspace(0, 255, len(found))[:, None]
    assert np.abs(found - expected).max() < 8
    assert len(warnings) == 1


def test_missing_rows_of_a_picture_of_few_levels_are_named_once():
    ramp = np.tile(np.linspace(0, 4000, 2000), (1000, 1)).astype(np.uint16)
    data = bytearray(make_tiff(ramp[..., None], entries={PHOTOMETRIC: [1]}))
    start = data.index(zlib.compress(ramp[-8:].byteswap().tobytes()))
    data[start + 2 : start + 12] = bytes(10)

    _, warnings = shown(bytes(data))

    assert [text.split()[0] for text in warnings] == ["the", "damaged:"]
