"""Images come out upright, in sRGB, small, clean, and from one decode."""

import io
import re
from datetime import datetime

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.pictures import vision_size
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.model_servers.picture_size import picture_size
from batch_pipeline.settings import Settings
from batch_pipeline.testing.media import (
    APPENDED_SCRIPT,
    IMAGE_FORMATS,
    Exif,
    cut_in_half,
    encode_image,
    make_animation,
    make_display_p3_profile,
    make_gif_bomb,
    make_image,
    make_jpeg_with_script_and_zip,
    make_jpeg_with_segments,
    make_photo,
    make_png_bomb,
    make_png_text_bomb,
    paint,
)


def decode(data: bytes) -> MediaContent:
    media_type = sniff(data)
    assert media_type is not None
    return decode_image(data, media_type)


def shown(content: MediaContent) -> Image.Image:
    return Image.open(io.BytesIO(content.frames[0].jpeg))


def assert_colour(picture: Image.Image, at: tuple[int, int], colour, tolerance: int = 6) -> None:
    found = np.array(picture.getpixel(at), dtype=int)
    assert np.abs(found - colour).max() <= tolerance, f"{found} at {at}, expected {colour}"


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_every_format_gives_facts_one_jpeg_frame_and_a_thumbnail(image_format):
    content = decode(make_image(image_format, (640, 400)))

    facts = content.facts
    assert (facts.file_type, facts.format) == ("image", image_format)
    assert (facts.width, facts.height, facts.frame_count) == (640, 400, 1)
    picture, thumbnail = shown(content), Image.open(io.BytesIO(content.make_thumbnail()))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (644, 392))
    assert (thumbnail.format, thumbnail.mode, thumbnail.size) == ("JPEG", "RGB", (256, 160))
    # GIF has 256 colours, hence the tolerance.
    expected = np.asarray(paint((640, 400)).resize(picture.size), dtype=int)
    assert np.abs(np.asarray(picture, dtype=int) - expected).mean() < 15


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ((4000, 3000), 28, (1568, 1176)),
        ((4000, 3000), 32, (1568, 1184)),
        ((4000, 3000), 48, (1536, 1152)),
        ((3000, 4000), 28, (1176, 1568)),
        ((1568, 1568), 28, (1568, 1568)),
        ((1000, 999), 28, (1008, 1008)),
        ((10, 10), 28, (28, 28)),
        ((100_000, 100), 28, (1568, 28)),
    ],
)
def test_vision_size_is_whole_patches_within_the_limit(size, patch, expected):
    assert vision_size(*size, patch) == expected


@pytest.mark.parametrize("model", ["qwen3-vl:8b-instruct", "qwen2.5vl:7b", "llava"])
def test_a_photo_goes_to_a_model_as_it_was_decoded(model):
    size = picture_size(Settings(_env_file=None, vision_model=model))
    photo = make_image("jpeg", (2000, 1333))
    [frame] = decode_image(photo, sniff(photo), patch=size.patch).frames
    assert size.fitted(frame.jpeg) is frame.jpeg


def test_a_12_megapixel_jpeg_is_decoded_at_half_its_size(monkeypatch):
    sizes = []
    load = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda self: (sizes.append(self.size), load(self)))

    content = decode(make_photo(12))

    assert set(sizes) == {(2000, 1500)}, "the smallest DCT scale that is not below 1568 x 1176"
    assert shown(content).size == (1568, 1176)
    assert content.facts.width == 4000, "facts tell the size of the file, not of the decode"


def test_a_thumbnail_keeps_the_shape_that_whole_patches_do_not():
    content = decode(make_image("png", (300, 29)))

    assert shown(content).size == (308, 28)
    assert Image.open(io.BytesIO(content.make_thumbnail())).size == (256, 25)


def test_a_thumbnail_is_never_larger_than_its_picture():
    content = decode(make_image("png", (40, 30)))

    assert Image.open(io.BytesIO(content.make_thumbnail())).size == (40, 30)


#: From the EXIF standard: the side of the upright picture that row 0 and column 0 lie on.
EXIF_SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "heic", "avif"])
@pytest.mark.parametrize("orientation", EXIF_SIDES)
def test_pictures_are_shown_upright(orientation, image_format):
    stored = Image.new("RGB", (224, 112), "white")
    stored.paste("red", (0, 0, 112, 56))  # where row 0 meets column 0
    stored.paste("blue", (112, 0, 224, 56))  # the other end of row 0

    content = decode(encode_image(stored, image_format, exif=Exif(orientation).to_bytes()))

    picture = shown(content)
    lies = orientation >= 5
    assert picture.size == ((112, 224) if lies else (224, 112))
    assert (content.facts.width, content.facts.height) == picture.size
    inset = 20
    places = {
        "left": inset,
        "right": picture.width - inset,
        "top": inset,
        "bottom": picture.height - inset,
    }
    row, column = EXIF_SIDES[orientation]
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[column]

    def point(*sides: str) -> tuple[int, int]:
        x, y = sorted(sides, key=lambda side: side in {"top", "bottom"})
        return places[x], places[y]

    assert_colour(picture, point(row, column), (255, 0, 0), 12)
    assert_colour(picture, point(row, opposite), (0, 0, 255), 12)


