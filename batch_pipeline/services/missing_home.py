"""Whether there is a home with something in it, before a command that only looks makes one."""

from pathlib import Path

from batch_pipeline.database.embedded_server import server_was_made
from batch_pipeline.settings import Settings


def missing_home(settings: Settings) -> str:
    """Say that there is no home, where it was looked for, and how to come to one; empty: there is.

    Nothing is made: who only looks would make a second database, and see it empty.
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
        f"{looked}. Call this in the folder where Dagster was started, or set "
        "BATCH_PIPELINE_HOME; `batch-pipeline submit` makes a home where there is none"
    )
