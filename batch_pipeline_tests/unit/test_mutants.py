"""`scripts/mutants.py` quotes code: each quoted text exists exactly once, and its tests exist."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTANTS = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))["MUTANTS"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_changes_is_there_once_and_so_are_its_tests(mutant):
    assert (ROOT / "batch_pipeline" / mutant.file).read_text().count(mutant.text) == 1
    for test in mutant.tests.split():
        file, _, name = test.partition("::")
        source = (ROOT / "batch_pipeline_tests" / file).read_text()
        assert re.search(rf"^def {name}\(", source, re.MULTILINE) if name else source
