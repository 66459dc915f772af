"""Removes our data from a home folder: database, stored files, Dagster's history.

It lists what it would remove and asks first. Without a terminal it cannot ask, and needs ``--yes``.
It refuses while a process uses the home. Other files in the folder stay.
"""

import shutil
import sys

import click

from batch_pipeline.cli.session import REFUSED
from batch_pipeline.database.embedded_server import server_users, stop_server
from batch_pipeline.demo import hold_home
from batch_pipeline.errors import PipelineError
from batch_pipeline.settings import load_settings
from batch_pipeline.wording import counted

#: Our files in a home folder. Others may begin alike, such as a copy ``uploads.old``.
OURS = {
    "uploads": "originals and thumbnails",
    "postgres": "the database",
    **{f"postgres.{part}": "the database" for part in ("being_made", "guard", "lock", "users")},
    "dagster": "settings and logs of Dagster",
    "dagster.lock": "settings and logs of Dagster",
}


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(yes: bool) -> None:
    """Remove our data from the home folder."""
    settings = load_settings()
    home = settings.home
    found = {path: OURS[path.name] for path in sorted(home.glob("*")) if path.name in OURS}
    if not found:
        click.echo(f"There is nothing to remove in {home}.")
        return
    try:
        hold_home(settings)  # until this process ends, so that no stack can start meanwhile
    except PipelineError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(REFUSED)
    found[home / "dagster.lock"] = OURS["dagster.lock"]
    if users := server_users(home):
        named = ", ".join(f"{user.name} (process {user.pid})" for user in users)
        click.echo(f"Error: it is in use by {named}: stop them first", err=True)
        sys.exit(REFUSED)
    click.echo(f"This removes from {home}, which cannot be undone:")
    for path, meaning in found.items():
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        click.echo(f"  {path.name:20} {counted(len(files), 'file'):>13} {size:10.1f} MB  {meaning}")
    if settings.storage_url or settings.database_url:
        click.echo("What BATCH_PIPELINE_STORAGE_URL and …_DATABASE_URL name is not touched.")
    if not yes:
        if not sys.stdin.isatty():
            click.echo(
                "Error: there is no terminal to ask in: run `make reset` in a terminal, or "
                "`python scripts/reset.py --yes`",
                err=True,
            )
            sys.exit(REFUSED)
        if click.prompt("Type the word reset to go on", default="no") != "reset":
            click.echo("Nothing was removed.")
            sys.exit(REFUSED)
    stop_server(home)
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    click.echo("Removed.")


if __name__ == "__main__":
    reset()
