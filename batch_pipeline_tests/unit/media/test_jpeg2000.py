"""JPEG 2000: what its components mean, shared samples, and codestreams that Pillow refuses.

The truth of each picture is what was painted; the files are made by other encoders and by hand.
"""

import io
import struct
import tracemalloc
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.sniffing import JPEG_2000, PNG
from batch_pipeline.media.stills.jpeg2000_codestream import Codestream, Component
from batch_pipeline.testing.media import (
    encode_image,
    jpeg2000_channels,
    jpeg2000_palette,
    make_display_p3_profile,
    make_jpeg2000,
    make_subsampled_jpeg2000,
    paint,
    with_more_tile_parts,
    wrap_jpeg2000,
)

PICTURE = paint((280, 224), seed=4)
#: Numbers of colour spaces in a file.
WHITE_IS_ZERO, CMY, CMYK, YCCK, LAB, SRGB, GREY, SYCC, ESRGB, ROMM, ESYCC = (
    0, 11, 12, 13, 14, 16, 17, 18, 20, 21, 24,
)  # fmt: skip
#: Mean difference of a picture that went through JPEG at the end (levels).
NEAR = 4.0
#: The same for a picture of few colours, whose edges a JPEG blurs.
HARD_EDGES = 7.0


def decode(data: bytes, **limits: int) -> MediaContent:
    return decode_image(data, JPEG_2000, **limits)


def shown(data: bytes) -> NDArray[np.int16]:
    content = decode(data)
    with Image.open(io.BytesIO(content.frames[0].jpeg)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int16)


def assert_shows(data: bytes, picture: Image.Image, near: float = NEAR) -> None:
    pixels = shown(data)
    small = picture.convert("RGB").resize(pixels.shape[1::-1], Image.Resampling.BOX)
    difference = np.abs(pixels - np.asarray(small, dtype=np.int16)).mean()
    assert difference < near, f"mean difference of {difference:.1f} levels"


