"""Search is not worse than the committed results of ``benchmarks/search_quality.py``."""

import importlib
import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("search_quality")]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
#: Tolerance: one question of forty, for changes by other versions of a library.
MARGIN = 0.03
MEASURES = ("recall_at_5", "mrr", "ndcg_at_10")


@pytest.fixture(scope="module")
def found(server_url):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("search_quality").figures(server_url)


@pytest.fixture(scope="module")
def committed():
    return json.loads((BENCHMARKS / "results" / "search_quality.json").read_text())


@pytest.mark.parametrize("kind", ["paraphrases", "other_languages", "everyday", "names"])
@pytest.mark.parametrize("way", ["sentences, words", "batch-pipeline search"])
def test_search_finds_as_well_as_the_committed_figures_say(found, committed, way, kind):
    now, then = found["ways"][way][kind], committed["ways"][way][kind]

    assert {name: now[name] >= then[name] - MARGIN for name in MEASURES} == dict.fromkeys(
        MEASURES, True
    ), (now, then)


@pytest.mark.parametrize("kind", ["paraphrases", "other_languages", "everyday", "names"])
def test_no_other_way_of_joining_words_and_meaning_finds_better(found, kind):
    ours = found["ways"]["batch-pipeline search"][kind]

    for way, measures in found["ways"].items():
        if way != "sentences":  # names are found by words, which this way does not use
            assert ours["mrr"] >= measures[kind]["mrr"], way


def test_wrong_results_are_marked_as_weak_more_often_than_right_ones(found, committed):
    weak = found["weak"]

    assert weak["none_marked"] >= committed["weak"]["none_marked"] - 0.1
    assert weak["right_marked"] <= committed["weak"]["right_marked"] + 0.05
