"""What the metadata of a file says: when and with which camera it was taken, which side is up.

This module decides which of several statements counts. The modules of the formats find them in a
file; `batch_pipeline.media.exif` reads the block that most formats share.

A date is searched for in this order, and the first valid date counts:

1. EXIF ``DateTimeOriginal``: the moment of the shot.
2. XMP ``exif:DateTimeOriginal``, ``photoshop:DateCreated``.
3. IPTC ``DateCreated`` with ``TimeCreated``.
4. The text ``Creation Time`` of a PNG. Not ImageMagick's ``date:create``, the date of a copy.
5. EXIF ``DateTimeDigitized``, XMP ``xmp:CreateDate``, IPTC ``DigitalCreationDate`` with its time:
   of a photo, the moment of the shot; of a scan, the moment of the scan.
6. EXIF ``DateTime``: when the file was last changed, for example by an editor.
7. A sidecar: an XMP file beside this one, with the entries of 2 and ``xmp:CreateDate``.
8. The name of the file, in the forms that phones and messengers use.
9. ``tIME`` of a PNG: when its pixels were last changed, in UTC. Any program that writes the file
   again sets it to the current time.

A date is the camera's local time; a zone beside it is ignored. Years before the first photograph or
after the present, and zeros, are not dates: they mean that the clock was never set. People write
XMP and IPTC, and may know only the year or month of an old photo: its first day is the date.

A caption is searched for in XMP ``dc:description``, in IPTC, and in EXIF ``ImageDescription``,
where some cameras and programs write texts of their own. Names of a place are searched for in XMP
and in IPTC.
"""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate
from itertools import islice

from batch_pipeline.media.content import MediaFacts
from batch_pipeline.media.exif import Exif, Tag, read_exif
from batch_pipeline.media.iptc import Dataset, iptc_dates, iptc_of_photoshop, read_iptc
from batch_pipeline.media.pictures import camera_name

#: Year of the oldest photograph that still exists.
_FIRST_YEAR = 1826

#: `2021:05:06 07:08:09.123+02:00` and its variants with dots, dashes, slashes, `T`, without a time.
_DATE = re.compile(
    r"\s*(\d{4})[-:./ ](\d{1,2})[-:./ ](\d{1,2})"
    r"(?:[T ]+(\d{1,2})[-:.](\d{1,2})(?:[-:.](\d{1,2}))?)?(?![\d])"
)
#: A year, or a year and a month: `1965`, `1965-07`, `1965-00-00`, perhaps with a time of zeros.
_YEAR_OR_MONTH = re.compile(r"\s*(\d{4})(?:[-:](\d\d))?(?:[-:]00)?(?:[T ][\d:.+Z-]*)?\s*")
#: Eight digits in the name of a file, perhaps separated, perhaps with six more for the time; after
#: `at`, as Macs and WhatsApp write it, the hour may have one digit and be followed by AM or PM.
_NAMED_DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)([-_.]?)(\d\d)\2(\d\d)"
    r"(?:(?:[-_. T]| at )?(\d\d|(?<= at )\d)([-_.:]?)(\d\d)\6(\d\d)(?=\D|\d{3}(?!\d)|$)"
    r"(?:\s?([AP])M(?![A-Z]))?|(?!\d))",
    re.IGNORECASE,
)
#: `date_source` of a date from a file beside this one.
SIDECAR = "sidecar XMP"
_MADE, _CHANGED = "PNG Creation Time", "PNG tIME (UTC)"
#: Longer texts are not dates (characters).
_WORDS_LENGTH = 64
_XMP_SHOT, _XMP_DIGITIZED = ("exif:DateTimeOriginal", "photoshop:DateCreated"), "xmp:CreateDate"
_XMP_ENTRY = rb"""%s\s*(?:=\s*["']|>\s*)([^"'<]{1,200})"""
#: A text in several languages; the first one is the file's default. Tags are limited: a packet of
#: many tags that never end would be read again from each of them.
_XMP_CAPTION = re.compile(
    rb"<dc:description[^>]{0,500}>\s*<rdf:Alt[^>]{0,500}>\s*<rdf:li[^>]{0,500}>([^<]{1,4000})"
)
_PLACES = {
    "Iptc4xmpCore:Location": Dataset.SUBLOCATION,
    "photoshop:City": Dataset.CITY,
    "photoshop:State": Dataset.STATE,
    "photoshop:Country": Dataset.COUNTRY,
}
#: Texts that cameras and programs write in the place of a caption. The last line has the names that
#: phones give to scenes, such as `cof` or `oznor_soft`.
_NOT_OF_PEOPLE = re.compile(
    r"(?i:[\w .-]*digital camera|sony dsc|dcim\\.*|exif[_ ]jpeg[_ ]\w+|default|untitled|"
    r"jpeg picture|\W*)|"
    r"(?s:(?:ImageJ=|\{\"shape\"|<\?xml|<OME).*)|"
    r"(?:cof|dav|edf|fbt|hdr|mde|nor|oznor|ptr|rbt|rhdr|sdr|vivi)(?:_\w+)?"
)
#: More blocks of EXIF are not read: thousands of them would take minutes.
_MOST_EXIF_BLOCKS = 16
#: How much of an XMP packet is searched (bytes); the entries that we need are at its start.
XMP_BYTES = 1024**2

