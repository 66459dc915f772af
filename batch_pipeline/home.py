"""Which folder is the home where no setting says it: found upward, as git finds its repository."""

import os
from pathlib import Path

from platformdirs import user_data_path

FOLDER = ".batch_pipeline"


def nearest_home() -> Path | None:
    """Find the nearest ``.batch_pipeline`` in the working directory or above it.

    Folders of other users are passed over, but for root's: settings are read beside them.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        found = folder / FOLDER
        try:
            if found.is_dir() and found.stat().st_uid in {os.geteuid(), 0}:
                return found
        except OSError:
            continue  # not ours to look at
    return None


def default_home() -> Path:
    """The nearest home, else a folder among the data of the user; it need not exist."""
    return nearest_home() or user_data_path("batch_pipeline", appauthor=False)
