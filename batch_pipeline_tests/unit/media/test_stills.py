"""Each still format is decoded to the right pixels, within the memory limit."""

import io
import os
import struct
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.acceptance import FORMATS, accept
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.decoding import decode as decode_file
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.sniffing import ACCEPTED_TYPES
from batch_pipeline.media.stills import bmp, png
from batch_pipeline.media.stills.formats import DECODERS
from batch_pipeline.media.tone_mapping import ColourSpace
from batch_pipeline.testing.media import (
    Exif,
    cut_in_half,
    encode_hdr,
    encode_image,
    jpeg2000_palette,
    make_dng,
    make_hdr_png,
    make_image,
    make_jpeg2000,
    make_jpeg_with_large_exif,
    make_motion_photo,
    make_photo,
    make_psd,
    make_subsampled_jpeg2000,
    make_tiff,
    paint,
    with_more_tile_parts,
)

CASES = Path(__file__).parents[2] / "cases" / "media"
SIZE = (896, 588)
PICTURE = paint(SIZE)
ARRAY = np.asarray(PICTURE)


def decode(data: bytes) -> MediaContent:
    return decode_image(data, accept(data))


def shown(content: MediaContent) -> Image.Image:
    return Image.open(io.BytesIO(content.frames[0].jpeg)).convert("RGB")


def saved(picture: Image.Image, writer: str, **options: object) -> bytes:
    output = io.BytesIO()
    picture.save(output, writer, **options)
    return output.getvalue()


def saved_jxl(picture: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_jxl")
    return saved(picture, "JXL", **options)


@pytest.mark.parametrize("media_type", [t for t in ACCEPTED_TYPES if t.file_type == "image"])
def test_every_accepted_image_has_a_decoder(media_type):
    assert media_type.format in DECODERS


NEW_FORMATS = {
    "tiff strips": ("tiff", lambda: make_tiff(ARRAY)),
    "tiff tiles": ("tiff", lambda: make_tiff(ARRAY, tile=64)),
    "tiff 16 bits": ("tiff", lambda: make_tiff(ARRAY.astype(np.uint16) * 257)),
    "tiff 16-bit tiles": ("tiff", lambda: make_tiff(ARRAY.astype(np.uint16) * 257, tile=256)),
    "tiff cmyk": ("tiff", lambda: make_tiff(np.asarray(PICTURE.convert("CMYK")))),
    "tiff one strip": ("tiff", lambda: saved(PICTURE, "TIFF")),
    "tiff lzw": ("tiff", lambda: saved(PICTURE, "TIFF", compression="tiff_lzw")),
    "tiff jpeg": ("tiff", lambda: saved(PICTURE, "TIFF", compression="jpeg", quality=95)),
    "bigtiff": ("tiff", lambda: saved(PICTURE, "TIFF", big_tiff=True)),
    "tiff pages": (
        "tiff",
        lambda: saved(PICTURE, "TIFF", save_all=True, append_images=[PICTURE.rotate(90)]),
    ),
    "bmp": ("bmp", lambda: saved(PICTURE, "BMP")),
    "jpeg 2000": ("jpeg2000", lambda: saved(PICTURE, "JPEG2000")),
    "jpeg 2000 codestream": ("jpeg2000", lambda: saved(PICTURE, "JPEG2000", no_jp2=True)),
    "psd": ("psd", lambda: make_psd(PICTURE)),
    "jpeg xl": ("jxl", lambda: saved_jxl(PICTURE, quality=95)),
    "jpeg xl lossless": ("jxl", lambda: saved_jxl(PICTURE.convert("RGBA"), lossless=True)),
    "mpo": ("jpeg", lambda: saved(PICTURE, "MPO", save_all=True, append_images=[PICTURE])),
}


@pytest.mark.parametrize(("image_format", "make"), NEW_FORMATS.values(), ids=NEW_FORMATS)
def test_every_format_decodes_to_the_picture_that_was_encoded(image_format, make):
    content = decode(make())

    assert content.facts.format == image_format
    assert (content.facts.width, content.facts.height) == SIZE
    assert (content.facts.frame_count, content.facts.warnings) == (1, ())
    assert np.abs(np.asarray(shown(content), dtype=int) - ARRAY).mean() < 3


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_tiff, lambda pixels: make_tiff(pixels, tile=256)])
def test_a_large_tiff_is_put_together_from_its_parts(make):
    picture = paint((3136, 2352))

    result = shown(decode(make(np.asarray(picture))))

    whole = picture.resize(result.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(result, dtype=int) - np.asarray(whole, dtype=int))
    assert difference.mean() < 2
    assert difference.max() < 40, "no seam between parts"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_a_large_png_read_in_strips_equals_one_read_whole(mode, monkeypatch):
    monkeypatch.setattr(png, "_WHOLE_PIXELS", 1_000_000)
    picture = paint((2800, 1960)).convert(mode)

    result = shown(decode(encode_image(picture, "png")))

    whole = picture.convert("RGB").resize(result.size, Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(result, dtype=int) - np.asarray(whole, dtype=int))
    assert difference.mean() < (6 if mode == "1" else 3)


