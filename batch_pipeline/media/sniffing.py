"""What a file truly is, judged by its first bytes; neither its name nor what a sender says counts.

Here: the formats that are accepted and the reason given for those that are not. Whether the rest of
a file keeps what its first bytes promise shows in decoding, see `batch_pipeline.media.decoding`.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from batch_pipeline.media.content import FileType

#: Bytes of a file's start that every judgement below can be made from.
HEAD_BYTES = 4096


@dataclass(frozen=True)
class MediaType:
    """One accepted kind of file."""

    format: str
    """Canonical name, e.g. ``jpeg``; the three shapes of MPEG share one."""
    file_type: FileType
    mime_type: str
    extension: str
    """For the stored file, without a dot."""


JPEG = MediaType("jpeg", "image", "image/jpeg", "jpg")
PNG = MediaType("png", "image", "image/png", "png")
WEBP = MediaType("webp", "image", "image/webp", "webp")
HEIC = MediaType("heic", "image", "image/heic", "heic")
HEIF = MediaType("heif", "image", "image/heif", "heif")
GIF = MediaType("gif", "image", "image/gif", "gif")
AVIF = MediaType("avif", "image", "image/avif", "avif")
MP4 = MediaType("mp4", "video", "video/mp4", "mp4")
MOV = MediaType("mov", "video", "video/quicktime", "mov")
AVI = MediaType("avi", "video", "video/x-msvideo", "avi")
WEBM = MediaType("webm", "video", "video/webm", "webm")
FLV = MediaType("flv", "video", "video/x-flv", "flv")
MPEG_PROGRAM = MediaType("mpeg", "video", "video/mpeg", "mpg")
MPEG_TRANSPORT = MediaType("mpeg", "video", "video/mp2t", "ts")
MPEG_ELEMENTARY = MediaType("mpeg", "video", "video/mpeg", "m2v")

ACCEPTED_TYPES = (
    JPEG, PNG, WEBP, HEIC, HEIF, GIF, AVIF,
    MP4, MOV, AVI, WEBM, MPEG_PROGRAM, MPEG_TRANSPORT, MPEG_ELEMENTARY, FLV,
)  # fmt: skip

ACCEPTED = (
    "accepted are JPEG, PNG, WebP, HEIC, HEIF, GIF and AVIF images "
    "and MP4, MOV, AVI, WebM, MPEG and FLV videos"
)

_SIGNATURES: tuple[tuple[bytes, MediaType], ...] = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"FLV\x01", FLV),
    (b"\x00\x00\x01\xba", MPEG_PROGRAM),
    (b"\x00\x00\x01\xb3", MPEG_ELEMENTARY),
)

#: What an `ftyp` box names. `3g…` and `M4V…` come in many numbers and are matched by their start.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    **dict.fromkeys((b"isom", b"avc1", b"hvc1", b"dash", b"msdh", b"MSNV", b"XAVC", b"F4V "), MP4),
    **dict.fromkeys((b"iso%d" % number for number in range(2, 10)), MP4),
    **dict.fromkeys((b"mp41", b"mp42", b"mp71", b"mmp4", b"NDSC", b"NDSM", b"NDXC"), MP4),
    b"qt  ": MOV,
}
_MP4_BRAND_STARTS = (b"3g", b"M4V")
#: "Some HEIF": which one is for the compatible brands to tell.
_GENERAL_HEIF_BRANDS = {b"mif1", b"mif2", b"msf1"}
_AUDIO_BRANDS = {b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B "}
#: QuickTime files older than the `ftyp` box begin with one of these.
_QUICKTIME_BOXES = {b"moov", b"mdat", b"wide", b"pnot"}

_UNSUPPORTED_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"%!PS", "a PostScript or EPS file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"ffconcat", "an ffconcat script, which makes a player open other files"),
    (b"#EXTM3U", "an HLS or M3U playlist, which makes a player open other files"),
    (b"[playlist]", "a playlist, which makes a player open other files"),
    (b"ID3", "an MP3 audio file"),
    (b"fLaC", "a FLAC audio file"),
    (b"OggS", "an Ogg file"),
    (b"MThd", "a MIDI file"),
    (b"caff", "a CAF audio file"),
    (b"#!AMR", "an AMR audio file"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
    (b"II*\x00", "a TIFF image or a camera's raw file"),
    (b"MM\x00*", "a TIFF image or a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x01\x00", "a Windows icon"),
    (b"BM", "a BMP image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a script"),
)
#: Texts that may begin with other things: a comment, a declaration.
_TEXT_MARKS = (
    ("<svg", "an SVG drawing"),
    ("<mpd", "a DASH playlist, which makes a player open other files"),
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
)
#: Texts by their start without white space.
_TEXT_STARTS = (
    ("<?xml", "an XML document"),
    ("<script", "an HTML page"),
    ("ffconcat", "an ffconcat script, which makes a player open other files"),
    ("#ext", "an HLS or M3U playlist, which makes a player open other files"),
)
_EBML = b"\x1a\x45\xdf\xa3"
_EBML_DOCTYPE = re.compile(rb"\x42\x82([\x81-\xff])")


def sniff(head: bytes) -> MediaType | None:
    """Tell what a file is by its first `HEAD_BYTES` bytes; None for what is not accepted."""
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature):
            return media_type
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"AVI ": AVI}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _by_brands(_brands(head))
    if head[4:8] in _QUICKTIME_BOXES:
        return MOV
    if head.startswith(_EBML) and _ebml_doctype(head) == "webm":
        return WEBM
    return MPEG_TRANSPORT if _is_transport_stream(head) else None


def refusal_reason(head: bytes) -> str:
    """Say, for a file that `sniff` does not accept, what it looks like and what is accepted."""
    if not head:
        return f"the file is empty; {ACCEPTED}"
    return f"the content looks like {_unsupported_name(head)}; {ACCEPTED}"


def _by_brands(brands: list[bytes]) -> MediaType | None:
    if brands[0] in _GENERAL_HEIF_BRANDS:
        named = [_BRANDS.get(brand) for brand in brands]
        return next((media_type for media_type in (AVIF, HEIC) if media_type in named), HEIF)
    for brand in brands:  # the first that says something: the major one, if it can
        if brand in _AUDIO_BRANDS:
            return None
        if brand.startswith(_MP4_BRAND_STARTS):
            return MP4
        if brand in _BRANDS:
            return _BRANDS[brand]
    return None


def _brands(head: bytes) -> list[bytes]:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    # Bytes 12-16 are the minor version, between the major brand and the compatible ones.
    return [head[8:12], *(head[start : start + 4] for start in range(16, end - 3, 4))]


def _ebml_doctype(head: bytes) -> str:
    match = _EBML_DOCTYPE.search(head, 4, 128)
    if match is None:
        return ""
    length = match[1][0] & 0x7F  # a one-byte EBML size: the high bit is its marker
    return head[match.end() : match.end() + length].rstrip(b"\0").decode("ascii", "replace")


def _is_transport_stream(head: bytes) -> bool:
    # Packets of 188 bytes begin with 0x47; camcorders put a time of 4 bytes before each.
    for offset, packet in ((0, 188), (4, 192)):
        starts = head[offset:HEAD_BYTES:packet]
        if len(starts) >= 3 and set(starts) == {0x47}:
            return True
    return False


def _unsupported_name(head: bytes) -> str:  # noqa: PLR0911 - one line per case
    for signature, name in _UNSUPPORTED_SIGNATURES:
        if head.startswith(signature):
            return name
    if b"%PDF-" in head[:1024]:  # readers accept a PDF that begins later than at its first byte
        return "a PDF document"
    if head[:4] == b"RIFF":
        return "a WAV audio file" if head[8:12] == b"WAVE" else "an unknown RIFF file"
    if head[:4] == b"FORM":
        return "an AIFF audio file"
    if head.startswith(_EBML):
        doctype = _ebml_doctype(head)
        return f"a Matroska file (document type {doctype!r}; of these only 'webm' is accepted)"
    if head[4:8] == b"ftyp":
        if _AUDIO_BRANDS.intersection(_brands(head)):
            return "an MPEG-4 audio file"
        return f"an MPEG-4 file of a brand that is not known ({head[8:12].decode('latin-1')!r})"
    text = _as_text(head)
    if text is not None:
        return _text_name(text)
    if head[0] == 0xFF and head[1:2] >= b"\xe0":  # the eleven set bits of an audio frame
        return "an MP3 or AAC audio file"
    return "unknown binary data"


def _text_name(text: str) -> str:
    start = text.lstrip("\ufeff \t\r\n").lower()
    for mark, name in _TEXT_MARKS:
        if mark in start:
            return name
    for mark, name in _TEXT_STARTS:
        if start.startswith(mark):
            return name
    return "a text file"


def _as_text(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head[: len(head) // 2 * 2].decode("utf-16", "replace")
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else only the last character was cut
            return None
        text = head[: error.start].decode("utf-8")
    controls = sum(1 for character in text if character < " " and character not in "\t\r\n\f")
    return text if controls == 0 else None


def is_cut_short(source: BinaryIO, media_type: MediaType) -> bool:
    """Tell whether a file ends before its own structure says that it does.

    Meant for files that did not decode, to tell an upload that broke off from a corrupt file. MPEG
    and FLV do not say how long they are: never cut short.

    Args:
        source: seekable; read from its start, its position afterwards is not defined.
        media_type: what `sniff` said.
    """
    length = source.seek(0, io.SEEK_END)
    source.seek(0)
    if media_type in _MARKED_END:
        return not _MARKED_END[media_type](source.read())
    if media_type in (WEBP, AVI):
        return 8 + int.from_bytes(source.read(8)[4:], "little") > length
    if media_type is WEBM:
        return _ebml_end(source) > length
    if media_type in (HEIC, HEIF, AVIF, MP4, MOV):
        return _boxes_end(source, length) > length
    return False


#: Formats that mark their end instead of saying how long they are.
_MARKED_END: dict[MediaType, Callable[[bytes], bool]] = {
    # The preview inside EXIF has an end marker too: only one behind the last scan counts.
    JPEG: lambda data: data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda"),
    PNG: lambda data: b"IEND" in data,
    GIF: lambda data: data.rstrip(b"\0").endswith(b";"),
}


def _boxes_end(source: BinaryIO, length: int) -> int:
    """Where the last of the boxes of an ISO media file ends by its own account."""
    end = 0
    while end < length:
        source.seek(end)
        header = source.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # a 64-bit size follows the name
            size = int.from_bytes(header[8:16], "big")
        elif size == 0:  # "to the end of the file"
            return length
        end += max(size, 8)
    return end


def _ebml_end(source: BinaryIO) -> int:
    """Where the segment of a WebM file ends by its own account; 0 when it does not say."""
    source.seek(len(_EBML))
    source.seek(_ebml_size(source) or 0, io.SEEK_CUR)
    if source.read(4) != b"\x18\x53\x80\x67":
        return 0
    size = _ebml_size(source)
    return 0 if size is None else source.tell() + size


def _ebml_size(source: BinaryIO) -> int | None:
    """Read a size of variable length; None for "not known", which live recordings write."""
    first = source.read(1)
    if not first or first == b"\0":
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + source.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
