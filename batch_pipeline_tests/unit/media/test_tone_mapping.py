"""HDR and wide gamut become pictures as bright and as coloured as their ordinary twins."""

import colorsys

import numpy as np
import pytest

from batch_pipeline.media.tone_mapping import SRGB, ColourSpace, to_srgb
from batch_pipeline.testing.media import encode_hdr, paint


def saturation_and_contrast(pixels: np.ndarray) -> tuple[float, float]:
    small = pixels[::8, ::8].reshape(-1, 3) / 255
    saturation = np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in small])
    return float(saturation), float((pixels @ (0.2126, 0.7152, 0.0722)).std())


@pytest.mark.parametrize("white_nits", [100, 203])
@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_an_hdr_twin_keeps_saturation_and_contrast(transfer, white_nits):
    ordinary = np.asarray(paint((320, 240)))
    space = ColourSpace(transfer, "bt2020")

    mapped = to_srgb(encode_hdr(ordinary, space, white_nits=white_nits), space)

    for found, expected in zip(
        saturation_and_contrast(mapped), saturation_and_contrast(ordinary), strict=True
    ):
        assert found == pytest.approx(expected, rel=0.05)
    assert np.abs(mapped.astype(int) - ordinary).mean() < 4


def test_highlights_above_white_do_not_darken_the_rest_much():
    # Given a page of 203 nits with a lamp of 2,000 nits in a corner
    space = ColourSpace("pq", "bt709")
    picture = np.full((100, 100, 3), 128, dtype=np.uint8)
    codes = encode_hdr(picture, space, white_nits=203)
    codes[:20, :20] = encode_hdr(np.full((20, 20, 3), 255, np.uint8), space, white_nits=2000)

    mapped = to_srgb(codes, space)

    assert np.abs(mapped[50, 50].astype(int) - 128).max() <= 3
    assert mapped[5, 5].min() >= 253


def test_a_dark_scene_stays_dark():
    space = ColourSpace("pq", "bt2020")
    codes = encode_hdr(np.full((8, 8, 3), 255, np.uint8), space, white_nits=5)

    assert to_srgb(codes, space).max() < 80


def test_a_wide_gamut_is_converted_as_the_standard_matrices_do():
    codes = np.full((1, 1, 3), (200, 100, 50), dtype=np.uint8)

    pixel = to_srgb(codes, ColourSpace("sdr", "p3"))[0, 0].astype(int)

    assert np.abs(pixel - (215, 93, 31)).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_picture_in_srgb_is_not_changed(dtype):
    ordinary = np.asarray(paint((32, 24)))
    codes = ordinary.astype(dtype) * (1 if dtype is np.uint8 else 257)

    assert (to_srgb(codes, SRGB) == ordinary).all()


def test_code_points_of_the_standard_are_known_and_others_taken_as_ordinary():
    assert ColourSpace.from_codes(primaries=9, transfer=16) == ColourSpace("pq", "bt2020")
    assert ColourSpace.from_codes(primaries=12, transfer=18) == ColourSpace("hlg", "p3")
    assert ColourSpace.from_codes(primaries=2, transfer=255) == SRGB