_APPLE_NOTE = b"Apple iOS\0"
_UUID = re.compile(rb"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}")


@dataclass(frozen=True)
class Metadata:
    """The statements that count."""

    captured_at: datetime | None = None
    date_source: str | None = None
    camera: str | None = None
    caption: str | None = None
    place: str | None = None
    """Names, from the place to its country; never a position."""
    orientation: int = 1
    """1 to 8, as EXIF numbers them."""
    live_photo: str | None = None
    """Identifier that an iPhone writes into the two files of a Live Photo."""


def read_metadata(
    exif_blocks: Iterable[bytes | memoryview],
    xmp: bytes | None,
    iptc: bytes | None = None,
    *,
    made: str | None = None,
    changed: str | None = None,
) -> Metadata:
    """Choose among the statements of a picture's metadata.

    Args:
        exif_blocks: in the order of the file; if they contradict each other, the first one counts.
        xmp: the XMP packet.
        iptc: the block of IPTC's older form.
        made: time of creation, from a text of the format itself.
        changed: time of the last change, from the format itself.
    """
    exif: Exif = {}
    for block in islice(exif_blocks, _MOST_EXIF_BLOCKS):
        exif = read_exif(block) | exif
    if xmp is None and isinstance(exif.get(Tag.XMP), bytes):
        xmp = _bytes(exif.get(Tag.XMP))
    xmp = (xmp or b"")[:XMP_BYTES]
    said = read_iptc(iptc or _iptc_of(exif))
    captured_at, source = _believed_date(exif, xmp, said, made, changed)
    orientation = exif.get(Tag.ORIENTATION)
    return Metadata(
        captured_at=captured_at,
        date_source=source,
        camera=camera_name(
            _text(_bytes(exif.get(Tag.MAKE))) or _xmp_entry(xmp, "tiff:Make"),
            _text(_bytes(exif.get(Tag.MODEL))) or _xmp_entry(xmp, "tiff:Model"),
        ),
        caption=_caption(exif, xmp, said),
        place=_place(xmp, said),
        orientation=orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1,
        live_photo=_live_photo(_bytes(exif.get(Tag.MAKER_NOTE))),
    )


def parse_date(text: str) -> datetime | None:
    """Read a date in the forms of cameras and editors; None if it is not one. Drops fractions."""
    match = _DATE.match(text)
    return _date(*match.groups()) if match else None


def _first_day(text: str) -> datetime | None:
    """Read a year, or a year and a month, as people write for old photos: its first day."""
    match = _YEAR_OR_MONTH.fullmatch(text)
    return _date(match[1], str(int(match[2] or 0) or 1), "1") if match else None


def _date_in_words(text: str) -> datetime | None:
    """Read a date in the form of mail and the C library: ``Thu, 6 May 2021 07:08:09 +0200``."""
    parts = parsedate(text[:_WORDS_LENGTH])
    return _date(*map(str, parts[:6])) if parts else None


def date_in_name(filename: str) -> datetime | None:
    """Find the date in a name such as ``IMG_20210506_070809.jpg``; midnight if there is no time."""
    for match in _NAMED_DATE.finditer(filename):
        year, _, month, day, hour, _, minute, second, half = match.groups()
        if half and 1 <= int(hour) <= 12:
            hour = str(int(hour) % 12 + (12 if half in "Pp" else 0))
        found = _date(year, month, day, hour, minute, second) or _date(year, month, day)
        if found:
            return found
    return None


def date_in_sidecar(xmp: bytes) -> datetime | None:
    """Find the date in an XMP file beside a photo or film."""
    said = (_xmp_entry(xmp, entry) for entry in (*_XMP_SHOT, _XMP_DIGITIZED))
    return next(filter(None, (parse_date(text) or _first_day(text) for text in said)), None)


