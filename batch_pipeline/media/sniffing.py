"""Finds the true type of a file by its first bytes; its name and its declared type do not count.

This module has the accepted formats, and the reasons why others are refused. Decoding shows whether
the rest of a file matches its first bytes, see `batch_pipeline.media.decoding`.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from batch_pipeline.media.content import FileType
from batch_pipeline.media.tiff_block import TiffBlock

#: How many bytes of a file's start are enough for every decision below.
HEAD_BYTES = 4096


class SeekableFile(Protocol):
    """The methods of a file that are used here."""

    def read(self, size: int = -1, /) -> bytes: ...  # noqa: D102
    def seek(self, offset: int, whence: int = 0, /) -> int: ...  # noqa: D102
    def tell(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class MediaType:
    """One accepted kind of file."""

    format: str
    """Canonical name, e.g. ``jpeg``; all kinds of MPEG share one, and so do those of PSD."""
    file_type: FileType
    mime_type: str
    extension: str
    """Extension of the stored file, without a dot."""
    package: str | None = None
    """Module that decodes it, if an extra installs it."""

    @property
    def label(self) -> str:
        """Return the format's name for people: ``JPEG``, ``WebP``."""
        return _LABELS.get(self.format, self.format.upper())


_LABELS = {"webp": "WebP", "jpeg2000": "JPEG 2000", "jxl": "JPEG XL", "webm": "WebM", "raw": "raw"}

JPEG = MediaType("jpeg", "image", "image/jpeg", "jpg")
PNG = MediaType("png", "image", "image/png", "png")
WEBP = MediaType("webp", "image", "image/webp", "webp")
HEIC = MediaType("heic", "image", "image/heic", "heic")
HEIF = MediaType("heif", "image", "image/heif", "heif")
GIF = MediaType("gif", "image", "image/gif", "gif")
AVIF = MediaType("avif", "image", "image/avif", "avif")
TIFF = MediaType("tiff", "image", "image/tiff", "tif")
BMP = MediaType("bmp", "image", "image/bmp", "bmp")
JPEG_2000 = MediaType("jpeg2000", "image", "image/jp2", "jp2")
PSD = MediaType("psd", "image", "image/vnd.adobe.photoshop", "psd")
PSB = MediaType("psd", "image", "image/vnd.adobe.photoshop", "psb")
"""A large document."""
JPEG_XL = MediaType("jxl", "image", "image/jxl", "jxl", "pillow_jxl")
DNG = MediaType("dng", "image", "image/x-adobe-dng", "dng", "rawpy")
CR2 = MediaType("cr2", "image", "image/x-canon-cr2", "cr2", "rawpy")
CR3 = MediaType("cr3", "image", "image/x-canon-cr3", "cr3", "rawpy")
NEF = MediaType("nef", "image", "image/x-nikon-nef", "nef", "rawpy")
ARW = MediaType("arw", "image", "image/x-sony-arw", "arw", "rawpy")
RAF = MediaType("raf", "image", "image/x-fuji-raf", "raf", "rawpy")
RW2 = MediaType("rw2", "image", "image/x-panasonic-rw2", "rw2", "rawpy")
ORF = MediaType("orf", "image", "image/x-olympus-orf", "orf", "rawpy")
RAW = MediaType("raw", "image", "image/x-raw", "raw", "rawpy")
"""A raw file of a camera whose format has no entry of its own here."""
MP4 = MediaType("mp4", "video", "video/mp4", "mp4")
MOV = MediaType("mov", "video", "video/quicktime", "mov")
AVI = MediaType("avi", "video", "video/x-msvideo", "avi")
WEBM = MediaType("webm", "video", "video/webm", "webm")
MKV = MediaType("mkv", "video", "video/x-matroska", "mkv")
THREE_GP = MediaType("3gp", "video", "video/3gpp", "3gp")
WMV = MediaType("wmv", "video", "video/x-ms-wmv", "wmv")
OGV = MediaType("ogv", "video", "video/ogg", "ogv")
MXF = MediaType("mxf", "video", "application/mxf", "mxf")
FLV = MediaType("flv", "video", "video/x-flv", "flv")
MPEG_PROGRAM = MediaType("mpeg", "video", "video/mpeg", "mpg")
MPEG_TRANSPORT = MediaType("mpeg", "video", "video/mp2t", "ts")
MPEG_CAMCORDER = MediaType("mpeg", "video", "video/mp2t", "m2ts")
MPEG_ELEMENTARY = MediaType("mpeg", "video", "video/mpeg", "m2v")

