"""Commands about one batch: submit it, watch it, report on it, cancel it."""

import json
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batch_pipeline.cli.option_rules import at_least_one, at_most_one, needs
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import FINISHED_WITH_FAILURES, OK, REFUSED, Session
from batch_pipeline.cli.types import BATCH, SINCE, UPLOAD, USER
from batch_pipeline.errors import RefusedError
from batch_pipeline.wording import counted

if TYPE_CHECKING:
    from datetime import datetime

    from batch_pipeline.services.batch_intake import Submission
    from batch_pipeline.services.progress.batch_watch import BatchSnapshot
    from batch_pipeline.services.progress.publishing import BatchProgress


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--user", type=click.UUID, help="Owner of the batch; by default the local user.")
@click.option("--name", help="Name of the batch; by default the name of the folder.")
@click.option(
    "--priority",
    type=click.Choice(["low", "normal", "high"]),
    default="normal",
    show_default=True,
    help="Priority among the batches of the same user.",
)
@click.option("--wait", is_flag=True, help="Show progress until the batch ends.")
@json_option
@click.pass_obj
def submit(  # noqa: PLR0917 - click passes them by name
    session: Session,
    paths: Sequence[str],
    user: uuid.UUID | None,
    name: str | None,
    priority: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Submit files and folders as one batch.

    Subfolders are included. The content of a file decides its type, not its name. Files that are
    not accepted are listed with the reason. Hidden files and links to folders are skipped.

    \b
    Examples:
      batch-pipeline submit holiday/ clip.mp4 --name "Rome 2026" --wait
      batch-pipeline submit photos/ --json | jq -r .batch_id
    """
    from batch_pipeline.database.models import Priority  # noqa: PLC0415
    from batch_pipeline.database.readings import LOCAL_USER  # noqa: PLC0415
    from batch_pipeline.services.batch_intake import Submission, examine, store  # noqa: PLC0415
    from batch_pipeline.services.descriptions.known_results import count_known  # noqa: PLC0415

    if "" in paths:  # an unset variable in a script; as a path it would mean the current folder
        raise click.BadParameter("a path is empty.", param_hint="'PATHS...'")
    session.when_stopped = (
        "Stopped. `batch-pipeline status` tells whether the batch was submitted. If not, its files "
        "were removed; a file that was on its way to an object store is removed after a day."
    )
    offer = examine(map(Path, paths), session.settings)
    if offer.accepted:
        pipeline = session.new_pipeline
        submission = store(
            offer,
            user_id=user or LOCAL_USER,
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=session.settings,
            name=name,
            priority=Priority(priority),
        )
    else:
        submission = Submission(None, [], offer.refused, offer.left_out)
    known = submission.batch_id and count_known(session.pipeline, submission.batch_id)
    shape = submission_shape(submission) | {"known": known or 0}
    if not as_json:
        print_submission(submission)
        if known:
            click.echo(f"{counted(known, 'file')} already known: not described again.")
    if submission.batch_id is None:
        if as_json:
            print_json(shape)
        sys.exit(REFUSED)
    failures = bool(submission.refused)
    try:
        if wait:
            failures |= follow(session, submission.batch_id, quiet=as_json)
            shape["status"] = status_of(session, submission.batch_id)
    finally:  # a script needs the id of the batch, however the wait ends
        if as_json:
            print_json(shape)
    if not as_json and not wait:
        click.echo(f"Follow it:  batch-pipeline watch {submission.batch_id}")
    sys.exit(FINISHED_WITH_FAILURES if failures else OK)


@click.command()
@click.argument("batch", type=BATCH, required=False)
@click.option("--failed", is_flag=True, help="Only uploads of BATCH that failed.")
@click.option("--limit", type=click.IntRange(1, 500), default=20, help="Batches per page.")
@click.option("--page", type=click.IntRange(1, 1_000_000), default=1, help="Which page of batches.")
@json_option
@at_most_one("BATCH", "--limit")
@at_most_one("BATCH", "--page")
@needs("--failed", "BATCH", "; over all batches: batch-pipeline failures")
@click.pass_obj
def status(  # noqa: PLR0917 - click passes them by name
    session: Session,
    batch: uuid.UUID | None,
    failed: bool,
    limit: int,
    page: int,
    as_json: bool,
) -> None:
    """Show a batch and its uploads, or the newest batches.

    The first characters of an id are enough if they are unique.

    \b
    Examples:
      batch-pipeline status
      batch-pipeline status 3f2a… --failed
      batch-pipeline status 3f2a… --json | jq '.uploads[] | select(.error_kind)'
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.database.models import IN_WORK, OPEN_BATCH  # noqa: PLC0415
    from batch_pipeline.services.pauses import active_pauses  # noqa: PLC0415
    from batch_pipeline.services.progress.waiting import (  # noqa: PLC0415
        what_it_waits_for,
        why_batches_wait,
    )
    from batch_pipeline.services.reports.batch_status import newest_batches  # noqa: PLC0415

    if batch is None:
        batches = newest_batches(session.pipeline.database, limit=limit, offset=limit * (page - 1))
        if as_json:
            print_json(batches)
        elif batches:
            session.console.print(terminal.batches_table(batches))
            is_open = any(found["status"] in OPEN_BATCH for found in batches)
            reason = why_batches_wait(session.settings) if is_open else ""
            pauses = map(str, active_pauses(session.pipeline.database))
            for said in [*(pause for pause in pauses if pause not in reason), reason]:
                if said:
                    session.console.print(terminal.literal(said), style="yellow")
        elif page > 1:
            click.echo("No more batches.")
        else:
            click.echo("No batches. Submit one:  batch-pipeline submit FOLDER")
        return
    found = status_of(session, batch)
    working = {upload["processing_status"] for upload in found["uploads"]} & {*IN_WORK}
    if failed:
        found["uploads"] = [
            upload for upload in found["uploads"] if upload["processing_status"] == "failed"
        ]
    if as_json:
        print_json(found)
        return
    session.console.print(terminal.batch_table(found))
    if found["status"] in OPEN_BATCH and not working and not found["paused"]:
        reason = what_it_waits_for(session.pipeline.database, session.settings, batch)
        session.console.print(terminal.literal(reason), style="yellow")
    session.console.print()
    if found["uploads"] or not failed:
        session.console.print(terminal.uploads_table(found["uploads"]))
    else:
        click.echo("No upload failed.")


@click.command()
@click.argument("upload", type=UPLOAD)
@json_option
@click.pass_obj
def show(session: Session, upload: uuid.UUID, as_json: bool) -> None:
    """Show everything about one upload.

    `search` and `status BATCH` show the ids of uploads.

    \b
    Examples:
      batch-pipeline show 5a3f…
      batch-pipeline show 5a3f… --json | jq .metadata
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.reports.batch_status import upload_status  # noqa: PLC0415

    found = upload_status(session.pipeline.database, upload)
    if as_json:
        print_json(found)
    else:
        session.console.print(terminal.upload_table(found))


@click.command()
@click.argument("batch", type=BATCH)
@json_option
@click.pass_obj
def watch(session: Session, batch: uuid.UUID, as_json: bool) -> None:
    """Follow a batch until it ends.

    With --json it prints one line for each change.

    \b
    Example:
      batch-pipeline watch 3f2a…
    """
    from batch_pipeline.services.progress.batch_watch import watch_batch  # noqa: PLC0415

    if not as_json:
        sys.exit(FINISHED_WITH_FAILURES if follow(session, batch) else OK)
    session.when_stopped = f"Stopped watching; the batch goes on: batch-pipeline watch {batch}"
    progress, told = None, None
    for snapshot in watch_batch(session.pipeline.database, batch):
        progress = snapshot.progress
        line = progress.payload() | {"paused": [str(pause) for pause in snapshot.paused]}
        if line != told:
            click.echo(json.dumps(line))
        told = line
    sys.exit(FINISHED_WITH_FAILURES if progress is None or went_wrong(progress) else OK)


@click.command()
@click.argument("batch", type=BATCH)
@click.option(
    "--html",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File to write the page to; an existing one is replaced.",
)
@json_option
@click.pass_obj
def report(session: Session, batch: uuid.UUID, file: Path, as_json: bool) -> None:
    """Write a report about a batch as one HTML page.

    The page needs no other file. It has a contact sheet, descriptions, failures with
    their reasons, and the time of each stage.

    \b
    Example:
      batch-pipeline report 3f2a… --html holiday.html
    """
    from batch_pipeline.services.reports.pages import write_whole  # noqa: PLC0415
    from batch_pipeline.services.reports.report_page import (  # noqa: PLC0415
        read_report,
        render_html,
    )

    pipeline = session.pipeline
    found = read_report(pipeline.database, pipeline.storage, batch)
    page = render_html(found)
    write_whole(file, page)
    size = len(page.encode())
    if as_json:
        print_json({"batch_id": batch, "file": file, "bytes": size, "uploads": len(found.cards)})
    else:
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
        click.echo(f"{file}: {counted(len(found.cards), 'upload')}, {shown}")


@click.command()
@click.argument("batch", type=BATCH, required=False)
@click.option("--user", type=USER, help="Instead of BATCH: all open batches of this user.")
@click.option(
    "--since", type=SINCE, help="Instead of BATCH: all batches submitted since then, e.g. 2h."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be stopped.")
@json_option
@at_most_one("BATCH", "--user")
@at_most_one("BATCH", "--since")
@at_least_one("BATCH", "--user", "--since")
@click.pass_obj
def cancel(  # noqa: PLR0917 - click passes them by name
    session: Session,
    batch: uuid.UUID | None,
    user: uuid.UUID | None,
    since: "datetime | None",
    dry_run: bool,
    as_json: bool,
) -> None:
    """Stop one or more batches; `retry` reopens them.

    Stored results stay.

    \b
    Examples:
      batch-pipeline cancel 3f2a…
      batch-pipeline cancel --user 5a0f… --since 2h --dry-run
    """
    from batch_pipeline.database.models import OPEN_BATCH  # noqa: PLC0415
    from batch_pipeline.services.reports.batch_status import (  # noqa: PLC0415
        open_batches,
        progress_of,
    )
    from batch_pipeline.services.short_ids import batch_label  # noqa: PLC0415

    pipeline = session.pipeline
    named = [batch] if batch else open_batches(pipeline.database, user_id=user, since=since)
    done = []
    for one in named:
        if dry_run:
            progress = progress_of(pipeline.database, one)
            if progress and progress.status not in OPEN_BATCH:
                progress = None
        else:
            progress = pipeline.batches.cancel_batch(one)
        if progress is not None:
            done.append(progress)
        elif batch:  # with several batches, one that has already ended needs no message
            found = status_of(session, one)
            label = batch_label(one, found["name"])
            raise RefusedError(
                f"batch {label} is {found['status']}; only a batch that has not ended can be "
                "cancelled"
            )
    if as_json:
        shapes = [progress.payload() for progress in done]
        print_json(shapes[0] if batch and not dry_run else {"dry_run": dry_run, "batches": shapes})
    elif batch and not dry_run:
        click.echo(
            f"Batch {done[0].label} is cancelled after {done[0].processed} of {done[0].total} "
            "uploads."
        )
    else:
        for progress in done:
            left = counted(progress.total - progress.processed, "upload")
            what = "would be cancelled" if dry_run else "cancelled"
            click.echo(f"Batch {progress.label} {what}, {left} left")
        if not done:
            click.echo("No open batch was chosen.")


def follow(
    session: Session,
    batch_id: uuid.UUID,
    *,
    quiet: bool = False,
    of_demo: "Callable[[BatchSnapshot], None] | None" = None,
) -> bool:
    """Show a batch until it ends; return true if anything failed.

    `of_demo`: a check of the demo, called with each snapshot. It raises an error if the batch
    cannot end. The demo also runs the stack, so the batch stops with it.
    """
    from batch_pipeline.services.progress.batch_watch import watch_batch  # noqa: PLC0415
    from batch_pipeline.services.progress.waiting import what_it_waits_for  # noqa: PLC0415
    from batch_pipeline.terminal import BatchView  # noqa: PLC0415

    if not of_demo:
        session.when_stopped = (
            f"Stopped watching; the batch goes on: batch-pipeline watch {batch_id}"
        )
    snapshots = watch_batch(session.pipeline.database, batch_id)
    if of_demo:
        snapshots = _checked(snapshots, of_demo)
    if quiet:
        [last] = deque(snapshots, maxlen=1)
    else:
        why_idle = partial(what_it_waits_for, session.pipeline.database, session.settings, batch_id)
        last = BatchView(session.console, why_idle).follow(snapshots)
        if last.progress.failed and not of_demo:  # the demo shows them itself
            click.echo(f"See why:    batch-pipeline status {batch_id}")
            click.echo(f"Try again:  batch-pipeline retry {batch_id}")
    return went_wrong(last.progress)


def _checked(
    snapshots: "Iterator[BatchSnapshot]", check: "Callable[[BatchSnapshot], None]"
) -> "Iterator[BatchSnapshot]":
    for snapshot in snapshots:
        check(snapshot)
        yield snapshot


def went_wrong(progress: "BatchProgress") -> bool:
    """Return whether a batch failed, was cancelled or has failed uploads."""
    return progress.failed > 0 or progress.status != "completed"


def status_of(session: Session, batch_id: uuid.UUID) -> dict[str, Any]:
    """Return the status of a batch in the shape of the JSON output."""
    from batch_pipeline.services.reports.batch_status import batch_status  # noqa: PLC0415

    return batch_status(session.pipeline.database, batch_id)


def submission_shape(submission: "Submission") -> dict[str, Any]:
    """Return a submission in the shape of the JSON output, with the upload API's names."""
    return {
        "batch_id": submission.batch_id,
        "total_files": submission.total_files,
        "queued": len(submission.upload_ids),
        "failed": len(submission.refused),
        "upload_ids": submission.upload_ids,
        "failed_files": [
            {"filename": file.filename, "error": file.error} for file in submission.refused
        ],
    }


def print_submission(submission: "Submission") -> None:
    """Print which files were refused, and what was queued."""
    from batch_pipeline.terminal import literal  # noqa: PLC0415

    for suffix, count in sorted(submission.left_out.items()):
        click.echo(f"{counted(count, f'{suffix} file')} left out", err=True)
    for file in submission.refused:
        click.echo(f"refused    {literal(file.path)}: {literal(file.reason)}", err=True)
    if formats := submission.accepted_formats:
        click.echo(f"{formats[0].upper()}{formats[1:]}", err=True)
    if submission.batch_id is None:
        seen = submission.refused or submission.left_out
        what = "no file was accepted" if seen else "no file was found"
        click.echo(f"Error: {what}; there is no batch", err=True)
    else:
        queued = counted(len(submission.upload_ids), "file")
        name = f" {literal(submission.name)}" if submission.name else ""
        click.echo(f"Batch {submission.batch_id}{name}: {queued} queued")
