"""Date and camera of a film come from the most trusted entry; its place is never read."""

import io
import struct
from datetime import datetime, timedelta

import av
import pytest
from PIL.JpegImagePlugin import JpegImageFile

from batch_pipeline.media.video_headers import note_of_camcorder
from batch_pipeline.media.video_metadata import camera, captured_at
from batch_pipeline.testing.media import make_video
from batch_pipeline_tests.unit.media.films import decode

APPLE = "com.apple.quicktime.creationdate"


def test_the_date_and_camera_of_a_phone_are_read_and_its_position_is_not():
    data = make_video(
        "mov",
        1,
        with_gps=True,
        metadata={
            "com.apple.quicktime.make": "Apple",
            "com.apple.quicktime.model": "iPhone\u202e 15",
            "com.apple.quicktime.creationdate": "2024-05-01T23:34:56+0200",
            "com.apple.quicktime.location.ISO6709": "+48.8584+002.2945/",
            "creation_time": "2024-05-01T21:34:56Z",
        },
    )
    assert b"+48.8584" in data, "the file does hold a position"

    content = decode(data)

    assert content.facts.captured_at == datetime(2024, 5, 1, 23, 34, 56), "on the camera's clock"
    assert content.facts.date_source == APPLE
    assert content.facts.camera == "Apple iPhone 15"
    assert "48" not in repr(content.facts)
    for jpeg in (content.frames[0].jpeg, content.make_thumbnail()):
        assert {name for name, _ in JpegImageFile(io.BytesIO(jpeg)).applist} == {"APP0"}


@pytest.mark.parametrize("video_format", ["mp4", "mov", "3gp", "mkv"])
def test_a_creation_time_is_a_date_marked_as_utc(video_format):
    data = make_video(video_format, 1, metadata={"creation_time": "2024-05-01T23:34:56Z"})

    facts = decode(data).facts

    assert facts.captured_at == datetime(2024, 5, 1, 23, 34, 56)
    assert facts.date_source == "creation_time (UTC)"


def test_an_android_phone_is_named():
    metadata = {"com.android.manufacturer": "Google", "com.android.model": "Pixel 8"}

    assert decode(make_video("mp4", 1, metadata=metadata)).facts.camera == "Google Pixel 8"


def test_a_matroska_file_made_of_a_phones_film_keeps_its_date_and_camera():
    metadata = {
        APPLE: "2024-05-01T23:34:56+0200",
        "com.apple.quicktime.make": "Apple",
        "com.apple.quicktime.model": "iPhone 15",
    }

    facts = decode(make_video("mkv", 1, metadata=metadata)).facts

    assert (facts.captured_at, facts.camera) == (
        datetime(2024, 5, 1, 23, 34, 56),
        "Apple iPhone 15",
    )


WANTED = datetime(2021, 5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("entries", "found", "source"),
    [
        ({APPLE: "2021-05-06T07:08:09+0530"}, WANTED, APPLE),
        ({APPLE: "2021-05-06T07:08:09.250-08:00"}, WANTED, APPLE),
        ({"creation_time": "2021-05-06T07:08:09.000000Z"}, WANTED, "creation_time (UTC)"),
        ({"creation_time": "2021-05-06 07:08:09"}, WANTED, "creation_time"),
        ({"date": "2021:05:06 07:08:09"}, WANTED, "date"),
        ({"DATE_RECORDED": "2021-05-06 07:08:09"}, WANTED, "date_recorded"),
        (
            {APPLE: "2021-05-06T07:08:09+0200", "creation_time": "2021-05-06T05:08:09Z"},
            WANTED,
            APPLE,
        ),
        (
            {APPLE: "not a date", "creation_time": "2021-05-06T07:08:09Z"},
            WANTED,
            "creation_time (UTC)",
        ),
        ({"date": "2021"}, None, None),
        ({"date": "2021-05-06"}, None, None),
        ({"creation_time": "1904-01-01T00:00:00Z"}, None, None),
        ({"creation_time": "1970-01-01T00:00:01Z"}, None, None),
        ({APPLE: "1904-01-01T01:00:00+0100"}, None, None),
        ({APPLE: "1970-01-01T05:30:00+0530"}, None, None),
        ({"creation_time": "0001-01-01T00:00:00Z"}, None, None),
        ({"creation_time": "2021-13-45T00:00:00Z"}, None, None),
        ({"creation_time": ""}, None, None),
        ({}, None, None),
    ],
)
def test_the_date_comes_from_the_most_trusted_entry(entries, found, source):
    assert captured_at([entries, {}]) == (found, source)