ACCEPTED_TYPES = (
    JPEG, PNG, WEBP, HEIC, HEIF, GIF, AVIF, TIFF, BMP, JPEG_2000, PSD, PSB, JPEG_XL,
    DNG, CR2, CR3, NEF, ARW, RAF, RW2, ORF, RAW,
    MP4, MOV, THREE_GP, AVI, WEBM, MKV, WMV, OGV, MXF, FLV,
    MPEG_PROGRAM, MPEG_TRANSPORT, MPEG_CAMCORDER, MPEG_ELEMENTARY,
)  # fmt: skip


def _labels(file_type: FileType) -> str:
    labels = {
        media_type.label: None for media_type in ACCEPTED_TYPES if media_type.file_type == file_type
    }
    *others, last = labels
    return f"{', '.join(others)} and {last}"


ACCEPTED = f"accepted are {_labels('image')} images and {_labels('video')} videos"

_SIGNATURES: tuple[tuple[bytes, MediaType], ...] = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"8BPS\x00\x01", PSD),
    (b"8BPS\x00\x02", PSB),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", JPEG_2000),
    (b"\xff\x4f\xff\x51", JPEG_2000),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", JPEG_XL),
    (b"\xff\x0a", JPEG_XL),
    (b"FUJIFILMCCD-RAW", RAF),
    (b"IIU\x00", RW2),
    (b"IIRO", ORF),
    (b"IIRS", ORF),
    (b"MMOR", ORF),
    (b"FLV\x01", FLV),
    (b"\x00\x00\x01\xba", MPEG_PROGRAM),
    (b"\x00\x00\x01\xb3", MPEG_ELEMENTARY),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", MXF),
)

