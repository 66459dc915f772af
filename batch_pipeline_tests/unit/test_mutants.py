"""`scripts/mutants.py` quotes code: each quoted text exists exactly once, and its tests exist."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTANTS = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))["MUTANTS"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_and_the_tests_of_each_mutant_exist_once(mutant):
    assert (ROOT / "batch_pipeline" / mutant.file).read_text().count(mutant.text) == 1
    for test in mutant.tests.split():
        file, _, name = test.partition("::")
        source = (ROOT / "batch_pipeline_tests" / file).read_text()
        assert re.search(rf"^def {name}\(", source, re.MULTILINE) if name else source
