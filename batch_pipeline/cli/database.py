"""Commands about the database itself."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import FINISHED_WITH_FAILURES, OK, Session
from batch_pipeline.errors import RefusedError
from batch_pipeline.visible_text import visible_line
from batch_pipeline.wording import counted


@click.group()
def db() -> None:
    """Upgrade, back up, restore or stop the database.

    \b
    Examples:
      batch-pipeline db upgrade
      batch-pipeline db backup monday.tar
    """


@db.command()
@json_option
@click.pass_obj
def upgrade(session: Session, as_json: bool) -> None:
    """Create or upgrade the tables; safe to run again.

    \b
    Example:
      batch-pipeline db upgrade
    """
    from batch_pipeline.database.session import connect  # noqa: PLC0415

    session.say_if_home_is_new()
    database = connect(session.settings)
    before, _ = database.revisions()
    triggers = database.upgrade()
    after, _ = database.revisions()
    if as_json:
        print_json({"before": before, "after": after, "triggers": triggers})
    elif triggers:
        session.report(f"Missing triggers were created again: {', '.join(triggers)}.")
    elif before == after:
        session.report(f"Nothing to do: the tables are at revision {after}.")
    else:
        session.report(f"The tables are at revision {after} now (before: {before or 'none'}).")


@db.command()
@click.option("--force", is_flag=True, help="Stop it even if others use it.")
@json_option
@click.pass_obj
def stop(session: Session, force: bool, as_json: bool) -> None:
    """Stop the embedded server; refused while others use it.

    It stops by itself when no process uses it, and starts with the next command.

    \b
    Example:
      batch-pipeline db stop
    """
    from batch_pipeline.database.embedded_server import stop_server  # noqa: PLC0415

    if session.settings.database_url:
        raise RefusedError(
            "BATCH_PIPELINE_DATABASE_URL names your own server; this command stops only the "
            "embedded one"
        )
    ran = stop_server(session.settings.home, although_used=force)
    if as_json:
        print_json({"stopped": ran})
    else:
        click.echo("Stopped." if ran else "It was not running.")


@db.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--files/--no-files",
    "with_files",
    default=None,
    help="Include originals and thumbnails; by default if they are on this machine.",
)
@json_option
@click.pass_obj
def backup(session: Session, file: Path, with_files: bool | None, as_json: bool) -> None:
    """Back up everything to one file; nothing has to be stopped.

    The file has the whole database, the history of runs, and the stored files.

    \b
    Examples:
      batch-pipeline db backup monday.tar
      batch-pipeline db backup monday.tar --no-files
    """
    from batch_pipeline.services.backups.backup import back_up  # noqa: PLC0415
    from batch_pipeline.storage import Storage  # noqa: PLC0415

    session.require_home()
    if with_files is None:
        with_files = Storage(session.settings.storage_location).is_local
    done = back_up(session.settings, file, with_files=with_files)
    code = FINISHED_WITH_FAILURES if done.unreadable else OK
    if as_json:
        print_json(asdict(done))
        sys.exit(code)
    from batch_pipeline.terminal import literal  # noqa: PLC0415

    for path in done.missing:
        click.echo(
            f"missing    {literal(path)}: a row names it, but it is not in the storage", err=True
        )
    for path in done.unreadable:
        click.echo(f"unreadable {literal(path)}: it is not in the backup", err=True)
    for table in done.left_out:
        click.echo(
            f"left out   {literal(table)}: a table of another program that the role of the backup "
            "may not read",
            err=True,
        )
    runs = "the history of runs" if done.dagster else "no history of runs"
    click.echo(f"{file}: the database, {runs}, {counted(done.files, 'file')}")
    if not with_files:
        click.echo(f"The files are not in it; copy them now: {done.storage}")
    sys.exit(code)


@db.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Restore even if the database already has batches.")
@click.option(
    "--replace-others",
    is_flag=True,
    help="Also replace tables of other programs that are in the backup.",
)
@json_option
@click.pass_obj
def restore(
    session: Session, file: Path, replace: bool, replace_others: bool, as_json: bool
) -> None:
    """Restore a backup into an empty database; stop Dagster first.

    Existing files are not overwritten. The database role must own the tables.

    \b
    Example:
      batch-pipeline db restore monday.tar
    """
    from batch_pipeline.services.backups.backup import restore as put_back  # noqa: PLC0415

    session.say_if_home_is_new()
    done = put_back(session.settings, file, replace=replace, replace_others=replace_others)
    if as_json:
        print_json(asdict(done))
        return
    kept = f", {done.kept} were there already" if done.kept else ""
    click.echo(
        f"Restored as of {visible_line(done.backup.made_at)}: {counted(done.files, 'file')}{kept}."
    )
    if not done.is_owner:
        click.echo(
            "The storage had files before, so this database does not own it, and nothing is tidied "
            "there. If no other database uses the storage: batch-pipeline tidy --take-over"
        )
