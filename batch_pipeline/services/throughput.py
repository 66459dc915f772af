"""Uploads ended over time, as a small picture: bars, drawn as SVG by hand."""

import math
from collections.abc import Sequence
from datetime import datetime

_MAX_BARS = 40
#: Widths of a bar that people count in (seconds); beyond, whole days.
_WIDTHS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)
_DAY = 86_400
#: Pixels: the picture, and what is left free around the bars.
_SIZE, _LEFT, _TOP, _BOTTOM = (640, 200), 40, 28, 24


def throughput_svg(
    began: datetime, completed: Sequence[datetime], failed: Sequence[datetime]
) -> str:
    """Draw how many uploads ended when; completed ones and failed ones on top of each other.

    Args:
        began: when the first run took uploads.
        completed: when each upload that is completed ended.
        failed: the same of the failed ones.
    """
    seconds = max((moment - began).total_seconds() for moment in [began, *completed, *failed])
    width = _bar_seconds(seconds)
    bars = math.floor(max(seconds, 0) / width) + 1
    good, bad = ([0] * bars for _ in range(2))
    for counts, moments in ((good, completed), (bad, failed)):
        for moment in moments:
            counts[max(0, math.floor((moment - began).total_seconds() / width))] += 1
    highest = max(map(sum, zip(good, bad, strict=True)))
    return _draw(good, bad, highest, width)


def _draw(good: Sequence[int], bad: Sequence[int], highest: int, width: int) -> str:
    full_width, full_height = _SIZE
    floor, height = full_height - _BOTTOM, full_height - _BOTTOM - _TOP
    step = (full_width - _LEFT - 10) / len(good)
    unit = height / max(highest, 1)
    drawn = []
    for number, (completed, failed) in enumerate(zip(good, bad, strict=True)):
        left = _LEFT + number * step
        drawn += [
            _bar(left, floor - completed * unit, step, completed * unit, "#4c6ef5"),
            _bar(left, floor - (completed + failed) * unit, step, failed * unit, "#d8383a"),
        ]
    words = [
        _text(_LEFT, 16, "start", f"uploads ended per {_words(width)}"),
        _text(_LEFT - 6, _TOP + 8, "end", str(highest)),
        _text(_LEFT - 6, floor, "end", "0"),
        _text(_LEFT, full_height - 8, "start", "0 s"),
        _text(full_width - 10, full_height - 8, "end", _words(width * len(good))),
    ]
    if any(bad):
        words.append(_text(full_width - 10, 16, "end", "failed in red"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full_width}" height="{full_height}" '
        'font-family="sans-serif" font-size="12" fill="#333">'
        f'<rect width="{full_width}" height="{full_height}" fill="#fff"/>'
        f"{''.join(drawn)}"
        f'<path d="M{_LEFT} {floor}H{full_width - 10}" stroke="#999"/>{"".join(words)}</svg>'
    )


def _bar(left: float, top: float, step: float, height: float, colour: str) -> str:
    if not height:
        return ""
    width = min(step * 0.9, 60)
    return (
        f'<rect x="{left + (step - width) / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" fill="{colour}"/>'
    )


def _text(x: float, y: float, anchor: str, words: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


def _bar_seconds(seconds: float) -> int:
    fitting = (width for width in _WIDTHS if seconds < width * _MAX_BARS)
    return next(fitting, _DAY * math.ceil((seconds + 1) / (_DAY * _MAX_BARS)))


def _words(seconds: int) -> str:
    for unit, length in (("d", _DAY), ("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length} {unit}"
    if seconds > 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds} s" if seconds < 120 else f"{seconds / 60:.1f} min"
