"""A picture is shown as its boxes say: only the named part, with the named pixel shape."""

import io

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.media.apertures import part_after_crop, shown_part
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.media.video_matroska import pixel_crop
from batch_pipeline.testing.media import (
    Track,
    clean_aperture_box,
    encode_image,
    make_tracks,
    make_video,
    paint,
    pixel_aspect_box,
    with_film_boxes,
    with_heif_boxes,
    with_matroska_video,
)
from batch_pipeline_tests.unit.media.films import decode as decode_film

STORED = (320, 280)
PART = (140, 40, 320, 180)
PICTURE = paint(STORED)
TURNED_BOX = b"\0\0\0\x09irot\1"
"""A quarter turn anticlockwise."""


def decode(data: bytes) -> MediaContent:
    media_type = sniff(data)
    assert media_type is not None
    return decode_image(data, media_type)


def assert_shows(content: MediaContent, expected: Image.Image, most: float = 6) -> None:
    facts = content.facts
    assert (facts.width, facts.height) == expected.size
    shown = Image.open(io.BytesIO(content.frames[0].jpeg)).convert("RGB")
    truth = expected.resize(shown.size, Image.Resampling.BOX)
    difference = np.abs(np.asarray(shown, dtype=int) - np.asarray(truth, dtype=int)).mean()
    assert difference < most


@pytest.mark.parametrize("image_format", ["heic", "avif"])
def test_the_clean_aperture_of_a_still_is_shown(image_format):
    data = encode_image(PICTURE, image_format, quality=95)

    assert_shows(decode(data), PICTURE)
    cut = decode(with_heif_boxes(data, clean_aperture_box(STORED, *PART)))
    assert_shows(cut, PICTURE.crop(PART))


@pytest.mark.parametrize("image_format", ["heic", "avif"])
def test_a_still_is_cut_before_it_is_turned(image_format):
    data = encode_image(PICTURE, image_format, quality=95)

    turned = decode(with_heif_boxes(data, clean_aperture_box(STORED, *PART) + TURNED_BOX))

    assert_shows(turned, PICTURE.crop(PART).transpose(Image.Transpose.ROTATE_90))


@pytest.mark.parametrize("image_format", ["heic", "avif"])
def test_wide_pixels_of_a_still_are_stretched_before_it_is_turned(image_format):
    data = encode_image(PICTURE, image_format, quality=95)
    wide = PICTURE.resize((2 * STORED[0], STORED[1]))

    assert_shows(decode(with_heif_boxes(data, pixel_aspect_box(20, 10))), wide, 8)
    turned = decode(with_heif_boxes(data, pixel_aspect_box(20, 10) + TURNED_BOX))
    assert_shows(turned, wide.transpose(Image.Transpose.ROTATE_90), 8)


@pytest.mark.parametrize("video_format", ["mp4", "mov"])
@pytest.mark.parametrize("matrix", [None, (0, 1, -1, 0)])
def test_a_film_is_cut_to_its_clean_aperture_before_it_is_turned(video_format, matrix):
    film = make_video(video_format, 1, STORED, painter=lambda _: PICTURE, display_matrix=matrix)

    content = decode_film(with_film_boxes(film, clean_aperture_box(STORED, *PART)))

    expected = PICTURE.crop(PART)
    if matrix:
        expected = expected.transpose(Image.Transpose.ROTATE_270)
    assert_shows(content, expected, 9)


def test_the_clean_aperture_of_a_large_film_is_shown_and_its_pixels_are_stretched():
    """Of 720 x 480 pixels, 704 x 480 are shown, each 10 x 11: a camcorder's picture is 640 wide."""
    whole = paint((720, 480))
    film = make_video("mov", 1, whole.size, painter=lambda _: whole)
    part = (8, 0, 712, 480)
    added = clean_aperture_box(whole.size, *part) + pixel_aspect_box(10, 11)

    content = decode_film(without_pixel_aspect(with_film_boxes(film, added)))

    assert_shows(content, whole.crop(part).resize((640, 480)), 9)


