"""A video of any length yields a few frames spread over it: upright, small, with bounded effort."""

import io
import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.sniffing import MP4, sniff
from batch_pipeline.media.video_sampling import MAX_FRAMES
from batch_pipeline.media.videos import decode_video
from batch_pipeline.testing.media import (
    VIDEO_FORMATS,
    cut_in_half,
    encode_image,
    make_oversized_video,
    make_video,
    paint,
)
from batch_pipeline_tests.unit.media.films import decode, picture_of, progress_shown

CODECS = {
    "mp4": "h264",
    "mov": "h264",
    "avi": "mpeg4",
    "webm": "vp8",
    "mpeg-ps": "mpeg2video",
    "mpeg-ts": "mpeg2video",
    "mpeg-es": "mpeg2video",
    "flv": "flv1",
    "3gp": "h264",
    "mkv": "h264",
    "wmv": "wmv2",
    "ogv": "vp8",
    "mxf": "mpeg2video",
    "m2ts": "h264",
}
MPEG = {"mpeg-ps", "mpeg-ts", "mpeg-es", "m2ts"}


@pytest.mark.parametrize("video_format", VIDEO_FORMATS)
def test_every_format_gives_facts_frames_and_a_thumbnail(video_format):
    content = decode(make_video(video_format, 4, (320, 240)))

    facts = content.facts
    assert facts.file_type == "video"
    assert facts.format == ("mpeg" if video_format in MPEG else video_format)
    assert (facts.width, facts.height, facts.codec) == (320, 240, CODECS[video_format])
    assert facts.duration_seconds == pytest.approx(4, abs=0.15)
    assert facts.frame_rate == pytest.approx(25)
    assert facts.frame_count == pytest.approx(100, abs=4)
    assert len(content.frames) == 4, "one a second"
    for frame in content.frames:
        assert (picture_of(frame).format, picture_of(frame).size) == ("JPEG", (308, 252))
    assert Image.open(io.BytesIO(content.make_thumbnail())).size == (256, 192)


@pytest.mark.parametrize("video_format", VIDEO_FORMATS)
def test_frames_come_from_the_middle_of_equal_parts(video_format):
    content = decode(make_video(video_format, 4))

    for part, frame in enumerate(content.frames):
        middle = (part + 0.5) / 4
        assert frame.position_seconds / 4 == pytest.approx(middle, abs=0.06)
        assert progress_shown(frame) == pytest.approx(middle, abs=0.08)


@pytest.mark.parametrize("video_format", ["mp4", "webm", "flv", "avi", "mpeg-ts"])
def test_frames_of_a_long_video_are_spread_over_its_whole_length(video_format):
    # Given a key frame every 10 s, so that positions lie between key frames and behind seeks.
    data = make_video(video_format, 120, (64, 48), keyframe_interval=250)

    content = decode(data)

    assert len(content.frames) == MAX_FRAMES
    for part, frame in enumerate(content.frames):
        assert progress_shown(frame) == pytest.approx((part + 0.5) / MAX_FRAMES, abs=0.06)


def test_a_film_of_hours_costs_no_more_than_one_of_minutes():
    content = decode(make_video("mp4", 5 * 3600, (64, 48), fps=Fraction(1, 5)))

    assert len(content.frames) == MAX_FRAMES
    assert content.frames[-1].position_seconds == pytest.approx(0.95 * 5 * 3600, rel=0.01)


@pytest.mark.parametrize("video_format", VIDEO_FORMATS)
def test_less_than_a_second_gives_one_frame(video_format):
    assert len(decode(make_video(video_format, 0.4)).frames) == 1


@pytest.mark.parametrize("video_format", ["mp4", "mov", "avi", "webm", "mpeg-ts", "mpeg-es", "flv"])
def test_a_video_of_one_frame_gives_that_frame(video_format):
    assert len(decode(make_video(video_format, 0.04)).frames) == 1


@pytest.mark.parametrize(
    ("video_format", "muxer_options"),
    [
        ("webm", {"live": "1"}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("flv", {"flvflags": "no_duration_filesize"}),
    ],
)
def test_a_recording_that_does_not_say_how_long_it_is_is_measured(video_format, muxer_options):
    content = decode(make_video(video_format, 4, muxer_options=muxer_options))

    assert content.facts.duration_seconds == pytest.approx(4, abs=0.1)
    positions = [frame.position_seconds for frame in content.frames]
    assert positions == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.1)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)])
def test_colours_are_those_of_the_video(colour):
    still = Image.new("RGB", (64, 64), colour)

    content = decode(make_video("mp4", 0.5, still.size, painter=lambda _: still))

    found = np.array(picture_of(content.frames[0]).getpixel((20, 20)), dtype=int)
    assert np.abs(found - colour).max() <= 10


def test_large_frames_are_scaled_like_images():
    content = decode(make_video("mp4", 0.1, (1920, 1080)))

    assert picture_of(content.frames[0]).size == (1568, 896)
    assert content.facts.width == 1920


def test_the_thumbnail_is_of_the_first_frame_that_is_not_black():
    red, black = Image.new("RGB", (64, 48), (200, 0, 0)), Image.new("RGB", (64, 48))
    blue = Image.new("RGB", (64, 48), (0, 0, 250))

    def fade_in(progress: float) -> Image.Image:
        return black if progress < 0.45 else red if progress < 0.7 else blue

    content = decode(make_video("mp4", 5, black.size, painter=fade_in))

    thumbnail = Image.open(io.BytesIO(content.make_thumbnail()))
    assert thumbnail.getpixel((30, 20))[0] > 150