def array(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def bare(picture: Image.Image, **options: object) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG2000", no_jp2=True, mct=0, **options)
    return encoded.getvalue()


def with_depth(codestream: bytes, depths: bytes) -> bytes:
    """Declare another depth or a sign for each component."""
    changed = bytearray(codestream)
    for number, depth in enumerate(depths):
        changed[42 + 3 * number] = depth
    return bytes(changed)


def lab_of(picture: Image.Image) -> Image.Image:
    """Return L*, a* and b* as a JPEG 2000 stores them by default, in the bands of an RGB."""
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
    assert lab is not None
    light, first, second = (array(band).astype(np.float32) for band in lab.split())
    first, second = first - 128, second - 128
    stored = [light, first * 255 / 170 + 128, second * 255 / 200 + 96]
    return Image.fromarray(np.dstack(stored).round().clip(0, 255).astype(np.uint8))


SOFT = Image.blend(PICTURE, Image.new("RGB", PICTURE.size, (150, 130, 110)), 0.6)
"""Colours that L*a*b* of 8 bits can store."""
INKS = PICTURE.convert("CMYK")


@pytest.mark.parametrize(
    ("stored", "space", "expected"),
    [
        (PICTURE, SRGB, PICTURE),
        (PICTURE.convert("L"), GREY, PICTURE.convert("L")),
        (ImageOps.invert(PICTURE.convert("L")), WHITE_IS_ZERO, PICTURE.convert("L")),
        (Image.merge("RGB", PICTURE.convert("YCbCr").split()), SYCC, PICTURE),
        (Image.merge("RGB", PICTURE.convert("YCbCr").split()), ESYCC, PICTURE),
        (Image.fromarray(255 - array(PICTURE)), CMY, PICTURE),
        (Image.merge("RGBA", INKS.split()), CMYK, INKS),
        (Image.fromarray((array(PICTURE) / 2 + 96).round().astype(np.uint8)), ESRGB, PICTURE),
        (lab_of(SOFT), LAB, SOFT),
    ],
    ids=["sRGB", "grey", "white is zero", "sYCC", "e-sYCC", "CMY", "CMYK", "e-sRGB", "Lab"],
)  # fmt: skip
def test_colour_spaces_become_srgb(stored: Image.Image, space: int, expected: Image.Image) -> None:
    assert_shows(make_jpeg2000(stored, space), expected)


def test_black_is_added_to_ycck() -> None:
    ycc = Image.merge(
        "RGB", [Image.new("L", PICTURE.size, 255), *PICTURE.convert("YCbCr").split()[1:]]
    )
    black = PICTURE.convert("L").point([255 - v for v in range(256)])
    grey = Image.merge("RGBA", [*Image.new("YCbCr", PICTURE.size, (255, 128, 128)).split(), black])
    assert ycc.size == grey.size
    assert_shows(make_jpeg2000(grey, YCCK), PICTURE.convert("L"))


def test_ranges_of_lab_that_the_file_defines_are_used() -> None:
    lab = lab_of(SOFT)
    # L* from 0 to 100; a* from -85 to 85 around 128 as the default, b* around 128 and not 96.
    shifted = lab.point([*range(256), *range(256), *(min(255, v + 32) for v in range(256))])
    parameters = struct.pack(">6I4s", 100, 0, 170, 128, 200, 128, b"\0D50")
    assert_shows(make_jpeg2000(shifted, LAB, parameters=parameters), SOFT)


def test_an_unknown_colour_space_is_shown_with_a_warning() -> None:
    data = make_jpeg2000(PICTURE, ROMM)
    assert_shows(data, PICTURE)
    assert decode(data).facts.warnings == (
        "the colours are not true: colour space 21 is shown as grey or sRGB",
    )


def test_a_profile_after_an_unknown_colour_space_counts() -> None:
    profile = make_display_p3_profile()
    box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile

    data = make_jpeg2000(PICTURE, ROMM, box)

    assert decode(data).facts.warnings == ()
    png = decode_image(encode_image(PICTURE, "png", icc_profile=profile), PNG)
    with Image.open(io.BytesIO(png.frames[0].jpeg)) as expected:
        assert_shows(data, expected)
    assert np.abs(shown(data) - shown(make_jpeg2000(PICTURE, SRGB))).mean() > 2 * NEAR


def test_channels_are_put_in_the_order_of_their_definition() -> None:
    red, green, blue = PICTURE.split()
    stored = Image.merge("RGB", [blue, red, green])
    order = jpeg2000_channels((0, 0, 3), (1, 0, 1), (2, 0, 2))
    assert_shows(make_jpeg2000(stored, SRGB, order), PICTURE)


@pytest.mark.parametrize("first", [False, True])
def test_alpha_is_where_the_definition_says(*, first: bool) -> None:
    alpha = Image.linear_gradient("L").resize(PICTURE.size)
    bands = [alpha, *PICTURE.split()] if first else [*PICTURE.split(), alpha]
    colours = range(1, 4) if first else range(3)
    channels = [(channel, 0, number) for number, channel in enumerate(colours, 1)]
    definition = jpeg2000_channels(*channels, (0 if first else 3, 1, 0))
    expected = Image.new("RGB", PICTURE.size, "white")
    expected.paste(PICTURE, mask=alpha)
    assert_shows(make_jpeg2000(Image.merge("RGBA", bands), SRGB, definition), expected)


def test_associated_alpha_is_divided_out() -> None:
    alpha = Image.new("L", PICTURE.size, 128)
    darkened = Image.blend(Image.new("RGB", PICTURE.size), PICTURE, 128 / 255)
    definition = jpeg2000_channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 2, 0))
    data = make_jpeg2000(Image.merge("RGBA", [*darkened.split(), alpha]), SRGB, definition)
    assert_shows(data, Image.blend(Image.new("RGB", PICTURE.size, "white"), PICTURE, 128 / 255))


def test_a_defined_channel_that_is_not_alpha_is_left_out() -> None:
    other = Image.linear_gradient("L").resize(PICTURE.size)
    definition = jpeg2000_channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 65535, 65535))
    assert_shows(
        make_jpeg2000(Image.merge("RGBA", [*PICTURE.split(), other]), SRGB, definition), PICTURE
    )