def half_transparent(mode: str) -> Image.Image:
    picture = Image.new("RGBA", (112, 56), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 56, 56))
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("picture", "image_format", "opaque"),
    [
        (half_transparent("RGBA"), "png", (255, 0, 0)),
        (half_transparent("RGBA"), "webp", (255, 0, 0)),
        (half_transparent("RGBA"), "heic", (255, 0, 0)),
        (half_transparent("RGBA"), "avif", (255, 0, 0)),
        (half_transparent("LA"), "png", (76, 76, 76)),
        (half_transparent("RGBA").quantize(), "png", (255, 0, 0)),
        (half_transparent("RGBA"), "gif", (255, 0, 0)),
    ],
)
def test_transparency_becomes_white(picture, image_format, opaque):
    options = {"lossless": True} if image_format == "webp" else {}

    result = shown(decode(encode_image(picture, image_format, **options)))

    assert_colour(result, (10, 28), (255, 255, 255))
    assert_colour(result, (100, 28), opaque)


def shape_on_transparent(
    colour: tuple[int, int, int], *, alpha: int = 255, mode: str = "RGBA", side: int = 56
) -> Image.Image:
    picture = Image.new("RGBA", (112, 56), (255, 255, 255, 0))
    picture.paste((*colour, alpha), (112 - side, 0, 112, side))
    return picture.convert(mode)


WHITE, GREY, PALE = (255, 255, 255), (128, 128, 128), (245, 245, 240)


@pytest.mark.parametrize(
    ("picture", "image_format", "ground", "shape"),
    [
        (shape_on_transparent(WHITE), "png", GREY, WHITE),
        (shape_on_transparent(WHITE, mode="LA"), "png", GREY, WHITE),
        (shape_on_transparent(WHITE), "gif", GREY, WHITE),
        (shape_on_transparent(WHITE), "webp", GREY, WHITE),
        (shape_on_transparent(PALE), "png", GREY, PALE),
        (shape_on_transparent(WHITE, alpha=128), "png", GREY, (192, 192, 192)),
        (shape_on_transparent((210, 210, 210)), "png", WHITE, (210, 210, 210)),
        (shape_on_transparent((255, 255, 150)), "png", WHITE, (255, 255, 150)),
        (shape_on_transparent((0, 0, 0), alpha=60), "png", WHITE, (195, 195, 195)),
        (shape_on_transparent((0, 0, 0), side=6), "png", WHITE, None),
        (shape_on_transparent(WHITE, alpha=0), "png", WHITE, WHITE),
    ],
    ids=[
        "white", "white, grey with alpha", "white GIF", "white WebP", "pale", "half white",
        "light grey", "yellow", "shadow", "small", "nothing",
    ],
)  # fmt: skip
def test_white_shapes_are_put_on_grey_and_others_on_white(picture, image_format, ground, shape):
    options = {"lossless": True, "exact": True} if image_format == "webp" else {}

    result = shown(decode(encode_image(picture, image_format, **options)))

    assert_colour(result, (10, 28), ground)
    if shape:
        assert_colour(result, (100, 28), shape)


def test_a_white_page_with_an_alpha_channel_stays_white():
    picture = Image.new("RGBA", (112, 56), (255, 255, 255, 255))
    picture.putpixel((0, 0), (255, 255, 255, 250))

    assert_colour(shown(decode(encode_image(picture, "png"))), (10, 28), WHITE)


def test_a_white_shape_with_a_few_dark_points_is_put_on_grey():
    picture = shape_on_transparent(WHITE)
    picture.paste((0, 0, 0, 255), (80, 20, 84, 24))

    result = shown(decode(encode_image(picture, "png")))

    assert_colour(result, (10, 28), GREY)


def test_a_frame_with_a_white_shape_shows_something():
    frames = [shape_on_transparent(WHITE), shape_on_transparent((255, 0, 0))]
    data = encode_image(frames[0], "png", save_all=True, append_images=frames[1:])

    assert_colour(shown(decode(data)), (100, 28), WHITE)


