"""Frames come from the whole length, with bounded effort; unreachable parts cause a warning."""

import io
from fractions import Fraction
from itertools import pairwise

import pytest
from PIL import Image

from batch_pipeline.media import video_sampling
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.memory import DEFAULT_DECODE_BYTES
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.media.video_memory import FrameMemory
from batch_pipeline.media.video_sampling import MAX_FRAMES, FrameReader
from batch_pipeline.media.video_streams import Source, film_streams, open_container, read_alone
from batch_pipeline.testing.media import VIDEO_FORMATS, make_video, paint, paint_progress
from batch_pipeline_tests.unit.media.films import (
    decode,
    joined,
    pixel,
    progress_shown,
    thumbnail_of,
)

MEMORY = FrameMemory(DEFAULT_DECODE_BYTES)

ONE_KEY_FRAME = 100_000


#: Of MPEG-2, whose rates are few and whose key frames are at most 600 frames apart.
MPEG_2 = ["mpeg-ps", "mpeg-ts", "mxf"]


@pytest.mark.parametrize("video_format", sorted({*VIDEO_FORMATS} - {*MPEG_2, "mpeg-es"}))
def test_one_key_frame_is_enough_for_the_whole_length(video_format):
    data = make_video(video_format, 60, (64, 48), fps=10, keyframe_interval=ONE_KEY_FRAME)

    content = decode(data)

    assert content.facts.warnings == ()
    assert len(content.frames) == MAX_FRAMES
    for part, frame in enumerate(content.frames):
        assert progress_shown(frame) == pytest.approx((part + 0.5) / MAX_FRAMES, abs=0.03)


@pytest.mark.parametrize("video_format", MPEG_2)
def test_few_key_frames_are_enough_for_the_whole_length(video_format):
    content = decode(make_video(video_format, 60, (64, 48), keyframe_interval=600))

    assert len(content.frames) == MAX_FRAMES
    for part, frame in enumerate(content.frames):
        assert progress_shown(frame) == pytest.approx((part + 0.5) / MAX_FRAMES, abs=0.03)


@pytest.mark.parametrize("video_format", ["mp4", "mkv", "mpeg-ts", "ogv", "wmv"])
def test_key_frames_further_apart_than_the_parts_are_decoded_from(video_format):
    # Given key frames 20 s apart, and parts of 6 s
    data = make_video(video_format, 60, (64, 48), fps=10, keyframe_interval=200)

    content = decode(data)

    for part, frame in enumerate(content.frames):
        assert progress_shown(frame) == pytest.approx((part + 0.5) / MAX_FRAMES, abs=0.03)


def test_a_recording_in_fragments_without_an_index_is_sampled_over_its_whole_length():
    data = make_video(
        "mp4", 120, (64, 48), fps=10, muxer_options={"movflags": "frag_keyframe+empty_moov"}
    )

    content = decode(data)

    for part, frame in enumerate(content.frames):
        assert progress_shown(frame) == pytest.approx((part + 0.5) / MAX_FRAMES, abs=0.03)


@pytest.mark.parametrize("keyframe_interval", [1, ONE_KEY_FRAME])
@pytest.mark.parametrize("video_format", ["mp4", "mkv", "avi"])
def test_each_picture_of_a_slide_show_is_shown(video_format, keyframe_interval):
    data = make_video(
        video_format, 50, (64, 48), fps=Fraction(1, 5), keyframe_interval=keyframe_interval
    )

    content = decode(data)

    assert content.facts.warnings == ()
    shown = [progress_shown(frame) for frame in content.frames]
    assert shown == pytest.approx([slide / 9 for slide in range(10)], abs=0.03)


@pytest.mark.parametrize("keyframe_interval", [1, ONE_KEY_FRAME])
def test_a_frame_that_is_shown_for_most_of_the_film_is_used_once(keyframe_interval):
    # Given frames at 0 s, and 500, 501 … 599 s
    lone = make_video("webm", 1, (64, 48), fps=1, painter=lambda _: Image.new("RGB", (64, 48)))
    rest = make_video("webm", 100, (64, 48), fps=1, keyframe_interval=keyframe_interval)

    content = decode(joined(lone, rest, gap=499))

    assert [frame.position_seconds for frame in content.frames] == [0, 510, 570]
    assert progress_shown(content.frames[0]) < 0
    assert content.facts.warnings == ()


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_sampling, "_EXACT_FRAMES", 5)
    monkeypatch.setattr(video_sampling, "_FILM_FRAMES", 100)


@pytest.mark.usefixtures("small_budget")
def test_frames_beyond_the_budget_cause_a_warning_and_frames_within_it_are_spread():
    # Given 600 frames after one key frame, and a limit of 100 decoded frames
    content = decode(make_video("mp4", 120, (32, 32), fps=5, keyframe_interval=ONE_KEY_FRAME))

    positions = [frame.position_seconds for frame in content.frames]
    assert 18 <= positions[-1] <= 22, "100 frames of 5 a second"
    assert all(1 <= later - earlier <= 3 for earlier, later in pairwise(positions))
    assert content.facts.warnings == (
        "9 frames come before their part of the film, the last at "
        f"{positions[-1]:.0f} s of 120 s: its key frames are too far apart",
    )


