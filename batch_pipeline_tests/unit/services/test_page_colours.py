"""Every text of the HTML pages has enough contrast to be read (WCAG 2, level AA)."""

import importlib.resources
import re

import pytest

STYLE = (
    importlib.resources.files("batch_pipeline.services.reports") / "report_page.css"
).read_text()
LIGHT, DARK = (
    dict(re.findall(r"--(\w+): (#\w+);", block))
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
)
#: All colours that the style gives to text.
TEXTS = sorted(set(re.findall(r"[;{ ]color: var\(--(\w+)\)", STYLE)))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_each_of_its_backgrounds(colours: dict[str, str]) -> None:
    stands_on = [(text, ground) for text in TEXTS for ground in ("page", "panel")]
    stands_on.append(("soft", "empty"))  # *no thumbnail*
    weak = {
        f"{text} on {ground}": round(contrast(colours[text], colours[ground]), 2)
        for text, ground in stands_on
        if contrast(colours[text], colours[ground]) < 4.5
    }
    assert not weak


def test_the_colours_of_text_are_found() -> None:
    assert TEXTS == ["bad", "bar", "good", "ink", "soft", "wait"]
    assert contrast("#fff", "#000000") == pytest.approx(21)
