"""Dates in the headers of AVI and ASF that FFmpeg does not tell, or not in every spelling.

Here: finding and reading them. How far they are trusted says `batch_pipeline.media.video_metadata`.
"""

import re
from datetime import datetime, timedelta

from batch_pipeline.media.metadata import parse_date
from batch_pipeline.media.sniffing import AVI, WMV, MediaType, asf_properties

#: How much of a file is read for its header: AVI leaves room for indices in it (bytes).
HEADER_BYTES = 64 * 1024
_DIGITIZED = b"IDIT"
#: Longer texts are no dates (bytes).
_MAX_TEXT_BYTES = 64
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
#: `Mon Mar 15 12:34:56 2021`, as the C library writes dates.
_C_DATE = re.compile(r"\s*[a-z]{3} ([a-z]{3}) +(\d\d?) +(\d\d?:\d\d(?::\d\d)?) (\d{4})", re.I)
#: `2021/03/15/ 12:34`, of some cameras.
_SLASH_AHEAD_OF_TIME = re.compile(r"(?<=\d)/(?= )")
#: Where a Windows clock begins; it counts tenths of microseconds.
_CLOCK_START, _A_MICROSECOND = datetime(1601, 1, 1), 10


def dates_in_header(head: bytes, media_type: MediaType) -> list[tuple[str, datetime]]:
    """Read the dates that a file says in its first bytes, with their source.

    Args:
        head: these, `HEADER_BYTES` of them.
        media_type: what the file was sniffed to be.
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
    return []


def _date_of_avi(text: bytes) -> datetime | None:
    shown = _SLASH_AHEAD_OF_TIME.sub("", text.partition(b"\0")[0].decode("latin-1").strip())
    match = _C_DATE.match(shown)
    if match and match[1].lower() in _MONTHS:
        month = _MONTHS.index(match[1].lower()) + 1
        shown = f"{match[4]}:{month}:{match[2]} {match[3]}"
    return parse_date(shown)
