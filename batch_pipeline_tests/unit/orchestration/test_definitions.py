"""What the code location does to the process that loads it."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_garbage_collection_does_not_visit_dagster_and_the_definitions_during_ticks() -> None:
    script = (
        "import gc\n"
        "import batch_pipeline.definitions\n"
        "visited = len(gc.get_objects())\n"
        "assert gc.get_freeze_count() > 10 * visited, (gc.get_freeze_count(), visited)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
