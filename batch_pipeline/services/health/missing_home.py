"""Checks that a home exists and has data, so that a command that only reads does not create one."""

from pathlib import Path

from batch_pipeline.database.embedded_server import server_was_made
from batch_pipeline.settings import Settings


def missing_home(settings: Settings) -> str:
    """Return a message if there is no home; empty if there is one.

    The message says where the home was expected and how to get one. Nothing is created. Otherwise a
    command that only reads would create a second database, which is empty.
    """
    home = settings.home
    if settings.database_url or server_was_made(home):
        return ""
    if "home" in settings.model_fields_set:
        looked = f"nothing was stored yet in BATCH_PIPELINE_HOME={home}"
    elif home.exists():
        looked = f"nothing was stored yet in {home}"
    else:
        looked = (
            f"nothing was stored yet: no .batch_pipeline is in {Path.cwd()} or above it, "
            f"and there is no {home}"
        )
    return (
        f"{looked}. Run this command in the folder where Dagster was started, or set "
        "BATCH_PIPELINE_HOME; `batch-pipeline submit` makes a home where there is none"
    )