def test_the_thumbnail_of_a_dark_video_is_its_brightest_frame():
    levels = [2, 2, 20, 2]

    def painter(progress: float) -> Image.Image:
        level = levels[min(3, int(progress * 4))]
        return Image.new("RGB", (64, 48), (level, level, level))

    content = decode(make_video("mp4", 4, (64, 48), painter=painter))

    thumbnail = Image.open(io.BytesIO(content.make_thumbnail()))
    assert thumbnail.convert("L").getpixel((30, 20)) > 12


def test_a_film_with_a_false_length_still_gives_frames():
    data = bytearray(make_video("mp4", 4))
    for box in (b"mvhd", b"mdhd"):  # version 0: flags, two dates, time scale, duration
        place = data.index(box) + 4 + 16
        data[place : place + 4] = b"\x7f\xff\xff\xff"

    content = decode(bytes(data))

    assert content.frames
    assert all(frame.position_seconds < 4 for frame in content.frames)


def with_claimed_size(data: bytes, width: int, height: int) -> bytes:
    """Change the size that an MP4's sample description claims; the codec's own stays."""
    entry = data.index(b"avc1", data.index(b"stsd"))
    return data[: entry + 28] + struct.pack(">HH", width, height) + data[entry + 32 :]


@pytest.fixture(scope="module")
def oversized_video() -> bytes:
    return make_oversized_video()


@pytest.mark.slow
def test_frames_of_too_many_pixels_are_refused_with_size_and_limit(oversized_video):
    assert len(oversized_video) < 700_000

    with pytest.raises(
        PermanentError,
        match=r"8000 x 8000 = 64\.0 megapixels of 1\.5 bytes, .* 307 MiB .* at most 256 MiB",
    ) as caught:
        decode(oversized_video, max_bytes=256 * 1024**2)

    assert caught.value.kind == "too_many_pixels"


def test_a_container_that_claims_small_frames_does_not_smuggle_large_ones(oversized_video):
    with pytest.raises(PermanentError) as caught:
        decode(with_claimed_size(oversized_video, 160, 120), max_bytes=256 * 1024**2)

    assert caught.value.kind in {"too_many_pixels", "unreadable_video"}


@pytest.mark.parametrize("video_format", ["mp4", "mov"])
def test_a_video_that_lost_its_index_is_called_truncated(video_format):
    data = cut_in_half(make_video(video_format, 4))

    with pytest.raises(PermanentError, match=f"after {len(data)} bytes") as caught:
        decode(data)

    assert caught.value.kind == "truncated"


@pytest.mark.parametrize(
    ("video_format", "muxer_options"),
    [
        ("mp4", {"moov_size": "9000"}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("avi", {}),
        ("webm", {}),
        ("flv", {}),
        ("mpeg-ps", {}),
        ("mpeg-ts", {}),
        ("mpeg-es", {}),
    ],
)
def test_frames_before_a_break_are_kept(video_format, muxer_options):
    whole = make_video(
        video_format,
        8,
        painter=lambda p: paint((160, 120), round(p * 40)),
        muxer_options=muxer_options,
    )

    content = decode(cut_in_half(whole))

    assert 1 <= len(content.frames) < 8
    positions = [frame.position_seconds for frame in content.frames]
    assert positions == sorted(set(positions)), "in the order of time, none twice"
    assert content.make_thumbnail()


def test_damage_in_the_middle_costs_only_the_frames_there():
    data = bytearray(make_video("mpeg-ts", 8, painter=lambda p: paint((160, 120), round(p * 40))))
    data[len(data) * 3 // 8 : len(data) * 5 // 8] = bytes(len(data) * 5 // 8 - len(data) * 3 // 8)

    content = decode(bytes(data))

    positions = [frame.position_seconds for frame in content.frames]
    assert min(positions) < 2
    assert max(positions) > 6


def test_an_index_without_pictures_is_unreadable():
    data = make_video("mp4", 2)
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    emptied = data[:start] + bytes(end - start) + data[end:]

    with pytest.raises(PermanentError, match="not one frame could be decoded") as caught:
        decode(emptied)

    assert caught.value.kind == "unreadable_video"


@pytest.mark.parametrize("video_format", VIDEO_FORMATS)
def test_flipped_bytes_end_in_frames_or_a_permanent_error(video_format):
    data = make_video(video_format, 2, (64, 48))
    media_type = sniff(data)
    assert media_type is not None
    random = np.random.default_rng(11)
    kinds = set()

    for _ in range(25):
        damaged = bytearray(data)
        for place in random.integers(12, len(data), 8):
            damaged[place] = random.integers(0, 256)
        try:
            assert decode_video(io.BytesIO(bytes(damaged)), media_type).make_thumbnail()
        except PermanentError as error:
            kinds.add(error.kind)

    assert kinds <= {"unreadable_video", "truncated", "too_many_pixels", "no_video_stream"}


def test_a_picture_is_not_a_video():
    with pytest.raises(PermanentError) as caught:
        decode_video(io.BytesIO(encode_image(paint((64, 48)), "jpeg")), MP4)

    assert caught.value.kind in {"unreadable_video", "truncated"}