def test_a_colour_declared_transparent_becomes_white():
    picture = Image.new("RGB", (112, 56), (0, 200, 0))
    picture.paste((10, 20, 30), (0, 0, 56, 56))

    result = shown(decode(encode_image(picture, "png", transparency=(10, 20, 30))))

    assert_colour(result, (10, 28), (255, 255, 255))
    assert_colour(result, (100, 28), (0, 200, 0))


@pytest.mark.parametrize(
    ("picture", "image_format", "expected"),
    [
        (Image.new("L", (56, 56), 128), "png", (128, 128, 128)),
        (Image.new("1", (56, 56), 1), "png", (255, 255, 255)),
        (Image.new("RGB", (56, 56), (10, 200, 90)).quantize(), "png", (10, 200, 90)),
        (Image.new("CMYK", (56, 56), (0, 255, 255, 0)), "jpeg", (255, 0, 0)),
        (Image.new("L", (56, 56), 128), "jpeg", (128, 128, 128)),
        (
            Image.fromarray(np.full((56, 56), 0x8000, dtype=np.uint16)),
            "png",
            (128, 128, 128),
        ),
    ],
    ids=["grey", "bilevel", "palette", "cmyk", "grey jpeg", "16 bits"],
)
def test_every_mode_becomes_rgb_of_the_same_colour(picture, image_format, expected):
    assert_colour(shown(decode(encode_image(picture, image_format))), (28, 28), expected)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_wide_gamut_colours_are_converted_to_srgb(image_format):
    picture = Image.new("RGB", (56, 56), (200, 100, 50))

    data = encode_image(picture, image_format, icc_profile=make_display_p3_profile())
    result = shown(decode(data))

    # As the standard matrices give it.
    assert_colour(result, (28, 28), (216, 93, 25), 8)
    assert "icc_profile" not in result.info


def test_a_broken_colour_profile_is_ignored():
    picture = Image.new("RGB", (56, 56), (200, 100, 50))

    result = shown(decode(encode_image(picture, "png", icc_profile=b"no profile at all")))

    assert_colour(result, (28, 28), (200, 100, 50))


def test_a_profile_for_other_channels_is_ignored():
    picture = Image.new("L", (56, 56), 100)

    data = encode_image(picture, "jpeg", icc_profile=make_display_p3_profile())

    assert_colour(shown(decode(data)), (28, 28), (100, 100, 100))


def test_a_large_picture_scaled_in_strips_equals_one_scaled_whole():
    # Given a size that is reduced by 2 first, in more than one strip, with an odd last row.
    picture = paint((6500, 901))

    result = shown(decode(encode_image(picture, "png")))

    whole = picture.resize(result.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(result, dtype=int) - np.asarray(whole, dtype=int))
    assert difference.mean() < 2
    assert difference.max() < 40, "no seam between strips"


@pytest.mark.parametrize("image_format", ["gif", "png", "webp", "avif"])
def test_an_animation_gives_its_first_frame_and_how_many_it_has(image_format):
    content = decode(make_animation(image_format, frames=4))

    assert content.facts.frame_count == 4
    assert len(content.frames) == 1
    assert_colour(shown(content), (20, 20), (255, 0, 0), 12)


def test_of_a_gif_of_thousands_of_frames_only_one_is_decoded():
    data = make_animation("gif", frames=2000, size=(32, 24))
    last_frame = data.rindex(b"\x21\xf9\x04")
    # Given that every frame but the first is broken, so that a decoder which reads on fails.
    second = data.index(b"\x21\xf9\x04", data.index(b"\x21\xf9\x04") + 3)
    broken = data[: second + 17] + b"\xff" * 8 + data[second + 25 : last_frame] + data[last_frame:]

    content = decode(broken)

    assert content.facts.frame_count == 2000
    assert_colour(shown(content), (14, 14), (255, 0, 0), 12)


def test_date_and_camera_are_read():
    exif = Exif(captured_at=datetime(2023, 8, 9, 10, 11, 12), make="NIKON", model="NIKON Z 6")

    facts = decode(make_image("jpeg", exif=exif)).facts

    assert facts.captured_at == datetime(2023, 8, 9, 10, 11, 12)
    assert facts.camera == "NIKON Z 6", "the maker is not said twice"


@pytest.mark.parametrize("image_format", ["png", "webp", "heic", "avif"])
def test_date_and_camera_are_read_from_every_format_that_has_them(image_format):
    exif = Exif(captured_at=datetime(2023, 8, 9, 10, 11, 12), make="Example", model="One")

    facts = decode(make_image(image_format, exif=exif)).facts

    assert (facts.captured_at, facts.camera) == (datetime(2023, 8, 9, 10, 11, 12), "Example One")


