"""`make clean` removes build results; only `make reset` removes stored data, after a question."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from batch_pipeline.database.embedded_server import _join
from batch_pipeline.demo import hold_home
from batch_pipeline.settings import load_settings
from batch_pipeline_tests.patience import DEADLINE

ROOT = Path(__file__).parents[2]
NOT_OURS = ("diary.txt", "uploads.old", "postgres.tar")


@pytest.fixture
def home(tmp_path) -> Path:
    home = tmp_path / "home"
    for name in ("uploads/user/upload/original.jpg", "dagster/log", "dagster.lock", *NOT_OURS):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    return home


def reset(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "reset.py", *arguments],
        cwd=home.parent,
        env={"PATH": os.environ["PATH"], "BATCH_PIPELINE_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.slow
def test_reset_names_what_goes_and_asks_and_leaves_what_is_not_ours(home):
    asked = reset(home)
    assert asked.returncode == 2
    assert re.search(r"uploads +1 file +0.0 MB +originals", asked.stdout)
    assert (home / "uploads" / "user" / "upload" / "original.jpg").exists()
    assert reset(home, "--yes").returncode == 0
    assert {path.name for path in home.iterdir()} == {*NOT_OURS}
    assert "nothing to remove" in reset(home, "--yes").stdout


def test_reset_refuses_while_somebody_uses_it(home):
    _join(home)
    refused = reset(home, "--yes")
    assert (refused.returncode, f"(process {os.getpid()})" in refused.stderr) == (2, True)
    assert (home / "uploads").exists()


def test_reset_refuses_while_a_stack_runs_on_another_database(home):
    lock = hold_home(load_settings(home=home))
    refused = reset(home, "--yes")
    os.close(lock)
    assert (refused.returncode, f"(process {os.getpid()})" in refused.stderr) == (2, True)
    assert (home / "uploads").exists()


def test_clean_removes_what_was_built_and_touches_nothing_that_was_stored():
    printed = subprocess.run(
        ["make", "--dry-run", "clean"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {".venv", "build", "site", "mutants", ".hypothesis"} <= set(printed.split())
    assert ".batch_pipeline" not in printed


def test_reset_works_after_clean(tmp_path):
    printed = subprocess.run(
        ["make", "--dry-run", "reset", f"VENV={tmp_path / 'removed'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.index(f"-m venv {tmp_path / 'removed'}") < printed.index("scripts/reset.py")
