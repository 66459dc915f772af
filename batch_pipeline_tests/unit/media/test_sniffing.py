"""The content decides the type of a file; the error for a refused file names its type."""

import io
import struct

import pytest

from batch_pipeline.media import sniffing
from batch_pipeline.media.sniffing import (
    HEAD_BYTES,
    MediaType,
    is_cut_short,
    read_head,
    refusal_reason,
    room_ahead,
    sniff,
)
from batch_pipeline.testing.media import (
    IMAGE_FORMATS,
    VIDEO_FORMATS,
    VideoFormat,
    cut_in_half,
    make_dng,
    make_image,
    make_unsupported_files,
    make_video,
)

VIDEO_TYPES: dict[VideoFormat, MediaType] = {
    "mp4": sniffing.MP4,
    "mov": sniffing.MOV,
    "avi": sniffing.AVI,
    "webm": sniffing.WEBM,
    "mpeg-ps": sniffing.MPEG_PROGRAM,
    "mpeg-ts": sniffing.MPEG_TRANSPORT,
    "mpeg-es": sniffing.MPEG_ELEMENTARY,
    "flv": sniffing.FLV,
    "3gp": sniffing.THREE_GP,
    "mkv": sniffing.MKV,
    "wmv": sniffing.WMV,
    "ogv": sniffing.OGV,
    "mxf": sniffing.MXF,
    "m2ts": sniffing.MPEG_CAMCORDER,
}


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_every_accepted_image_is_recognised_by_its_head(image_format):
    media_type = sniff(make_image(image_format)[:HEAD_BYTES])

    assert media_type is not None
    assert (media_type.format, media_type.file_type) == (image_format, "image")
    assert media_type.mime_type == f"image/{image_format}"


@pytest.mark.parametrize("video_format", VIDEO_FORMATS)
def test_every_accepted_video_is_recognised_by_its_head(video_format):
    media_type = sniff(make_video(video_format)[:HEAD_BYTES])

    assert media_type is VIDEO_TYPES[video_format]
    assert media_type.file_type == "video"


def test_no_two_types_are_stored_with_the_same_mime_type_and_extension():
    stored = {(t.mime_type, t.extension) for t in sniffing.ACCEPTED_TYPES}

    assert len(stored) == len(sniffing.ACCEPTED_TYPES)


def ftyp(*brands: bytes) -> bytes:
    major, *compatible = brands
    body = b"ftyp" + major + b"\0\0\0\0" + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        ((b"heic", b"mif1", b"heic"), sniffing.HEIC),
        ((b"mif1", b"mif1", b"heic"), sniffing.HEIC),
        ((b"mif1", b"iso8", b"mif1", b"heic"), sniffing.HEIC),
        ((b"mif1", b"mif1", b"avif"), sniffing.AVIF),
        ((b"mif1", b"mif1"), sniffing.HEIF),
        ((b"avis", b"avif", b"msf1", b"iso8"), sniffing.AVIF),
        ((b"isom", b"iso2", b"mp41"), sniffing.MP4),
        ((b"3gp5", b"isom"), sniffing.THREE_GP),
        ((b"M4V ", b"M4A ", b"mp42"), sniffing.MP4),
        ((b"abcd", b"mp42"), sniffing.MP4),
        ((b"qt  ", b"qt  "), sniffing.MOV),
        ((b"M4A ", b"mp42", b"isom"), None),
        ((b"crx ", b"crx ", b"isom"), sniffing.CR3),
        ((b"abcd", b"efgh"), sniffing.MP4),
        ((b"abcd", b"M4A "), None),
        ((b"abcd", b"mif1", b"heic"), sniffing.HEIC),
    ],
)
def test_brands_tell_photos_films_and_sound_apart(brands, expected):
    assert sniff(ftyp(*brands)) is expected


def test_brands_after_the_end_of_their_box_are_ignored():
    assert sniff(ftyp(b"abcd") + b"M4A crx heic") is sniffing.MP4