#: Brands of an `ftyp` box, by their start, because there are many `3g…` and `M4V…`. An unknown
#: brand is a camera's own form of MP4.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    **dict.fromkeys((b"isom", b"avc1", b"hvc1", b"dash", b"msdh", b"MSNV", b"XAVC", b"F4V "), MP4),
    **dict.fromkeys((b"iso%d" % number for number in range(2, 10)), MP4),
    **dict.fromkeys((b"mp41", b"mp42", b"mp71", b"mmp4", b"NDSC", b"NDSM", b"NDXC"), MP4),
    b"3g": THREE_GP,
    b"M4V": MP4,
    b"qt  ": MOV,
}
#: Brands for any HEIF: the compatible brands show which one it is.
_GENERAL_HEIF_BRANDS = {b"mif1", b"mif2", b"msf1"}
_AUDIO_BRANDS = {b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B ", b"aax ", b"aaxc"}
#: Brand of a file that is built like an MP4 but is not one, whatever its other brands are.
_CR3_BRAND = b"crx "
#: QuickTime files older than the `ftyp` box begin with one of these.
_QUICKTIME_BOXES = {b"moov", b"mdat", b"pnot"}
#: Boxes that are empty space; they may come before all others.
_EMPTY_BOXES = {b"free", b"skip", b"wide"}
#: A longer box is a text and not empty space (bytes).
_MAX_EMPTY_BOX = 16 * 1024**2

#: Lengths of the header of a BMP (bytes).
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
_SUBFILE_TYPE, _COMPRESSION, _MAKE, _DNG_VERSION = 254, 259, 271, 50706
#: Every raw file that begins with a preview has one of these entries: maker, model, directories
#: with further pictures, Leaf's own. A scan with a preview in front often has none.
_RAW_SIGNS = {_MAKE, 272, 330, *range(34306, 34311)}
#: Compressions of raw files by Samsung, Sony, Nikon and Pentax.
_RAW_COMPRESSIONS = {32767, 32769, 32770, 34713, 65535}
_RAW_MAKERS = {b"NIKON": NEF, b"SONY": ARW}

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
#: Identifier of a video stream in the header of an ASF file.
_ASF_VIDEO = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")
_ASF_AUDIO = bytes.fromhex("409e69f84d5bcf11a8fd00805f5c442b")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
#: First bytes of the streams of an Ogg file that are films: Theora, VP8, Dirac, OGM.
_OGG_VIDEO = (b"\x80theora", b"OVP80", b"BBCD\0", b"KW-DIRAC", b"\x01video\0")
#: Lengths of the packets of a transport stream: plain, with a camcorder's time, with a checksum.
_TRANSPORT_PACKETS = ((188, MPEG_TRANSPORT), (192, MPEG_CAMCORDER), (204, MPEG_TRANSPORT))

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
    (b"OggS", "an Ogg audio file"),
    (b"MThd", "a MIDI file"),
    (b"caff", "a CAF audio file"),
    (b"#!AMR", "an AMR audio file"),
    (_ASF, "a Windows Media audio file"),
    (b"\x00\x00\x01\x00", "a Windows icon"),
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


def read_head(source: SeekableFile) -> bytes:
    """Read the bytes of a file by which `sniff` decides.

    These are its first `HEAD_BYTES` bytes. If the directory of a TIFF is elsewhere, it replaces the
    bytes after the header: in some raw files, a preview comes before the directory.

    Args:
        source: at its start; its position afterwards is undefined.
    """
    head = source.read(HEAD_BYTES)
    tiff = TiffBlock.at(head)
    if tiff is None or tiff.first_directory <= HEAD_BYTES // 2:
        return head
    source.seek(min(tiff.first_directory, source.seek(0, io.SEEK_END)))
    return tiff.header_before(source.read(HEAD_BYTES))


def sniff(head: bytes) -> MediaType | None:  # noqa: PLR0911 - one line per case
    """Return a file's type by the result of `read_head`; None if it is not accepted."""
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature):
            return media_type
    if head[:2] in {b"II", b"MM"}:
        return _tiff_or_raw(head)
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return BMP
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"AVI ": AVI}.get(head[8:12])
    box = _first_box(head)
    if box is not None:
        return MOV if box in _QUICKTIME_BOXES else _by_brands(_brands(head))
    if head.startswith(_EBML):
        return {"webm": WEBM, "matroska": MKV}.get(_ebml_doctype(head))
    if head.startswith(b"OggS"):
        return OGV if _ogg_holds_video(head) else None
    if head.startswith(_ASF):
        return None if _asf_is_sound_alone(head) else WMV
    return _transport_stream(head)


def refusal_reason(head: bytes) -> str:
    """Describe a file that `sniff` does not accept: what it looks like, and what is accepted."""
    if not head:
        return f"the file is empty; {ACCEPTED}"
    return f"the content looks like {_unsupported_name(head)}; {ACCEPTED}"


def _tiff_or_raw(head: bytes) -> MediaType | None:
    """Distinguish TIFF and raw files: most raw files are a TIFF whose first picture is a preview.

    If the first bytes do not decide it, the file counts as raw, and `open_raw` decides.
    """
    tiff = TiffBlock.at(head)
    if tiff is None:
        return None
    if head[8:10] == b"CR":
        return CR2
    first = {entry.tag: entry for entry in tiff.directory(tiff.first_directory)}
    if _DNG_VERSION in first:
        return DNG

    def number(tag: int) -> int:
        return next(iter(tiff.numbers(first[tag])), 0) if tag in first else 0

    may_be_raw = number(_SUBFILE_TYPE) & 1 and not _RAW_SIGNS.isdisjoint(first)
    if not may_be_raw and number(_COMPRESSION) not in _RAW_COMPRESSIONS:
        return TIFF
    maker = tiff.bytes_of(first[_MAKE], 32).upper() if _MAKE in first else b""
    return next((raw for name, raw in _RAW_MAKERS.items() if maker.startswith(name)), RAW)


def _by_brands(brands: list[bytes]) -> MediaType | None:
    if _CR3_BRAND in brands:
        return CR3
    for brand in brands:  # the first brand that is known counts: the major one, if possible
        if brand in _GENERAL_HEIF_BRANDS:
            named = [_BRANDS.get(brand) for brand in brands]
            return next((media_type for media_type in (AVIF, HEIC) if media_type in named), HEIF)
        if brand in _AUDIO_BRANDS:
            return None
        for start, media_type in _BRANDS.items():
            if brand.startswith(start):
                return media_type
    return MP4


