"""The home folder: found like git's repository, and never created by a command that only reads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .console import Console

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"


@pytest.fixture
def anywhere(tmp_path) -> Console:
    """A user without settings; only the folder for user data is known."""
    photos = tmp_path / "photos"
    photos.mkdir()
    return Console(
        {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "XDG_DATA_HOME": str(tmp_path / "data"),
        },
        photos,
    )


READING = [
    ["status"], ["status", "--json"], ["search", "sea"], ["metrics"], ["tidy", "--dry-run"],
    ["alive", "daemon"], ["db", "backup", "x.tar"], ["cancel", "0" * 32],
]  # fmt: skip


@pytest.mark.parametrize("command", READING, ids=lambda words: " ".join(words[:2]))
def test_reading_commands_create_nothing_and_say_where_they_looked(anywhere, tmp_path, command):
    answer = anywhere(*command)
    assert answer.code == 2
    assert f"no .batch_pipeline is in {tmp_path}/photos or above it" in answer.err
    assert f"there is no {tmp_path}/data/batch_pipeline" in answer.err
    assert [path.name for path in tmp_path.rglob("*")] == ["photos"]


def test_doctor_says_that_nothing_was_stored_yet_and_makes_nothing(anywhere, tmp_path):
    answer = anywhere("doctor", "--json")
    assert answer.code == 1
    [home] = [check for check in answer.json if check["name"] == "home"]
    assert (home["ok"], "nothing was stored yet" in home["detail"]) == (False, True)
    assert [path.name for path in tmp_path.rglob("*")] == ["photos"]


def test_a_submission_of_nothing_acceptable_makes_nothing(anywhere, tmp_path):
    (anywhere.folder / "notes.txt").write_text("no picture")
    assert anywhere("submit", "notes.txt").code == 2
    assert not (tmp_path / "data").exists()


def test_a_prompt_can_be_tried_before_anything_is_stored(anywhere, tmp_path):
    answer = anywhere("prompt", "--try", MEDIA / "sea.jpg")
    assert (answer.code, answer.err) == (0, "")
    assert "sea.jpg, embedded-" in answer.out
    assert [path.name for path in tmp_path.rglob("*")] == ["photos"]


@pytest.mark.slow
def test_a_command_that_stores_something_makes_the_home_and_says_so_once(anywhere, tmp_path):
    home = tmp_path / "data" / "batch_pipeline"
    first = anywhere("submit", MEDIA / "fog.webp")
    assert (first.code, first.err) == (0, f"New: everything is kept in {home}\n"), (
        "the new server knows all letters, although no locale is set"
    )
    assert anywhere("submit", MEDIA / "fog.webp").err == ""
    elsewhere = Console(anywhere.environment, tmp_path)
    assert len(elsewhere("status", "--json").json) == 2
    assert list(anywhere.folder.iterdir()) == []
    # A folder with its own home uses that one, and so do the folders below it.
    (anywhere.folder / ".batch_pipeline").mkdir()
    assert anywhere("status").code == 2


@pytest.mark.parametrize("target", ["dev", "demo", "reset"])
def test_make_uses_the_home_of_the_clone_unless_another_one_is_named(tmp_path, target):
    shutil.copy(ROOT / "Makefile", tmp_path)
    ours = f"BATCH_PIPELINE_HOME='{tmp_path}/.batch_pipeline'"

    def printed(**variables: str) -> str:
        return subprocess.run(
            ["make", "--dry-run", "--old-file=.venv/bin/.installed", target],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert ours in printed()
    assert ours not in printed(BATCH_PIPELINE_HOME="/elsewhere")
    (tmp_path / ".env").write_text("BATCH_PIPELINE_HOME=elsewhere\n")
    assert ours not in printed()