def with_idit(avi: bytes, text: bytes) -> bytes:
    """Add the entry at the end of an AVI's list of headers."""
    name = avi.index(b"hdrl")
    size = int.from_bytes(avi[name - 4 : name], "little")
    chunk = b"IDIT" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    grown = bytearray(avi[: name + size] + chunk + avi[name + size :])
    grown[name - 4 : name] = struct.pack("<I", size + len(chunk))
    grown[4:8] = struct.pack("<I", len(grown) - 8)
    return bytes(grown)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"Thu May 06 07:08:09 2021\n\0", WANTED),
        (b"THU MAY  6 07:08:09 2021", WANTED),
        (b"2021/05/06/ 07:08", WANTED.replace(second=0)),
        (b"2021:05:06 07:08:09", WANTED),
        (b"2021-05-06 07:08:09\0", WANTED),
        (b"Thu Xyz 06 07:08:09 2021", None),
        (b"", None),
    ],
)
def test_the_date_of_an_avi_of_a_camera_is_read_in_any_spelling(text, expected):
    facts = decode(with_idit(make_video("avi", 1), text)).facts

    assert facts.captured_at == expected
    assert facts.date_source == (expected and "IDIT")


@pytest.mark.parametrize("text", ["2021-05-06", "2021-05-06 00:00:00"])
def test_the_day_of_an_avi_counts_where_nothing_says_the_time(text):
    data = make_video("avi", 1, metadata={"date": text})

    facts = decode(data).facts

    assert (facts.captured_at, facts.date_source) == (datetime(2021, 5, 6), "date")


@pytest.mark.parametrize(
    ("moment", "expected"), [(WANTED, WANTED), (datetime(1970, 1, 1), None), (None, None)]
)
def test_the_creation_date_of_an_asf_is_a_date_marked_as_utc(moment, expected):
    data = bytearray(make_video("wmv", 1))
    place = data.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")) + 48
    ticks = 0 if moment is None else (moment - datetime(1601, 1, 1)) // timedelta(microseconds=1)
    data[place : place + 8] = struct.pack("<Q", 10 * ticks)

    facts = decode(bytes(data)).facts

    assert facts.captured_at == expected
    assert facts.date_source == (expected and "ASF creation date (UTC)")


MOMENT = datetime(2019, 4, 24, 0, 0, 5)


def camcorder_note(moment: datetime, *more: bytes) -> bytes:
    """The note of an AVCHD camcorder about a frame, as stored in H.264."""
    date = bytes.fromhex(f"{moment:%Y%m}")
    time = bytes.fromhex(f"{moment:%d%H%M%S}")
    entries = b"\x13" + bytes(4) + b"\x18\x84" + date + b"\x19" + time
    count = bytes([3 + len(more)])
    entries += b"".join(more)
    payload = bytes.fromhex("17ee8c60f84d11d98cd60800200c9a66") + b"MDPM" + count + entries
    note = b"\x06\x05" + bytes([len(payload)]) + payload + b"\x80"
    escaped = b""
    for value in note:
        if value < 4 and escaped.endswith(b"\0\0"):
            escaped += b"\3"
        escaped += bytes([value])
    return b"\0\0\0\1" + escaped