@pytest.mark.parametrize("box", [b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"])
def test_quicktime_older_than_brands_is_known(box):
    assert sniff(b"\0\0\0\x08" + box) is sniffing.MOV


def test_a_camcorder_transport_stream_is_known_by_its_longer_packets():
    packet = b"\0\0\0\0\x47" + bytes(187)

    assert sniff(packet * 4) is sniffing.MPEG_CAMCORDER


def test_a_text_of_capital_gs_is_not_a_transport_stream():
    assert sniff(b"G" + b"x" * 187 + b"G") is None


EXPECTED_NAMES = {
    "EPS": "EPS",
    "SVG": "SVG",
    "HTML": "HTML",
    "PDF": "PDF",
    "ZIP": "ZIP",
    "ffconcat": "ffconcat script",
    "HLS": "HLS or M3U playlist",
    "EBML": "EBML file (document type 'lego'; accepted are 'matroska' and 'webm')",
    "Ogg audio": "an Ogg audio file",
    "Windows Media audio": "a Windows Media audio file",
    "MP3": "MP3 audio",
    "WAV": "WAV audio",
    "MPEG-4 audio": "MPEG-4 audio",
    "text": "a text file",
    "unknown binary": "unknown binary data",
}


UNSUPPORTED = make_unsupported_files()


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_refused_file_is_named_and_the_accepted_formats_are_listed(name):
    data = UNSUPPORTED[name]

    assert sniff(data) is None
    reason = refusal_reason(data)
    assert EXPECTED_NAMES[name] in reason
    for accepted in ("JPEG", "PNG", "WebP", "HEIC", "HEIF", "GIF", "AVIF"):
        assert accepted in reason
    for accepted in ("MP4", "MOV", "AVI", "WebM", "MPEG", "FLV"):
        assert accepted in reason


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"PK\x05\x06" + bytes(18), "an empty ZIP archive"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"#!/bin/sh", "a script"),
        (b"\x80" * 1000 + b"%PDF-1.7", "a PDF document"),
        (b"\x80" * 1020 + b"%PDF-1.7", "unknown binary data"),
        (b"RIFF\x04\0\0\0WAVE", "a WAV audio file"),
        (b"RIFF\x04\0\0\0WAVX", "an unknown RIFF file"),
        (b"FORM\0\0\0\x04AIFF", "an AIFF audio file"),
        (b"\xff\xe0\x80\x80", "an MP3 or AAC audio file"),
        (b"\xff\xdf\x80\x80", "unknown binary data"),
        (b"\xfe\xe0\x80\x80", "unknown binary data"),
        (b"words\r\n\tand words\f", "a text file"),
        (b"words\x01", "unknown binary data"),
        (b"words\0", "unknown binary data"),
        (b"words \xc3\xa4\xc3", "a text file"),
        (b"words \xe4 words", "unknown binary data"),
        ("words".encode("utf-16"), "a text file"),
        ("words".encode("utf-16") + b"x", "a text file"),
        (b"\xfe\xff" + "<svg/>".encode("utf-16-be"), "an SVG drawing"),
        (b" \r\n\t<?xml version='1.0'?><x/>", "an XML document"),
        (b"<?xml version='1.0'?><SVG/>", "an SVG drawing"),
        (b"<MPD/>", "a DASH playlist, which makes a player open other files"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"<Script>", "an HTML page"),
        (b"\nffconcat version 1.0", "an ffconcat script, which makes a player open other files"),
        (b" #EXTM3U", "an HLS or M3U playlist, which makes a player open other files"),
        (b"say #ext", "a text file"),
    ],
)
def test_each_refused_kind_has_its_name(head, name):
    assert sniff(head) is None
    assert refusal_reason(head) == f"the content looks like {name}; {sniffing.ACCEPTED}"


def test_the_accepted_formats_are_listed_once_each_as_people_write_them():
    images, videos = sniffing.ACCEPTED.split(" images and ")
    assert images.startswith("accepted are JPEG, PNG, WebP, HEIC,")
    assert images.endswith(" and raw")
    assert videos.startswith("MP4, MOV, 3GP, AVI, WebM,")
    assert videos.endswith(" and MPEG videos")
    assert videos.count("MPEG") == images.count("raw") == 1


def tiff_head(*entries: tuple[int, int, int, int], order: str = "<") -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries) + bytes(4)


