"""Commands about missing or old results: list failures, retry, reprocess."""

import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batch_pipeline.cli.option_rules import at_most_one
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import Session
from batch_pipeline.cli.types import BATCH, SINCE, TEXT, UPLOAD, USER
from batch_pipeline.errors import RefusedError
from batch_pipeline.visible_text import visible_line
from batch_pipeline.wording import counted

if TYPE_CHECKING:
    from datetime import datetime

    from batch_pipeline.services.retrying import FailedUploads


@click.command("failures")
@click.option(
    "--since",
    type=SINCE,
    help="Uploads that failed since then: 24h, 7d, 2026-05-17. By default 24h; no limit with "
    "--batch.",
)
@click.option(
    "--kind", "kinds", type=TEXT, multiple=True, metavar="KIND", help="Only this kind of error."
)
@click.option("--user", type=USER, help="Only uploads of this user.")
@click.option("--batch", type=BATCH, help="Only uploads of this batch.")
@click.option(
    "--limit",
    type=click.IntRange(0, 10_000),
    default=5,
    show_default=True,
    help="How many uploads of each kind to list, the newest first.",
)
@json_option
@click.pass_obj
def list_failures(  # noqa: PLR0917 - click passes them by name
    session: Session,
    since: "datetime | None",
    kinds: Sequence[str],
    user: uuid.UUID | None,
    batch: uuid.UUID | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show failed uploads by kind of error, with advice.

    It lists the uploads of all batches. Uploads that wait because a service is down are shown, too;
    they continue by themselves.

    \b
    Examples:
      batch-pipeline failures
      batch-pipeline failures --since 7d --kind truncated --limit 100
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.reports.batch_status import batch_head  # noqa: PLC0415
    from batch_pipeline.services.reports.failures import FailureFilter, failures  # noqa: PLC0415

    _require_known_kinds(session, kinds)
    if since is None and batch is None:
        since = SINCE.convert("24h", None, None)
    if batch is not None:
        batch_head(session.pipeline.database, batch)  # refuses an unknown batch
    chosen = FailureFilter(since, kinds, user, batch)
    found = failures(session.pipeline.database, chosen, shown=limit)
    if as_json:
        print_json({"since": since, **asdict(found)})
        return
    for line in terminal.failure_lines(found, since):
        session.console.print(line)


@click.command()
@click.argument("batch", type=BATCH, required=False)
@click.option("--upload", "uploads", type=UPLOAD, multiple=True, help="Only this upload.")
@click.option(
    "--kind", "kinds", type=TEXT, multiple=True, metavar="KIND", help="Only this kind of error."
)
@click.option(
    "--all-retryable",
    is_flag=True,
    help="All uploads except those that would fail in the same way again.",
)
@click.option(
    "--since", type=SINCE, help="Only uploads that failed since then: 24h, 7d, 2026-05-17."
)
@click.option("--user", type=USER, help="Only uploads of this user.")
@click.option(
    "--model", type=TEXT, metavar="MODEL", help="Only uploads that this model was used for."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be processed again.")
@json_option
@click.pass_obj
def retry(  # noqa: PLR0917 - click passes them by name
    session: Session,
    batch: uuid.UUID | None,
    uploads: Sequence[uuid.UUID],
    kinds: Sequence[str],
    all_retryable: bool,
    since: "datetime | None",
    user: uuid.UUID | None,
    model: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Process failed uploads again, or reopen a cancelled batch.

    It first says which uploads will fail in the same way until you fix the cause. Uploads of a
    cancelled batch are left out unless you name the BATCH.

    \b
    Examples:
      batch-pipeline retry 3f2a…
      batch-pipeline retry --all-retryable --since 24h --dry-run
      batch-pipeline retry --kind source_missing
    """
    from batch_pipeline.services.retrying import FailedSelection, failed_uploads  # noqa: PLC0415

    _require_known_kinds(session, kinds)
    chosen = FailedSelection(since, kinds, user, batch, uploads, all_retryable, model)
    if batch is None and not (chosen.chooses or uploads):
        raise click.UsageError(
            "expected a BATCH, --all-retryable, --kind, --since, --user, --model or --upload"
        )
    pipeline = session.pipeline
    found = failed_uploads(pipeline.database, chosen)
    if not as_json:
        _say_what_is_retried(found, batch, dry_run=dry_run)
    reopened, lone = [], 0
    if not dry_run:
        lone = pipeline.batches.retry_lone(found.lone) if found.lone else 0
        # A whole batch may be retried even without a failed upload: it may be reopened.
        whole = batch is not None and not chosen.chooses
        by_batch = {batch: list(uploads)} if whole and batch else found.by_batch
        # A batch that was deleted meanwhile is left out.
        results = (pipeline.batches.retry_batch(one, ids) for one, ids in by_batch.items())
        reopened = [result for result in results if result]
    if as_json:
        listed = [progress.payload() | {"reopened": count} for count, progress in reopened]
        told = {
            "dry_run": dry_run,
            "chosen": found.count,
            "same_again": found.same_again,
            "not_processed": sum(one.left for one in found.reopens),
            "cancelled": found.cancelled,
        }
        if batch is not None and listed:
            print_json(listed[0] | told)
        else:
            total = lone + sum(count for count, _ in reopened)
            print_json(told | {"reopened": total, "batches": listed})
        return
    empty = [one for _, one in reopened if not one.total]
    opened = [(n, one) for n, one in reopened if n or (one.total and one.status != "completed")]
    for count, progress in opened:
        left = progress.total - progress.processed - count
        said = [
            *([f"{counted(count, 'failed upload')} will be processed again"] if count else []),
            *([f"{counted(left, 'upload')} not processed yet"] if left else []),
        ]
        click.echo(f"Batch {progress.label} is {visible_line(progress.status)}: {', '.join(said)}.")
        click.echo(f"Follow it:  batch-pipeline watch {progress.batch_id}")
    if lone:
        click.echo(
            f"{counted(lone, 'failed upload')} without a batch will be processed again; within a "
            "minute the sweep puts them into one."
        )
    if not opened and not lone and not (dry_run and (found.count or found.reopens)):
        narrowed = uploads or chosen.chooses
        which = "no failed upload matches" if narrowed else "no upload failed"
        if empty:
            which = f"batch {empty[0].label} is {visible_line(empty[0].status)} and has no uploads"
        click.echo(f"Nothing to process again: {which}.")


@click.command()
@click.option(
    "--stage",
    type=click.Choice(["thumbnail", "description", "embedding"]),
    required=True,
    help="What to redo; a new description gets a new embedding too.",
)
@click.option("--batch", "batches", type=BATCH, multiple=True, help="Only this batch.")
@click.option("--upload", "uploads", type=UPLOAD, multiple=True, help="Only this upload.")
@click.option(
    "--model-not", type=TEXT, metavar="MODEL", help="Only results of models other than this one."
)
@click.option(
    "--stale",
    is_flag=True,
    help="Only results of models, prompts or options that are no longer set.",
)
@click.option("--model", type=TEXT, metavar="MODEL", help="Only results of this model.")
@click.option("--kind", type=click.Choice(["image", "video"]), help="Only images, or only videos.")
@click.option("--since", type=SINCE, help="Only uploaded since then: 24h, 7d, 2026-05-17.")
@click.option("--user", type=USER, help="Only uploads of this user.")
@click.option("--dry-run", is_flag=True, help="Only show what would be redone.")
@click.option("--yes", is_flag=True, help="Do not ask, even if nothing restricts the selection.")
@json_option
@at_most_one("--model", "--model-not")
@click.pass_obj
def reprocess(  # noqa: PLR0917 - click passes them by name
    session: Session,
    stage: str,
    batches: Sequence[uuid.UUID],
    uploads: Sequence[uuid.UUID],
    model_not: str | None,
    model: str | None,
    kind: str | None,
    since: "datetime | None",
    stale: bool,
    user: uuid.UUID | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Redo one stage of completed uploads.

    Use it after a change of the model or the prompt. The other stages are not repeated. Old
    results stay until the new ones are stored. If no option restricts the selection, all uploads
    are redone; in a terminal the command asks first.

    \b
    Examples:
      batch-pipeline reprocess --stage embedding --model-not qwen3-embedding:0.6b
      batch-pipeline reprocess --stage description --since 7d --dry-run
      batch-pipeline reprocess --stage description --batch 3f2a…
      batch-pipeline reprocess --stage description --stale
    """
    from batch_pipeline.database.models import Stage  # noqa: PLC0415
    from batch_pipeline.services.reprocessing import Selection, count_selected  # noqa: PLC0415
    from batch_pipeline.services.reprocessing import reprocess as redo  # noqa: PLC0415

    pipeline = session.pipeline
    fingerprint = None
    if stale:
        analyzer = pipeline.analyzer
        of_stage = analyzer.embedding if stage == "embedding" else analyzer.vision
        fingerprint = of_stage.fingerprint()
    selection = Selection(
        Stage(stage), batches, uploads, model_not, user, model, since, kind, fingerprint
    )
    asks = selection.is_everything and not yes and sys.stdin.isatty()
    if dry_run or asks:
        chosen = count_selected(pipeline.database, selection)
        total = sum(chosen.values())
        if dry_run and as_json:
            of = [{"batch_id": one, "uploads": count} for one, count in chosen.items()]
            print_json({"dry_run": True, "stage": stage, "chosen": total, "batches": of})
            return
        where = f"{counted(total, 'upload')} in {counted(len(chosen), 'batch', 'batches')}"
        click.echo(f"{where} would be redone ({stage}).", err=not dry_run)
        if dry_run:
            return
        when_stopped, session.when_stopped = session.when_stopped, "Stopped; nothing was redone."
        if not session.confirm("Redo all of them?"):
            raise RefusedError("nothing was redone")
        session.when_stopped = when_stopped
    reopened = redo(pipeline.database, pipeline.batches, selection)
    count = sum(batch.uploads for batch in reopened)
    if as_json:
        listed = [batch.progress.payload() | {"reopened": batch.uploads} for batch in reopened]
        print_json({"stage": stage, "reopened": count, "batches": listed})
        return
    where = f"{counted(count, 'upload')} in {counted(len(reopened), 'batch', 'batches')}"
    click.echo(f"{where} will be processed again ({stage}).")
    for batch in reopened:
        click.echo(f"Follow it:  batch-pipeline watch {batch.progress.batch_id}")


def _require_known_kinds(session: Session, kinds: Sequence[str]) -> None:
    """Refuse an unknown kind of error, and name similar ones."""
    from difflib import get_close_matches  # noqa: PLC0415

    from batch_pipeline.services.error_kinds import BY_NAME  # noqa: PLC0415
    from batch_pipeline.services.reports.failures import UNKNOWN, is_stored  # noqa: PLC0415

    known = [*BY_NAME, UNKNOWN]
    for kind in kinds:
        # An upload API may have written a kind of its own.
        if kind not in known and not is_stored(session.pipeline.database, kind):
            near = get_close_matches(kind, known)
            meant = "docs/troubleshooting.md lists all"
            if near:
                meant = f"did you mean {' or '.join(near)}?"
            raise click.BadParameter(f"there is no kind {kind!r}: {meant}", param_hint="'--kind'")


def _say_what_is_retried(found: "FailedUploads", batch: uuid.UUID | None, *, dry_run: bool) -> None:
    """Print what was chosen (dry run only), what was left out, and what a retry does not help."""
    if dry_run and found.count:
        where = counted(len(found.by_batch), "batch", "batches")
        click.echo(f"{counted(found.count, 'upload')} in {where} would be processed again.")
    for stopped in found.reopens if dry_run else ():
        left = f"{counted(stopped.left, 'upload')} not processed yet"
        click.echo(f"Batch {stopped.label} is {stopped.status} and would be reopened: {left}.")
    if found.cancelled:
        click.echo(
            f"{counted(found.cancelled, 'upload')} of cancelled batches left out: "
            "`batch-pipeline retry BATCH` reopens a batch."
        )
    if found.same_again:
        kinds = ", ".join(f"{kind} {count}" for kind, count in found.same_again.items())
        of_all = f"{sum(found.same_again.values())} of {counted(found.count, 'upload')}"
        click.echo(
            f"{of_all} will fail in the same way again unless you fix the cause: {kinds}.\n"
            "What to do about each:  batch-pipeline failures "
            f"{f'--batch {batch}' if batch else '--since 7d'}\n"
            "Retry all but these:    the same command with --all-retryable"
        )