def with_date_from_outside(
    facts: MediaFacts, sidecar_date: datetime | None, filename: str
) -> MediaFacts:
    """Take the date from a sidecar or from the file's name if there is none in the file.

    Both are preferred to the date of the last change.
    """
    said = ((SIDECAR, sidecar_date), ("file name", date_in_name(filename)))
    for source, date in said:
        is_undated = facts.captured_at is None or facts.date_source == _CHANGED
        if date is not None and is_undated:
            return replace(facts, captured_at=date, date_source=source)
    return facts


def _iptc_of(exif: Exif) -> bytes:
    """Return the IPTC block of a TIFF file."""
    return _bytes(exif.get(Tag.IPTC)) or iptc_of_photoshop(_bytes(exif.get(Tag.PHOTOSHOP)))


def _believed_date(
    exif: Exif,
    xmp: bytes,
    iptc: Mapping[Dataset, bytes],
    made: str | None,
    changed: str | None,
) -> tuple[datetime | None, str | None]:
    def of_exif(tag: Tag) -> str:
        return _text(_bytes(exif.get(tag)))

    of_iptc = iptc_dates(iptc)
    said = (
        ("EXIF DateTimeOriginal", of_exif(Tag.DATE_TIME_ORIGINAL)),
        *((f"XMP {entry}", _xmp_entry(xmp, entry)) for entry in _XMP_SHOT),
        ("IPTC DateCreated", of_iptc.shot),
        (_MADE, made or ""),
        ("EXIF DateTimeDigitized", of_exif(Tag.DATE_TIME_DIGITIZED)),
        (f"XMP {_XMP_DIGITIZED}", _xmp_entry(xmp, _XMP_DIGITIZED)),
        ("IPTC DigitalCreationDate", of_iptc.digitized),
        ("EXIF DateTime", of_exif(Tag.DATE_TIME)),
        (_CHANGED, changed or ""),
    )
    for source, text in said:
        found = parse_date(text)
        if found is None and source == _MADE:
            found = _date_in_words(text)
        if found is None and source.startswith(("XMP", "IPTC")):
            found = _first_day(text)
        if found is not None:
            return found, source
    return None, None


def _date(*parts: str | None) -> datetime | None:
    """Make a date from year, month, day, and hour, minute, second if they are given."""
    year, month, day, hour, minute, second = [int(part or 0) for part in parts] + [0] * (
        6 - len(parts)
    )
    if hour > 24 or second > 60:
        return None
    try:
        # Some cameras write an hour 24, and clocks sometimes have a second 60.
        found = datetime(year, month, day, hour % 24, minute, min(second, 59))
        found += timedelta(days=hour == 24)
    except (ValueError, OverflowError):
        return None
    return found if _FIRST_YEAR <= found.year <= datetime.now().year + 1 else None


def _xmp_entry(xmp: bytes, name: str) -> str:
    match = re.search(_XMP_ENTRY % re.escape(name.encode()), xmp)
    return _text(match[1]) if match else ""


def _caption(exif: Exif, xmp: bytes, iptc: Mapping[Dataset, bytes]) -> str | None:
    listed = _XMP_CAPTION.search(xmp)
    said = (
        html.unescape(_text(listed[1])) if listed else _xmp_entry(xmp, "dc:description"),
        _text(iptc.get(Dataset.CAPTION, b"")),
        _text(_bytes(exif.get(Tag.DESCRIPTION))),
    )
    found = (text.strip().strip("\0") for text in said)
    return next((text for text in found if text and not _NOT_OF_PEOPLE.fullmatch(text)), None)


def _place(xmp: bytes, iptc: Mapping[Dataset, bytes]) -> str | None:
    names = [
        html.unescape(_xmp_entry(xmp, entry)).strip() or _text(iptc.get(dataset, b"")).strip()
        for entry, dataset in _PLACES.items()
    ]
    return ", ".join(dict.fromkeys(filter(None, names))) or None


def _live_photo(note: bytes) -> str | None:
    found = _UUID.search(note) if note.startswith(_APPLE_NOTE) else None
    return found[0].decode("ascii") if found else None


def _bytes(value: bytes | int | None) -> bytes:
    return value if isinstance(value, bytes) else b""


def _text(value: bytes) -> str:
    """Decode UTF-8, perhaps cut within its last character, else Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        whole = value[: error.start]
        # Without another such character, it is a text of Latin-1 that ends in an accented letter.
        if error.reason == "unexpected end of data" and not whole.isascii():
            return whole.decode("utf-8")
        return value.decode("latin-1")