def test_the_name_of_a_camera_is_one_short_printable_line():
    exif = Exif(make="Evil\n\x1b[31m", model="gpj.\u202e" + "x" * 5000)

    camera = decode(make_image("jpeg", exif=exif)).facts.camera

    assert camera is not None
    assert camera.isprintable()
    assert len(camera) <= 80


def test_a_clock_that_was_never_set_gives_no_date():
    exif = Exif(captured_at=datetime(2023, 8, 9)).to_bytes()
    data = encode_image(paint((56, 56)), "jpeg", exif=exif.replace(b"2023:08:09", b"0000:00:00"))

    assert decode(data).facts.captured_at is None


def test_broken_exif_does_not_cost_the_picture():
    facts = decode(encode_image(paint((56, 56)), "jpeg", exif=b"Exif\0\0MM\0*garbage")).facts

    assert (facts.width, facts.captured_at, facts.camera) == (56, None, None)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "heic", "avif"])
def test_pictures_for_models_and_thumbnails_contain_no_metadata(image_format):
    exif = Exif(make="Example", captured_at=datetime(2023, 8, 9), with_gps=True)
    data = make_image(image_format, exif=exif)
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(0x8825), "the file does hold a position"

    content = decode(data)

    for jpeg in (content.frames[0].jpeg, content.make_thumbnail()):
        picture = JpegImageFile(io.BytesIO(jpeg))
        assert {name for name, _ in picture.applist} == {"APP0"}, "JFIF and nothing else"
        assert not picture.getexif()
    assert "48" not in repr(content.facts)


def test_nothing_made_from_a_jpeg_contains_the_script_and_archive_after_it():
    content = decode(make_jpeg_with_script_and_zip())

    for jpeg in (content.frames[0].jpeg, content.make_thumbnail()):
        assert jpeg.endswith(b"\xff\xd9")
        assert APPENDED_SCRIPT not in jpeg
        assert b"PK\x03\x04" not in jpeg


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: make_png_bomb(20_000), "20000 x 20000 = 400.0 megapixels"),
        (lambda: make_png_bomb(11_000), "11000 x 11000 = 121.0 megapixels"),
        (make_gif_bomb, "65535 x 65535 = 4294.8 megapixels"),
    ],
    ids=["png", "png that Pillow only warns of", "gif header"],
)
def test_too_many_pixels_are_refused_with_size_and_limit(make, size):
    data = make()
    assert len(data) < 50_000

    with pytest.raises(PermanentError, match=size) as caught:
        decode(data)

    assert caught.value.kind == "too_many_pixels"
    assert re.search("at most 1(,000 megapixels|000 pixels a byte)", str(caught.value))


def test_sizes_between_the_limit_of_pillow_and_ours_decode_without_a_warning():
    side = 9_900
    assert Image.MAX_IMAGE_PIXELS is not None
    assert side * side > Image.MAX_IMAGE_PIXELS

    facts = decode(make_png_bomb(side)).facts  # a warning is an error in these tests

    assert facts.width == side


@pytest.mark.parametrize(
    "make",
    [make_png_text_bomb, lambda: make_jpeg_with_segments(5000)],
    ids=["png text", "jpeg segments"],
)
def test_metadata_of_absurd_size_has_a_kind_of_its_own(make):
    with pytest.raises(PermanentError) as caught:
        decode(make())

    assert caught.value.kind == "oversized_metadata"


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_an_image_cut_in_half_is_called_truncated(image_format):
    data = cut_in_half(make_image(image_format))

    with pytest.raises(PermanentError, match=f"after {len(data)} bytes") as caught:
        decode(data)

    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_garbage_after_a_good_signature_is_unreadable_or_truncated(image_format):
    media_type = sniff(make_image(image_format))
    assert media_type is not None

    with pytest.raises(PermanentError) as caught:
        decode_image(make_image(image_format)[:16] + bytes(range(256)) * 8, media_type)

    assert caught.value.kind in {"unreadable_image", "truncated"}
    assert image_format.upper() in str(caught.value)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_flipped_bytes_end_in_a_picture_or_a_permanent_error(image_format):
    data = make_image(image_format, (64, 48), exif=Exif(6, datetime(2023, 8, 9), "a", "b", True))
    media_type = sniff(data)
    assert media_type is not None
    random = np.random.default_rng(7)
    kinds = set()

    for _ in range(30):
        damaged = bytearray(data)
        for place in random.integers(12, len(data), 5):
            damaged[place] = random.integers(0, 256)
        try:
            assert decode_image(bytes(damaged), media_type).make_thumbnail()
        except PermanentError as error:
            kinds.add(error.kind)

    assert kinds <= {"unreadable_image", "truncated", "too_many_pixels", "oversized_metadata"}