def _first_box(head: bytes) -> bytes | None:
    """Return the name of the first box of an ISO media or QuickTime file that is not empty space.

    Returns ``moov`` if that box is after the head, and None for other files.
    """
    start = _past_empty_boxes(head)
    name = head[start + 4 : start + 8]
    if name == b"ftyp" or name in _QUICKTIME_BOXES:
        return name
    return b"moov" if start > 0 and len(name) < 4 else None


def _past_empty_boxes(head: bytes) -> int:
    start = 0
    while head[start + 4 : start + 8] in _EMPTY_BOXES:
        size = int.from_bytes(head[start : start + 4], "big")
        if not 8 <= size <= _MAX_EMPTY_BOX:
            return 0
        start += size
    return start


def _brands(head: bytes) -> list[bytes]:
    start = _past_empty_boxes(head)
    size = int.from_bytes(head[start : start + 4], "big")
    box = head[start : start + size]
    # Bytes 12-16 are the minor version, between the major brand and the compatible ones.
    return [box[8:12], *(box[place : place + 4] for place in range(16, len(box) - 3, 4))]


def _ebml_doctype(head: bytes) -> str:
    match = _EBML_DOCTYPE.search(head, 4, 128)
    if match is None:
        return "matroska"  # the default of the standard
    length = match[1][0] & 0x7F  # a one-byte EBML size: the high bit is its marker
    return head[match.end() : match.end() + length].rstrip(b"\0").decode("ascii", "replace")


def _ogg_holds_video(head: bytes) -> bool:
    """Look at the first page of each stream; these pages come before all others."""
    page, is_first_of_stream = 0, 0x02
    while head[page : page + 4] == b"OggS" and head[page + 5 : page + 6] >= b"\x02":
        if not head[page + 5] & is_first_of_stream:
            break
        segments = head[page + 27 : page + 27 + head[page + 26]] if len(head) > page + 26 else b""
        body = page + 27 + len(segments)
        if head.startswith(_OGG_VIDEO, body):
            return True
        page = body + sum(segments)
    return False


def _asf_is_sound_alone(head: bytes) -> bool:
    header_size = int.from_bytes(head[16:24], "little")
    return header_size <= len(head) and _ASF_AUDIO in head and _ASF_VIDEO not in head


def _transport_stream(head: bytes) -> MediaType | None:
    """Check for the byte that begins each packet; a recording may begin in the middle of one."""
    for length, media_type in _TRANSPORT_PACKETS:
        for offset in range(length):
            starts = head[offset:HEAD_BYTES:length]
            at_a_packet = offset in {0, length - 188}
            if len(starts) >= (3 if at_a_packet else 8) and starts.count(b"G") == len(starts):
                return media_type if head.count(b"G") < len(head) // 2 else None
    return None


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
        return f"an EBML file (document type {doctype!r}; accepted are 'matroska' and 'webm')"
    if _first_box(head) == b"ftyp":
        return "an MPEG-4 audio file"
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
        if error.start < len(head) - 3:  # otherwise only the last character is cut
            return None
        text = head[: error.start].decode("utf-8")
    controls = sum(1 for character in text if character < " " and character not in "\t\r\n\f")
    return text if controls == 0 else None


def room_ahead(source: SeekableFile) -> int:
    """Return the length of the empty boxes at the start of an MP4 or QuickTime file (bytes)."""
    source.seek(0)
    return _past_empty_boxes(source.read(HEAD_BYTES))


def is_cut_short(source: SeekableFile, media_type: MediaType) -> bool:
    """Return whether a file is shorter than its own structure says.

    Used for files that did not decode to their end, to distinguish an upload that broke off from a
    corrupt file. MPEG and FLV do not contain their length, so they never count as cut short.

    Args:
        source: seekable; it is read from its start, and its position afterwards is undefined.
        media_type: the result of `sniff`.
    """
    length = source.seek(0, io.SEEK_END)
    source.seek(0)
    if media_type in _MARKED_END:
        return not _MARKED_END[media_type](source.read())
    if media_type is OGV:
        return not _ogg_is_ended(source, length)
    if media_type in (HEIC, HEIF, AVIF, CR3, MP4, MOV, THREE_GP):
        return _boxes_end(source, length) > length
    said = _SAID_END.get(media_type)
    return said is not None and said(source) > length