def with_bit_depth(
    data: bytes, old: str, new: str, *, place: int = 16, header_bits: int = 49
) -> bytes:
    """Replace the bits in a JPEG XL that say how deep its samples are.

    Args:
        old: these bits, the first of a byte first.
        new: others; zeros fill the header up to whole bytes.
        place: where they are in the header; the default is for pictures of 224 x 56 pixels.
        header_bits: length of the header.
    """
    start = data.index(b"\xff\x0a") + 2
    bits = "".join(f"{byte:08b}"[::-1] for byte in data[start:])
    assert bits.startswith(old, place)
    head = bits[:place] + new + bits[place + len(old) : header_bits]
    bits = head + "0" * ((len(old) - len(new)) % 8) + bits[header_bits:]
    return data[:start] + bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))


RAMP = np.tile(np.linspace(0, 1, 224), (56, 1))
DEEP_GREY = {
    "16 bits": lambda: saved_jxl(
        Image.fromarray((RAMP * 65535).astype(np.uint16)), lossless=True, effort=1
    ),
    "floats": lambda: saved_jxl(Image.fromarray(RAMP.astype(np.float32)), lossless=True, effort=1),
    "floats of 16 bits": lambda: with_bit_depth(
        saved_jxl(
            Image.fromarray(RAMP.astype(np.float16).view(np.uint16)), lossless=True, effort=1
        ),
        "011111100",
        "1100010",
    ),
}


@pytest.mark.parametrize("make", DEEP_GREY.values(), ids=DEEP_GREY)
def test_deep_grey_of_jpeg_xl_keeps_its_levels(make):
    result = np.asarray(shown(decode(make())), dtype=int)

    levels = 255 * (1.055 * RAMP ** (1 / 2.4) - 0.055).clip(0)  # the encoder says that it is light
    assert np.abs(result - levels[:, :, np.newaxis]).mean() < 2


@pytest.mark.parametrize(("is_animation", "warnings"), [("0", 0), ("1", 1)])
def test_an_animated_jpeg_xl_shows_its_last_frame_and_says_so(is_animation, warnings):
    # Given a header of a picture of 64 x 64 pixels, not as usual, with further entries: turned,
    # shown at 32 x 32 pixels, without a preview, perhaps animated at 1000 ticks in 1001 seconds
    bits = "1" + "11100" + "100" + "0" + "1" + "101" + "1" + "1" + "11000" + "100" + "0"
    bits += is_animation + ("10" + "10" + "00" + "0") * int(is_animation) + "0" + "10"
    bits = bits.ljust(256, "0")
    data = b"\xff\x0a" + bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, 256, 8))

    still = DECODERS["jxl"](data)

    assert still.size == (64, 64)
    assert len(still.warnings) == warnings
    eight_bits = DECODERS["jxl"](b"\xff\x0a\x4f\x02" + bytes(30))
    assert eight_bits.size == (64, 64)
    assert still.memory((64, 64)) > eight_bits.memory((64, 64)), "it has 10 bits"


@pytest.mark.parametrize("cut", [2, 3, 5, 20])
def test_the_header_of_a_jpeg_xl_may_be_in_several_boxes(cut):
    data = saved_jxl(Image.new("RGB", (1000, 600)), lossless=True, effort=1)
    parts = [b"\0\0\0\0" + data[:cut], b"\x80\0\0\1" + data[cut:]]
    boxes = [(b"JXL ", b"\r\n\x87\n"), (b"ftyp", b"jxl \0\0\0\0jxl ")]
    boxes += [(b"jxlp", part) for part in parts]
    data = b"".join((len(part) + 8).to_bytes(4, "big") + name + part for name, part in boxes)

    assert DECODERS["jxl"](data).size == (1000, 600)
    assert decode(data).facts.width == 1000


def test_deep_grey_of_jpeg_xl_with_alpha_keeps_its_levels():
    # Given levels of 8 bits that count as 10 bits: a quarter
    levels = Image.fromarray((RAMP * 255).astype(np.uint8))
    picture = Image.merge("LA", [levels, Image.new("L", levels.size, 255)])
    data = with_bit_depth(saved_jxl(picture, lossless=True, effort=1), "000", "010")

    result = np.asarray(shown(decode(data)), dtype=int)

    assert np.abs(result - (RAMP * 255 / 4)[:, :, np.newaxis]).mean() < 2


