"""The analyzer that needs no server: no network, no key, and models that come in packages.

The extra ``embedded`` adds three models. A classifier (`efficientnet`, `picture_categories`) names
common things in a picture if it is certain. A face counter (`face_counter`) tells whether people
are in it. A sentence encoder (`sentence_encoder`) embeds text by meaning. Without the extra,
descriptions contain only measurements (`media.measurements`) and metadata of the file
(`MediaFacts`), and text is embedded by its words (`text_hashing`). Only a real vision model can
describe scenes, what people do, and most things. Text in pictures is read if the extra ``ocr`` and
Tesseract are installed.
"""

import importlib.util
import io
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from batch_pipeline.errors import ServiceDownError, WorkCancelledError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.media.measurements import ColourShare, Measurements, measure, small_copy
from batch_pipeline.media.square_views import square_views
from batch_pipeline.model_servers import efficientnet, face_counter, sentence_encoder
from batch_pipeline.model_servers.base import (
    Caller,
    CancelledCheck,
    Description,
    HealthCheck,
    PausedCheck,
    Spent,
    never_paused,
    not_counted,
    require_unpaused,
)
from batch_pipeline.model_servers.picture_categories import Content, content_of
from batch_pipeline.model_servers.text_hashing import hash_text
from batch_pipeline.model_servers.text_prefixes import TextPrefixes
from batch_pipeline.wording import how_to_install

#: Weight of the words relative to the meaning: names can be found, and the meaning still decides
#: (``benchmarks/search_quality.py``).
WORDS_WEIGHT = 0.25
#: What to do about missing or changed parts.
_INSTALL = how_to_install("embedded")


def load_models(*, vision: bool, embedding: bool) -> None:
    """Load the installed models; processes that are forked later share their memory.

    Raises:
        ServiceDownError: the weights are not the expected ones, or cannot be loaded.
    """
    if vision and efficientnet.is_installed():
        efficientnet.load()
    if vision and face_counter.is_installed():
        face_counter.load()
    if embedding and sentence_encoder.is_installed():
        sentence_encoder.load()


class EmbeddedVision:
    """Describes a picture in full sentences: what it certainly shows, and what is measured.

    The answer depends only on the input: a second attempt returns the same text.
    """

    def __init__(self) -> None:
        self._classifies = efficientnet.is_installed()
        self._counts_faces = self._classifies and face_counter.is_installed()
        # The name says which models are installed, so that `reprocess` finds what others described.
        number = 4 if self._counts_faces else 3 if self._classifies else 1
        self.name = f"embedded-vision-{number}"

    def describe(
        self,
        facts: MediaFacts,
        frames: Sequence[Frame],
        *,
        attempt: int = 1,
        caller: Caller = Caller(),
    ) -> Description:
        """Describe a picture or a video; see `VisionModel.describe`.

        Raises:
            ServiceDownError: the weights of the classifier are not the expected ones.
            WorkCancelledError: the caller's work is no longer wanted.
            WorkPausedError: a person has paused it.
        """
        require_unpaused(caller.paused)
        copies = []
        for frame in frames:
            _stop_if(caller.cancelled)
            copies.append(small_copy(frame.jpeg))
        _stop_if(caller.cancelled)
        measured = measure(copies)
        readable = _read_text(frames[0], caller.cancelled)
        seen = _seen(frames, caller.cancelled) if self._classifies else None
        faces = _faces(frames, caller.cancelled) if self._counts_faces else 0
        sentences = [
            _content(seen),
            _people(faces, also=seen is not None),
            _first_look(facts, measured),
            _palette(measured.colours),
            _arrangement(measured),
            _light_and_detail(measured),
            _course(facts, measured, len(frames)),
            _origin(facts),
            f"It measures {facts.width} by {facts.height} pixels.",
            _writing(readable),
        ]
        text = " ".join(sentence for sentence in sentences if sentence)
        return Description(text, _tags(seen, faces), readable)

    def fingerprint(self) -> str:
        """Return what a description depends on: the models, and whether text is read."""
        return f"{self.name} ocr" if _can_read_text() else self.name

    def check(
        self, *, paused: PausedCheck = never_paused, patient: bool = True
    ) -> list[HealthCheck]:
        """Check that the weights are the expected ones; loads nothing."""
        del paused, patient
        text = "read by Tesseract" if _can_read_text() else "not read (optional: extra ocr)"
        found = f"{self.name}, built in; text in pictures is {text}"
        if not self._classifies:
            less = f"colours, light and dates only; to name animals, vehicles, food …: {_INSTALL}"
            return [HealthCheck("vision", True, f"{found}; {less}")]
        try:
            efficientnet.check_weights()
            if self._counts_faces:
                face_counter.check_library()
        except ServiceDownError as error:
            return [HealthCheck("vision", False, str(error), f"{_INSTALL} again", error.kind)]
        told = "names common things and people whose faces can be seen, not scenes"
        if not self._counts_faces:
            told = f"names common things, not people or scenes ({face_counter.why_not()})"
        return [HealthCheck("vision", True, f"{found}; {told}")]

    def try_out(self, caller: Caller = Caller()) -> list[HealthCheck]:
        """Return no checks: a call would find nothing that `check` does not find."""
        del caller
        return []