@pytest.mark.usefixtures("small_budget")
def test_a_budget_that_is_spent_still_gives_a_frame_of_each_part_with_a_key_frame():
    content = decode(make_video("mp4", 120, (32, 32), fps=5, keyframe_interval=40))

    assert content.facts.warnings == ()
    for part, frame in enumerate(content.frames):
        assert 12 * part <= frame.position_seconds <= 12 * (part + 1)


@pytest.mark.parametrize("keyframe_interval", [25, ONE_KEY_FRAME])
def test_the_work_is_counted_in_packets_and_ends_with_the_budget(monkeypatch, keyframe_interval):
    monkeypatch.setattr(video_sampling, "_FILM_PIXELS", 64 * 48 * 200)
    monkeypatch.setattr(video_sampling, "_EXACT_PIXELS", 64 * 48 * 20)
    data = make_video("mp4", 60, (64, 48), keyframe_interval=keyframe_interval)

    taken, decoded = taken_and_decoded(data, 60.0)

    assert taken == MAX_FRAMES
    assert decoded <= 200 + 20 * MAX_FRAMES


@pytest.mark.slow
def test_frames_that_become_larger_on_the_way_are_counted_with_their_size(monkeypatch):
    monkeypatch.setattr(video_sampling, "_FILM_PIXELS", 640 * 480 * 30)
    monkeypatch.setattr(video_sampling, "_EXACT_PIXELS", 640 * 480 * 3)
    large = make_video("webm", 12, (640, 480), keyframe_interval=ONE_KEY_FRAME)
    data = joined(make_video("webm", 1, (64, 48)), large)

    taken, decoded = taken_and_decoded(data, 13.0)

    assert taken > 1
    assert decoded <= 25 + 30 + 4 * MAX_FRAMES


def taken_and_decoded(data: bytes, duration: float) -> tuple[int, int]:
    """Return how many frames are taken from a film, and how many packets are decoded for them."""
    media_type = sniff(data)
    assert media_type is not None
    decoded = 0

    class Counting(FrameReader):
        def _decode(self, packet):
            nonlocal decoded
            decoded += 1
            super()._decode(packet)

    with open_container(Source(io.BytesIO(data)), media_type, MEMORY) as container:
        stream = film_streams(container, media_type, MEMORY)[0]
        read_alone(container, stream, MEMORY)
        taken = list(Counting(container, stream, 25.0).frames(duration))
    return len(taken), decoded


GREEN = (20, 160, 60)


def shows_the_meadow(content: MediaContent) -> bool:
    red, green, blue = pixel(thumbnail_of(content), 0.5, 0.5)
    return green > red + 40 and green > blue + 40


def meadow(size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, GREEN)
    picture.paste("white", (0, 0, size[0] // 4, size[1]))
    return picture


@pytest.mark.parametrize("leader", ["black", "white", "#2030a0"])
@pytest.mark.parametrize("seconds", [1.2, 3, 30])
def test_a_leader_of_one_colour_is_not_the_thumbnail(leader, seconds):
    size = (64, 48)

    content = decode(
        make_video(
            "mp4",
            seconds,
            size,
            painter=lambda p: Image.new("RGB", size, leader) if p < 0.6 else meadow(size),
        )
    )

    assert shows_the_meadow(content)


def test_a_fade_in_from_black_is_not_the_thumbnail():
    size = (64, 48)
    scene, black = meadow(size), Image.new("RGB", size)

    content = decode(
        make_video("mp4", 10, size, painter=lambda p: Image.blend(black, scene, min(1, p / 0.3)))
    )

    assert shows_the_meadow(content)
    assert pixel(thumbnail_of(content), 0.5, 0.5)[1] > 60


@pytest.mark.parametrize("shown_from", [0.0, 0.93])
def test_a_scene_between_the_frames_of_a_black_film_is_found(shown_from):
    size = (64, 48)

    def painter(progress: float) -> Image.Image:
        is_shown = shown_from <= progress < shown_from + 0.07
        return meadow(size) if is_shown else Image.new("RGB", size)

    content = decode(make_video("mp4", 3, size, painter=painter))

    assert shows_the_meadow(content)
    assert len(content.frames) == 4, "it is shown to the model, too"
    positions = [frame.position_seconds for frame in content.frames]
    assert positions == sorted(positions)


def test_an_ordinary_first_frame_stays_the_thumbnail():
    size = (64, 48)
    pictures = [paint(size, seed) for seed in range(4)]

    content = decode(make_video("mp4", 4, size, painter=lambda p: pictures[min(3, int(p * 4))]))

    first = decode(make_video("mp4", 1, size, painter=lambda _: pictures[0]))
    found, expected = (pixel(thumbnail_of(film), 0.5, 0.5) for film in (content, first))
    assert abs(found - expected).max() < 10


@pytest.mark.parametrize("video_format", ["mpeg-es", "avi"])
def test_streams_without_times_are_counted_by_frames(video_format):
    content = decode(make_video(video_format, 20, (64, 48), painter=paint_progress((64, 48))))

    for part, frame in enumerate(content.frames):
        assert progress_shown(frame) == pytest.approx((part + 0.5) / MAX_FRAMES, abs=0.05)