@pytest.mark.parametrize("bits", [16, 32])
def test_a_psd_of_deep_samples_shows_the_same_picture(bits):
    planes = np.moveaxis(ARRAY, -1, 0)
    if bits == 16:
        pixels = (planes.astype(">u2") * 257).astype(">u2")
    else:  # light from 0 to 1
        levels = planes / 255
        pixels = np.where(
            levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4
        ).astype(">f4")
    head = make_psd(PICTURE)[:40]
    data = head[:22] + bits.to_bytes(2, "big") + head[24:] + pixels.tobytes()

    content = decode(data)

    assert (content.facts.width, content.facts.height) == PICTURE.size
    expected = np.asarray(shown(decode(make_psd(PICTURE))), dtype=int)
    assert np.abs(np.asarray(shown(content), dtype=int) - expected).mean() < 2


def test_a_tiff_is_upright_and_dated():
    exif = Exif(6, datetime(2023, 8, 9, 10, 11, 12), "Example", "One")

    facts = decode(saved(PICTURE, "TIFF", exif=exif.to_bytes())).facts

    assert (facts.width, facts.height) == (SIZE[1], SIZE[0])
    assert (facts.captured_at, facts.camera) == (datetime(2023, 8, 9, 10, 11, 12), "Example One")


@pytest.mark.parametrize(
    ("options", "size", "colour"),
    [
        ({}, (640, 480), (73, 255, 74)),
        ({"orientation": 6}, (480, 640), (73, 255, 74)),
        ({"preview": encode_image(Image.new("RGB", (640, 480), "red"), "jpeg")}, (640, 480), None),
        (
            {"preview": encode_image(Image.new("RGB", (160, 120), "red"), "jpeg")},
            (640, 480),
            (73, 255, 74),
        ),
    ],
    ids=["developed", "on its side", "large preview", "small preview"],
)
def test_a_raw_file_shows_its_preview_if_that_is_large_enough_else_the_sensor(
    options, size, colour
):
    pytest.importorskip("rawpy")

    content = decode(make_dng((640, 480), **options))

    assert (content.facts.format, content.facts.camera) == ("dng", "Example Raw One")
    assert (content.facts.width, content.facts.height) == size
    assert content.facts.captured_at == datetime(2023, 8, 9, 10, 11, 12)
    found = np.array(shown(content).getpixel((100, 100)))
    assert np.abs(found - (colour or (254, 0, 0))).max() < 12


Entries = dict[int, list[int] | bytes]


def tiff_of(*directories: Entries, inside: int = 0, order: str = ">") -> bytes:
    """Write a TIFF whose directories follow each other, the last `inside` of them as SubIFDs.

    Args:
        directories: numbers of 32 bits or texts by tag; 273 has the pixels.
    """
    pages, places = len(directories) - inside, [0] * len(directories)
    for _ in range(2):  # the first pass only measures where the directories are
        written = b"MM\0*" if order == ">" else b"II*\0"
        written += struct.pack(f"{order}I", places[0])
        for index, entries in enumerate(directories):
            values = dict(entries)
            if index == 0 and inside:
                values[330] = places[pages:]
            pointers = {}
            for tag, value in values.items():
                numbers = value if isinstance(value, list) else []
                stored = struct.pack(f"{order}{len(numbers)}I", *numbers) or value
                pointers[tag] = (
                    4 if numbers or tag == 273 else 2,
                    1 if tag == 273 else len(numbers) or len(value),
                    stored if len(stored) <= 4 and tag != 273 else len(written),
                )
                if isinstance(pointers[tag][2], int):
                    written += stored
            places[index] = len(written)
            written += struct.pack(f"{order}H", len(values))
            for tag, (kind, count, at) in sorted(pointers.items()):
                end = at.ljust(4, b"\0") if isinstance(at, bytes) else struct.pack(f"{order}I", at)
                written += struct.pack(f"{order}HHI", tag, kind, count) + end
            following = places[index + 1] if index + 1 < pages else 0
            written += struct.pack(f"{order}I", following)
    return written


def page(picture: Image.Image, subfile: int, **more: list[int] | bytes) -> Entries:
    """An uncompressed page; the names of further entries are `tag_` and a number."""
    width, height = picture.size
    bands = len(picture.getbands())
    pixels = picture.tobytes()
    entries: Entries = {
        254: [subfile], 256: [width], 257: [height], 258: [8] * bands, 259: [1],
        262: [2 if bands == 3 else 1], 273: pixels, 277: [bands], 278: [height],
        279: [len(pixels)],
    }  # fmt: skip
    return entries | {int(name.removeprefix("tag_")): value for name, value in more.items()}


