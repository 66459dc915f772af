"""Damage never fails a film that has frames to show; it causes a warning."""

import random
from functools import cache

import numpy as np
import pytest

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.content import MediaContent
from batch_pipeline.testing.media import (
    VIDEO_FORMATS,
    Track,
    VideoFormat,
    cut_in_half,
    make_tracks,
    make_video,
    paint,
)
from batch_pipeline_tests.unit.media.films import decode, picture_of, pixel


@cache
def moving(
    video_format: VideoFormat, seconds: int = 8, keyframe_interval: int = 25, moov_size: str = ""
) -> bytes:
    return make_video(
        video_format,
        seconds,
        painter=lambda p: paint((160, 120), round(p * 40)),
        keyframe_interval=keyframe_interval,
        muxer_options={"moov_size": moov_size} if moov_size else None,
    )


def damage_of(content: MediaContent) -> str:
    return " ".join(warning for warning in content.facts.warnings if warning.startswith("damaged:"))


def with_sound(video_format: VideoFormat) -> bytes:
    return make_tracks(video_format, Track((160, 120), "blue"), with_sound=True)


def is_blue(content: MediaContent) -> bool:
    red, _, blue = pixel(picture_of(content.frames[0]), 0.7, 0.7)
    return blue > red + 100


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"mp4a", b"zzzz"),  # a codec that nobody knows
        (b"esds", b"\xff\xff\xff\xff"),  # its description lost
        (b"soun", b"text"),  # a subtitle that holds sound
        (b"soun", b"meta"),  # a data track
        (b"soun", b"\0\0\0\0"),
        (b"smhd", b"\0\0\0\0"),
    ],
)
def test_a_broken_track_beside_the_film_is_ignored(old, new):
    data = with_sound("mp4")
    assert old in data

    content = decode(data.replace(old, new))

    assert len(content.frames) == 2
    assert is_blue(content)
    assert content.facts.warnings == ()


@pytest.mark.parametrize("video_format", ["mp4", "mkv", "mpeg-ts"])
def test_noise_in_place_of_the_sound_is_ignored(video_format):
    data = bytearray(with_sound(video_format))
    # The sound is written behind the pictures: in the last of the packets.
    end = data.index(b"moov") - 4 if video_format == "mp4" else len(data) - 200
    noise = np.random.default_rng(1).integers(0, 256, 60, dtype=np.uint8).tobytes()
    data[end - 60 : end] = noise

    content = decode(bytes(data))

    assert is_blue(content)


@pytest.mark.parametrize("video_format", ["mp4", "mkv", "avi", "mxf", "mpeg-ts", "wmv"])
def test_a_corrupt_end_costs_no_more_than_the_frames_there(video_format):
    data = bytearray(moving(video_format))
    end = data.index(b"moov") - 4 if video_format == "mp4" else len(data) - 2000
    data[end - 3000 : end] = bytes(3000)

    content = decode(bytes(data))

    assert len(content.frames) >= 7
    assert content.make_thumbnail()


@pytest.mark.parametrize("video_format", ["mp4", "mov", "mkv", "webm", "ogv", "mxf", "avi"])
def test_bad_frames_in_the_middle_are_passed_over(video_format):
    data = bytearray(moving(video_format))
    middle = len(data) // 2
    noise = np.random.default_rng(1).integers(0, 256, len(data) // 20, dtype=np.uint8).tobytes()
    data[middle : middle + len(noise)] = noise

    content = decode(bytes(data))

    positions = [frame.position_seconds for frame in content.frames]
    assert min(positions) < 1.1
    assert max(positions) > 6.5
    assert len(positions) >= 6


def test_frames_that_could_not_be_decoded_are_named_in_the_facts():
    data = bytearray(moving("mp4", keyframe_interval=1000))
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[(start + end) // 2 : end] = bytes(end - (start + end) // 2)

    content = decode(bytes(data))

    assert "frames could not be decoded" in damage_of(content)


@pytest.mark.parametrize(
    ("video_format", "moov_size"),
    [("mp4", "9000"), *((name, "") for name in ("mkv", "webm", "avi", "wmv", "ogv", "mxf"))],
)
def test_a_film_that_was_cut_short_shows_what_is_there_and_says_so(video_format, moov_size):
    data = cut_in_half(moving(video_format, moov_size=moov_size))

    content = decode(data)

    assert 1 <= len(content.frames) < 8
    assert f"ends before its content does, after {len(data)} bytes" in damage_of(content)


@pytest.mark.parametrize("video_format", ["mp4", "mov", "3gp"])
def test_a_film_without_its_index_is_truncated(video_format):
    with pytest.raises(PermanentError) as caught:
        decode(cut_in_half(moving(video_format)))

    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("video_format", ["mkv", "wmv", "ogv", "mxf", "m2ts", "mpeg-ps", "3gp"])
@pytest.mark.parametrize("bytes_left", [600, 1500])
def test_a_film_with_almost_no_data_is_refused_or_shown(video_format, bytes_left):
    kind = None

    try:
        assert decode(moving(video_format, 2)[:bytes_left]).frames
    except PermanentError as error:
        kind = error.kind

    assert kind in {None, "truncated", "unreadable_video", "no_video_stream"}


@pytest.mark.parametrize("junk", [b"\xff\xd8\xff\xe0" * 20, bytes(64), b"\0\0\0\x08skip"])
def test_data_after_a_film_is_not_damage(junk):
    assert decode(moving("mp4", 2) + junk).facts.warnings == ()


@pytest.mark.parametrize("video_format", VIDEO_FORMATS)
def test_an_intact_film_has_no_warnings(video_format):
    assert decode(moving(video_format)).facts.warnings == ()


def test_noise_after_a_film_whose_length_is_measured_does_not_fail_it():
    content = decode(make_video("ogv", 2) + random.Random(1).randbytes(100_000))

    assert len(content.frames) == 2
    assert content.facts.duration_seconds == pytest.approx(2, abs=0.1)