class EmbeddedEmbedding:
    """Embeds text: by meaning and by words, or by words alone.

    With the sentence encoder, the first 512 numbers are its vector. The remaining numbers are for
    the words, so that names of cameras and text in pictures can be found.
    """

    prefixes = TextPrefixes()

    def __init__(self, dimensions: int = 1024) -> None:
        self.dimensions = dimensions
        self._by_meaning = sentence_encoder.is_installed() and self._is_wide_enough
        self.name = "embedded-sentences-1" if self._by_meaning else "embedded-hashing-1"

    @property
    def _is_wide_enough(self) -> bool:
        return self.dimensions >= sentence_encoder.DIMENSIONS

    def embed(
        self,
        texts: Sequence[str],
        *,
        as_questions: bool = False,
        caller: Caller = Caller(),
    ) -> list[list[float]]:
        """Embed each text; see `EmbeddingModel.embed`.

        Raises:
            ServiceDownError: the sentence encoder cannot be loaded.
            WorkCancelledError: the caller's work is no longer wanted.
            WorkPausedError: a person has paused it.
        """
        del as_questions
        require_unpaused(caller.paused)
        vectors = []
        for text in texts:
            _stop_if(caller.cancelled)
            vectors.append(self._vector(text).tolist())
        return vectors

    def _vector(self, text: str) -> NDArray[np.float64]:
        if not self._by_meaning:
            return hash_text(text, self.dimensions)
        [meaning] = sentence_encoder.encode([text])
        words = self.dimensions - sentence_encoder.DIMENSIONS
        if not words:
            return np.asarray(meaning, np.float64)
        joined = np.concatenate([meaning, WORDS_WEIGHT * hash_text(text, words)])
        return np.asarray(joined / np.linalg.norm(joined), np.float64)

    def fingerprint(self) -> str:
        """Return what a vector depends on."""
        return f"{self.name} dimensions:{self.dimensions}"

    def check(
        self,
        *,
        spent: Spent = not_counted,
        paused: PausedCheck = never_paused,
        patient: bool = True,
    ) -> list[HealthCheck]:
        """Return a check that is ok: there is no server that could be down. Loads nothing."""
        del spent, paused, patient
        found = f"{self.name}, built in, {self.dimensions} numbers"
        if self._by_meaning:
            found += "; finds by meaning, in 16 languages"
        elif self._is_wide_enough:
            found += f"; finds by words alone; to find by meaning: {_INSTALL}"
        else:
            least = sentence_encoder.DIMENSIONS
            found += f"; finds by words alone; to find by meaning, {least} numbers are needed"
        return [HealthCheck("embedding", True, found)]

    def try_out(self, caller: Caller = Caller()) -> list[HealthCheck]:
        """Return no checks: a call would find nothing that `check` does not find."""
        del caller
        return []


def _stop_if(cancelled: CancelledCheck) -> None:
    if cancelled():
        raise WorkCancelledError("the work on this upload is no longer wanted")


def _seen(frames: Sequence[Frame], cancelled: CancelledCheck) -> Content | None:
    """Judge a picture, or the frames of a video together."""
    views = []
    for frame in frames:
        for view in square_views(frame.jpeg, efficientnet.VIEW_SIDE):
            _stop_if(cancelled)
            views.append(efficientnet.class_probabilities(view))
    return content_of(views)


