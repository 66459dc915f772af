"""The analyzer that needs nothing: no network, no weights, no key.

It says only what is measured (`media.measurements`) or written in the file (`MediaFacts`), so that
a fresh clone shows the whole pipeline at work and search finds pictures by colour, light, format
and date. What a picture shows, only a real vision model can tell. Text is embedded by hashing
(`text_hashing`); text in pictures is read when the extra ``ocr`` and Tesseract are installed.
"""

import importlib.util
import io
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from functools import cache

from PIL import Image

from batch_pipeline.errors import WorkCancelledError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.media.measurements import ColourShare, Measurements, measure, small_copy
from batch_pipeline.model_servers.base import (
    CancelledCheck,
    HealthCheck,
    Spent,
    never_cancelled,
    not_counted,
)
from batch_pipeline.model_servers.text_hashing import hash_text


class EmbeddedVision:
    """Describes a picture in full sentences, by what can be measured in it.

    The answer depends on the input alone: a second attempt says the same as the first.
    """

    name = "embedded-vision-1"

    def describe(
        self,
        facts: MediaFacts,
        frames: Sequence[Frame],
        *,
        attempt: int = 1,
        cancelled: CancelledCheck = never_cancelled,
        spent: Spent = not_counted,
    ) -> str:
        """Describe a picture or a video; see `VisionModel.describe`.

        Raises:
            WorkCancelledError: `cancelled` answered true.
        """
        copies = []
        for frame in frames:
            _stop_if(cancelled)
            copies.append(small_copy(frame.jpeg))
        _stop_if(cancelled)
        measured = measure(copies)
        sentences = [
            _first_look(facts, measured),
            _palette(measured.colours),
            _arrangement(measured),
            _light_and_detail(measured),
            _course(facts, measured, len(frames)),
            _origin(facts),
            f"It measures {facts.width} by {facts.height} pixels.",
            _writing(_read_text(frames[0], cancelled)),
        ]
        return " ".join(sentence for sentence in sentences if sentence)

    def check(self) -> list[HealthCheck]:
        """Nothing to reach, so nothing can be down."""
        text = "read by Tesseract" if _can_read_text() else "not read (optional: extra ocr)"
        return [HealthCheck("vision", True, f"{self.name}, built in; text in pictures is {text}")]

    def try_out(self) -> list[HealthCheck]:
        """Nothing that a check would not find."""
        return []


class EmbeddedEmbedding:
    """Embeds text by feature hashing: near in words and spelling is near in vectors."""

    name = "embedded-hashing-1"

    def __init__(self, dimensions: int = 1024) -> None:
        self.dimensions = dimensions

    def embed(
        self,
        texts: Sequence[str],
        *,
        cancelled: CancelledCheck = never_cancelled,
        spent: Spent = not_counted,
    ) -> list[list[float]]:
        """Embed each text; see `EmbeddingModel.embed`.

        Raises:
            WorkCancelledError: `cancelled` answered true.
        """
        vectors = []
        for text in texts:
            _stop_if(cancelled)
            vectors.append(hash_text(text, self.dimensions).tolist())
        return vectors

    def check(self) -> list[HealthCheck]:
        """Nothing to reach, so nothing can be down."""
        return [HealthCheck("embedding", True, f"{self.name}, built in, {self.dimensions} numbers")]

    def try_out(self) -> list[HealthCheck]:
        """Nothing that a check would not find."""
        return []


def _stop_if(cancelled: CancelledCheck) -> None:
    if cancelled():
        raise WorkCancelledError("the work on this upload is no longer wanted")


# Sentences --------------------------------------------------------------------------------------


def _word(value: float, steps: Sequence[tuple[float, str]], last: str) -> str:
    """Return the word of the first step whose upper bound `value` is below."""
    return next((word for bound, word in steps if value < bound), last)


def _first_look(facts: MediaFacts, measured: Measurements) -> str:
    light = _word(measured.brightness, ((24, "dark"), (42, "dim"), (58, "")), "bright")
    main, *others = measured.colours
    # One colour is enough where it covers most; else the second belongs to the first look too.
    second = [c for c in others[:1] if main.share < 0.6 and c.share >= 0.25]
    colours = " and ".join(colour.name for colour in (main, *second))
    adjectives = f"{light}, {colours}" if light else colours
    article = "An" if adjectives[0] in "aeiou" else "A"
    rest = "" if light else " of medium brightness"
    return f"{article} {adjectives} {_shape(facts)} {_kind(facts)}{rest}."


def _kind(facts: MediaFacts) -> str:
    if facts.file_type == "video":
        return "video"
    if facts.frame_count > 1:
        return "animation"
    # Only a camera makes a photo a photo; anything else may as well be a drawing.
    return "photo" if facts.camera or facts.captured_at else "picture"


def _shape(facts: MediaFacts) -> str:
    ratio = facts.width / max(1, facts.height)
    return _word(ratio, ((0.95, "portrait"), (1.05, "square"), (2.2, "landscape")), "panorama")


