"""Dates that FFmpeg does not report, or not in every form: of AVI, ASF, MXF and camcorders.

This module finds and reads them. `batch_pipeline.media.video_metadata` decides which date counts.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from batch_pipeline.media.metadata import parse_date
from batch_pipeline.media.pictures import camera_name
from batch_pipeline.media.sniffing import AVI, MXF, WMV, MediaType, asf_properties

#: How much of a file is read for its header (bytes): the header of AVI has space for indices.
HEADER_BYTES = 64 * 1024
_DIGITIZED = b"IDIT"
#: Longer texts are not dates (bytes).
_MAX_TEXT_BYTES = 64
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
#: `Mon Mar 15 12:34:56 2021`, the date format of the C library.
_C_DATE = re.compile(r"\s*[a-z]{3} ([a-z]{3}) +(\d\d?) +(\d\d?:\d\d(?::\d\d)?) (\d{4})", re.I)
#: `2021/03/15/ 12:34`, the date format of some cameras.
_SLASH_AHEAD_OF_TIME = re.compile(r"(?<=\d)/(?= )")
#: Start of a Windows clock, which counts tenths of microseconds.
_CLOCK_START, _A_MICROSECOND = datetime(1601, 1, 1), 10
#: Keys of the packages of an MXF, up to the byte for the kind, and the kinds: material, source.
_MXF_PACKAGE, _MXF_PACKAGES = bytes.fromhex("060e2b34025301010d0101010101"), b"\x36\x37"
_MXF_KEY_BYTES = 16
_MXF_CREATION = 0x4405
#: AVCHD camcorders write this into the picture data; a count and entries of 5 bytes follow.
_CAMCORDER_NOTE = bytes.fromhex("17ee8c60f84d11d98cd60800200c9a66") + b"MDPM"
_NOTE_DATE, _NOTE_TIME = 0x18, 0x19
"""Entries: zone, century, year and month; day, hour, minute and second."""
_NOTE_MAKER, _NOTE_MODEL = 0xE0, (0xE4, 0xE5, 0xE6)
"""Entries: the number of a maker; the model of a Sony, as text."""
_MAKERS = {0x0103: "Panasonic", 0x0108: "Sony", 0x1011: "Canon", 0x1104: "JVC"}


def dates_in_header(head: bytes, media_type: MediaType) -> list[tuple[str, datetime]]:
    """Read the dates in the first bytes of a file, with their source.

    Args:
        head: the first `HEADER_BYTES` bytes.
        media_type: the result of `sniff`.
    """
    if media_type is AVI:
        place = head.find(_DIGITIZED)
        size = int.from_bytes(head[place + 4 : place + 8], "little") if place >= 0 else 0
        date = _date_of_avi(head[place + 8 : place + 8 + min(size, _MAX_TEXT_BYTES)])
        return [("IDIT", date)] if date else []
    if media_type is WMV:
        properties = asf_properties(head)
        ticks = int.from_bytes(properties[24:32], "little") if properties else 0
        try:
            date = _CLOCK_START + timedelta(microseconds=ticks // _A_MICROSECOND)
        except OverflowError:
            return []
        return [("ASF creation date (UTC)", date.replace(microsecond=0))]
    if media_type is MXF:
        dates = sorted(_dates_of_mxf(head))
        return [("MXF package creation date (UTC)", date) for date in dates[:1]]
    return []


@dataclass(frozen=True)
class CamcorderNote:
    """The data of an AVCHD camcorder about a frame."""

    date: datetime | None = None
    """On the camera's clock."""
    camera: str | None = None
    """Maker, and model if the data has one."""


def note_of_camcorder(packet: bytes) -> CamcorderNote:
    """Read the data about a frame that an AVCHD camcorder writes into the H.264 data.

    Args:
        packet: a frame as stored.
    """
    place = packet.find(_CAMCORDER_NOTE)
    if place < 0:
        return CamcorderNote()
    # H.264 writes a 3 after two zeros that would look like a start code.
    note = packet[place : place + 4096].replace(b"\0\0\3", b"\0\0")[len(_CAMCORDER_NOTE) :]
    entries = {
        note[at]: note[at + 1 : at + 5] for at in range(1, 1 + 5 * sum(note[:1]), 5) if note[at:]
    }
    return CamcorderNote(_date_of_note(entries), _camera_of_note(entries))


def _date_of_note(entries: Mapping[int, bytes]) -> datetime | None:
    date, time = entries.get(_NOTE_DATE, b""), entries.get(_NOTE_TIME, b"")
    digits = (date[1:] + time).hex()  # the hexadecimal digits are the decimal ones
    if len(digits) != 14:
        return None
    return parse_date(
        f"{digits[:4]}:{digits[4:6]}:{digits[6:8]} {digits[8:10]}:{digits[10:12]}:{digits[12:]}"
    )


def _camera_of_note(entries: Mapping[int, bytes]) -> str | None:
    maker = _MAKERS.get(int.from_bytes(entries.get(_NOTE_MAKER, b"")[:2], "big"))
    if maker is None:
        return None
    model = b"".join(entries.get(tag, b"") for tag in _NOTE_MODEL) if maker == "Sony" else b""
    return camera_name(maker, model.partition(b"\0")[0].decode("latin-1"))


def _dates_of_mxf(head: bytes) -> Iterator[datetime]:
    """Yield when the packages were made. A file that was copied into another has both dates."""
    place = head.find(_MXF_PACKAGE)
    while place >= 0:
        which = head[place + len(_MXF_PACKAGE) : place + len(_MXF_PACKAGE) + 1]
        at = place + _MXF_KEY_BYTES
        size = head[at] if at < len(head) else 0
        at += 1
        if size > 0x7F:  # the length itself has this many bytes
            length_bytes = size & 0x7F
            size, at = int.from_bytes(head[at : at + length_bytes], "big"), at + length_bytes
        end = min(at + size, len(head)) if which in _MXF_PACKAGES else at
        while at + 4 <= end:
            tag, size = struct.unpack_from(">HH", head, at)
            if tag == _MXF_CREATION and size == 8 and at + 12 <= end:
                year, *rest = struct.unpack_from(">HBBBBB", head, at + 4)
                date = parse_date("{:04}:{:02}:{:02} {:02}:{:02}:{:02}".format(year, *rest))
                if date:
                    yield date
            at += 4 + size
        place = head.find(_MXF_PACKAGE, place + 1)


def _date_of_avi(text: bytes) -> datetime | None:
    shown = _SLASH_AHEAD_OF_TIME.sub("", text.partition(b"\0")[0].decode("latin-1").strip())
    match = _C_DATE.match(shown)
    if match and match[1].lower() in _MONTHS:
        month = _MONTHS.index(match[1].lower()) + 1
        shown = f"{match[4]}:{month}:{match[2]} {match[3]}"
    return parse_date(shown)
