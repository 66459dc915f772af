"""The demo's files, described and searched as in the demo."""

from pathlib import Path

import numpy as np
import pytest

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.sniffing import HEAD_BYTES, sniff
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding, EmbeddedVision
from batch_pipeline.services.descriptions.audit import audit

# Their fixture takes several seconds.
pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[3] / "examples" / "media"


def describe(path: Path) -> str:
    with path.open("rb") as file:
        media_type = sniff(file.read(HEAD_BYTES))
        assert media_type is not None
        content = decode(file, media_type)
    return EmbeddedVision().describe(content.facts, content.frames).text


@pytest.fixture(scope="module")
def descriptions() -> dict[str, str]:
    paths = [p for p in sorted(FOLDER.iterdir()) if p.suffix not in {".py", ".md"} and p.is_file()]
    return {path.name: describe(path) for path in paths if path.name != "truncated.jpg"}


def test_every_file_has_a_description_of_its_own_that_passes_the_audit(
    descriptions: dict[str, str],
) -> None:
    assert len(descriptions) == 14
    assert len(set(descriptions.values())) == 14
    for name, text in descriptions.items():
        assert audit(text).score == 100, name
        assert 60 <= len(text) <= 600, name


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("sea.jpg", "mostly bright blue with some beige"),
        ("forest.webp", "almost entirely green"),
        ("brick_wall.jpg", "mostly red with some grey"),
        ("night.jpg", "A dark, blue landscape photo"),
        ("mountains.heic", "on 3 February 2023 at 09:15 in the morning"),
        ("sunset.jpg", "mostly bright orange"),
        ("sunflowers.avif", "the lower part bright yellow"),
        ("city.jpg", "mostly dark purple"),
        ("chequered_flag.png", "Contrast is high, the colours are hardly visible"),
        ("fog.webp", "almost entirely light grey"),
        ("blossom.jpg", "A bright, pink portrait photo"),
        ("lighthouse.gif", "turquoise square animation"),
        ("ball_on_meadow.mp4", "motion in parts of the picture."),
        ("day_to_night.webm", "much motion and grows darker"),
    ],
)
def test_the_description_of_a_demo_file_is_true(
    descriptions: dict[str, str], name: str, truth: str
) -> None:
    assert truth in descriptions[name]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("bright blue landscape", {"sea.jpg"}),
        ("bright blue sea", {"sea.jpg"}),
        ("dark night sky", {"night.jpg"}),
        ("green forest", {"forest.webp"}),
        ("orange sunset", {"sunset.jpg"}),
        ("red brick wall", {"brick_wall.jpg"}),
        ("yellow sunflower field", {"sunflowers.avif"}),
        ("purple city at dusk", {"city.jpg"}),
        ("light pink portrait photo", {"blossom.jpg"}),
        ("grey fog, low contrast", {"fog.webp"}),
        ("black and white flag", {"chequered_flag.png"}),
        ("square animation", {"lighthouse.gif"}),
        ("video with motion", {"ball_on_meadow.mp4", "day_to_night.webm"}),
        ("video that grows darker", {"day_to_night.webm"}),
        ("photo of a February morning", {"mountains.heic"}),
    ],
)
def test_a_natural_query_finds_the_right_file_first(
    descriptions: dict[str, str], query: str, names: set[str]
) -> None:
    embedding = EmbeddedEmbedding()
    vectors = np.array(embedding.embed(list(descriptions.values())))
    similarities = vectors @ np.array(embedding.embed([query])[0])

    assert list(descriptions)[int(similarities.argmax())] in names


def test_the_truncated_file_fails_and_says_so() -> None:
    with pytest.raises(PermanentError) as error:
        describe(FOLDER / "truncated.jpg")

    assert error.value.kind == "truncated"


def test_the_demo_media_stay_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 3_000_000
