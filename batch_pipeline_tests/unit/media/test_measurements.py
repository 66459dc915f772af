"""Measurements of drawn pictures with known results."""

import io

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.media.measurements import Pixels, measure, small_copy


def plain(colour: str, size: tuple[int, int] = (32, 24)) -> Pixels:
    return np.asarray(Image.new("RGB", size, colour))


def stacked(*pictures: Pixels) -> Pixels:
    return np.concatenate(pictures, axis=0)


def noisy(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("code", "phrase"),
    [
        ("#000000", "black"),
        ("#ffffff", "white"),
        ("#808080", "grey"),
        ("#c8c8c8", "light grey"),
        ("#3c3c3c", "dark grey"),
        ("#ff0000", "bright red"),
        ("#600000", "dark red"),
        ("#ff8800", "bright orange"),
        ("#ffee00", "bright yellow"),
        ("#00b030", "bright green"),
        ("#0a4018", "dark green"),
        ("#a8e0b0", "light green"),
        ("#00a0a0", "turquoise"),
        ("#2878e0", "bright blue"),
        ("#b0d4f4", "light blue"),
        ("#0b1738", "dark blue"),
        ("#8030c0", "bright purple"),
        ("#ffb0cc", "light pink"),
        ("#7a4a20", "brown"),
        ("#e3c48c", "beige"),
    ],
)
def test_colours_have_the_names_that_people_give_them(code: str, phrase: str) -> None:
    assert measure([plain(code)]).colours[0].phrase == phrase


def test_shares_are_those_of_the_area_and_add_up_to_one() -> None:
    colours = measure([stacked(plain("#2878e0", (32, 75)), plain("#00b030", (32, 25)))]).colours

    assert [(colour.name, colour.share) for colour in colours] == [("blue", 0.75), ("green", 0.25)]


def test_upper_and_lower_part_are_distinguished() -> None:
    measured = measure([stacked(plain("#b0d4f4"), plain("#0a4018"))])

    assert (measured.upper.phrase, measured.lower.phrase) == ("light blue", "dark green")


def test_brightness_is_lightness_from_black_to_white() -> None:
    levels = [measure([plain(code)]).brightness for code in ("#000000", "#777777", "#ffffff")]

    assert levels == pytest.approx([0, 50, 100], abs=0.5)


def test_contrast_is_nothing_on_a_plain_picture_and_50_between_black_and_white() -> None:
    assert measure([plain("#777777")]).contrast == pytest.approx(0, abs=1e-9)
    halves = stacked(plain("#000000"), plain("#ffffff"))
    assert measure([halves]).contrast == pytest.approx(50, abs=0.1)


def test_blurring_lowers_sharpness() -> None:
    sharp = noisy(1)
    blurred = np.asarray(Image.fromarray(sharp).resize((8, 6)).resize((32, 24)))

    assert measure([sharp]).sharpness > 10 * measure([blurred]).sharpness


def test_colourfulness_is_nothing_for_grey_and_high_for_many_full_colours() -> None:
    vivid = stacked(plain("#ff0000"), plain("#00ff00"), plain("#0000ff"), plain("#ffff00"))

    assert measure([plain("#777777")]).colourfulness == 0
    assert measure([vivid]).colourfulness > 82


def test_motion_is_the_share_of_pixels_that_change() -> None:
    still, moved = plain("#000000").copy(), plain("#000000").copy()
    moved[:6] = 255

    assert measure([still, still]).motion == 0
    assert measure([still, moved]).motion == 0.25
    assert measure([still]).motion == 0


def test_noise_of_a_sensor_is_not_motion() -> None:
    random = np.random.default_rng(5)
    frames = [
        (plain("#777777") + random.integers(-4, 5, (24, 32, 3))).astype(np.uint8) for _ in range(3)
    ]

    assert measure(frames).motion == 0


def test_a_video_that_darkens_has_a_negative_change_of_brightness() -> None:
    frames = [plain("#ffffff"), plain("#777777"), plain("#000000")]

    assert measure(frames).brightness_change == pytest.approx(-100)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 300), (300, 2)])
def test_the_smallest_pictures_can_be_measured(size: tuple[int, int]) -> None:
    assert measure([plain("#2878e0", size)]).colours[0].share == 1


def test_a_video_that_changes_its_size_can_be_measured() -> None:
    frames = [plain("#2878e0", (32, 24)), plain("#2878e0", (16, 24))]

    assert measure(frames).motion == 0


def test_an_empty_list_of_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        measure([])


@pytest.mark.parametrize(
    ("size", "small"), [((4000, 1000), (64, 256)), ((100, 300), (256, 85)), ((20, 10), (10, 20))]
)
def test_a_small_copy_keeps_proportions_and_is_never_enlarged(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    file = io.BytesIO()
    Image.new("RGB", size, "#2878e0").save(file, "JPEG")

    assert small_copy(file.getvalue()).shape == (*small, 3)
