"""A film has the same rotation, mirroring and proportions as in a player."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.testing.media import make_video
from batch_pipeline_tests.unit.media.films import (
    decode,
    decode_case,
    picture_of,
    pixel,
    thumbnail_of,
)

#: Colour of each quarter as stored: the order of rows.
STORED = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200), "white": (235,) * 3}
#: By the display matrix (where a step right leads, and a step down), the quarters as shown. These
#: are what `ffmpeg -i … -frames:v 1` shows.
SHOWN = {
    (1, 0, 0, 1): "red green blue white",
    (-1, 0, 0, 1): "green red white blue",
    (1, 0, 0, -1): "blue white red green",
    (-1, 0, 0, -1): "white blue green red",
    (0, 1, 1, 0): "red blue green white",
    (0, 1, -1, 0): "blue red white green",
    (0, -1, 1, 0): "green white red blue",
    (0, -1, -1, 0): "white green blue red",
}


def four_quarters(size: tuple[int, int]) -> Image.Image:
    small = Image.new("RGB", (2, 2))
    small.putdata(list(STORED.values()))
    return small.resize(size, Image.Resampling.NEAREST)


def quarters_of(picture: Image.Image) -> str:
    places = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    found = [pixel(picture, *place) for place in places]
    return " ".join(min(STORED, key=lambda name: np.abs(c - STORED[name]).max()) for c in found)


@pytest.mark.parametrize("video_format", ["mp4", "mov"])
@pytest.mark.parametrize("matrix", SHOWN)
def test_the_whole_display_matrix_counts(matrix, video_format):
    stored = four_quarters((224, 112))

    content = decode(
        make_video(video_format, 1, stored.size, display_matrix=matrix, painter=lambda _: stored)
    )

    picture = picture_of(content.frames[0])
    assert quarters_of(picture) == SHOWN[matrix]
    assert picture.size == ((224, 112) if matrix[0] else (112, 224))
    assert (content.facts.width, content.facts.height) == picture.size
    assert quarters_of(thumbnail_of(content)) == SHOWN[matrix]


def test_a_matrix_scaled_or_slightly_turned_is_taken_as_the_nearest_quarter():
    stored = four_quarters((224, 112))

    content = decode(
        make_video("mp4", 1, stored.size, display_matrix=(3, -40, 41, 2), painter=lambda _: stored)
    )

    assert quarters_of(picture_of(content.frames[0])) == SHOWN[0, -1, 1, 0]


def test_a_mirrored_recording_is_mirrored_and_upright():
    content = decode_case("video_hflip_matrix.mp4")

    picture = picture_of(content.frames[0])
    assert (content.facts.width, content.facts.height) == (320, 240)
    # Colour bars begin with white; mirrored, with blue.
    assert np.abs(pixel(picture, 0.05, 0.2) - (0, 0, 188)).max() <= 6
    assert np.abs(pixel(picture, 0.95, 0.2) - 188).max() <= 6


def test_a_transposed_recording_is_transposed():
    content = decode_case("video_rotate_and_reflect.mp4")

    picture = picture_of(content.frames[0])
    assert (content.facts.width, content.facts.height) == (240, 320)
    # The bars run from the top down, and their white stays at the left end of the top.
    assert np.abs(pixel(picture, 0.2, 0.05) - 188).max() <= 6
    assert np.abs(pixel(picture, 0.2, 0.95) - (0, 0, 188)).max() <= 6


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (Fraction(4, 3), (427, 240)),
        (Fraction(1, 2), (160, 240)),
        (Fraction(64, 45), (455, 240)),
    ],
)
@pytest.mark.parametrize("video_format", ["mp4", "mkv"])
def test_pixels_that_are_not_square_keep_their_shape(video_format, aspect, size):
    content = decode(make_video(video_format, 1, (320, 240), pixel_aspect=aspect))

    facts = content.facts
    assert (facts.width, facts.height) == size
    picture = picture_of(content.frames[0])
    assert picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.13)


def test_pixels_are_stretched_before_a_film_is_turned():
    content = decode(
        make_video("mp4", 1, (160, 120), pixel_aspect=Fraction(2), display_matrix=(0, 1, -1, 0))
    )

    assert (content.facts.width, content.facts.height) == (120, 320)
    thumbnail = thumbnail_of(content)
    assert thumbnail.size == (96, 256)