def with_maker(name: bytes) -> bytes:
    head = tiff_head((254, 4, 1, 1), (271, 2, len(name), 8 + 2 + 24 + 4))
    return head + name


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (tiff_head((256, 4, 1, 100), (257, 4, 1, 100)), sniffing.TIFF),
        (tiff_head((256, 4, 1, 100), order=">"), sniffing.TIFF),
        (b"II+\0\x08\0\0\0" + bytes(16), sniffing.TIFF),
        (b"II*\0" + (2**31).to_bytes(4, "little"), sniffing.TIFF),
        (tiff_head((254, 4, 1, 1), (50706, 1, 4, 0x401)), sniffing.DNG),
        (make_dng((32, 32)), sniffing.DNG),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(16), sniffing.CR2),
        (tiff_head((254, 4, 1, 1), (256, 4, 1, 100)), sniffing.TIFF),
        (tiff_head((254, 4, 1, 1), (330, 4, 1, 100)), sniffing.RAW),
        (tiff_head((254, 4, 1, 1), (272, 2, 4, 100)), sniffing.RAW),
        (tiff_head((254, 4, 1, 1), (34307, 1, 4, 100)), sniffing.RAW),
        (with_maker(b"NIKON CORPORATION\0"), sniffing.NEF),
        (with_maker(b"SONY\0"), sniffing.ARW),
        (with_maker(b"Hasselblad\0"), sniffing.RAW),
        (tiff_head((259, 3, 1, 65535)), sniffing.RAW),
        (b"FUJIFILMCCD-RAW 0201", sniffing.RAF),
        (b"IIU\0\x18\0\0\0" + bytes(16), sniffing.RW2),
        (b"IIRO\x08\0\0\0" + bytes(16), sniffing.ORF),
        (ftyp(b"crx ", b"crx ", b"isom"), sniffing.CR3),
        (b"8BPS\0\1" + bytes(20), sniffing.PSD),
        (b"8BPS\0\2" + bytes(20), sniffing.PSB),
        (b"BM" + bytes(12) + b"\x28\0\0\0", sniffing.BMP),
        (b"\0\0\0\x0cjP  \r\n\x87\n", sniffing.JPEG_2000),
        (b"\xff\x4f\xff\x51\0", sniffing.JPEG_2000),
        (b"\0\0\0\x0cJXL \r\n\x87\n", sniffing.JPEG_XL),
        (b"\xff\x0a\0", sniffing.JPEG_XL),
        (b"BMW is a maker of cars.", None),
        (b"IIII", None),
    ],
)
def test_documents_scans_and_raw_files_are_distinguished(head, expected):
    assert sniff(head) is expected


BIG_DNG = (
    b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, 1) + struct.pack(">HHQ4sI", 50706, 1, 4, b"\1\4", 0)
)


@pytest.mark.parametrize(
    ("data", "start", "place", "expected"),
    [
        (make_dng((32, 32)), 8, "<I", sniffing.DNG),
        (tiff_head((256, 4, 1, 100), order=">"), 8, ">I", sniffing.TIFF),
        (tiff_head((254, 4, 1, 1), (330, 4, 1, 8), order=">"), 8, ">I", sniffing.RAW),
        (BIG_DNG, 16, ">Q", sniffing.DNG),
    ],
    ids=["DNG", "TIFF", "raw", "big DNG"],
)
@pytest.mark.parametrize("later", [0, 4000, HEAD_BYTES, 100_000])
def test_a_directory_after_a_preview_is_found(data, start, place, expected, later):
    moved = data + bytes(later)
    size = struct.calcsize(place)
    moved = moved[: start - size] + struct.pack(place, len(moved)) + moved[start:] + data[start:]

    assert sniff(read_head(io.BytesIO(moved))) is expected


@pytest.mark.parametrize("position", [2**31, 2**64 - 1])
def test_a_directory_after_the_end_of_the_file_is_ignored(position):
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", position)

    assert sniff(read_head(io.BytesIO(head))) is sniffing.TIFF


def test_an_empty_file_is_called_empty():
    assert sniff(b"") is None
    assert refusal_reason(b"").startswith("the file is empty")


def test_text_is_text_even_when_the_head_ends_within_a_character():
    head = ("ä" * HEAD_BYTES).encode()[: HEAD_BYTES - 1]

    assert "a text file" in refusal_reason(head)


def test_a_byte_order_mark_hides_no_markup():
    assert "SVG" in refusal_reason("\ufeff<svg/>".encode())
    assert "HTML" in refusal_reason("<html>".encode("utf-16"))


@pytest.mark.parametrize("length", range(24))
def test_no_head_is_too_short_to_be_judged(length):
    for data in (*make_unsupported_files().values(), make_image("webp"), make_video("webm", 0.1)):
        head = data[:length]
        assert sniff(head) is not None or refusal_reason(head)