def _palette(colours: Sequence[ColourShare]) -> str:
    main, *others = colours
    # Under this share a colour is not what anybody would mention.
    told = [colour for colour in others if colour.share >= 0.04][:3]
    extent = _word(main.share, ((0.5, "chiefly"), (0.9, "mostly")), "almost entirely")
    phrase = f"It is {extent} {main.phrase}"
    return f"{phrase} with {_listing([_amount(c) for c in told])}." if told else f"{phrase}."


def _amount(colour: ColourShare) -> str:
    # The tone of little is hardly noticed, and one "dark" too many makes a picture seem dark.
    if colour.share < 0.25:
        return f"{'a little' if colour.share < 0.1 else 'some'} {colour.name}"
    return f"much {colour.phrase}"


def _listing(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _arrangement(measured: Measurements) -> str:
    upper, lower = measured.upper, measured.lower
    # A colour that covers less than this does not make the part.
    if upper.phrase == lower.phrase or min(upper.share, lower.share) < 0.4:
        return ""
    return f"The upper part is {upper.phrase}, the lower part {lower.phrase}."


def _light_and_detail(measured: Measurements) -> str:
    contrast = _word(measured.contrast, ((7, "very low"), (11, "low"), (22, "medium")), "high")
    colours = _word(
        measured.colourfulness,
        ((6, "hardly visible"), (25, "muted"), (60, "natural"), (90, "vivid")),
        "very vivid",
    )
    detail = _word(
        measured.sharpness,
        ((2, "smooth"), (25, "soft"), (150, "fairly detailed")),
        "rich in fine detail",
    )
    return f"Contrast is {contrast}, the colours are {colours} and the image is {detail}."


def _course(facts: MediaFacts, measured: Measurements, frames: int) -> str:
    if facts.file_type != "video":
        return f"It has {facts.frame_count} frames." if facts.frame_count > 1 else ""
    length = f"It lasts {_duration(facts.duration_seconds)}" if facts.duration_seconds else "It"
    if frames < 2:
        return f"{length} and was judged by a single frame."
    motion = _word(
        measured.motion,
        ((0.005, "hardly any motion"), (0.15, "motion in parts of the picture")),
        "much motion",
    )
    change = measured.brightness_change
    course = _word(change, ((-8, " and grows darker"), (8, "")), " and grows brighter")
    joint = ";" if facts.duration_seconds else ":"
    return f"{length}{joint} over {frames} frames it shows {motion}{course}."


def _duration(seconds: float) -> str:
    whole = max(1, round(seconds))
    if whole < 90:
        return f"{whole} second{'s' if whole > 1 else ''}"
    return f"{round(whole / 60)} minutes"


def _origin(facts: MediaFacts) -> str:
    parts = []
    camera = _plain(facts.camera or "", 40)
    if camera:
        parts.append(f"with a camera named {camera}")
    if facts.captured_at:
        when = facts.captured_at
        date = f"{when.day} {_MONTHS[when.month - 1]} {when.year:04}"
        parts.append(f"on {date} at {when:%H:%M} {_time_of_day(when.hour)}")
    return f"It was taken {' '.join(parts)}." if parts else ""


def _time_of_day(hour: int) -> str:
    return _word(
        hour,
        (
            (5, "at night"),
            (11, "in the morning"),
            (14, "around noon"),
            (18, "in the afternoon"),
            (22, "in the evening"),
        ),
        "at night",
    )


#: Not `strftime`, whose names depend on the locale of the process.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


def _plain(text: str, longest: int) -> str:
    """Keep what reads as text: a file's or a picture's words must not shape what shows them."""
    return " ".join(re.sub(r"[^\w\s.,:;!?'\u2019()/+&-]|_", " ", text).split())[:longest].strip()


def _writing(text: str) -> str:
    return f"Text can be read in it: “{text}”." if text else ""


# Text in pictures --------------------------------------------------------------------------------

#: Longest that Tesseract may take over one picture (seconds), and how often a cancellation is
#: looked for meanwhile.
_READING_LIMIT = 20
_CANCELLED_EVERY = 0.25


@cache
def _can_read_text() -> bool:
    return bool(importlib.util.find_spec("pytesseract") and shutil.which("tesseract"))


def _read_text(frame: Frame, cancelled: CancelledCheck) -> str:
    """Read the text in a picture; whatever prevents it leaves the description without."""
    if not _can_read_text():
        return ""
    readers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-text")
    reading = readers.submit(_tesseract, frame.jpeg)
    # Nobody waits for a reader that is cancelled: Tesseract's own limit ends it.
    readers.shutdown(wait=False)
    while True:
        _stop_if(cancelled)
        try:
            return reading.result(timeout=_CANCELLED_EVERY)
        except StillRunning:
            continue


def _tesseract(jpeg: bytes) -> str:
    import pytesseract  # noqa: PLC0415 - an optional extra

    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            text = str(pytesseract.image_to_string(picture, timeout=_READING_LIMIT))
    except (RuntimeError, OSError, pytesseract.TesseractError):
        return ""
    text = _plain(text, 120)
    # Clouds and grass are read as stray letters; three of a word's length make it text.
    return text if len(re.findall(r"[^\W\d_]{3,}", text)) >= 3 else ""
