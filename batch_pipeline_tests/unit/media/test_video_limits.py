"""Films that are made to use much memory or time stay within the limits."""

import subprocess
import sys

import pytest

from batch_pipeline.errors import PermanentError
from batch_pipeline.media import video_sampling, videos
from batch_pipeline.media.memory import DEFAULT_DECODE_BYTES
from batch_pipeline.media.video_sampling import MAX_FRAMES, FrameReader
from batch_pipeline.testing.media import (
    Track,
    VideoColours,
    make_oversized_video,
    make_tracks,
    make_video,
)
from batch_pipeline_tests.unit.media.films import decode, joined, picture_of, progress_shown


def test_no_more_than_three_streams_are_tried(monkeypatch):
    data = make_tracks("mkv", *[Track((64, 48), "red", encoder="mpeg4") for _ in range(8)])
    opened = []
    original = videos.open_container
    monkeypatch.setattr(videos, "open_container", lambda *a: opened.append(a) or original(*a))

    with pytest.raises(PermanentError, match="not one frame could be decoded"):
        decode(data.replace(b"\x00\x00\x01\xb6", b"\x00\x00\x00\x00"))

    assert 3 <= len(opened) <= 4


def test_frames_of_many_bytes_a_pixel_are_bounded_by_their_bytes():
    # Given fewer pixels than 8K, but all colours at 16 bits
    colours = VideoColours(matrix=1, written_matrix=1, pixel_format="yuv444p16le")
    data = make_video("mkv", 0.04, (300, 260), encoder="ffv1", colours=colours)
    assert decode(data).frames

    # When the sizes in the header, 2 bytes each, are raised to 8K
    for element, said, claimed in ((b"\xb0\x82", 300, 7680), (b"\xba\x82", 260, 4320)):
        assert element + said.to_bytes(2, "big") in data
        data = data.replace(element + said.to_bytes(2, "big"), element + claimed.to_bytes(2, "big"))
    with pytest.raises(PermanentError, match=r"33\.2 megapixels of 6 bytes") as caught:
        decode(data)

    assert caught.value.kind == "too_many_pixels"