def _faces(frames: Sequence[Frame], cancelled: CancelledCheck) -> int:
    """Count the faces of a picture, or how many at least two frames of a video show."""
    counts = []
    for frame in frames:
        _stop_if(cancelled)
        counts.append(face_counter.count_faces(frame.jpeg))
    return sorted(counts)[-2:][0]


def _tags(seen: Content | None, faces: int) -> tuple[str, ...]:
    return (*(seen.tags if seen else ()), *(("person", "people")[: min(faces, 2)]))


# Sentences --------------------------------------------------------------------------------------


def _word(value: float, steps: Sequence[tuple[float, str]], last: str) -> str:
    """Return the word of the first step whose upper bound is above `value`."""
    return next((word for bound, word in steps if value < bound), last)


def _content(seen: Content | None) -> str:
    if seen is None:
        return ""
    return f"It shows {seen.category}{f', most likely {seen.kind}' if seen.kind else ''}."


def _people(faces: int, *, also: bool) -> str:
    if not faces:
        return ""
    # There may be others whose faces cannot be seen.
    people = _word(
        faces,
        (
            (2, "at least one person"),
            (3, "at least two people"),
            (4, "at least three people"),
            (5, "at least four people"),
        ),
        "a group of people",
    )
    return f"It {'also ' if also else ''}shows {people}."


def _first_look(facts: MediaFacts, measured: Measurements) -> str:
    light = _word(measured.brightness, ((24, "dark"), (42, "dim"), (58, "")), "bright")
    main, *others = measured.colours
    # One colour is enough if it covers most of the picture; otherwise the second is named too.
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
    # Without metadata of a camera, the picture may be a drawing.
    return "photo" if facts.camera or facts.captured_at else "picture"


def _shape(facts: MediaFacts) -> str:
    ratio = facts.width / max(1, facts.height)
    return _word(ratio, ((0.95, "portrait"), (1.05, "square"), (2.2, "landscape")), "panorama")


def _palette(colours: Sequence[ColourShare]) -> str:
    main, *others = colours
    # Nobody would mention a colour with a smaller share.
    told = [colour for colour in others if colour.share >= 0.04][:3]
    extent = _word(main.share, ((0.5, "chiefly"), (0.9, "mostly")), "almost entirely")
    phrase = f"It is {extent} {main.phrase}"
    return f"{phrase} with {_listing([_amount(c) for c in told])}." if told else f"{phrase}."


def _amount(colour: ColourShare) -> str:
    # The tone of a small area is hardly noticed, and too many "dark" make a picture seem dark.
    if colour.share < 0.25:
        return f"{'a little' if colour.share < 0.1 else 'some'} {colour.name}"
    return f"much {colour.phrase}"


def _listing(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _arrangement(measured: Measurements) -> str:
    upper, lower = measured.upper, measured.lower
    # A colour that covers less than this does not characterise the part.
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
    """Keep only plain text: words from a file or a picture must not change how a page is shown."""
    return " ".join(re.sub(r"[^\w\s.,:;!?'\u2019()/+&-]|_", " ", text).split())[:longest].strip()


def _writing(text: str) -> str:
    return f"Text can be read in it: “{text}”." if text else ""


# Text in pictures --------------------------------------------------------------------------------

#: Tesseract's time limit for one picture, and the interval of checks for a cancellation (seconds).
_READING_LIMIT = 20
_CANCELLED_EVERY = 0.25


@cache
def _can_read_text() -> bool:
    return bool(importlib.util.find_spec("pytesseract") and shutil.which("tesseract"))


def _read_text(frame: Frame, cancelled: CancelledCheck) -> str:
    """Read the text in a picture; after any error the description contains no such text."""
    if not _can_read_text():
        return ""
    readers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-text")
    reading = readers.submit(_tesseract, frame.jpeg)
    # We do not wait for a cancelled reader: Tesseract's time limit ends it.
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
    # Tesseract reads clouds and grass as stray letters. Real text has three words of 3+ letters.
    return text if len(re.findall(r"[^\W\d_]{3,}", text)) >= 3 else ""