#: Longest page of an Ogg file (bytes).
_OGG_PAGE = 27 + 255 + 255 * 255

#: Maximum number of boxes of an ISO media file that are read: a day of a recording in fragments
#: of a second.
_MOST_BOXES = 200_000

#: Formats that mark their end and do not contain their length.
_MARKED_END: dict[MediaType, Callable[[bytes], bool]] = {
    # The preview inside EXIF has an end marker too, so only a marker after the last scan counts.
    JPEG: lambda data: data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda"),
    PNG: lambda data: b"IEND" in data,
    GIF: lambda data: data.rstrip(b"\0").endswith(b";"),
}


def _boxes_end(source: SeekableFile, length: int) -> int:
    """Return where the last box of an ISO media file should end, by its own size."""
    end = 0
    for _ in range(_MOST_BOXES):
        if end >= length:
            return end
        source.seek(end)
        header = source.read(16)
        name = header[4:8]
        if len(name) == 4 and not (name.isascii() and name.decode().isprintable()):
            return length  # other data follows the boxes
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # a 64-bit size follows the name
            size = int.from_bytes(header[8:16], "big")
        elif size == 0:  # "to the end of the file"
            return length
        end += max(size, 8)
    return length


def _riff_end(source: SeekableFile) -> int:
    return 8 + int.from_bytes(source.read(8)[4:], "little")


def _asf_end(source: SeekableFile) -> int:
    """Return the length of an ASF file by its own header; 0 if the header does not have it."""
    return int.from_bytes(asf_properties(source.read(HEAD_BYTES))[16:24], "little")


def asf_properties(head: bytes) -> bytes:
    """Return the properties in the header of an ASF file: identifier, length, date and more."""
    place = head.find(_ASF_FILE_PROPERTIES)
    return head[place + 24 :] if place >= 0 else b""


def _mxf_end(source: SeekableFile) -> int:
    """Return where the footer of an MXF file should begin, by its own header."""
    head = source.read(HEAD_BYTES)
    # After the key and its length: two versions, size of the grid, this and the last partition.
    first = int.from_bytes(head[16:17], "big")
    length_bytes = 1 + (first & 0x7F if first > 0x7F else 0)
    place = 16 + length_bytes + 2 + 2 + 4 + 8 + 8
    if len(head) < place + 8:
        return place + 8
    return int.from_bytes(head[place : place + 8], "big") + 1


def _ogg_is_ended(source: SeekableFile, length: int) -> bool:
    """Return whether the last page is complete and marked as the last of its stream."""
    source.seek(max(0, length - _OGG_PAGE))
    tail = source.read(_OGG_PAGE)
    page = tail.rfind(b"OggS")
    header = tail[page : page + 27]
    if page < 0 or len(header) < 27:
        return False
    segments = tail[page + 27 : page + 27 + header[26]]
    return bool(header[5] & 0x04) and len(tail) >= page + 27 + len(segments) + sum(segments)


def _ebml_end(source: SeekableFile) -> int:
    """Return where the segment of a WebM file should end, by its own size; 0 if it has no size."""
    source.seek(len(_EBML))
    source.seek(ebml_size(source) or 0, io.SEEK_CUR)
    if source.read(4) != b"\x18\x53\x80\x67":
        return 0
    size = ebml_size(source)
    return 0 if size is None else source.tell() + size


def ebml_size(source: SeekableFile) -> int | None:
    """Read a size of variable length of EBML; None for "unknown", which live recordings write."""
    first = source.read(1)
    if not first or first == b"\0":
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + source.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


#: Formats that contain their length at their start.
_SAID_END: dict[MediaType, Callable[[SeekableFile], int]] = {
    WEBP: _riff_end,
    AVI: _riff_end,
    WEBM: _ebml_end,
    MKV: _ebml_end,
    WMV: _asf_end,
    MXF: _mxf_end,
}