#: Types whose files do not contain their own length.
STREAMS = ("flv", "mpeg-ps", "mpeg-ts", "m2ts", "mpeg-es")
SELF_DESCRIBING = [*IMAGE_FORMATS, *(name for name in VIDEO_FORMATS if name not in STREAMS)]


@pytest.mark.parametrize("name", SELF_DESCRIBING)
def test_a_half_file_is_known_to_be_cut_short_and_a_whole_one_is_not(name):
    data = make_image(name) if name in IMAGE_FORMATS else make_video(name, 1)
    media_type = sniff(data)
    assert media_type is not None

    assert not is_cut_short(io.BytesIO(data), media_type)
    assert is_cut_short(io.BytesIO(cut_in_half(data)), media_type)
    if media_type not in {sniffing.PNG, sniffing.MXF}:  # their end may be truncated itself
        assert is_cut_short(io.BytesIO(data[:-1]), media_type)


@pytest.mark.parametrize("video_format", STREAMS)
def test_a_stream_is_never_called_cut_short(video_format):
    data = make_video(video_format, 1)

    assert not is_cut_short(io.BytesIO(cut_in_half(data)), sniff(data))


@pytest.mark.parametrize("length", range(14, 64, 7))
def test_a_file_that_ends_within_its_first_bytes_is_cut_short(length):
    data = make_video("mxf", 0.2)

    assert is_cut_short(io.BytesIO(data[:length]), sniffing.MXF)


def test_an_ogg_file_that_ends_between_two_pages_is_cut_short():
    data = make_video("ogv", 1)

    assert is_cut_short(io.BytesIO(data[: data.rfind(b"OggS")]), sniffing.OGV)
    assert is_cut_short(io.BytesIO(data[:20]), sniffing.OGV), "within the first page"


def box(name: bytes, size: int) -> bytes:
    return size.to_bytes(4, "big") + name + bytes(size - 8)


def test_boxes_of_a_film_may_be_long_open_or_followed_by_something_else():
    long = (1).to_bytes(4, "big") + b"mdat" + (24).to_bytes(8, "big") + bytes(8)
    open_ = bytes(4) + b"mdat" + bytes(5)
    for data in (ftyp(b"mp42") + long, ftyp(b"mp42") + open_, ftyp(b"mp42") + b"\xff" * 20):
        assert not is_cut_short(io.BytesIO(data), sniffing.MP4)
    assert is_cut_short(io.BytesIO((ftyp(b"mp42") + long)[:-1]), sniffing.MP4)


def test_empty_space_before_a_film_is_measured():
    data = box(b"free", 20) + box(b"skip", 9) + ftyp(b"mp42")

    assert sniff(data) is sniffing.MP4
    assert room_ahead(io.BytesIO(data)) == 29
    assert room_ahead(io.BytesIO(ftyp(b"mp42"))) == 0
    assert room_ahead(io.BytesIO(box(b"free", 8) + b"\0\0\0\x07free")) == 0, "no box is shorter"


def ebml(*elements: bytes) -> bytes:
    header = b"\x42\x82\x84webm"
    return b"\x1a\x45\xdf\xa3" + bytes([0x80 | len(header)]) + header + b"".join(elements)


@pytest.mark.parametrize(
    ("size", "is_cut"),
    [
        (b"\x84", False),
        (b"\x85", True),
        (b"\x40\x04", False),
        (b"\x40\x05", True),
        (b"\x20\x00\x05", True),
        (b"\x01\0\0\0\0\0\0\x05", True),
        (b"\xff", False),  # not known
        (b"\x01" + b"\xff" * 7, False),
    ],
)
def test_the_length_of_a_webm_may_be_written_in_many_ways(size, is_cut):
    data = ebml(b"\x18\x53\x80\x67" + size + bytes(4))

    assert sniff(data) is sniffing.WEBM
    assert is_cut_short(io.BytesIO(data), sniffing.WEBM) == is_cut


def test_the_preview_inside_a_photo_does_not_count_as_its_end():
    preview = make_image("jpeg", (32, 32))
    segment = b"\xff\xe1" + (len(preview) + 8).to_bytes(2, "big") + b"Exif\0\0" + preview
    photo = make_image("jpeg")
    photo = photo[:2] + segment + photo[2:]

    assert not is_cut_short(io.BytesIO(photo), sniffing.JPEG)
    assert is_cut_short(io.BytesIO(photo[:-100]), sniffing.JPEG)