#: Elements of Matroska: how much is cut at the left, top, right and bottom; the display size.
CROP, DISPLAY, UNIT = (0x54CC, 0x54BB, 0x54DD, 0x54AA), (0x54B0, 0x54BA), 0x54B2


@pytest.mark.parametrize("video_format", ["mkv", "webm"])
def test_pixels_that_matroska_cuts_are_not_shown(video_format):
    film = make_video(video_format, 1, STORED, painter=lambda _: PICTURE)
    left, top, right, bottom = PART
    crop = (left, top, STORED[0] - right, STORED[1] - bottom)

    content = decode_film(with_matroska_video(film, tuple(zip(CROP, crop, strict=True))))

    assert_shows(content, PICTURE.crop(PART), 9)


@pytest.mark.parametrize("unit", [0, 1, 2, 3])
def test_matroska_is_stretched_to_its_display_size_in_any_unit(unit):
    film = make_video("mkv", 1, STORED, painter=lambda _: PICTURE)
    left, top, right, bottom = PART
    crop = (left, top, STORED[0] - right, STORED[1] - bottom)
    # The display size is of the part that is shown.
    shape = (3 * (right - left), 2 * (bottom - top))
    added = (*zip(CROP, crop, strict=True), *zip(DISPLAY, shape, strict=True), (UNIT, unit))

    content = decode_film(with_matroska_video(film, added, without_unit=True))

    wide = PICTURE.crop(PART).resize((3 * (right - left) // 2, bottom - top))
    assert_shows(content, wide, 9)


def test_the_cut_of_another_track_does_not_count():
    two = make_tracks("mkv", Track((64, 64), "red"), Track(STORED, "green"))
    film = with_matroska_video(two, tuple(zip(CROP, (8, 8, 8, 8), strict=True)))

    content = decode_film(film)

    assert (content.facts.width, content.facts.height) == STORED
    assert [pixel_crop(io.BytesIO(film), number)[0] for number in range(3)] == [8, 0, 0]


@pytest.mark.parametrize("crop", [(500, 0, 0, 0), (0, 60, 0, 60), (2**31, 2**31, 2**31, 2**31)])
def test_a_cut_that_leaves_nothing_is_ignored(crop):
    assert part_after_crop(crop, (100, 100)) == (0, 0, 100, 100)


def test_broken_elements_of_matroska_are_ignored():
    film = make_video("mkv", 1, (64, 64))
    head = film[: film.find(b"\x1f\x43\xb6\x75")]
    random = np.random.default_rng(3)
    for _ in range(300):
        broken = bytearray(head)
        for place in random.integers(4, len(head), 3):
            broken[place] = random.integers(256)
        assert len(pixel_crop(io.BytesIO(broken), 0)) == 4


def without_pixel_aspect(film: bytes) -> bytes:
    """Rename the first such box of a film, so that no decoder reads it."""
    first, last = film.find(b"pasp"), film.rfind(b"pasp")
    return film if first == last else film[:first] + b"free" + film[first + 4 :]


@pytest.mark.parametrize(
    "box",
    [
        b"",
        bytes(32),
        clean_aperture_box((100, 100), 0, 0, 0, 0)[8:],
        clean_aperture_box((100, 100), 500, 500, 600, 600)[8:],
        b"\xff" * 32,
    ],
)
def test_an_aperture_that_leaves_nothing_is_ignored(box):
    left, top, right, bottom = shown_part(box, (100, 100))

    assert 0 <= left < right <= 100
    assert 0 <= top < bottom <= 100


def test_an_aperture_beyond_the_picture_ends_with_it():
    box = clean_aperture_box((100, 100), 50, -20, 150, 60)[8:]

    assert shown_part(box, (100, 100)) == (50, 0, 100, 60)
