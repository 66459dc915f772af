"""The plot of a batch's throughput."""

import random
import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest

from batch_pipeline.services.reports.throughput import throughput_svg

BEGAN = datetime(2030, 1, 1, 12, tzinfo=UTC)


def after(*seconds):
    return [BEGAN + timedelta(seconds=number) for number in seconds]


def words(svg):
    return [element.text for element in ET.fromstring(svg).iter() if element.text]


def heights(svg, colour):
    """Heights of the bars of a colour (pixels)."""
    found = re.search(f'stroke="{colour}" d="([^"]*)"', svg)
    lines = re.findall(r"M\d+ (\d+)V(\d+)", found.group(1)) if found else []
    return [int(bottom) - int(top) for bottom, top in lines]


def test_every_bar_is_as_high_as_uploads_ended_in_its_time():
    svg = throughput_svg(BEGAN, after(0.1, 0.2, 0.3, 0.4, 2.5), after(0.5, 0.6, 2.6))
    assert words(svg) == ["uploads ended per 1 s", "6", "0", "3 s", "failed in red"]
    completed, failed = heights(svg, "#46e"), heights(svg, "#d33")
    unit = (sum(completed) + sum(failed)) / 8
    assert completed == [pytest.approx(4 * unit, abs=1), pytest.approx(unit, abs=1)]
    assert failed == [pytest.approx(2 * unit, abs=1), pytest.approx(unit, abs=1)]


@pytest.mark.parametrize(
    ("seconds", "width", "whole"),
    [
        (0, "1 s", "1 s"),
        (59, "5 s", "1 min"),
        (3599, "5 min", "1 h"),
        (86_400, "2 h", "26 h"),
        (30 * 86_400, "3 d", "33 d"),
        (400 * 86_400, "27 d", "405 d"),
    ],
)
def test_bars_are_few_and_have_usual_widths(seconds, width, whole):
    found = words(throughput_svg(BEGAN, after(seconds), []))
    assert found == [f"uploads ended per {width}", "1", "0", whole]


def test_an_upload_that_ended_before_the_beginning_is_in_the_first_bar():
    """The batch was processed again, or two clocks differ."""
    assert len(heights(throughput_svg(BEGAN, after(-5, 0.5), []), "#46e")) == 1


def test_the_chart_of_the_largest_batch_is_small_enough_to_be_shown_without_a_click():
    chance = random.Random(1)
    moments = after(*(chance.uniform(0, 14_000) for _ in range(20_000)))
    svg = throughput_svg(BEGAN, moments[::2], moments[1::2])
    assert len(svg) <= 720, "longer Markdown is behind a click"
