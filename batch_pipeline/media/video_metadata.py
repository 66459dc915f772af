"""Date and camera of a film, from the entries of its container.

This module decides which entries are read and which count first. No other entry is read, because
some contain positions.

A date is searched for in this order, and the first valid date counts:

1. ``com.apple.quicktime.creationdate``: the time on the phone's clock at the place of the film. The
   zone beside it is ignored.
2. ``DATE_RECORDED``, ``DateTimeOriginal`` and ``date``, which cameras and recorders write, if they
   have a time of day. Without one, they may be the date of publication.
3. ``IDIT`` of AVI and the data of an AVCHD camcorder in the first frames of an MPEG-TS, which are
   the camera's clock; the creation dates of ASF and of an MXF's oldest package, which are UTC.
4. ``creation_time`` of the container, then of the stream. By the standard it is UTC, and the name
   of the source says so. The time at the place of the film may differ in the hour, and around
   midnight in the day. Without a zone (AVI) it is the camera's clock.
5. ``date`` of AVI, its ``ICRD``, with only a day: cameras write it in this form.

The start of a clock that was never set (1601, 1904, 1970) is not a date.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from batch_pipeline.media.metadata import parse_date
from batch_pipeline.media.pictures import camera_name

_RECORDING_DATES = (
    "com.apple.quicktime.creationdate", "date_recorded", "datetimeoriginal", "date",
)  # fmt: skip
_CREATION_TIME = "creation_time"
#: A date with the time of the day; then, perhaps, a zone.
_TIME_OF_DAY = re.compile(
    r"\s*\d{4}\D\d\d?\D\d\d?[T ]+\d\d?:\d\d(:\d\d)?([.,]\d+)?\s*(?P<zone>Z|[+-]\d)?"
)
#: A zone moves the start of a clock by less than a day.
_CLOCK_STARTS = (datetime(1601, 1, 1), datetime(1904, 1, 1), datetime(1970, 1, 1))
_A_DAY = timedelta(days=1)

#: Entries in which cameras write maker and model.
_CAMERA_ENTRIES = (
    ("com.apple.quicktime.make", "com.apple.quicktime.model"),
    ("com.android.manufacturer", "com.android.model"),
    ("make", "model"),
)

Entries = Mapping[str, str]


def captured_at(
    entries: Sequence[Entries],
    header: Sequence[tuple[str, datetime]] = (),
    *,
    a_day_will_do: bool = False,
) -> tuple[datetime | None, str | None]:
    """Return when a film was taken, and the entry with the date; None for both if there is none.

    Args:
        entries: those of the container, then those of the stream.
        header: the dates of `video_headers.dates_in_header`.
        a_day_will_do: whether ``date`` counts without a time of day, if there is no other date.
    """
    for source, date in _dates(entries, header, a_day_will_do):
        if not _is_start_of_clock(date):
            return date, source
    return None, None


def camera(entries: Sequence[Entries]) -> str | None:
    """Return maker and model; None if there are none."""
    for container in map(_lowered, entries):
        for make, model in _CAMERA_ENTRIES:
            name = camera_name(container.get(make), container.get(model))
            if name:
                return name
    return None


def _dates(
    entries: Sequence[Entries], header: Sequence[tuple[str, datetime]], a_day_will_do: bool
) -> Iterator[tuple[str, datetime]]:
    lowered = [_lowered(each) for each in entries]
    said = [
        (name, each[name])
        for name in (*_RECORDING_DATES, _CREATION_TIME)
        for each in lowered
        if name in each
    ]
    timed = [(name, text, match) for name, text in said if (match := _TIME_OF_DAY.match(text))]
    for name, text, _ in timed:
        if name != _CREATION_TIME and (date := parse_date(text)):
            yield name, date
    yield from header
    for name, text, match in timed:
        if name == _CREATION_TIME and (date := parse_date(text)):
            yield f"{name} (UTC)" if match["zone"] else name, date
    for name, text in said:
        if a_day_will_do and name == "date" and (date := parse_date(text)):
            yield name, date


def _is_start_of_clock(date: datetime) -> bool:
    return any(abs(date - start) <= _A_DAY for start in _CLOCK_STARTS)


def _lowered(entries: Entries) -> dict[str, str]:
    """Return the entries with lower-case names: Matroska writes them in capitals."""
    return {name.lower(): text for name, text in entries.items()}