@pytest.mark.parametrize("size", [(280, 224), (3360, 280)], ids=["small", "reduced"])
@pytest.mark.parametrize("reverse", [False, True])
def test_palettes_are_decoded(size: tuple[int, int], *, reverse: bool) -> None:
    # Large enough to be halved: the mean of two numbers is the number of another colour.
    picture = PICTURE.resize(size).quantize(64, dither=Image.Dither.NONE)
    flat = picture.getpalette() or []
    colours = [flat[at : at + 3][:: -1 if reverse else 1] for at in range(0, len(flat), 3)]
    order = [jpeg2000_channels((0, 0, 3), (1, 0, 2), (2, 0, 1))] if reverse else []
    numbers = Image.frombytes("L", picture.size, picture.tobytes())
    data = make_jpeg2000(numbers, SRGB, jpeg2000_palette(colours), *order, num_resolutions=6)
    assert_shows(data, picture.convert("RGB"), HARD_EDGES)


def test_a_palette_of_few_bits_is_decoded() -> None:
    picture = PICTURE.quantize(16, dither=Image.Dither.NONE)
    flat = picture.getpalette() or []
    colours = [flat[at : at + 3] for at in range(0, 48, 3)]
    numbers = Image.frombytes("L", picture.size, picture.tobytes())
    # Levels of 4 bits: the encoder shifts the sign of 8 bits, so the numbers move by the rest.
    moved = numbers.point([(v + 120) % 256 for v in range(256)])
    codestream = with_depth(bare(moved), b"\3")
    colour = struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, SRGB)
    assert_shows(wrap_jpeg2000(codestream, colour, jpeg2000_palette(colours)), picture, HARD_EDGES)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv440p", "yuv411p", "yuv444p"])
@pytest.mark.parametrize("size", [(279, 223), (3361, 281)], ids=["small", "reduced"])
def test_pixels_that_share_their_colours_are_decoded(
    pixel_format: str, size: tuple[int, int]
) -> None:
    picture = PICTURE.resize(size)
    codestream = make_subsampled_jpeg2000(picture, pixel_format)
    colour = struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, SYCC)
    assert_shows(wrap_jpeg2000(codestream, colour), picture)
    if pixel_format != "yuv444p":
        assert_shows(codestream, picture)
    facts = decode(codestream).facts
    assert (facts.width, facts.height) == size


