"""Colours are those that were filmed, whatever matrix, range or dynamic range a file uses."""

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.media.tone_mapping import ColourSpace
from batch_pipeline.testing.media import (
    VideoColours,
    VideoFormat,
    encode_hdr,
    make_video,
    paint,
)
from batch_pipeline_tests.unit.media.films import decode, decode_case, picture_of, pixel

#: Where the matrices differ most.
COLOURS = [(188, 188, 0), (0, 188, 0), (188, 0, 188), (220, 40, 30), (128, 128, 128)]
SD, HD = (640, 480), (1280, 720)


def bars(size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", (len(COLOURS), 1))
    picture.putdata(COLOURS)
    return picture.resize(size, Image.Resampling.NEAREST)


def worst_bar(
    colours: VideoColours,
    size: tuple[int, int],
    video_format: VideoFormat = "mp4",
    encoder: str | None = None,
) -> float:
    stored = bars(size)
    content = decode(
        make_video(
            video_format, 0.2, size, painter=lambda _: stored, colours=colours, encoder=encoder
        )
    )
    picture = picture_of(content.frames[0])
    places = [((number + 0.5) / len(COLOURS), 0.5) for number in range(len(COLOURS))]
    return max(
        float(np.abs(pixel(picture, *place) - colour).max())
        for place, colour in zip(places, COLOURS, strict=True)
    )


@pytest.mark.parametrize("full_range", [1, 2])
@pytest.mark.parametrize(("said", "written"), [(1, 1), (5, 6), (6, 6), (9, 9)])
def test_the_matrix_and_the_range_that_a_file_names_are_used(said, written, full_range):
    colours = VideoColours(matrix=said, written_matrix=written, range=full_range)

    assert worst_bar(colours, SD) <= 5


@pytest.mark.parametrize("matrix", [8, 10, 11, 12, 13, 14])
def test_a_matrix_that_nobody_can_undo_is_taken_as_bt709(matrix):
    assert worst_bar(VideoColours(matrix=matrix, written_matrix=1), SD) <= 5


@pytest.mark.parametrize("matrix", [0, 8, 10, 11, 12, 13, 14, 15, 16, 17])
def test_a_matrix_in_the_container_that_nobody_can_undo_is_taken_as_bt709(matrix):
    colours = VideoColours(matrix=matrix, written_matrix=1)

    assert worst_bar(colours, SD, "mkv", "ffv1") <= 5


@pytest.mark.parametrize(
    ("size", "written"),
    [(HD, 1), ((720, 1280), 1), ((1024, 768), 1), (SD, 6), ((720, 576), 6), ((480, 848), 6)],
)
def test_without_a_matrix_high_definition_is_bt709_and_standard_definition_bt601(size, written):
    assert worst_bar(VideoColours(written_matrix=written), size) <= 5


@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "yuv420p10le", "yuvj420p"])
def test_sampling_and_depth_do_not_change_colours(pixel_format):
    colours = VideoColours(
        matrix=1,
        written_matrix=1,
        pixel_format=pixel_format,
        range=2 if pixel_format == "yuvj420p" else 1,
    )

    assert worst_bar(colours, SD) <= 5


def test_an_untagged_high_definition_recording_has_its_bars_within_3():
    picture = picture_of(decode_case("video_hd_untagged_bt709.mp4").frames[0])

    row = np.asarray(picture.convert("RGB"), dtype=int)[picture.height // 5]
    for colour in ((188, 188, 0), (0, 188, 0)):
        assert np.abs(row - colour).max(axis=1).min() <= 3


def test_a_recording_with_ycgco_in_its_tags_is_a_picture():
    picture = picture_of(decode_case("video_matrix_ycgco.mp4").frames[0])

    assert np.abs(pixel(picture, 0.2, 0.2) - (188, 188, 0)).max() <= 4


def saturation_and_contrast(picture: Image.Image) -> tuple[float, float]:
    hsv = np.asarray(picture.convert("RGB").convert("HSV"), dtype=float)
    return float(hsv[..., 1].mean()), float(np.asarray(picture.convert("L"), dtype=float).std())


@pytest.mark.parametrize("white_nits", [100, 203])
@pytest.mark.parametrize(("transfer", "code"), [("pq", 16), ("hlg", 18)])
@pytest.mark.parametrize("encoder", ["libx265", "ffv1"])
def test_hdr_has_the_colours_and_brightness_of_its_sdr_twin(transfer, code, white_nits, encoder):
    size = (320, 180)
    ordinary = paint(size, 5)
    codes = encode_hdr(np.asarray(ordinary), ColourSpace(transfer, "bt2020"), white_nits=white_nits)
    colours = VideoColours(
        matrix=9, primaries=9, transfer=code, range=1, written_matrix=9, pixel_format="yuv420p10le"
    )
    options = {"painter": lambda _: codes, "colours": colours, "encoder": encoder}

    mapped = picture_of(decode(make_video("mkv", 0.2, size, **options)).frames[0])

    twin = picture_of(decode(make_video("mp4", 0.2, size, painter=lambda _: ordinary)).frames[0])
    for found, expected in zip(
        saturation_and_contrast(mapped), saturation_and_contrast(twin), strict=True
    ):
        assert found == pytest.approx(expected, rel=0.15)
    assert np.abs(np.asarray(mapped, dtype=int) - np.asarray(twin)).mean() < 12


def test_hdr_without_matrix_and_primaries_is_bt2020():
    size = (320, 180)
    ordinary = paint(size, 5)
    codes = encode_hdr(np.asarray(ordinary), ColourSpace("pq", "bt2020"))
    colours = VideoColours(transfer=16, written_matrix=9, pixel_format="yuv420p10le")

    content = decode(
        make_video("mkv", 0.2, size, painter=lambda _: codes, colours=colours, encoder="libx265")
    )

    shown = np.asarray(picture_of(content.frames[0]), dtype=int)
    wanted = np.asarray(ordinary.resize((shown.shape[1], shown.shape[0])))
    assert np.abs(shown - wanted).mean() < 8


def test_a_recording_in_hdr10_has_full_bars():
    picture = picture_of(decode_case("video_hdr10_pq.mp4").frames[0])

    row = np.asarray(picture.convert("RGB"), dtype=int)[picture.height // 5]
    for colour in ((188, 188, 0), (0, 188, 188), (188, 0, 188), (188, 0, 0)):
        assert np.abs(row - colour).max(axis=1).min() <= 12, colour


def test_dolby_vision_that_other_players_cannot_show_is_said_to_be_wrong():
    data = make_video("mp4", 0.2, encoder="libx265", muxer_options={"video_track_timescale": "600"})
    base = decode(data.replace(b"hev1", b"hvc1"))

    alone = decode(data.replace(b"hev1", b"dvh1"))

    assert base.facts.warnings == ()
    assert "Dolby Vision" in " ".join(alone.facts.warnings)
