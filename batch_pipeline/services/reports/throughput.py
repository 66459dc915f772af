"""Bar chart of the uploads that ended over time, as a small SVG.

The SVG is written with few bytes, because Dagster's UI shows Markdown only up to 1,000 characters
at once, and longer Markdown after a click. An SVG of 720 bytes stays below that when it is encoded.
"""

import math
from collections.abc import Sequence
from datetime import datetime

_MAX_BARS = 15
#: Usual periods for a bar (seconds); longer ones are whole days.
_WIDTHS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)
_DAY = 86_400
#: Size of the picture, and the margins around the bars (pixels).
_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = (640, 200), 40, 30, 28, 24


def throughput_svg(
    began: datetime, completed: Sequence[datetime], failed: Sequence[datetime]
) -> str:
    """Draw how many uploads ended over time; failed ones are stacked on completed ones.

    Args:
        began: when the first run took uploads.
        completed: the end of each completed upload.
        failed: the end of each failed upload.
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
    floor, right = full_height - _BOTTOM, full_width - _RIGHT
    step = (right - _LEFT) / len(good)
    unit = (floor - _TOP) / max(highest, 1)
    completed, failed = [], []
    for number, (below, above) in enumerate(zip(good, bad, strict=True)):
        x = round(_LEFT + (number + 0.5) * step)
        middle, top = (round(floor - count * unit) for count in (below, below + above))
        completed += [f"M{x} {floor}V{middle}"] if below else []
        failed += [f"M{x} {middle}V{top}"] if above else []
    bar = min(round(step * 0.9), 60)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full_width}" height="{full_height}" '
        'style="font:12px sans-serif">'
        f'<path fill="#fff" d="M0 0H{full_width}V{full_height}H0"/>'
        f'<path stroke="#999" d="M{_LEFT} {floor}H{right}"/>'
        f'<g stroke-width="{bar}">'
        f"{_lines('#46e', completed)}{_lines('#d33', failed)}</g>"
        f"{_text(_LEFT, 16, f'uploads ended per {_words(width)}')}"
        f"{_text(0, _TOP + 8, str(highest))}"
        f"{_text(_LEFT, full_height - 8, '0')}"
        f"{_text(right - 20, full_height - 8, _words(width * len(good)))}"
        f"{_text(right - 60, 16, 'failed in red') if failed else ''}</svg>"
    )


def _lines(colour: str, lines: Sequence[str]) -> str:
    return f'<path stroke="{colour}" d="{"".join(lines)}"/>' if lines else ""


def _text(x: int, y: int, words: str) -> str:
    return f'<text x="{x}" y="{y}">{words}</text>'


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
