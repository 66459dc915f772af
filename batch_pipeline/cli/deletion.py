"""Commands that remove data, and the command that exports it."""

import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from batch_pipeline.cli.option_rules import at_most_one
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import FINISHED_WITH_FAILURES, OK, Session
from batch_pipeline.cli.types import BATCH, UPLOAD, USER
from batch_pipeline.errors import RefusedError
from batch_pipeline.wording import counted


@click.command()
@click.option("--dry-run", is_flag=True, help="Only list the files that would be removed.")
@click.option(
    "--force",
    is_flag=True,
    help="Remove the files even if they are a large part of all files; try --dry-run first.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Make this database the owner of the storage. Only the owner may tidy.",
)
@json_option
@at_most_one("--take-over", "--dry-run")
@click.pass_obj
def tidy(session: Session, dry_run: bool, force: bool, take_over: bool, as_json: bool) -> None:
    """Remove leftover files; Dagster does this every hour.

    These are originals of submissions that never became a batch, thumbnails of deleted uploads,
    and partial files that a crash left. Only files that are older than a day and provably ours
    are removed. Originals of a batch and files of other programs are never removed.

    \b
    Examples:
      batch-pipeline tidy --dry-run
      batch-pipeline tidy --dry-run --json | jq -r '.files[].path'
    """
    from batch_pipeline.services.deletion.leftovers import remove_leftovers  # noqa: PLC0415

    pipeline = session.pipeline
    if take_over:
        pipeline.ownership.take_over()
        if not as_json:
            click.echo(f"This database owns {session.settings.storage_location} now.")
    found = remove_leftovers(
        pipeline.database,
        pipeline.storage,
        pipeline.ownership,
        dry_run=dry_run,
        force=force,
    )
    kept = found.kept_because
    if as_json:
        print_json(
            {
                "owner": found.is_owner,
                "files": [asdict(file) for file in found.files],
                "removed": found.removed,
                "kept_because": kept,
            }
        )
    else:
        from batch_pipeline.terminal import literal  # noqa: PLC0415

        for file in found.files:
            click.echo(f"{literal(file.path)}: {file.reason}")
        if kept and not dry_run:
            click.echo(f"Nothing was removed: {kept}.", err=True)
        elif dry_run and (found.need_a_person or not found.is_owner):
            click.echo(f"Nothing would be removed: {kept}.")
        elif dry_run:
            click.echo(f"{counted(len(found.files), 'file')} would be removed.")
        else:
            click.echo(f"{counted(found.removed, 'file')} removed.")
    sys.exit(FINISHED_WITH_FAILURES if kept and not dry_run else OK)


@click.group()
def delete() -> None:
    """Delete an upload, a batch or a user with all their data.

    This deletes rows, vectors, files, and what Dagster keeps: runs, events, logs. If it is
    interrupted, run the same command again to complete it.

    \b
    Examples:
      batch-pipeline delete batch 3f2a… --dry-run
      batch-pipeline delete user 5a0f…
    """


def _delete_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of all commands that delete."""
    for option in (
        json_option,
        click.option("--dry-run", is_flag=True, help="Only count what would be deleted."),
        click.option("--yes", is_flag=True, help="Do not ask; for scripts."),
        click.option(
            "--originals",
            is_flag=True,
            help="Also delete files that may belong to another system.",
        ),
    ):
        command = option(command)
    return command


@delete.command("upload")
@click.argument("upload", type=UPLOAD)
@_delete_options
@click.pass_obj
def delete_upload(session: Session, /, upload: uuid.UUID, **options: bool) -> None:
    """Delete one upload; its batch gets new counts and a new report.

    \b
    Example:
      batch-pipeline delete upload 9c41…
    """
    _delete(session, "upload", upload, **options)


@delete.command("batch")
@click.argument("batch", type=BATCH)
@_delete_options
@click.pass_obj
def delete_batch(session: Session, /, batch: uuid.UUID, **options: bool) -> None:
    """Delete a batch with its uploads.

    A batch in progress must be cancelled first.

    \b
    Examples:
      batch-pipeline delete batch 3f2a… --dry-run
      batch-pipeline delete batch 3f2a… --yes --json > receipt.json
    """
    _delete(session, "batch", batch, **options)


@delete.command("user")
@click.argument("user", type=USER)
@_delete_options
@click.pass_obj
def delete_user(session: Session, /, user: uuid.UUID, **options: bool) -> None:
    """Delete all batches and uploads of a user.

    To keep a copy, run `batch-pipeline export` first. `status BATCH` shows the id of the user.

    \b
    Example:
      batch-pipeline delete user 5a0f…
    """
    _delete(session, "user", user, **options)


def _delete(
    session: Session,
    what: str,
    id_: uuid.UUID,
    *,
    originals: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from batch_pipeline.orchestration.forgetting import opened_history  # noqa: PLC0415
    from batch_pipeline.services.deletion.forgetting import forget  # noqa: PLC0415
    from batch_pipeline.services.short_ids import Named  # noqa: PLC0415
    from batch_pipeline.terminal import receipt_lines  # noqa: PLC0415

    session.when_stopped = "Stopped; nothing was deleted."
    with opened_history(session.pipeline) as history:
        run = partial(forget, session.pipeline, history, Named(what), id_, originals=originals)
        if not (dry_run or yes):
            if not sys.stdin.isatty():
                raise RefusedError(
                    "there is no terminal to ask in: use --yes, or --dry-run to only count"
                )
            for line in receipt_lines(run(dry_run=True)):
                click.echo(line, err=True)
            if not session.confirm("This cannot be undone. Delete?"):
                raise RefusedError("nothing was deleted")
        if not dry_run:
            complete = f"batch-pipeline delete {what} {id_}{' --originals' if originals else ''}"
            session.when_stopped = f"Stopped. Complete it:  {complete}"
        receipt = run(dry_run=dry_run)
    if as_json:
        print_json(receipt.shape())
        return
    for line in receipt_lines(receipt):
        click.echo(line)


@click.command()
@click.argument("user", type=USER)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--originals", is_flag=True, help="Include the submitted files.")
@json_option
@click.pass_obj
def export(session: Session, user: uuid.UUID, folder: Path, originals: bool, as_json: bool) -> None:
    """Write everything stored about a user to a new folder.

    The folder has JSON Lines of batches, uploads and model calls, and the thumbnails.
    `status BATCH` shows the id of the user.

    \b
    Examples:
      batch-pipeline export 5a0f… about-me/
      batch-pipeline export 5a0f… about-me/ --originals
    """
    from batch_pipeline.services.export import export_user  # noqa: PLC0415

    pipeline = session.pipeline
    done = export_user(pipeline.database, pipeline.storage, user, folder, originals=originals)
    code = FINISHED_WITH_FAILURES if done.unreadable else OK
    if as_json:
        print_json(asdict(done))
        sys.exit(code)
    from batch_pipeline.terminal import literal  # noqa: PLC0415

    for path in done.missing:
        click.echo(
            f"missing    {literal(path)}: a row names this file, but it is not in the storage",
            err=True,
        )
    for path in done.unreadable:
        click.echo(f"unreadable {literal(path)}: it is not in the export", err=True)
    files = counted(done.thumbnails + done.originals, "file")
    batches = counted(done.batches, "batch", "batches")
    click.echo(f"{folder}: {batches}, {counted(done.uploads, 'upload')}, {files}")
    sys.exit(code)
