"""The benchmark scripts run, with tiny sizes and only our own pipeline."""

import json
import math
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest

from batch_pipeline.demo import sample_media
from batch_pipeline.settings import ENVIRONMENT_PREFIX

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py"))
TINY = {
    "orchestration": [
        "--only",
        "pipeline",
        "loop",
        "--sizes",
        "4",
        "--loads",
        "1",
        "--ideal-seconds",
        "2",
        "--rounds",
        "1",
    ],
    "stack": [
        *("--sizes", "4", "--photos", "1", "--idle", "1", "--repetitions", "1", "--first", "1"),
    ],
}


def start(script, arguments, folder):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((ENVIRONMENT_PREFIX, "DAGSTER_"))
    }
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments]
    return subprocess.Popen(
        [*command, "--results", str(folder)],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.timeout(600)
def test_the_benchmarks_of_orchestration_and_of_the_stack_give_finite_figures(tmp_path):
    running = {script: start(script, arguments, tmp_path) for script, arguments in TINY.items()}
    for script, process in running.items():
        _, errors = process.communicate()
        assert process.returncode == 0, f"{script}: {errors[-3000:]}"

    results = ("race", "saturation", "stack")
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in results}
    race, loads = found["race"]["race"], found["saturation"]["saturation"]
    assert [(figure["name"], figure["uploads"]) for figure in race] == [
        ("pipeline", 4),
        ("loop", 4),
    ]
    for figure in race:
        assert positive(figure["seconds"], figure["cpu_seconds"], figure["database_cpu_seconds"])
    assert [load["name"] for load in loads] == ["pipeline", "loop"]
    assert all(0 < load["saturation"] < 1 for load in loads)
    # A killed worker's uploads are processed by another run.
    assert found["saturation"]["completed_after_kill"] == {"pipeline": 100}

    samples, tiny, photos = found["stack"]["batches"]
    assert [batch["uploads"] for batch in (samples, tiny, photos)] == [len(sample_media()), 4, 1]
    for batch in (samples, tiny, photos):
        assert batch["runs"] == 1
        assert 0 < batch["first_seconds"] <= batch["seconds"]
        assert positive(batch["cost_ms"])
    # A run worker of four tiny pictures may end between two looks at its memory.
    assert positive(samples["private_mib"], samples["resident_mib"])
    [upload] = found["stack"]["uploads"]
    assert 0 < upload["asked_for"] < upload["begun"] < upload["done"]
    assert positive(*chain.from_iterable(found["stack"]["first_results"].values()))
    assert 0 < sum(found["stack"]["idle"].values()) < 2
    for name, figures in found.items():
        assert all(math.isfinite(target["measured"]) for target in figures["targets"])
        table = (tmp_path / f"{name}.md").read_text()
        assert all(target["what"] in table for target in figures["targets"])


def positive(*figures):
    return all(math.isfinite(figure) and figure > 0 for figure in figures)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_how_it_is_used(script, monkeypatch, capsys):
    if script == "plots.py" and find_spec("matplotlib") is None:
        pytest.skip("matplotlib is part of the extra `benchmarks`")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert not ended.value.code
    assert f"benchmarks/{script}" in capsys.readouterr().out