def test_a_cut_file_with_shared_samples_shows_what_is_there() -> None:
    picture = PICTURE.resize((600, 400))
    codestream = make_subsampled_jpeg2000(picture, "yuv420p")  # of 6 tiles

    with pytest.raises(PermanentError, match="4 of 6 tiles are missing") as cut:
        decode(codestream[: len(codestream) // 2])

    assert cut.value.kind == "truncated"
    assert cut.value.preview is not None
    with Image.open(io.BytesIO(cut.value.preview)) as preview:
        pixels = np.asarray(preview.convert("RGB"), dtype=np.int16)
    expected = np.asarray(picture.resize(preview.size, Image.Resampling.BOX), dtype=np.int16)
    corner = slice(0, 100), slice(0, 100)  # of the first tile
    assert np.abs(pixels[corner] - expected[corner]).mean() < 2 * NEAR


def test_two_colours_and_two_that_are_shared_are_rgb_and_alpha() -> None:
    codestream = Codestream.of(bare(PICTURE.convert("RGBA")))
    full, half = Component(8, 1, 1), Component(8, 2, 2)
    for components, expected in [
        ((full, half, half), True),
        ((full, half, half, full), True),
        ((full, full, half, half), False),
        ((half, half, half), False),
        ((full, half), False),
    ]:
        assert replace(codestream, components=components).has_shared_colours is expected


def test_shared_colours_with_a_sign_are_decoded() -> None:
    codestream = make_subsampled_jpeg2000(PICTURE, "yuv420p")
    assert_shows(with_depth(codestream, bytes([7, 0x87, 0x87])), PICTURE)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_components_with_a_sign_are_decoded(mode: str) -> None:
    picture = PICTURE.convert(mode)
    data = bare(picture)
    assert_shows(with_depth(data, b"\x87" * len(picture.getbands())), picture)


def test_few_levels_reach_white() -> None:
    levels = np.tile(np.repeat(np.arange(4, dtype=np.uint8), 56), (224, 1))
    # The encoder shifts by 128, a decoder of 2 bits by 2.
    stored = Image.fromarray(levels + np.uint8(126))
    expected = Image.fromarray(levels * np.uint8(85))
    assert_shows(make_with_depth(stored, 1), expected)


def make_with_depth(picture: Image.Image, depth: int) -> bytes:
    return with_depth(bare(picture), bytes([depth]))


def test_sixteen_bits_of_grey_are_decoded() -> None:
    grey = array(PICTURE.convert("L")).astype(np.uint16) * 257
    assert_shows(make_jpeg2000(Image.fromarray(grey), GREY), PICTURE.convert("L"))


@pytest.mark.parametrize("size", [(280, 224), (3360, 280)], ids=["small", "reduced"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_ffmpeg_decodes_what_pillow_refuses(mode: str, size: tuple[int, int]) -> None:
    picture = PICTURE.resize(size).convert(mode)
    codestream = with_more_tile_parts(bare(picture))
    with pytest.raises(OSError, match="broken data stream"):
        Jpeg2KImageFile(io.BytesIO(codestream)).load()
    assert_shows(codestream, picture)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_both_decoders_give_the_same_picture(reduction: int) -> None:
    codestream = bare(paint((1000, 604)))
    by_pillow = Jpeg2KImageFile(io.BytesIO(codestream))
    by_pillow.reduce = reduction  # type: ignore[method-assign, assignment]
    by_pillow.load()
    by_ffmpeg = Codestream.of(codestream).spread(codestream, reduction)
    assert by_ffmpeg.size == by_pillow.size
    difference = array(by_ffmpeg).astype(int) - array(by_pillow)
    assert np.abs(difference).max() <= 1


def test_a_size_that_pillow_rounds_the_wrong_way_is_decoded() -> None:
    # A quarter of 6,401 is 1,601 for a JPEG 2000; Pillow expects 1,600.
    picture = PICTURE.resize((6401, 281))
    assert_shows(bare(picture, irreversible=True, quality_layers=[20]), picture)


def test_more_than_four_components_are_refused_by_their_number() -> None:
    codestream = bytearray(bare(PICTURE))
    codestream[40:42] = b"\0\5"
    with pytest.raises(
        PermanentError, match="it has 5 components for each pixel; 1 to 4"
    ) as refused:
        decode(bytes(codestream))
    assert refused.value.kind == "unreadable_image"


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_memory_is_checked_before_anything_is_decoded(pixel_format: str) -> None:
    codestream = bytearray(make_subsampled_jpeg2000(PICTURE, pixel_format))
    codestream[8:16] = codestream[24:32] = struct.pack(">II", 9_000, 9_000)
    with pytest.raises(PermanentError, match="MiB to decode") as refused:
        decode(bytes(codestream) + bytes(100_000), max_bytes=16 * 1024**2)
    assert refused.value.kind == "too_many_pixels"


def test_tiny_code_blocks_count_as_memory() -> None:
    picture = Image.new("RGB", (500, 500))
    assert decode(bare(picture), max_bytes=48 * 1024**2)
    with pytest.raises(PermanentError, match="MiB to decode"):
        decode(bare(picture, codeblock_size=(4, 4)), max_bytes=48 * 1024**2)


def test_broken_files_are_refused_or_shown() -> None:
    files = [
        make_jpeg2000(PICTURE, LAB),
        make_jpeg2000(PICTURE.convert("L"), SRGB, jpeg2000_palette([(1, 2, 3), (4, 5, 6)])),
        make_jpeg2000(PICTURE.convert("RGBA"), CMYK, jpeg2000_channels((9, 0, 1), (9, 2, 0))),
        make_subsampled_jpeg2000(PICTURE, "yuv420p"),
    ]
    random = np.random.default_rng(5)
    for data in files:
        header = min(len(data), 300)
        for _ in range(40):
            broken = bytearray(data)
            for place in random.integers(2, header, 3):
                broken[place] = random.integers(256)
            # Any other exception fails the test.
            with suppress(PermanentError):
                decode_image(bytes(broken), JPEG_2000)


def test_a_header_of_markers_alone_does_not_fill_the_memory() -> None:
    data = b"\xff\x4f" + b"\xff\x30" * 500_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="no header"):
            Codestream.of(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 20 * 1024**2