SMALL_RED = Image.new("RGB", (96, 64), "red")
NIKON = {"tag_271": b"NIKON CORPORATION\0", "tag_272": b"NIKON D3\0"}
PREVIEW_FIRST = {
    "two pages": lambda: tiff_of(page(SMALL_RED, 1), page(PICTURE, 0)),
    "little-endian": lambda: tiff_of(page(SMALL_RED, 1), page(PICTURE, 0), order="<"),
    "more previews": lambda: tiff_of(page(SMALL_RED, 1), page(SMALL_RED, 1), page(PICTURE, 0)),
    "only previews": lambda: tiff_of(
        page(SMALL_RED, 1), page(PICTURE, 1), page(PICTURE.resize((400, 300)), 1)
    ),
    "a mask": lambda: tiff_of(
        page(SMALL_RED, 1), page(Image.new("L", SIZE), 4, tag_262=[4]), page(PICTURE, 0)
    ),
    "pages of a document": lambda: tiff_of(
        page(SMALL_RED, 1), page(PICTURE, 2), page(PICTURE.resize((1200, 900)).rotate(180), 2)
    ),
}
PREVIEW_OF_A_CAMERA = {
    "Nikon": lambda: tiff_of(page(SMALL_RED, 1, **NIKON), page(PICTURE, 0), inside=1),
    "another": lambda: tiff_of(
        page(SMALL_RED, 1, tag_271=b"Canon\0"), page(SMALL_RED, 1), page(PICTURE, 0), inside=2
    ),
    "without a name": lambda: tiff_of(page(SMALL_RED, 1), page(PICTURE, 0), inside=1),
}


@pytest.mark.parametrize("make", PREVIEW_FIRST.values(), ids=PREVIEW_FIRST)
def test_a_tiff_whose_first_page_is_a_preview_shows_the_next_one(make):
    content = decode(make())

    assert content.facts.format == "tiff"
    assert (content.facts.width, content.facts.height) == SIZE
    assert np.abs(np.asarray(shown(content), dtype=int) - ARRAY).mean() < 3


@pytest.mark.parametrize("make", PREVIEW_OF_A_CAMERA.values(), ids=PREVIEW_OF_A_CAMERA)
def test_a_tiff_that_begins_as_a_raw_file_shows_its_full_picture(make):
    pytest.importorskip("rawpy")

    content = decode(make())

    assert (content.facts.width, content.facts.height) == SIZE
    assert np.abs(np.asarray(shown(content), dtype=int) - ARRAY).mean() < 3


def test_a_full_page_is_turned_by_its_own_entry_else_by_that_of_the_preview():
    own = decode(tiff_of(page(SMALL_RED, 1), page(PICTURE, 0, tag_274=[6]))).facts
    shared = decode(tiff_of(page(SMALL_RED, 1, tag_274=[6]), page(PICTURE, 0))).facts
    other = decode(tiff_of(page(SMALL_RED, 1, tag_274=[6]), page(PICTURE, 0, tag_274=[1]))).facts

    assert (own.width, own.height) == (shared.width, shared.height) == SIZE[::-1]
    assert (other.width, other.height) == SIZE


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiff_of(page(SMALL_RED, 1)),
        lambda: tiff_of(page(SMALL_RED, 1), page(Image.new("RGB", (96, 64)), 1)),
        lambda: tiff_of(page(SMALL_RED, 0), page(PICTURE, 0)),
        lambda: tiff_of(page(SMALL_RED, 1), page(Image.new("RGB", (32, 32)), 0)),
    ],
    ids=["alone", "another preview", "no preview", "smaller ones"],
)
def test_the_first_page_is_shown_if_no_full_one_follows_a_preview(make):
    content = decode(make())

    assert (content.facts.width, content.facts.height) == SMALL_RED.size
    assert np.abs(np.array(shown(content).getpixel((5, 5))) - (254, 0, 0)).max() < 12


@pytest.mark.parametrize(
    "raw",
    [
        {"tag_262": [32803]},
        {"tag_262": [34892]},
        {"tag_259": [6]},
        {"tag_259": [34713]},
        {"tag_254": [1]},
    ],
    ids=["mosaic", "linear raw", "JPEG of the old kind", "compression of Nikon", "preview"],
)
def test_a_raw_file_that_the_decoder_does_not_know_is_not_shown_as_a_tiff(raw):
    pytest.importorskip("rawpy")
    data = tiff_of(page(SMALL_RED, 1, **NIKON), page(PICTURE, 0, **raw), inside=1)

    with pytest.raises(PermanentError, match="the NEF cannot be decoded") as caught:
        decode(data)

    assert caught.value.kind == "unreadable_image"


def test_directories_that_refer_to_each_other_end():
    data = bytearray(tiff_of(page(SMALL_RED, 1), page(SMALL_RED, 1)))
    first = int.from_bytes(data[4:8], "big")
    data[-4:] = first.to_bytes(4, "big")

    assert decode(bytes(data)).facts.width == SMALL_RED.width