def with_note(film: bytes, note: bytes, muxer_options: dict[str, str]) -> bytes:
    """Put a note before the first frame of a transport stream."""
    output = io.BytesIO()
    with (
        av.open(io.BytesIO(film), format="mpegts") as source,
        av.open(output, "w", format="mpegts", options=muxer_options) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size == 0:
                continue
            stored = bytes(packet)
            copied = av.Packet(note + stored if number == 0 else stored)
            copied.pts, copied.dts = packet.pts, packet.dts
            copied.time_base, copied.is_keyframe = packet.time_base, packet.is_keyframe
            copied.stream = stream
            target.mux(copied)
    return output.getvalue()


@pytest.mark.parametrize("muxer_options", [{}, {"mpegts_m2ts_mode": "1"}])
def test_the_date_in_the_picture_data_of_a_camcorder_is_read(muxer_options):
    film = make_video("mpeg-ts", 1, encoder="libx264")
    assert decode(film).facts.captured_at is None

    facts = decode(with_note(film, camcorder_note(MOMENT), muxer_options)).facts

    assert (facts.captured_at, facts.date_source) == (MOMENT, "AVCHD camcorder")


@pytest.mark.parametrize("length", range(44))
def test_a_cut_note_of_a_camcorder_is_ignored(length):
    assert note_of_camcorder(camcorder_note(MOMENT)[:length]).date is None


@pytest.mark.parametrize(
    ("entries", "camera"),
    [
        ([b"\xe0\x01\x03\x03\x13"], "Panasonic"),
        ([b"\xe0\x10\x11\x31\x01"], "Canon"),
        ([b"\xe0\x11\x04\x84\x21"], "JVC"),
        ([b"\xe0\x01\x08\x31\x00"], "Sony"),
        ([b"\xe0\x01\x08\x31\x00", b"\xe4DSC-", b"\xe5RX10", b"\xe60\0\0\0"], "Sony DSC-RX100"),
        ([b"\xe0\x77\x77\x31\x00"], None),
        ([], None),
    ],
)
def test_the_maker_of_a_camcorder_is_read(entries, camera):
    film = make_video("mpeg-ts", 1, encoder="libx264")

    facts = decode(with_note(film, camcorder_note(MOMENT, *entries), {})).facts

    assert facts.camera == camera
    assert facts.captured_at == MOMENT


def test_the_creation_date_of_the_oldest_package_of_an_mxf_is_read():
    film = make_video("mxf", 1, metadata={"creation_time": "2021-05-06T07:08:09Z"})
    stored = struct.pack(">HHHBBBBBB", 0x4405, 8, 2021, 5, 6, 7, 8, 9, 0)
    assert film.count(stored) > 1

    facts = decode(film).facts
    assert facts.captured_at == datetime(2021, 5, 6, 7, 8, 9)
    assert facts.date_source == "MXF package creation date (UTC)"
    older = film.replace(stored, stored[:4] + b"\x07\xdc" + stored[6:], 1)  # 2012
    assert decode(older).facts.captured_at == datetime(2012, 5, 6, 7, 8, 9)
    assert decode(film.replace(stored, stored[:4] + bytes(8))).facts.date_source is None


def test_the_container_counts_before_the_stream_and_a_local_date_before_both():
    container = {"creation_time": "2022-01-01T00:00:00Z"}
    stream = {"creation_time": "2023-01-01T00:00:00Z"}

    assert captured_at([container, stream])[0] == datetime(2022, 1, 1)
    assert captured_at([{}, stream])[0] == datetime(2023, 1, 1)
    assert captured_at([container, {APPLE: "2021-05-06T07:08:09+0200"}])[0] == WANTED


def test_a_maker_that_the_model_repeats_is_named_once():
    assert camera([{"make": "Canon", "model": "Canon EOS R5"}, {}]) == "Canon EOS R5"
    assert camera([{}, {"MAKE": "Sony", "MODEL": "FDR-AX53"}]) == "Sony FDR-AX53"
    assert camera([{}, {}]) is None