@pytest.mark.slow
def test_large_frames_are_decoded_by_their_key_frames_alone():
    # Given a film whose frames fit three at a time, and not ten
    data = make_video("mp4", 4, (1280, 720), keyframe_interval=25)
    max_bytes = 32 * 1024**2 + 5 * 1280 * 720 * 3 // 2

    content = decode(data, max_bytes=max_bytes)

    assert len(content.frames) == 4
    assert not content.facts.warnings
    for part, frame in enumerate(content.frames):
        assert progress_shown(frame) == pytest.approx(part / 4, abs=0.05)
    with pytest.raises(PermanentError, match=r"720 = 0\.9 megapixels of 1\.5 bytes"):
        decode(data, max_bytes=32 * 1024**2 + 2 * 1280 * 720 * 3 // 2)


@pytest.mark.parametrize("video_format", ["mp4", "mkv", "webm", "m2ts", "avi"])
def test_distant_key_frames_cause_a_warning(video_format):
    data = make_video(video_format, 4, (640, 480), keyframe_interval=100_000)

    content = decode(data, max_bytes=32 * 1024**2 + 5 * 640 * 480 * 3 // 2)

    assert len(content.frames) == 1
    assert content.facts.warnings == (
        "3 parts of the film are not shown: its frames are so large that only key frames are "
        "decoded, and these are too far apart",
    )


@pytest.mark.slow
def test_frames_that_become_larger_on_the_way_must_fit_like_the_first():
    # Given a film whose frames fit fourteen at a time, and then frames that fit three at a time
    film = joined(make_video("webm", 2, (640, 480)), make_video("webm", 2, (1104, 1104)))

    content = decode(film, max_bytes=32 * 1024**2 + 14 * 640 * 480 * 3 // 2)

    assert [picture_of(frame).size for frame in content.frames] == 2 * [(644, 476)]
    assert "frames could not be decoded" in content.facts.warnings[-1]


PEAK = """
import io, re, sys
from pathlib import Path
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.testing.media import make_video

def peak():  # in MiB
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

small = make_video("mp4", 1)
decode(io.BytesIO(small), sniff(small)).make_thumbnail()
data = Path(sys.argv[1]).read_bytes()
used = peak()
content = decode(io.BytesIO(data), sniff(data))
content.make_thumbnail()
print(content.facts.width, peak() - used)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from Linux")
@pytest.mark.parametrize(
    ("side", "frames"), [(4880, 12), (5760, 12), (10_240, 1)], ids=["all frames", "8K", "12K"]
)
def test_the_largest_films_are_decoded_within_the_stated_memory(side, frames, tmp_path):
    # As many references and reordered frames as large frames may have.
    film = make_oversized_video(side, frames=frames, refs="5", bf="3")
    (tmp_path / "film").write_bytes(film)

    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "film")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )

    width, added = map(int, result.stdout.split())
    assert width == side
    assert added <= DEFAULT_DECODE_BYTES >> 20


def test_frames_of_16k_are_refused_with_the_memory_that_they_need():
    data = make_video("mkv", 0.04, (300, 260), encoder="ffv1")
    for element, said, claimed in ((b"\xb0\x82", 300, 15_360), (b"\xba\x82", 260, 8_640)):
        data = data.replace(element + said.to_bytes(2, "big"), element + claimed.to_bytes(2, "big"))

    with pytest.raises(PermanentError, match=r"132\.7 .* 602 MiB .* at most 512") as caught:
        decode(data)

    assert caught.value.kind == "too_many_pixels"


def test_the_memory_of_held_packets_is_limited(monkeypatch):
    monkeypatch.setattr(video_sampling, "_WAITING_BYTES", 2000)

    content = decode(make_video("mp4", 40, (64, 48), keyframe_interval=100_000))

    for part, frame in enumerate(content.frames):
        assert progress_shown(frame) == pytest.approx((part + 0.5) / MAX_FRAMES, abs=0.03)


def test_the_memory_of_held_packets_includes_more_than_their_data(monkeypatch):
    monkeypatch.setattr(video_sampling, "_WAITING_BYTES", 100_000)
    most = 0

    class Watched(FrameReader):
        def _decode(self, packet):
            nonlocal most
            most = max(most, len(self._waiting))
            super()._decode(packet)

    monkeypatch.setattr(videos, "FrameReader", Watched)
    # Given packets of some bytes behind one key frame
    content = decode(make_video("mkv", 40, (32, 32), fps=25, keyframe_interval=100_000))

    assert len(content.frames) == MAX_FRAMES
    assert 50 < most < 200


def test_the_number_of_packets_that_are_read_is_limited(monkeypatch):
    monkeypatch.setattr(video_sampling, "MOST_PACKETS", 500)

    content = decode(make_video("mkv", 40, (32, 32), fps=25, keyframe_interval=100_000))

    assert 1 < len(content.frames) < MAX_FRAMES
    assert content.facts.warnings == (
        "damaged: the file cannot be read to its end: only its first 500 packets are read",
    )


IN_BOUNDED_MEMORY = """
import io, resource
from batch_pipeline.errors import PermanentError
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import HEAD_BYTES, sniff
from batch_pipeline.testing import media

formats = ("mkv", "webm", "wmv", "ogv", "m2ts", "3gp", "mxf")
muxers = ("matroska", "mpegts", "3gp", "flv")
hostile = [media.make_oversized_video(muxer=muxer) for muxer in muxers]
for name in formats:  # what is loaded once is loaded now
    decode(io.BytesIO(film := media.make_video(name)), sniff(film))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 1024**2,) * 2)
for data in hostile:
    try:
        decode(io.BytesIO(data), sniff(data[:HEAD_BYTES]), max_bytes=256 * 1024**2)
    except PermanentError as error:
        print(error.kind)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process by RLIMIT_AS")
def test_oversized_frames_are_refused_within_64_megabytes_in_any_container():
    result = subprocess.run(
        [sys.executable, "-c", IN_BOUNDED_MEMORY],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert len(result.stdout.split()) == 4, result.stderr
    assert set(result.stdout.split()) == {"too_many_pixels"}, result.stderr
