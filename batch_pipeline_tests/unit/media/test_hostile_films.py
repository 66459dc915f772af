"""Small films that claim or unpack to gigabytes are refused, or decoded without them."""

import io
import struct
import subprocess
import sys
from fractions import Fraction

import av
import pytest

from batch_pipeline.errors import PermanentError
from batch_pipeline.media import sniffing, video_index
from batch_pipeline.media.sniffing import MP4, is_cut_short
from batch_pipeline.media.stills.boxes import boxes
from batch_pipeline.media.video_index import require_bounded_index
from batch_pipeline.media.video_memory import FrameMemory
from batch_pipeline.media.video_streams import Source
from batch_pipeline.testing.media import (
    clean_aperture_box,
    make_oversized_video,
    make_png_text_bomb,
    make_video,
    with_film_boxes,
)
from batch_pipeline_tests.unit.media.films import decode

#: Enough for any film here, not for an index of a million entries (bytes).
LITTLE = 33 * 1024**2
MANY = 1_000_000


def box(name: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, content)), name) + b"".join(content)


def counted(name: bytes, *numbers: int) -> bytes:
    """Make a box with version and flags."""
    return box(name, struct.pack(f">{1 + len(numbers)}I", 0, *numbers))


def track(frames: int, *, kind: bytes = b"vide", ticks: int = 10, edits: int = 1) -> bytes:
    """Make a track of equal frames of one byte, without a picture."""
    table = box(
        b"stbl",
        counted(b"stts", 1, frames, ticks),
        counted(b"stsc", 1, 1, frames, 1),
        counted(b"stsz", 1, frames),
        counted(b"stco", 1, 100),
    )
    media = box(b"mdia", box(b"hdlr", bytes(8), kind, bytes(13)), box(b"minf", table))
    return box(b"trak", box(b"edts", counted(b"elst", edits, *edits * (frames, 0, 1 << 16))), media)


def fragment(frames: int) -> bytes:
    return box(b"moof", box(b"traf", counted(b"tfhd", 1), counted(b"trun", frames)))


FILM = make_video("mp4", 1)


@pytest.mark.parametrize(
    "claim",
    [
        box(b"moov", track(MANY)),
        box(b"moov", *[track(MANY // 10)] * 10),
        track(MANY),
        box(b"moov", track(MANY // 1000, edits=1000)),
        fragment(MANY // 2) * 2,
        # FFmpeg makes an index of chunks only for sound.
        box(b"moov", track(MANY, ticks=1)),
        box(b"moov", track(MANY, kind=b"soun")),
    ],
    ids=["frames", "tracks", "no film", "edits", "fragments", "film of one tick", "packed sound"],
)
def test_an_index_that_does_not_fit_into_the_memory_is_refused(claim):
    with pytest.raises(PermanentError, match="1,000,000 frames and pieces of sound") as caught:
        decode(box(b"ftyp", b"isom") + claim, max_bytes=LITTLE)

    assert caught.value.kind == "too_many_pixels"


def test_a_film_whose_index_fits_is_not_refused():
    sound = box(b"moov", track(MANY, kind=b"soun", ticks=1))  # each value counts as a frame

    source = Source(io.BytesIO(FILM + fragment(MANY // 2) + sound))
    require_bounded_index(source, FrameMemory(LITTLE))


def test_a_file_of_very_many_boxes_is_refused(monkeypatch):
    monkeypatch.setattr(video_index, "_MOST_BOXES", 1000)

    assert decode(FILM + 900 * box(b"free")).frames
    with pytest.raises(PermanentError, match="more than 1,000 boxes"):
        decode(FILM + 1000 * box(b"free"))


def test_the_search_for_the_end_of_a_file_reads_a_limited_number_of_boxes(monkeypatch):
    monkeypatch.setattr(sniffing, "_MOST_BOXES", 100)
    cut = FILM + 200 * box(b"free") + box(b"free", b"1234")[:-1]

    assert not is_cut_short(io.BytesIO(cut), MP4)
    assert is_cut_short(io.BytesIO(cut.replace(150 * box(b"free"), b"")), MP4)


def test_more_streams_than_any_film_has_are_the_fault_of_the_file():
    _, start, end = next(each for each in boxes(FILM) if each[0] == b"moov")
    _, first, last = next(each for each in boxes(FILM, start, end) if each[0] == b"trak")
    one = FILM[first - 8 : last]

    with pytest.raises(PermanentError, match="Cannot allocate memory") as caught:
        decode(FILM[: start - 8] + box(b"moov", FILM[start:end], one * 1000) + FILM[end:])

    assert caught.value.kind == "unreadable_video"


def make_png_film(text_bytes: int) -> bytes:
    output = io.BytesIO()
    with av.open(output, "w", format="mov") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 1, 1, "gray"
        for number in range(2):
            packet = av.Packet(make_png_text_bomb(text_bytes))
            packet.stream, packet.time_base = stream, Fraction(1)
            packet.pts = packet.dts = number
            container.mux(packet)
    return output.getvalue()


def make_film_of_many_streams(side: int, count: int) -> bytes:
    film = io.BytesIO(make_oversized_video(side, frames=8, refs="8"))
    output = io.BytesIO()
    with av.open(film) as one, av.open(output, "w", format="mp4") as container:
        streams = [container.add_stream_from_template(one.streams.video[0]) for _ in range(count)]
        for packet in one.demux(video=0):
            for stream in streams if packet.dts is not None else ():
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                container.mux(copy)
    return output.getvalue()


def test_a_film_of_png_pictures_is_refused():
    with pytest.raises(PermanentError, match="PNG pictures, which are not accepted"):
        decode(make_png_film(1000))


PEAK = """
import io, re, sys
from contextlib import suppress
from pathlib import Path
from batch_pipeline.errors import PermanentError
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.testing.media import make_video

def peak():  # in MiB
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

for name in ("mp4", "mov", "flv", "mpeg-ts"):
    decode(io.BytesIO(film := make_video(name, 1)), sniff(film)).make_thumbnail()
data = Path(sys.argv[1]).read_bytes()
used = peak()
with suppress(PermanentError):
    decode(io.BytesIO(data), sniff(data)).make_thumbnail()
print(peak() - used)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from Linux")
@pytest.mark.parametrize(
    "what", ["a part of one pixel", "texts in PNG pictures", "many streams", "mpegts", "flv"]
)
def test_a_film_that_unpacks_to_gigabytes_is_decoded_in_little_memory(what, tmp_path):
    if what == "a part of one pixel":
        size = (560, 560)
        data = with_film_boxes(make_video("mp4", 1, size), clean_aperture_box(size, 0, 0, 1, 1))
    elif what == "many streams":
        data = make_film_of_many_streams(2000, 30)
    elif what == "texts in PNG pictures":
        data = make_png_film(64 * 1024**2)
    else:  # only key frames of this film are decoded, and its container does not have their size
        data = make_oversized_video(5040, muxer=what, frames=8, refs="8", bf="0")
    (tmp_path / "film").write_bytes(data)

    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "film")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert int(result.stdout) < 200
