"""Finds the home folder if no setting names it: it searches upward, as git does."""

import os
from pathlib import Path

from platformdirs import user_data_path

FOLDER = ".batch_pipeline"


def nearest_home() -> Path | None:
    """Find the nearest ``.batch_pipeline`` in the working directory or above it.

    Folders of other users except root are skipped, because settings are read from the folder that
    contains the home.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        found = folder / FOLDER
        try:
            if found.is_dir() and found.stat().st_uid in {os.geteuid(), 0}:
                return found
        except OSError:
            continue  # we may not read this folder
    return None


def default_home() -> Path:
    """Return the nearest home, else a folder in the user's data folder; it may not exist yet."""
    return nearest_home() or user_data_path("batch_pipeline", appauthor=False)