@pytest.mark.parametrize(("module", "extra"), [("rawpy", "raw"), ("pillow_jxl", "jxl")])
def test_a_format_whose_package_is_missing_is_refused_with_the_extra(module, extra, monkeypatch):
    monkeypatch.setattr(
        "batch_pipeline.media.acceptance.find_spec", lambda name: None if name == module else 1
    )
    data = make_dng() if module == "rawpy" else b"\xff\x0a" + bytes(30)

    with pytest.raises(PermanentError, match=rf"pip install '\.\[{extra}\]'") as caught:
        accept(data)

    assert caught.value.kind == "unsupported_format"
    assert {"rawpy": "DNG", "pillow_jxl": "JPEG XL"}[module] in str(caught.value)


def test_an_operator_may_narrow_what_is_accepted():
    assert accept(make_image("png"), {"png"}).format == "png"
    with pytest.raises(PermanentError, match=r"JPEG, which is not among .*: gif, png \(BATCH"):
        accept(make_image("jpeg"), {"png", "gif"})


def test_the_still_of_a_motion_photo_names_its_film():
    facts = decode(make_motion_photo()).facts

    assert (facts.file_type, facts.format) == ("image", "jpeg")
    assert facts.clip is not None
    assert facts.clip.endswith("bytes inside the file (motion photo)")
    assert decode(make_photo(0.1)).facts.clip is None


def test_the_still_of_a_live_photo_names_its_film():
    note = b"Apple iOS\0\0\1MM\0\1\0\x11\0\2\0\0\0\x25\0\0\0\x20" + b"\0" * 6
    note += b"11111111-2222-3333-4444-555555555555\0"
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = note

    facts = decode(encode_image(PICTURE, "jpeg", exif=exif.tobytes())).facts

    assert facts.clip == "the film of the Live Photo 11111111-2222-3333-4444-555555555555"


def test_the_first_picture_of_an_mpo_is_shown():
    second = Image.new("RGB", SIZE, "red")

    content = decode(saved(PICTURE, "MPO", save_all=True, append_images=[second], quality=90))

    assert (content.facts.format, content.facts.frame_count) == ("jpeg", 1)
    assert content.facts.warnings == ()
    assert np.abs(np.asarray(shown(content).resize(SIZE), dtype=int) - ARRAY).mean() < 6


def test_the_head_of_a_cr3_is_refused_as_a_raw_file_with_a_readable_reason():
    pytest.importorskip("rawpy")
    data = (CASES / "canon_cr3_head.cr3").read_bytes()

    with pytest.raises(PermanentError, match=r"the CR3 cannot be decoded: [A-Z]") as caught:
        decode(data)

    assert caught.value.kind == "unreadable_image"


def hdr(image_format: str, space: ColourSpace) -> bytes:
    if image_format == "png":
        return make_hdr_png(ARRAY, space)
    codes = (encode_hdr(ARRAY, space) >> 8).astype(np.uint8)
    options = {"avif": {"quality": 95, "subsampling": "4:4:4"}, "heic": {"quality": 95}}
    data = encode_image(Image.fromarray(codes), image_format, **options[image_format])
    said = data.index(b"colrnclx") + 8
    transfer = {"pq": 16, "hlg": 18}[space.transfer]
    return data[:said] + bytes((0, 9, 0, transfer)) + data[said + 4 :]


def saturation_and_contrast(picture: Image.Image) -> tuple[float, float]:
    pixels = np.asarray(picture.convert("HSV"), dtype=float)
    return pixels[..., 1].mean(), np.asarray(picture.convert("L"), dtype=float).std()


@pytest.mark.parametrize("image_format", ["png", "heic", "avif"])
@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_an_hdr_still_is_as_coloured_as_its_ordinary_twin(transfer, image_format):
    result = shown(decode(hdr(image_format, ColourSpace(transfer, "bt2020"))))

    expected = saturation_and_contrast(PICTURE)
    for found, wanted in zip(saturation_and_contrast(result), expected, strict=True):
        assert found == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "heic", "avif"])
def test_exif_of_more_than_64_kilobytes_is_read(image_format):
    # Given a maker note of 100 KB before everything else, as phones write it
    moment = datetime(2023, 4, 27, 19, 44, 18)
    block = Exif(6, moment, "Example", "One").to_bytes() + bytes(100_000)
    if image_format == "jpeg":
        data = encode_image(PICTURE, "jpeg")
        parts = (block[6:][:60_000], block[6:][60_000:])
        segments = (b"Exif\0\0" + part for part in parts)
        data = (
            data[:2]
            + b"".join(b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part for part in segments)
            + data[2:]
        )
    else:
        data = encode_image(PICTURE, image_format, exif=block)

    facts = decode(data).facts

    assert (facts.width, facts.height) == (SIZE[1], SIZE[0])
    assert (facts.captured_at, facts.camera) == (moment, "Example One")


def test_many_empty_exif_segments_cost_nothing():
    assert decode(make_jpeg_with_large_exif()).facts.width == 16


