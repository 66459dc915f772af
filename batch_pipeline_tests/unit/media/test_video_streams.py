"""Of the streams of a container the film is shown, not its cover or a thumbnail."""

import numpy as np
import pytest
from av.stream import Disposition

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.sniffing import MKV, MP4, sniff
from batch_pipeline.testing.media import Track, make_audio_only, make_image, make_tracks, make_video
from batch_pipeline_tests.unit.media.films import CASES, decode, decode_case, picture_of, pixel

NO_FLAG = Disposition(0)
FILM = Track((320, 240), "blue", disposition=NO_FLAG)
SMALL_FILM = Track((160, 120), "red", disposition=NO_FLAG)
COVER = Track((640, 640), "red", 1, "mjpeg", Disposition.attached_pic)


def is_the_blue_one(content) -> bool:
    red, _, blue = pixel(picture_of(content.frames[0]), 0.7, 0.7)
    return blue > red + 100


@pytest.mark.parametrize(
    "tracks",
    [
        (FILM,),
        (Track((160, 120), "red", 1, "mjpeg"), FILM),
        (Track((640, 480), "red", 1, "mjpeg"), FILM),
        (Track((160, 120), "red", 20, "mjpeg"), FILM),
        (SMALL_FILM, FILM),
        (FILM, SMALL_FILM),
        (Track((160, 120), "red"), Track((640, 480), "blue", disposition=NO_FLAG)),
        (Track((352, 288), "red", disposition=NO_FLAG), Track((320, 240), "blue")),
    ],
)
@pytest.mark.parametrize("video_format", ["mp4", "mkv", "mov"])
def test_the_film_is_the_moving_stream_of_real_size_that_is_marked_as_default(video_format, tracks):
    assert is_the_blue_one(decode(make_tracks(video_format, *tracks)))


@pytest.mark.parametrize("tracks", [(COVER, FILM), (FILM, COVER)])
@pytest.mark.parametrize("video_format", ["mp4", "mkv"])
def test_a_cover_larger_than_the_film_is_not_the_film(video_format, tracks):
    assert is_the_blue_one(decode(make_tracks(video_format, *tracks)))


def test_a_thumbnail_track_before_the_film_is_not_the_film():
    content = decode_case("two_mjpeg_first.mov")

    assert (content.facts.width, content.facts.height) == (320, 240)
    assert np.abs(pixel(picture_of(content.frames[0]), 0.2, 0.2) - (190, 190, 0)).max() <= 6


def test_a_stream_that_does_not_decode_gives_way_to_one_that_does():
    data = make_tracks("mkv", Track((640, 480), "red", encoder="mpeg4"), FILM)
    # The packets of the first stream are emptied; its headers stay.
    damaged = data.replace(b"\x00\x00\x01\xb6", b"\x00\x00\x00\x00")
    assert not is_the_blue_one(decode(data))

    assert is_the_blue_one(decode(damaged))


def test_a_codec_that_nobody_decodes_gives_way_to_one_that_is_known():
    data = make_tracks("mkv", Track((640, 480), "red", encoder="mpeg4"), FILM)

    assert is_the_blue_one(decode(data.replace(b"V_MPEG4/ISO/ASP", b"V_NOTHINGATALL!")))


def test_a_codec_that_nobody_decodes_is_named_as_the_reason():
    data = make_tracks("mkv", Track((320, 240), "red", encoder="mpeg4"))

    with pytest.raises(PermanentError, match="no decoder is installed") as caught:
        decode(data.replace(b"V_MPEG4/ISO/ASP", b"V_NOTHINGATALL!"))

    assert caught.value.kind == "unreadable_video"


SOUND_WITH_COVER = {
    "mp4": make_tracks("mp4", COVER, with_sound=True),
    "mkv": make_audio_only("matroska", cover=make_image("jpeg")),
    # Some programs write the cover as a separate track.
    "mov": make_tracks("mov", Track((640, 640), "red", 1, "mjpeg"), with_sound=True),
}


@pytest.mark.parametrize("video_format", SOUND_WITH_COVER)
def test_sound_with_a_cover_is_not_a_video(video_format):
    with pytest.raises(PermanentError, match="no video, only a cover picture") as caught:
        decode(SOUND_WITH_COVER[video_format])

    assert caught.value.kind == "no_video_stream"


@pytest.mark.parametrize(
    ("muxer", "encoder"),
    [
        ("mp4", "aac"), ("3gp", "aac"), ("mov", "aac"), ("matroska", "aac"), ("webm", "libopus"),
        ("mpegts", "aac"), ("flv", "aac"), ("avi", "mp2"),
    ],
)  # fmt: skip
def test_sound_alone_is_not_a_video_in_any_container(muxer, encoder):
    with pytest.raises(PermanentError, match="holds no video") as caught:
        decode(make_audio_only(muxer, encoder))

    assert caught.value.kind == "no_video_stream"


@pytest.mark.parametrize("name", ["free_box_first.mp4", "h264_named.mkv"])
def test_containers_that_were_once_refused_by_mistake_are_accepted(name):
    content = decode_case(name)

    assert (content.facts.width, content.facts.height) == (320, 240)
    assert content.facts.duration_seconds == pytest.approx(2, abs=0.05)
    assert np.abs(pixel(picture_of(content.frames[0]), 0.2, 0.2) - (188, 188, 0)).max() <= 6
    assert content.facts.warnings == ()


@pytest.mark.parametrize("room", [b"free", b"skip", b"wide"])
@pytest.mark.parametrize("length", [8, 24, 5000, 1_000_000])
def test_empty_space_put_before_a_finished_film_does_not_hide_it(room, length):
    data = length.to_bytes(4, "big") + room + bytes(length - 8) + make_video("mp4", 2)

    content = decode(data)

    assert len(content.frames) == 2
    assert content.facts.format == ("mp4" if length < 4096 else "mov")


def test_empty_space_that_the_positions_include_does_not_hide_a_film():
    # Given a free box in place of the brands, so that no later byte moves
    data = make_video("mov", 2)
    size = int.from_bytes(data[:4], "big")
    assert data[4:8] == b"ftyp"

    content = decode(data[:4] + b"free" + bytes(size - 8) + data[size:])

    assert len(content.frames) == 2
    assert content.facts.format == "mov"


def test_the_type_of_a_container_is_found_from_its_content():
    webm, mkv = make_video("webm", 1), make_video("mkv", 1)

    assert sniff(mkv) is MKV
    assert decode(webm.replace(b"webm", b"lego", 1).replace(b"lego", b"webm", 1)).frames
    assert sniff((CASES / "canon_cr3_head.cr3").read_bytes()) is not MP4
