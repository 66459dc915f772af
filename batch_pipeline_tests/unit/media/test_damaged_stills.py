"""A damaged picture is shown with a warning; a truncated picture fails, with a preview."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.stills import png
from batch_pipeline.testing.media import (
    Exif,
    add_png_chunks,
    cut_in_half,
    encode_image,
    make_image,
    paint,
)

SIZE = (784, 588)
PICTURE = paint(SIZE)


def decode(data: bytes) -> MediaContent:
    return decode_image(data, accept(data))


def pixels(content: MediaContent) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content.frames[0].jpeg)), dtype=int)


def assert_whole(content: MediaContent) -> None:
    """Every row is there."""
    expected = np.asarray(PICTURE, dtype=int)
    assert np.abs(pixels(content) - expected).max(axis=(1, 2)).max() < 120
    assert np.abs(pixels(content) - expected).mean() < 6


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [2, 20])
def test_a_jpeg_that_lacks_its_last_bytes_is_whole_or_nearly(missing, progressive):
    data = encode_image(PICTURE, "jpeg", quality=90, progressive=progressive)

    content = decode(data[:-missing])

    assert_whole(content)
    if missing > 2:
        assert content.facts.warnings[0].startswith("damaged: ")


def test_an_intact_jpeg_has_no_warning():
    assert decode(make_image("jpeg")).facts.warnings == ()


@pytest.mark.parametrize("image_format", ["webp", "heic", "gif", "png", "jpeg2000"])
def test_a_picture_that_lacks_its_last_bytes_is_shown_with_a_warning(image_format):
    data = encode_image(PICTURE, image_format)

    content = decode(data[:-100])

    assert content.facts.warnings[0].startswith("damaged: ")
    expected = np.asarray(PICTURE, dtype=int)
    assert np.abs(pixels(content) - expected)[:500].mean() < 16, "GIF has 256 colours"


@pytest.mark.parametrize(("boxes", "kind"), [(True, "truncated"), (False, "unreadable_image")])
@pytest.mark.parametrize("missing", [1, 2000])
def test_a_cut_jpeg_xl_fails_without_a_preview(boxes, kind, missing):
    pytest.importorskip("pillow_jxl")
    encoded = io.BytesIO()
    PICTURE.save(encoded, "JXL", effort=1, use_container=boxes)

    with pytest.raises(PermanentError, match="cut or broken") as caught:
        decode(encoded.getvalue()[:-missing])

    assert caught.value.kind == kind
    assert caught.value.preview is None


@pytest.mark.parametrize("image_format", ["jpeg", "png", "gif", "heic", "webp", "avif", "jpeg2000"])
def test_a_half_picture_fails_with_a_preview_of_what_is_there(image_format):
    data = cut_in_half(encode_image(PICTURE, image_format))

    with pytest.raises(PermanentError) as caught:
        decode(data)

    assert caught.value.kind == "truncated"
    assert caught.value.preview is not None
    preview = Image.open(io.BytesIO(caught.value.preview))
    assert preview.size == (256, 192)
    whole = PICTURE.resize(preview.size)
    # An AVIF of this size is two tiles, side by side.
    top = (0, 0, 100 if image_format == "avif" else 256, 30)
    if image_format == "gif":
        return  # the rows are stored from coarse to fine, so every second row is missing
    difference = np.asarray(preview.crop(top), dtype=int) - np.asarray(whole.crop(top), dtype=int)
    assert np.abs(difference).mean() < 20


@pytest.mark.parametrize(
    "options",
    [
        {"no_jp2": True},
        {"irreversible": True, "quality_mode": "rates", "quality_layers": [20, 10]},
        {"progression": "RPCL"},
        {"tile_size": (128, 128)},
        {"tile_size": (128, 128), "no_jp2": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_a_cut_jpeg_2000_shows_what_is_there(options, share):
    encoded = io.BytesIO()
    PICTURE.save(encoded, "JPEG2000", **options)
    data = encoded.getvalue()

    with pytest.raises(PermanentError) as caught:
        decode(data[: round(share * len(data))])

    assert caught.value.kind == "truncated"
    assert "missing" in str(caught.value)
    assert caught.value.preview is not None
    preview = np.asarray(Image.open(io.BytesIO(caught.value.preview)), dtype=int)
    whole = np.asarray(PICTURE.resize((256, 192)), dtype=int)
    difference = np.abs(preview - whole).mean(axis=2)
    if "tile_size" in options:  # whole tiles from the top
        assert difference[: round(192 * share * 0.6)].mean() < 12
        assert preview[-10:, -10:].mean() < 12, "black where nothing is"
    else:
        assert difference.mean() < 24


@pytest.mark.parametrize("bare", [False, True])
def test_a_jpeg_2000_that_lacks_only_its_last_mark_is_shown(bare):
    encoded = io.BytesIO()
    PICTURE.save(encoded, "JPEG2000", no_jp2=bare, tile_size=(256, 256))

    content = decode(encoded.getvalue()[:-2])

    assert content.facts.warnings[0].startswith("damaged: ")
    assert np.abs(pixels(content) - np.asarray(PICTURE, dtype=int)).mean() < 4


def test_a_preview_of_a_cut_picture_is_upright():
    data = encode_image(PICTURE, "jpeg", exif=Exif(6).to_bytes())

    with pytest.raises(PermanentError) as caught:
        decode(cut_in_half(data))

    assert caught.value.preview is not None
    assert Image.open(io.BytesIO(caught.value.preview)).size == (192, 256)


@pytest.mark.slow
def test_a_large_png_that_is_cut_is_judged_by_its_rows(monkeypatch):
    monkeypatch.setattr(png, "_WHOLE_PIXELS", 1_000_000)
    picture = paint((3000, 2000))
    data = encode_image(picture, "png")

    content = decode(data[:-200])
    with pytest.raises(PermanentError, match="too early") as caught:
        decode(cut_in_half(data))

    assert any("rows are missing" in warning for warning in content.facts.warnings)
    assert caught.value.kind == "truncated"
    assert caught.value.preview is not None


def with_wrong_checksum(png: bytes, kind: bytes) -> bytes:
    start = png.index(kind) - 4
    end = start + 8 + int.from_bytes(png[start : start + 4], "big")
    return png[:end] + b"\0\0\0\0" + png[end + 4 :]


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"tEXt"])
def test_a_wrong_checksum_is_a_warning(kind):
    png = add_png_chunks(encode_image(PICTURE, "png"), (b"tEXt", b"Comment\0hello"))

    content = decode(with_wrong_checksum(png, kind))

    assert_whole(content)
    assert content.facts.warnings == (f"damaged: the checksum of a {kind.decode()} chunk is wrong",)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"gAMA", b"\1"),
        (b"pHYs", b"\1\2"),
        (b"cHRM", b""),
        (b"tRNS", b"\1"),
        (b"iCCP", b"x"),
        (b"iTXt", b"XML:com.adobe.xmp"),
        (b"zTXt", b"Comment\0\0not compressed"),
        (b"eXIf", b"II*"),
        (b"acTL", b"\0"),
        (b"acTL", bytes(8)),
        (b"cICP", b""),
    ],
    ids=lambda chunk: f"{chunk[0].decode()}-{len(chunk[1])}",
)
def test_short_and_broken_chunks_beside_a_picture_cost_nothing(chunk):
    assert_whole(decode(add_png_chunks(encode_image(PICTURE, "png"), chunk)))


def test_megabytes_of_text_cost_nothing():
    texts = [(b"tEXt", b"Comment\0" + b"x" * 2_000_000)] * 3
    packed = (b"zTXt", b"Other\0\0" + zlib.compress(b"y" * 4_000_000))

    assert_whole(decode(add_png_chunks(encode_image(PICTURE, "png"), *texts, packed)))


def test_a_chunk_of_a_wrong_length_does_not_hide_the_pixels():
    png = encode_image(PICTURE, "png")
    broken = struct.pack(">I", 0x7FFFFFFF) + b"tEXtComment\0hello" + bytes(4)

    assert_whole(decode(png[:33] + broken + png[33:]))


@pytest.mark.parametrize("image_format", ["jpeg", "png", "gif", "webp", "heic", "avif"])
def test_data_after_a_picture_costs_nothing(image_format):
    data = encode_image(PICTURE, image_format)

    content = decode(data + b"\0\0garbage\xff\xd8\xff\xe0" * 20)

    assert content.facts.warnings == ()
    assert np.abs(pixels(content) - np.asarray(PICTURE, dtype=int)).mean() < 16


def test_a_broken_metadata_segment_of_a_jpeg_costs_nothing():
    data = encode_image(PICTURE, "jpeg", quality=90)
    broken = b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff\xe2\x00\x0eMPF\0garbage!"

    assert_whole(decode(data[:2] + broken + data[2:]))


def test_metadata_that_is_cut_off_after_the_pixels_of_a_webp_is_a_warning():
    data = encode_image(PICTURE, "webp", quality=90, exif=Exif(make="Example").to_bytes())

    content = decode(data[:-10])

    assert_whole(content)
    assert content.facts.warnings[0].startswith("damaged: ")


@pytest.mark.parametrize("image_format", ["gif", "webp"])
def test_an_animation_with_a_broken_later_frame_shows_the_frames_before_it(image_format):
    # Given a red frame, so that the search for a better one meets the broken one
    frames = [Image.new("RGB", (112, 84), "red"), paint((112, 84)), paint((112, 84), 1)]
    data = bytearray(encode_image(frames[0], image_format, save_all=True, append_images=frames[1:]))
    data[-400:-300] = bytes(100)

    content = decode(bytes(data))

    assert pixels(content).size