MAKERS = {
    "tiff": lambda: make_tiff(ARRAY),
    "tiles": lambda: make_tiff(ARRAY, tile=64),
    "bmp": lambda: saved(PICTURE, "BMP"),
    "jpeg2000": lambda: saved(PICTURE, "JPEG2000"),
    "psd": lambda: make_psd(PICTURE),
    "jxl": lambda: saved_jxl(PICTURE),
    "dng": make_dng,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_half_file_of_any_format_ends_in_a_permanent_error(make):
    data = cut_in_half(make())

    with pytest.raises(PermanentError) as caught:
        decode(data)

    assert caught.value.kind in {"truncated", "unreadable_image"}


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_flipped_bytes_of_any_format_end_in_a_picture_or_a_permanent_error(make):
    data = make()
    media_type = accept(data)
    random = np.random.default_rng(7)
    kinds = set()

    for _ in range(15):
        damaged = bytearray(data)
        for place in random.integers(8, min(len(data), 4000), 5):
            damaged[place] = random.integers(0, 256)
        try:
            assert decode_image(bytes(damaged), media_type).make_thumbnail()
        except PermanentError as error:
            kinds.add(error.kind)
    assert kinds <= {"unreadable_image", "truncated", "too_many_pixels", "oversized_metadata"}


def test_a_picture_that_takes_too_much_memory_is_refused_with_the_setting():
    data = encode_image(paint((1200, 900)), "webp")

    with pytest.raises(PermanentError, match=r"at most 16 MiB.*BATCH_PIPELINE_MAX_DECODE_MIB"):
        decode_image(data, accept(data), max_bytes=16 * 1024**2)


#: Decodes each file whose path it reads, in a fork of itself: imports would take longer than that.
IN_A_FORK = """
import io, os, re, sys
from pathlib import Path
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.images import vision_size
from batch_pipeline.media.stills.formats import DECODERS
from batch_pipeline.testing.media import make_image

def peak():  # in bytes, since the fork; that of `resource` would include the parent process
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def measure(path):
    data = Path(path).read_bytes()
    used = peak()
    content = decode(io.BytesIO(data), accept(data), max_bytes=1 << 40)
    highest = peak()
    still = DECODERS[accept(data).format](data)
    foretold = still.memory(vision_size(*still.size))
    print(content.facts.width, highest >> 20, highest - used, foretold, flush=True)

ordinary = make_image(size=(64, 48))
decode(io.BytesIO(ordinary), accept(ordinary))
while path := sys.stdin.readline().rstrip():
    if (child := os.fork()) == 0:
        measure(path)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("the fork failed")
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Return width, peak of the process, memory added by the decode, and its limit (bytes)."""
    path = tmp_path_factory.mktemp("measured") / "picture"
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_FORK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # It has no threads when it forks.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    ) as process:

        def measure(data):
            path.write_bytes(data)
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            return map(int, process.stdout.readline().split())

        yield measure
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from Linux")
@pytest.mark.parametrize(
    "size",
    [(11648, 8736), (12000, 9000), (16320, 12240)],
    ids=["102 megapixels", "108 megapixels", "200 megapixels"],
)
def test_the_largest_jpegs_of_cameras_are_decoded_within_350_mebibytes(size, measured):
    width, peak, _, _ = measured(saved(Image.new("L", size, 128), "JPEG", quality=20))

    assert width == size[0]
    assert peak <= 350


MEASURED = {
    "jpeg": lambda p: encode_image(p, "jpeg", quality=90),
    "jpeg progressive": lambda p: encode_image(p, "jpeg", quality=90, progressive=True),
    "png": lambda p: encode_image(p, "png"),
    "gif": lambda p: encode_image(p, "gif"),
    "webp": lambda p: encode_image(p, "webp"),
    "heic": lambda p: encode_image(p, "heic", quality=40),
    "avif": lambda p: encode_image(p, "avif"),
    "tiff": lambda p: make_tiff(np.asarray(p), tile=256),
    "tiff of few grey levels": lambda p: make_tiff(few_levels(p)[..., None], entries={262: [1]}),
    "tiff of few grey levels in one strip": lambda p: saved(
        Image.fromarray(few_levels(p)), "TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30
    ),
    "tiff of floats": lambda p: make_tiff(
        few_levels(p).astype(np.float64)[..., None], entries={262: [1], 339: [3]}
    ),
    "png of few grey levels": lambda p: saved(Image.fromarray(few_levels(p)), "PNG"),
    "bmp": lambda p: saved(p, "BMP"),
    "jpeg2000": lambda p: saved(p, "JPEG2000", quality_layers=[80], irreversible=True),
    "jpeg2000 with shared samples": lambda p: make_subsampled_jpeg2000(p, "yuv420p"),
    "jpeg2000 by FFmpeg": lambda p: with_more_tile_parts(
        saved(p, "JPEG2000", no_jp2=True, quality_layers=[80], irreversible=True)
    ),
    "jpeg2000 with a palette": lambda p: make_jpeg2000(
        p.convert("L"), 16, jpeg2000_palette([(v, 255 - v, 0) for v in range(256)])
    ),
    "jxl": lambda p: saved_jxl(p, effort=1),
    "jxl of 16 bits": lambda p: saved_jxl(
        Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257), effort=1
    ),
    "jxl of floats": lambda p: with_bit_depth(
        saved_jxl(p, effort=1, lossless=True), "000", "1001110", place=21, header_bits=34
    ),
    "gif animation": lambda p: animation(p.size, "gif", disposal=2),
    "png animation": lambda p: animation(p.size, "png", disposal=2, blend=1),
    "webp animation": lambda p: animation(p.size, "webp"),
    "avif animation": lambda p: animation(p.size, "avif"),
}


def few_levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L")).astype(np.uint16) * 16


def animation(size: tuple[int, int], image_format: str, **options: object) -> bytes:
    """Frames of one colour: they are decoded one after the other."""
    frames = [Image.new("RGBA", size, (shade, shade, shade, 255)) for shade in range(3)]
    return encode_image(
        frames[0], image_format, save_all=True, append_images=frames[1:], duration=40, **options
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from Linux")
@pytest.mark.parametrize("make", MEASURED.values(), ids=MEASURED)
def test_no_format_takes_more_memory_than_predicted(make, measured):
    data = make(paint((3328, 2496)))

    _, _, added, foretold = measured(data)

    slack = 2 * len(data) + 16 * 1024**2  # the file itself, and libraries that decoding loads
    assert added <= foretold + slack


@pytest.mark.parametrize(
    ("name", "size", "moment", "camera"),
    [
        ("exif70k_orientation6.webp", (300, 400), "2023-04-27 19:44:18", "Xiaomi M2012K11AG"),
        ("exif70k_orientation6.png", (300, 400), "2023-04-27 19:44:18", "Xiaomi M2012K11AG"),
        ("exif70k.heic", (300, 400), "2023-04-27 19:44:18", "Xiaomi M2012K11AG"),
        ("jpeg_without_eoi.jpg", (400, 300), "None", None),
        ("jpeg_20_bytes_short.jpg", (400, 300), "None", None),
        ("png_xmp_1_3mb.png", (400, 300), "None", None),
        ("date_orig_bad_dig_ok.jpg", (400, 300), "2021-05-06 07:08:09", None),
        ("date_dots.jpg", (400, 300), "2021-05-06 07:08:09", None),
        ("date_y1.jpg", (400, 300), "None", None),
        ("exif_make_undefined_type.jpg", (400, 300), "None", "Google Pixel 8"),
    ],
)
def test_files_that_were_once_decoded_wrongly_are_decoded_correctly(name, size, moment, camera):
    facts = decode((CASES / name).read_bytes()).facts

    assert (facts.width, facts.height) == size
    assert str(facts.captured_at) == moment
    assert facts.camera == camera


def test_the_same_picture_in_every_case_has_the_same_pixels():
    upright = np.asarray(shown(decode((CASES / "date_dots.jpg").read_bytes())), dtype=int)

    for name in ("jpeg_without_eoi.jpg", "jpeg_20_bytes_short.jpg", "png_xmp_1_3mb.png"):
        found = np.asarray(shown(decode((CASES / name).read_bytes())), dtype=int)
        assert np.abs(found - upright).mean() < 3, name
    for name in ("exif70k_orientation6.webp", "exif70k_orientation6.png"):
        found = np.asarray(shown(decode((CASES / name).read_bytes())), dtype=int)
        assert np.abs(np.rot90(found) - upright).mean() < 3, name


@pytest.mark.parametrize("name", ["gif_black_first.gif", "webp_transparent_first.webp"])
def test_an_empty_first_frame_gives_way_to_the_red_one(name):
    content = decode((CASES / name).read_bytes())

    assert content.facts.frame_count == 2
    thumbnail = Image.open(io.BytesIO(content.make_thumbnail()))
    found = np.array(thumbnail.getpixel((50, 50)))
    assert np.abs(found - (254, 0, 0)).max() < 6


@pytest.mark.parametrize("image_format", ["gif", "png", "webp", "avif"])
def test_a_frame_that_shows_something_is_preferred_to_uniform_ones(image_format):
    frames = [Image.new("RGB", (112, 84), colour) for colour in ("black", "white", "red")]
    frames += [paint((112, 84)), Image.new("RGB", (112, 84), "blue")]

    content = decode(
        encode_image(frames[0], image_format, save_all=True, append_images=frames[1:], duration=40)
    )

    expected = np.asarray(paint((112, 84)), dtype=int)
    assert np.abs(np.asarray(shown(content), dtype=int) - expected).mean() < 16


def test_a_date_in_the_name_of_a_file_is_used_and_marked():
    data = make_image("png")

    facts = decode_file(
        io.BytesIO(data), accept(data), filename="Screenshot_20210506-070809.png"
    ).facts

    assert facts.captured_at == datetime(2021, 5, 6, 7, 8, 9)
    assert facts.date_source == "file name"


def test_no_format_is_named_twice():
    assert len(FORMATS) == len(set(FORMATS))


def with_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan, of a few bytes, this many times."""
    data = saved(Image.new("L", (320, 240), 128), "JPEG", progressive=True)
    note = b"\xff\xfe\0\4\xff\xd9"  # a comment that looks like the end
    return data[:-2] + note + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_they_take_minutes():
    assert decode(with_scans(400)).facts.width == 320

    with pytest.raises(PermanentError, match="more than 500 scans") as refused:
        decode(with_scans(2_000))

    assert refused.value.kind == "unreadable_image"


def put_into(data: bytes, at: int, *parts: bytes) -> bytes:
    return data[:at] + b"".join(parts) + data[at:]


#: Each would take gigabytes or minutes: the parts are read one by one.
ENDLESS = {
    "a gif comment in blocks of one byte": (
        lambda: put_into(encode_image(PICTURE, "gif"), 781, b"\x21\xfe", b"\1a" * 1_000_001, b"\0"),
        "more than 1,000,000 blocks",
    ),
    "a gif of garbage": (
        lambda: put_into(encode_image(PICTURE, "gif"), 781, bytes(1_000_001)),
        "more than 1,000,000 blocks",
    ),
    "a png of empty chunks": (
        lambda: put_into(make_image("png"), 33, png.chunk(b"IDAT", b"") * 100_001),
        "more than 100000 chunks",
    ),
    "a psd of empty resources": (
        lambda: psd_with_resources((b"8BIM\0\1\0\0" + bytes(4)) * 10_001),
        "more than 10000 image resources",
    ),
}


def psd_with_resources(resources: bytes) -> bytes:
    data = make_psd(PICTURE)
    return data[:30] + len(resources).to_bytes(4, "big") + resources + data[34:]


@pytest.mark.parametrize(("make", "reason"), ENDLESS.values(), ids=ENDLESS)
def test_a_file_of_endless_small_parts_is_refused_before_they_are_read(make, reason):
    with pytest.raises(PermanentError, match=reason) as refused:
        decode(make())

    assert refused.value.kind == "oversized_metadata"


def test_a_bmp_of_endless_run_lengths_is_refused(monkeypatch):
    monkeypatch.setattr(bmp, "_MAX_RUNS", 600_000)  # more than the picture has pixels
    head = saved(PICTURE.convert("P"), "BMP")[:1078]
    head = put_into(head[:30], 30, b"\1\0\0\0") + head[34:]  # run lengths of 8 bits

    with pytest.raises(PermanentError, match="more than 600,000 run lengths"):
        decode(head + b"\1\1" * 600_001)


def test_a_later_frame_of_a_gif_counts_with_all_its_memory():
    frames = [Image.new("L", (2000, 2000), colour) for colour in (0, 255)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    at = data.rindex(b"\x2c\0\0\0\0\xd0\x07\xd0\x07")  # 2000 x 2000 from the corner
    larger = data[: at + 5] + (10_000).to_bytes(2, "little") + data[at + 7 :]

    for hostile, most in ((data, 32), (larger, 256)):
        with pytest.raises(PermanentError, match="to decode; at most") as refused:
            decode_image(hostile, accept(hostile), max_bytes=most * 1024**2)
        assert refused.value.kind == "too_many_pixels"


def test_texts_in_a_gif_change_nothing():
    data = encode_image(PICTURE, "gif")
    texts = (b"\x21\xfe", b"\5hello" * 1000, b"\0", b"\x21\xff\x0bNETSCAPE2.0\3\1\0\0\0")

    assert shown(decode(put_into(data, 781, *texts))) == shown(decode(data))


@pytest.mark.parametrize("kind", [b"tEXt", b"iTXt"])
def test_a_huge_text_in_a_png_is_not_read(kind):
    text = b"Raw profile type exif\0" + b"a " * (9 * 1024**2)

    facts = decode(put_into(make_image("png"), 33, png.chunk(kind, text))).facts

    assert (facts.warnings, facts.captured_at) == ((), None)


def test_a_webp_of_empty_chunks_is_refused_before_they_fill_the_memory():
    data = b"RIFF\0\0\0\0WEBP" + b"ANMF\0\0\0\0" * 100_001

    with pytest.raises(PermanentError, match="more than 100000 chunks") as refused:
        decode(data)

    assert refused.value.kind == "oversized_metadata"
