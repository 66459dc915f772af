"""The command line: reads arguments, calls a service, prints what came of it.

Exit codes: 0 ok; 1 finished with failures; 2 wrong use, or refused; 130 stopped by Ctrl-C.

Only what every command needs is imported here; the rest is imported by the command that uses it:
help and completion answer at once, and Ctrl-C finds no moment in which nobody listens.
"""

import json
import logging
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batch_pipeline.cli_types import BATCH, LENGTH, SINCE, UPLOAD, USER
from batch_pipeline.errors import (
    ConfigurationError,
    KindedError,
    NotFoundError,
    PipelineError,
    RefusedError,
)
from batch_pipeline.masking import masked

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from rich.console import Console

    from batch_pipeline.services.batch_intake import Submission
    from batch_pipeline.services.pipeline import Pipeline
    from batch_pipeline.services.progress.publishing import BatchProgress
    from batch_pipeline.services.retrying import FailedUploads
    from batch_pipeline.services.search import SearchResult
    from batch_pipeline.settings import Settings

OK, FINISHED_WITH_FAILURES, REFUSED, STOPPED = 0, 1, 2, 130

#: What to do about an error whose message does not say it.
_HINTS = {
    "database_down": "start the server, or correct BATCH_PIPELINE_DATABASE_URL",
    "storage_full": "make room, or set BATCH_PIPELINE_STORAGE_URL; then run the command again",
    "storage_down": "make the folder writable, or correct BATCH_PIPELINE_STORAGE_URL",
}


#: After a Ctrl-C, how long further ones are ignored: longer than the demo's stack takes to stop.
_PATIENCE_SECONDS = 30.0


class Session:
    """What all commands share; the database is opened by the first that needs it."""

    def __init__(self) -> None:
        self.debug = False
        self.when_stopped = "Stopped."
        """What Ctrl-C means at this moment."""
        self.log: logging.Logger | None = None
        """Where a service says what it does, if log lines are for machines."""

    @cached_property
    def console(self) -> "Console":
        """Where tables and bars go."""
        from rich.console import Console  # noqa: PLC0415

        return Console()

    @cached_property
    def settings(self) -> "Settings":
        """The settings, read once."""
        from batch_pipeline.settings import LogFormat, load_settings  # noqa: PLC0415

        settings = load_settings()
        # Whoever looks at a terminal is a person.
        if settings.log_format is not LogFormat.TEXT and not sys.stderr.isatty():
            from batch_pipeline.logs import use_format  # noqa: PLC0415

            use_format(settings)
            self.log = logging.getLogger(__name__)
            self.log.setLevel(logging.INFO)
        return settings

    def report(self, line: str) -> None:
        """Say what a service has done: to a person, or as a log line."""
        if self.log:
            self.log.info(line)
        else:
            click.echo(line)

    def report_error(self, message: str, hint: str | None = None) -> None:
        """Say why a command ends early: to a person, or as a log line."""
        if self.log:
            self.log.error(f"{message}; {hint}" if hint else message)
        else:
            _say_error(message, hint)

    @property
    def pipeline(self) -> "Pipeline":
        """The pipeline, opened once; for commands to which an empty one is of no use."""
        self.require_home()
        return self._opened_pipeline

    @property
    def new_pipeline(self) -> "Pipeline":
        """The pipeline, opened once, and made where there is none yet."""
        self.say_if_home_is_new()
        return self._opened_pipeline

    @cached_property
    def _opened_pipeline(self) -> "Pipeline":
        from batch_pipeline.services.pipeline import Pipeline  # noqa: PLC0415

        return Pipeline(self.settings)

    def require_home(self) -> None:
        """Refuse to make a database where a person only wants to read one.

        Raises:
            NotFoundError: there is none.
        """
        from batch_pipeline.services.missing_home import missing_home  # noqa: PLC0415

        if said := missing_home(self.settings):
            raise NotFoundError(said)

    def say_if_home_is_new(self) -> None:
        """Say where things will be kept, if nothing was kept there before."""
        home = self.settings.home
        if not home.exists() and not (self.settings.database_url and self.settings.storage_url):
            click.echo(f"New: everything is kept in {home}", err=True)


class Commands(click.Group):
    """Turns whatever ends a command early into a line for a person, a hint and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command that was named, and exit."""
        session = Session()
        _stop_once()
        try:
            sys.exit(super().main(*args, **extra | {"obj": session, "standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as help_page:
            help_page.show()
            sys.exit(REFUSED)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "batch-pipeline"
            _say_error(error.format_message(), f"`{path} --help` shows how it is used")
            sys.exit(REFUSED)
        except click.ClickException as error:
            _say_error(error.format_message())
            sys.exit(REFUSED)
        except click.Abort:  # what click makes of Ctrl-C, after it has ended the line
            # The interpreter takes its handlers away before it ends; one more would kill it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            click.echo(session.when_stopped, err=True)
            sys.exit(STOPPED)
        except Exception as error:
            if session.debug:
                click.echo(masked(traceback.format_exc()), err=True)
            sys.exit(_explain(error, session.report_error))


def _stop_once() -> None:
    """Let a Ctrl-C stop the command, and those of an impatient person not disturb how it ends.

    Files are removed then, or a stack is stopped: cut short, that would leave something behind.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # whoever started us wants Ctrl-C for himself, or for nobody
    stopped_at = -_PATIENCE_SECONDS

    def stop(*_: object) -> None:
        nonlocal stopped_at
        now = time.monotonic()
        if now - stopped_at >= _PATIENCE_SECONDS:
            stopped_at = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)


def _explain(error: Exception, report: Callable[..., None]) -> int:
    """Report an error in words, and choose the exit code."""
    message = str(error).strip()
    match error:
        case ConfigurationError():
            report(message, "settings come from the environment and .env: docs/settings.md")
            return REFUSED
        case RefusedError():
            report(message)
            return REFUSED
        case KindedError():
            doctor = "`batch-pipeline doctor` checks everything"
            hint = _HINTS.get(error.kind)
            report(message, f"{hint}; {doctor}" if hint else doctor)
        case PipelineError():
            report(message)
        case _:
            first_line = f"{type(error).__name__}: {message}".partition("\n")[0]
            report(
                f"this should not happen: {first_line}",
                "run it again as `batch-pipeline --debug …` and report what it prints",
            )
    return FINISHED_WITH_FAILURES


def _say_error(message: str, hint: str | None = None) -> None:
    from batch_pipeline.visible_text import visible  # noqa: PLC0415

    click.echo(f"Error: {visible(masked(message))}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="batch-pipeline")
@click.pass_obj
def main(session: Session, debug: bool) -> None:
    """Turn batches of photos and videos into searchable knowledge.

    \b
    First steps:
      batch-pipeline demo                 run everything on sample files
      batch-pipeline submit ~/Pictures    your own files
      batch-pipeline search "red flower"
    """
    session.debug = debug
    # Alembic and others speak at INFO; what a person has to know is printed by the commands.
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(message)s")


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--user", type=click.UUID, help="Owner of the batch; by default the local user.")
@click.option("--name", help="Name of the batch; by default the name of the folder.")
@click.option("--wait", is_flag=True, help="Show progress until the batch ends.")
@json_option
@click.pass_obj
def submit(  # noqa: PLR0917 - click passes them by name
    session: Session,
    paths: Sequence[str],
    user: uuid.UUID | None,
    name: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Submit files and folders as one batch.

    The content of a file decides its type. Files that are not accepted are listed with the
    reason. Hidden files and links to folders are skipped.

    \b
    Examples:
      batch-pipeline submit holiday/ clip.mp4 --name "Rome 2026" --wait
      batch-pipeline submit photos/ --json | jq -r .batch_id
    """
    from batch_pipeline.database.readings import LOCAL_USER  # noqa: PLC0415
    from batch_pipeline.services.batch_intake import Submission, examine, store  # noqa: PLC0415
    from batch_pipeline.services.known_results import count_known  # noqa: PLC0415

    if "" in paths:  # an unset variable of a script; as a path it would be the current folder
        raise click.BadParameter("a path is empty.", param_hint="'PATHS...'")
    session.when_stopped = "Stopped. `batch-pipeline status` tells whether the batch was submitted."
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
        )
    else:
        submission = Submission(None, [], offer.refused, offer.left_out)
    known = submission.batch_id and count_known(session.pipeline, submission.batch_id)
    shape = _submission_shape(submission) | {"known": known or 0}
    if not as_json:
        _print_submission(submission)
        if known:
            click.echo(f"{_counted(known, 'file')} known already: not described again.")
    if submission.batch_id is None:
        if as_json:
            _print_json(shape)
        sys.exit(REFUSED)
    failures = bool(submission.refused)
    if wait:
        failures |= _follow(session, submission.batch_id, quiet=as_json)
        shape["status"] = _status(session, submission.batch_id)
    if as_json:
        _print_json(shape)
    elif not wait:
        click.echo(f"Follow it:  batch-pipeline watch {submission.batch_id}")
    sys.exit(FINISHED_WITH_FAILURES if failures else OK)


@main.command()
@click.argument("batch", type=BATCH, required=False)
@click.option("--failed", is_flag=True, help="Only uploads of BATCH that failed.")
@click.option("--limit", type=click.IntRange(1, 500), default=20, help="Batches per page.")
@click.option("--page", type=click.IntRange(1, 1_000_000), default=1, help="Which page of batches.")
@json_option
@click.pass_obj
def status(  # noqa: PLR0917 - click passes them by name
    session: Session,
    batch: uuid.UUID | None,
    failed: bool,
    limit: int,
    page: int,
    as_json: bool,
) -> None:
    """Show a batch and its uploads; without BATCH, the newest batches.

    An id may be shortened to its first characters if they are unique.

    \b
    Examples:
      batch-pipeline status
      batch-pipeline status 3f2a… --failed
      batch-pipeline status 3f2a… --json | jq '.uploads[] | select(.error_kind)'
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.database.models import IN_WORK, OPEN_BATCH  # noqa: PLC0415
    from batch_pipeline.services.progress.waiting import what_it_waits_for  # noqa: PLC0415
    from batch_pipeline.services.reports.batch_status import newest_batches  # noqa: PLC0415

    if batch is None:
        if failed:
            raise click.UsageError(
                "--failed is for one batch; over all batches: batch-pipeline failures"
            )
        batches = newest_batches(session.pipeline.database, limit=limit, offset=limit * (page - 1))
        if as_json:
            _print_json(batches)
        elif batches:
            session.console.print(terminal.batches_table(batches))
        else:
            click.echo("No batches. Submit one:  batch-pipeline submit FOLDER")
        return
    found = _status(session, batch)
    if failed:
        found["uploads"] = [
            upload for upload in found["uploads"] if upload["processing_status"] == "failed"
        ]
    if as_json:
        _print_json(found)
        return
    session.console.print(terminal.batch_table(found))
    working = {upload["processing_status"] for upload in found["uploads"]} & {*IN_WORK}
    if found["status"] in OPEN_BATCH and not working:
        reason = what_it_waits_for(session.pipeline.database, session.settings, batch)
        session.console.print(terminal.literal(reason), style="yellow")
    session.console.print()
    if found["uploads"] or not failed:
        session.console.print(terminal.uploads_table(found["uploads"]))
    else:
        click.echo("No upload failed.")


@main.command()
@click.option("--user", type=USER, help="Only calls for this user.")
@json_option
@click.pass_obj
def costs(session: Session, user: uuid.UUID | None, as_json: bool) -> None:
    """Show the cost of model calls by user and model: calls, tokens, seconds.

    \b
    Examples:
      batch-pipeline costs
      batch-pipeline costs --json | jq 'map(.tokens_in) | add'
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.model_costs import costs_by_user  # noqa: PLC0415

    spent = costs_by_user(session.pipeline.database, user)
    if as_json:
        _print_json([{"user_id": of.user_id, **asdict(of.cost)} for of in spent])
    elif spent:
        session.console.print(terminal.costs_table(spent))
    else:
        click.echo("No model server was called yet.")


@main.command("failures")
@click.option(
    "--since",
    type=SINCE,
    help="Failed from then on: 24h, 7d, 2026-05-17. 24h unless set; with --batch: ever.",
)
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only of this error kind.")
@click.option("--user", type=USER, help="Only uploads of this user.")
@click.option("--batch", type=BATCH, help="Only uploads of this batch.")
@click.option(
    "--limit",
    type=click.IntRange(0, 10_000),
    default=5,
    show_default=True,
    help="Uploads to list of each kind, the newest.",
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
    """Show failed uploads of all batches by kind of error, with advice.

    Uploads that wait because a service is down are shown too; they continue by themselves.

    \b
    Examples:
      batch-pipeline failures
      batch-pipeline failures --since 7d --kind truncated --limit 100
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.reports.failures import FailureFilter, failures  # noqa: PLC0415

    _require_known_kinds(kinds)
    if since is None and batch is None:
        since = SINCE.convert("24h", None, None)
    chosen = FailureFilter(since, kinds, user, batch)
    found = failures(session.pipeline.database, chosen, shown=limit)
    if as_json:
        _print_json({"since": since, **asdict(found)})
        return
    for line in terminal.failure_lines(found, since):
        session.console.print(line)


def _require_known_kinds(kinds: Sequence[str]) -> None:
    """Refuse a kind that is none, naming those that look like it."""
    from difflib import get_close_matches  # noqa: PLC0415

    from batch_pipeline.services.error_kinds import BY_NAME  # noqa: PLC0415
    from batch_pipeline.services.reports.failures import UNKNOWN  # noqa: PLC0415

    known = [*BY_NAME, UNKNOWN]
    for kind in kinds:
        if kind not in known:
            near = get_close_matches(kind, known)
            meant = f"did you mean {' or '.join(near)}?" if near else "docs/troubleshooting.md"
            raise click.BadParameter(f"there is no kind {kind!r}: {meant}", param_hint="'--kind'")


@main.command()
@click.argument("batch", type=BATCH)
@json_option
@click.pass_obj
def watch(session: Session, batch: uuid.UUID, as_json: bool) -> None:
    """Follow a batch until it ends; --json prints a line per change.

    \b
    Example:
      batch-pipeline watch 3f2a…
    """
    from batch_pipeline.services.progress.batch_watch import watch_batch  # noqa: PLC0415

    if not as_json:
        sys.exit(FINISHED_WITH_FAILURES if _follow(session, batch) else OK)
    session.when_stopped = f"Stopped watching; the batch goes on: batch-pipeline watch {batch}"
    progress = None
    for snapshot in watch_batch(session.pipeline.database, batch):
        if snapshot.progress != progress:
            click.echo(json.dumps(snapshot.progress.payload()))
        progress = snapshot.progress
    sys.exit(FINISHED_WITH_FAILURES if progress is None or _went_wrong(progress) else OK)


@main.command()
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
    """Write a report about a batch as one self-contained HTML page.

    It has a contact sheet, descriptions, failures with their reasons, and the time of each stage.

    \b
    Example:
      batch-pipeline report 3f2a… --html holiday.html
    """
    from batch_pipeline.services.reports.pages import write_whole  # noqa: PLC0415
    from batch_pipeline.services.reports.report_page import (  # noqa: PLC0415
        batch_report,
        render_html,
    )

    pipeline = session.pipeline
    found = batch_report(pipeline.database, pipeline.storage, batch)
    page = render_html(found)
    write_whole(file, page)
    size = len(page.encode())
    if as_json:
        _print_json({"batch_id": batch, "file": file, "bytes": size, "uploads": len(found.cards)})
    else:
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
        click.echo(f"{file}: {_counted(len(found.cards), 'upload')}, {shown}")


@main.command()
@click.argument("batch", type=BATCH, required=False)
@click.option("--upload", "uploads", type=UPLOAD, multiple=True, help="Only this upload.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only of this error kind.")
@click.option("--all-retryable", is_flag=True, help="Skip those that would fail again.")
@click.option("--since", type=SINCE, help="Only failed from then on: 24h, 7d, 2026-05-17.")
@click.option("--user", type=USER, help="Only uploads of this user.")
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
    dry_run: bool,
    as_json: bool,
) -> None:
    """Process failed uploads again, of one batch or of all; reopens a cancelled BATCH.

    Says first which of them will fail in the same way until you fix the cause.

    \b
    Examples:
      batch-pipeline retry 3f2a…
      batch-pipeline retry --all-retryable --since 24h --dry-run
      batch-pipeline retry --kind source_missing
    """
    from batch_pipeline.services.retrying import FailedSelection, failed_uploads  # noqa: PLC0415

    _require_known_kinds(kinds)
    chosen = FailedSelection(since, kinds, user, batch, uploads, all_retryable)
    if batch is None and not (chosen.chooses or uploads):
        raise click.UsageError(
            "say which: a BATCH, --all-retryable, --kind, --since, --user or --upload"
        )
    pipeline = session.pipeline
    found = failed_uploads(pipeline.database, chosen)
    if not as_json:
        _say_what_is_retried(found, dry_run=dry_run)
    reopened = []
    if not dry_run:
        # All of a batch is asked for as such: one without a failed upload may be reopened.
        whole = batch is not None and not chosen.chooses
        by_batch = {batch: list(uploads)} if whole and batch else found.by_batch
        reopened = [
            (count, progress)
            for one, ids in by_batch.items()
            for count, progress in [pipeline.batches.retry_batch(one, ids) or _no_batch(one)]
        ]
    if as_json:
        listed = [progress.payload() | {"reopened": count} for count, progress in reopened]
        told = {"dry_run": dry_run, "chosen": found.count, "same_again": found.same_again}
        if batch is not None and listed:
            _print_json(listed[0] | told)
        else:
            total = sum(count for count, _ in reopened)
            _print_json(told | {"reopened": total, "batches": listed})
        return
    opened = [(n, one) for n, one in reopened if n or one.status != "completed"]
    for count, progress in opened:
        uploads_opened = _counted(count, "upload")
        click.echo(f"{uploads_opened} to work again; the batch is {progress.status}.")
        click.echo(f"Follow it:  batch-pipeline watch {progress.batch_id}")
    if not opened and not (dry_run and found.count):
        narrowed = uploads or chosen.chooses
        which = "none of these is a failed upload" if narrowed else "no upload failed"
        click.echo(f"Nothing to work again: {which}.")


def _no_batch(batch: uuid.UUID) -> "tuple[int, BatchProgress]":
    raise NotFoundError(f"there is no batch {batch}")


def _say_what_is_retried(found: "FailedUploads", *, dry_run: bool) -> None:
    """Say what was chosen, if no more than that is done, and for what of it a retry is no help."""
    if dry_run and found.count:
        where = _counted(len(found.by_batch), "batch", "batches")
        click.echo(f"{_counted(found.count, 'upload')} in {where} would be worked again.")
    if found.same_again:
        kinds = ", ".join(f"{kind} {count}" for kind, count in found.same_again.items())
        click.echo(
            f"{sum(found.same_again.values())} of {found.count} will fail the same way again, "
            f"unless the cause is fixed: {kinds}.\n"
            "What to do about each:  batch-pipeline failures --since 7d\n"
            "Retry all but these:    batch-pipeline retry --all-retryable"
        )


@main.command()
@click.option(
    "--stage",
    type=click.Choice(["thumbnail", "description", "embedding"]),
    required=True,
    help="What to redo; a new description gets a new embedding too.",
)
@click.option("--batch", "batches", type=BATCH, multiple=True, help="Only this batch.")
@click.option("--upload", "uploads", type=UPLOAD, multiple=True, help="Only this upload.")
@click.option("--model-not", metavar="MODEL", help="Only results of other models than this one.")
@click.option(
    "--stale",
    is_flag=True,
    help="Only results of former models, prompts or options.",
)
@click.option("--model", metavar="MODEL", help="Only results of this model.")
@click.option("--kind", type=click.Choice(["image", "video"]), help="Only images, or videos.")
@click.option("--since", type=SINCE, help="Only uploaded from then on: 24h, 7d, 2026-05-17.")
@click.option("--user", type=USER, help="Only uploads of this user.")
@click.option("--dry-run", is_flag=True, help="Only show what would be redone.")
@json_option
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
    as_json: bool,
) -> None:
    """Redo one stage of completed uploads, after a change of model or prompt.

    The other stages are not repeated. Old results stay until the new ones are stored.

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
    if dry_run:
        chosen = count_selected(pipeline.database, selection)
        total = sum(chosen.values())
        if as_json:
            of = [{"batch_id": one, "uploads": count} for one, count in chosen.items()]
            _print_json({"dry_run": True, "stage": stage, "chosen": total, "batches": of})
        else:
            where = _counted(len(chosen), "batch", "batches")
            click.echo(f"{_counted(total, 'upload')} in {where} would be redone ({stage}).")
        return
    reopened = redo(pipeline.database, pipeline.batches, selection)
    count = sum(batch.uploads for batch in reopened)
    if as_json:
        listed = [batch.progress.payload() | {"reopened": batch.uploads} for batch in reopened]
        _print_json({"stage": stage, "reopened": count, "batches": listed})
        return
    where = f"{_counted(count, 'upload')} in {_counted(len(reopened), 'batch', 'batches')}"
    click.echo(f"{where} to work again, for the {stage}.")
    for batch in reopened:
        click.echo(f"Follow it:  batch-pipeline watch {batch.progress.batch_id}")


@main.command()
@click.argument("batch", type=BATCH, required=False)
@click.option("--user", type=USER, help="Instead of BATCH: all open batches of this user.")
@click.option("--since", type=SINCE, help="Instead of BATCH: all submitted since then, e.g. 2h.")
@click.option("--dry-run", is_flag=True, help="Only show what would be stopped.")
@json_option
@click.pass_obj
def cancel(  # noqa: PLR0917 - click passes them by name
    session: Session,
    batch: uuid.UUID | None,
    user: uuid.UUID | None,
    since: "datetime | None",
    dry_run: bool,
    as_json: bool,
) -> None:
    """Stop one or more batches; stored results stay, `retry` reopens a batch.

    \b
    Examples:
      batch-pipeline cancel 3f2a…
      batch-pipeline cancel --user 5a0f… --since 2h --dry-run
    """
    from batch_pipeline.database.models import OPEN_BATCH  # noqa: PLC0415
    from batch_pipeline.services.reports.batch_status import (  # noqa: PLC0415
        batch_progress,
        open_batches,
    )

    if (batch is None) == (user is None and since is None):
        raise click.UsageError("say which: a BATCH, or --user, --since or both")
    pipeline = session.pipeline
    named = [batch] if batch else open_batches(pipeline.database, user_id=user, since=since)
    done = []
    for one in named:
        if dry_run:
            progress = batch_progress(pipeline.database, one)
            if progress and progress.status not in OPEN_BATCH:
                progress = None
        else:
            progress = pipeline.batches.cancel_batch(one)
        if progress is not None:
            done.append(progress)
        elif batch:  # of many, one that has ended meanwhile needs no word
            found = _status(session, one)
            raise RefusedError(f"batch {one} is {found['status']}: only open batches are cancelled")
    if as_json:
        shapes = [progress.payload() for progress in done]
        _print_json(shapes[0] if batch and not dry_run else {"dry_run": dry_run, "batches": shapes})
    elif batch and not dry_run:
        click.echo(f"Cancelled after {done[0].processed} of {done[0].total} uploads.")
    else:
        for progress in done:
            left = _counted(progress.total - progress.processed, "upload")
            what = "would be cancelled" if dry_run else "cancelled"
            click.echo(f"Batch {progress.batch_id} {what}, {left} left")
        if not done:
            click.echo("No open batch was chosen.")


@main.command()
@click.argument("text", default="")
@click.option("--like", type=UPLOAD, help="Instead of TEXT: find uploads similar to this one.")
@click.option("--user", type=USER, help="Only uploads of this user.")
@click.option("--batch", type=BATCH, help="Only uploads of this batch.")
@click.option("--kind", type=click.Choice(["image", "video"]), help="Only images, or videos.")
@click.option("--format", "file_format", metavar="FORMAT", help="Only of this format: jpeg, mp4, …")
@click.option("--camera", metavar="NAME", help="Only from cameras with this in their name.")
@click.option(
    "--since", metavar="DATE", help="Taken (else uploaded) from then on: 2024, 2024-05, 2024-05-17."
)
@click.option("--until", metavar="DATE", help="Taken (else uploaded) up to the end of then.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Only with this tag; repeatable.")
@click.option("--has-text", is_flag=True, help="Only pictures with readable text.")
@click.option("--model", metavar="MODEL", help="Only uploads that this vision model described.")
@click.option(
    "--least", type=float, metavar="SIMILARITY", help="Only results at least this similar."
)
@click.option("--copies", is_flag=True, help="Show every upload of the same file, not only one.")
@click.option("--limit", type=int, default=10, show_default=True, help="Most results to show.")
@click.option("--after", metavar="CURSOR", help="Continue after this `cursor` (see --json).")
@click.option(
    "--html",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with pictures; an existing file is replaced.",
)
@click.option("--open", "opens", is_flag=True, help="Open the page of --html in the browser.")
@json_option
@click.pass_obj
def search(  # noqa: PLR0917 - click passes them by name
    session: Session,
    text: str,
    like: uuid.UUID | None,
    user: uuid.UUID | None,
    batch: uuid.UUID | None,
    kind: str | None,
    file_format: str | None,
    camera: str | None,
    since: str | None,
    until: str | None,
    tags: tuple[str, ...],
    has_text: bool,
    model: str | None,
    least: float | None,
    copies: bool,
    limit: int,
    after: str | None,
    file: Path | None,
    opens: bool,
    as_json: bool,
) -> None:
    """Find uploads by meaning, words or file name, in several languages.

    Exact file names and quoted phrases come first. Files with the same content are shown once.
    Uncertain results are marked as weak.

    \b
    Examples:
      batch-pipeline search "dog on a beach" --limit 3
      batch-pipeline search IMG_2041.jpg
      batch-pipeline search boats --since 2024-05 --html boats.html --open
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.search import search as find  # noqa: PLC0415
    from batch_pipeline.services.search_filters import Filters  # noqa: PLC0415

    if opens and file is None:
        raise click.UsageError("--open shows a page: say with --html where to write it.")
    pipeline = session.pipeline
    filters = Filters(
        user, batch, kind, file_format, camera, since, until, has_text, model, least, tags
    )
    found = find(
        pipeline.database,
        pipeline.analyzer.embedding,
        text,
        like=like,
        filters=filters,
        limit=limit,
        after=after,
        location=session.settings.storage_location,
        copies=copies,
    )
    if file is not None:
        _write_search_page(session, file, text or f"like {like}", found)
        if opens:
            click.launch(str(file))
    if as_json:
        _print_json([asdict(result) for result in found])
    elif file is not None:
        click.echo(f"{file}: {_counted(len(found), 'upload')}")
    elif found:
        session.console.print(terminal.search_table(found))
    elif filters == Filters(user_id=user) and after is None:
        whose = f" of user {user}" if user else ""
        click.echo(f"No upload{whose} is completed yet. Follow what is:  batch-pipeline status")
    else:
        click.echo("Nothing found." if after is None else "Nothing more.")


@main.command()
@click.option("--quick", is_flag=True, help="Do not send a question to the models.")
@click.option(
    "--longest-wait",
    type=LENGTH,
    default="6h",
    show_default=True,
    help="Fail if an upload has waited longer than this.",
)
@json_option
@click.pass_obj
def doctor(session: Session, quick: bool, longest_wait: "timedelta", as_json: bool) -> None:
    """Check database, storage, Dagster and model servers, with advice.

    Each model gets one real question: the colour of a red square, or which of three texts are
    similar.

    \b
    Examples:
      batch-pipeline doctor
      batch-pipeline doctor --quick
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.orchestration.instance_health import check_dagster  # noqa: PLC0415
    from batch_pipeline.services.health import check_health  # noqa: PLC0415

    checks = [
        *check_health(session.settings, quick=quick, longest_wait=longest_wait),
        *check_dagster(session.settings),
    ]
    if as_json:
        _print_json([asdict(check) for check in checks])
    else:
        session.console.print(terminal.health_table(checks))
    sys.exit(OK if all(check.ok for check in checks) else FINISHED_WITH_FAILURES)


@main.command()
@click.argument("part", type=click.Choice(["code-server", "daemon"]))
@click.option("--host", default="localhost", show_default=True, help="Host of the code server.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=4000,
    show_default=True,
    help="Port of the code server.",
)
@json_option
@click.pass_obj
def alive(session: Session, part: str, host: str, port: int, as_json: bool) -> None:
    """Check that a part of Dagster is alive (health check of containers); exit code 2 if not.

    \b
    Examples:
      batch-pipeline alive code-server --port 4000
      batch-pipeline alive daemon
    """
    from batch_pipeline.services.liveness import check_code_server, check_daemon  # noqa: PLC0415

    is_daemon = part == "daemon"
    if is_daemon:
        session.require_home()
    said = check_daemon(session.settings) if is_daemon else check_code_server(host, port)
    if as_json:
        _print_json({"part": part, "alive": True, "detail": said})
    else:
        click.echo(said)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write the thumbnail and the frames to.",
)
@json_option
@click.pass_obj
def inspect(session: Session, files: Sequence[Path], output: Path | None, as_json: bool) -> None:
    """Show what the pipeline sees in files; nothing is stored.

    It shows type, facts, date with its source, warnings and the time of each stage.

    \b
    Examples:
      batch-pipeline inspect IMG_1234.HEIC
      batch-pipeline inspect clip.mov --output seen/
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.inspection import inspect_file  # noqa: PLC0415

    all_seen = [inspect_file(path, session.settings, output) for path in files]
    if as_json:
        _print_json([seen.shape() for seen in all_seen])
    else:
        for seen in all_seen:
            session.console.print(terminal.inspection_table(seen))
    failed = any(seen.error_kind for seen in all_seen)
    sys.exit(FINISHED_WITH_FAILURES if failed else OK)


@main.command()
@click.option("--show", is_flag=True, help="Print the prompts and their placeholders.")
@click.option(
    "--try",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Print the vision model's answer for a file; nothing is stored.",
)
@json_option
@click.pass_obj
def prompt(session: Session, show: bool, files: Sequence[Path], as_json: bool) -> None:
    """Show the prompts for vision models, and try them on files.

    \b
    Examples:
      batch-pipeline prompt --show
      batch-pipeline prompt --try IMG_1234.HEIC
    """
    from batch_pipeline.services.prompt_trial import shown_prompts, try_prompt  # noqa: PLC0415
    from batch_pipeline.visible_text import visible  # noqa: PLC0415

    if show == bool(files):
        raise click.UsageError("give one of --show and --try FILE.")
    if show:
        shown = shown_prompts(session.settings)
        if as_json:
            _print_json(shown)
            return
        click.echo(f"Descriptions are written in {shown['language_name']}.")
        for each in shown["prompts"]:
            click.echo(f"\n{each['name']}.txt, {each['file'] or 'ours'}:\n")
            click.echo(each["text"])
            click.echo("\nMay stand in it:")
            for name, meaning in each["placeholders"].items():
                click.echo(f"  {'{' + name + '}':<12}  {meaning}")
        return
    vision = session.pipeline.analyzer.vision
    trials = [try_prompt(file, session.settings, vision) for file in files]
    if as_json:
        _print_json([trial.shape() for trial in trials])
    else:
        for trial in trials:
            usage = trial.usage
            tokens = f", {usage.tokens_in:,} tokens in, {usage.tokens_out:,} out"
            took = f", {usage.seconds:.1f} s{tokens}" if usage.calls else ""
            click.echo(f"{visible(trial.file)}, {trial.model}, score {trial.audit.score}{took}\n")
            click.echo(visible(trial.description.text))
            if trial.description.tags:
                click.echo(f"\nTags: {visible(', '.join(trial.description.tags))}")
            if trial.description.visible_text:
                click.echo(f"\nText in it: {visible(trial.description.visible_text)}")
            if trial.audit.reasons:
                click.echo(f"\nThe audit: {visible(trial.audit.reasons)}")
            click.echo()
    passed = all(trial.audit.passed for trial in trials)
    sys.exit(OK if passed else FINISHED_WITH_FAILURES)


@main.command()
@click.option(
    "--serve",
    "port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Keep running and serve http://HOST:PORT/metrics.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address that --serve binds to."
)
@json_option
@click.pass_obj
def metrics(session: Session, port: int | None, host: str, as_json: bool) -> None:
    """Print metrics for Prometheus: uploads by state, waiting times, stage times, errors.

    \b
    Examples:
      batch-pipeline metrics
      batch-pipeline metrics --serve 9464
    """
    from prometheus_client import generate_latest, start_http_server  # noqa: PLC0415

    from batch_pipeline.services.reports.metrics import metrics_registry, read_metrics  # noqa: PLC0415

    database = session.pipeline.database
    if port is not None:
        session.when_stopped = "Stopped serving metrics."
        try:
            server, thread = start_http_server(port, host, metrics_registry(database))
        except OSError as error:
            raise RefusedError(f"nobody can listen at {host}:{port}: {error.strerror}") from error
        if not as_json:
            session.report(f"Metrics are at http://{host}:{port}/metrics; Ctrl-C stops.")
        try:
            thread.join()
        finally:
            server.shutdown()
    elif as_json:
        _print_json([sample._asdict() for sample in read_metrics(database)])
    else:
        click.echo(generate_latest(metrics_registry(database)).decode(), nl=False)


@main.command()
@click.option("--exit", "exit_after", is_flag=True, help="Stop when the batch has ended.")
@click.option(
    "--media",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to submit instead of the sample files.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port of the UI; by default a free one."
)
@json_option
@click.pass_obj
def demo(
    session: Session, exit_after: bool, media: Path | None, port: int | None, as_json: bool
) -> None:
    """Start everything, process the sample files and search them; stay up.

    \b
    Examples:
      batch-pipeline demo
      batch-pipeline demo --exit
    """
    from batch_pipeline import demo as stack_runner  # noqa: PLC0415
    from batch_pipeline.services.batch_intake import submit as submit_files  # noqa: PLC0415
    from batch_pipeline.services.search import search as find  # noqa: PLC0415

    files = [media] if media else stack_runner.sample_media()
    pipeline = session.new_pipeline
    say: Callable[[str], None] = (lambda _: None) if as_json else click.echo
    session.when_stopped = "Stopped. What is not done yet is done at the next start."
    say("Starting Dagster …")
    with stack_runner.running_stack(session.settings, port=port) as stack:
        say(f"The UI is at {stack.url}\n")
        submission = submit_files(
            files,
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=session.settings,
        )
        if submission.batch_id is None:
            raise RefusedError(f"{media or 'the sample folder'} holds no photo or video")
        if not as_json:
            _print_submission(submission)
        _follow(session, submission.batch_id, quiet=as_json, timeout_seconds=600)
        found = _status(session, submission.batch_id)
        question = "bright blue landscape"
        results = find(pipeline.database, pipeline.analyzer.embedding, question, limit=3)
        if as_json:
            _print_json(
                {"ui": stack.url, "status": found, "search": [asdict(hit) for hit in results]}
            )
        else:
            _print_demo_result(session, found, question, results)
        if not exit_after:
            say(f"\nSee it in Dagster: {stack.url}/runs")
            _wait_for_interrupt(
                lambda: say(
                    "\nThe stack stays up; Ctrl-C stops it. Everything is kept for the next start."
                )
            )
            say("\nStopping …")
    if exit_after:
        say("\nStopped. To see it in Dagster: `make demo` in a terminal, or `make dev`.")
    as_expected = found["status"] == "completed" and results
    sys.exit(OK if as_expected else FINISHED_WITH_FAILURES)


@main.command()
@click.option("--dry-run", is_flag=True, help="Only list the files that would be removed.")
@click.option(
    "--force",
    is_flag=True,
    help="Remove even a large share of all files; use --dry-run first.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Own the storage from now on; of two databases on one storage only the owner tidies.",
)
@json_option
@click.pass_obj
def tidy(session: Session, dry_run: bool, force: bool, take_over: bool, as_json: bool) -> None:
    """Remove leftover files that are provably ours; Dagster does it once an hour.

    These are originals of submissions that never became a batch, thumbnails of deleted uploads,
    and partial files of a crash, all older than a day. Files of others on the storage and
    originals of a batch are never touched.

    \b
    Examples:
      batch-pipeline tidy --dry-run
      batch-pipeline tidy --dry-run --json | jq -r '.files[].path'
    """
    from batch_pipeline.services.leftovers import remove_leftovers  # noqa: PLC0415

    if dry_run and take_over:
        raise click.UsageError("--take-over changes something, --dry-run does not")
    pipeline = session.pipeline
    if take_over:
        pipeline.ownership.take_over()
    found = remove_leftovers(
        pipeline.database,
        pipeline.storage,
        pipeline.ownership,
        dry_run=dry_run,
        force=force,
    )
    kept = found.kept_because
    if as_json:
        _print_json(
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
        elif dry_run and not found.is_owner:
            click.echo(f"Nothing would be removed: {kept}.")
        elif dry_run:
            click.echo(f"{_counted(len(found.files), 'file')} would be removed.")
        else:
            click.echo(f"{_counted(found.removed, 'file')} removed.")
    sys.exit(FINISHED_WITH_FAILURES if kept and not dry_run else OK)


@main.group()
def delete() -> None:
    """Delete an upload, a batch or a user, with everything that is kept.

    Deleted are rows, vectors, files, and what Dagster keeps: runs, events, logs. If it is
    interrupted, the same command completes it.

    \b
    Examples:
      batch-pipeline delete batch 3f2a… --dry-run
      batch-pipeline delete user 5a0f…
    """


def _delete_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all kinds of deletion have."""
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
    """Delete one upload; its batch is counted and reported anew.

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
    """Delete a batch with its uploads; one in work must be cancelled first.

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
    """Delete all batches and uploads of a user; `export` them first.

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
    from batch_pipeline.services.forgetting import forget  # noqa: PLC0415
    from batch_pipeline.services.short_ids import Named  # noqa: PLC0415
    from batch_pipeline.terminal import receipt_lines  # noqa: PLC0415

    session.when_stopped = f"Stopped. Complete it:  batch-pipeline delete {what} {id_}"
    with opened_history(session.pipeline) as history:
        run = partial(forget, session.pipeline, history, Named(what), id_, originals=originals)
        if not (dry_run or yes):
            if not sys.stdin.isatty():
                raise RefusedError("nobody can be asked here: say --yes, or --dry-run to count")
            for line in receipt_lines(run(dry_run=True)):
                click.echo(line, err=True)
            if not click.confirm("This cannot be undone. Delete?", err=True):
                raise RefusedError("nothing was deleted")
        receipt = run(dry_run=dry_run)
    if as_json:
        _print_json(receipt.shape())
        return
    for line in receipt_lines(receipt):
        click.echo(line)


@main.command()
@click.argument("user", type=USER)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--originals", is_flag=True, help="Include the submitted files.")
@json_option
@click.pass_obj
def export(session: Session, user: uuid.UUID, folder: Path, originals: bool, as_json: bool) -> None:
    """Write everything stored about a user to a new folder.

    It has JSON Lines of batches, uploads and model calls, and the thumbnails.

    \b
    Examples:
      batch-pipeline export 5a0f… about-me/
      batch-pipeline export 5a0f… about-me/ --originals
    """
    from batch_pipeline.services.export import export_user  # noqa: PLC0415

    pipeline = session.pipeline
    done = export_user(pipeline.database, pipeline.storage, user, folder, originals=originals)
    if as_json:
        _print_json(asdict(done))
        return
    for path in done.missing:
        click.echo(f"missing    {path}: a row names it, the storage does not hold it", err=True)
    files = _counted(done.thumbnails + done.originals, "file")
    batches = _counted(done.batches, "batch", "batches")
    click.echo(f"{folder}: {batches}, {_counted(done.uploads, 'upload')}, {files}")


@main.group()
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
    database.upgrade()
    after, _ = database.revisions()
    if as_json:
        _print_json({"before": before, "after": after})
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
            "BATCH_PIPELINE_DATABASE_URL names a server of its own, which is not ours to stop"
        )
    ran = stop_server(session.settings.home, although_used=force)
    if as_json:
        _print_json({"stopped": ran})
    else:
        click.echo("Stopped." if ran else "It did not run.")


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

    The file has our tables, the history of runs, and the stored files.

    \b
    Examples:
      batch-pipeline db backup monday.tar
      batch-pipeline db backup monday.tar --no-files
    """
    from batch_pipeline.services.backup import back_up  # noqa: PLC0415
    from batch_pipeline.storage import Storage  # noqa: PLC0415

    session.require_home()
    if with_files is None:
        with_files = Storage(session.settings.storage_location).is_local
    done = back_up(session.settings, file, with_files=with_files)
    if as_json:
        _print_json(asdict(done))
        return
    for path in done.missing:
        click.echo(f"missing    {path}: a row names it, the storage does not hold it", err=True)
    runs = "the history of runs" if done.dagster else "no history of runs"
    click.echo(f"{file}: our tables, {runs}, {_counted(done.files, 'file')}")
    if not with_files:
        click.echo(f"The files are not in it; copy them now: {done.storage}")


@db.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Restore even if the database already has batches.")
@json_option
@click.pass_obj
def restore(session: Session, file: Path, replace: bool, as_json: bool) -> None:
    """Restore a backup into an empty database; stop Dagster first.

    Existing files are not overwritten.

    \b
    Example:
      batch-pipeline db restore monday.tar
    """
    from batch_pipeline.services.backup import restore as put_back  # noqa: PLC0415

    session.say_if_home_is_new()
    done = put_back(session.settings, file, replace=replace)
    if as_json:
        _print_json(asdict(done))
        return
    kept = f", {done.kept} were there already" if done.kept else ""
    click.echo(f"Restored as of {done.backup.made_at}: {_counted(done.files, 'file')}{kept}.")
    if not done.is_owner:
        click.echo(
            "Another database owns the storage, so nothing is tidied there. If it is gone: "
            "batch-pipeline tidy --take-over"
        )


def _follow(
    session: Session,
    batch_id: uuid.UUID,
    *,
    quiet: bool = False,
    timeout_seconds: float | None = None,
) -> bool:
    """Show a batch until it ends; true if not everything went well."""
    from batch_pipeline.services.progress.batch_watch import watch_batch  # noqa: PLC0415
    from batch_pipeline.services.progress.waiting import what_it_waits_for  # noqa: PLC0415
    from batch_pipeline.terminal import BatchView  # noqa: PLC0415

    if timeout_seconds is None:
        session.when_stopped = (
            f"Stopped watching; the batch goes on: batch-pipeline watch {batch_id}"
        )
    snapshots = watch_batch(session.pipeline.database, batch_id, timeout_seconds=timeout_seconds)
    if quiet:
        *_, last = snapshots
    else:
        why_idle = partial(what_it_waits_for, session.pipeline.database, session.settings, batch_id)
        last = BatchView(session.console, why_idle).follow(snapshots)
        if last.progress.failed and timeout_seconds is None:  # the demo goes on to show them
            click.echo(f"See why:    batch-pipeline status {batch_id}")
            click.echo(f"Try again:  batch-pipeline retry {batch_id}")
    return _went_wrong(last.progress)


def _went_wrong(progress: "BatchProgress") -> bool:
    return progress.failed > 0 or progress.status != "completed"


def _status(session: Session, batch_id: uuid.UUID) -> dict[str, Any]:
    from batch_pipeline.services.reports.batch_status import batch_status  # noqa: PLC0415

    return batch_status(session.pipeline.database, batch_id)


def _submission_shape(submission: "Submission") -> dict[str, Any]:
    return {
        "batch_id": submission.batch_id,
        "total_files": submission.total_files,
        "queued": len(submission.upload_ids),
        "failed": len(submission.refused),
        "upload_ids": submission.upload_ids,
        "failed_files": [asdict(file) for file in submission.refused],
    }


def _print_submission(submission: "Submission") -> None:
    from batch_pipeline.terminal import literal  # noqa: PLC0415

    for suffix, count in sorted(submission.left_out.items()):
        click.echo(f"{_counted(count, f'{suffix} file')} left out", err=True)
    for file in submission.refused:
        click.echo(f"refused    {literal(file.filename)}: {literal(file.error)}", err=True)
    if submission.batch_id is None:
        seen = submission.refused or submission.left_out
        what = "no file was accepted" if seen else "no file was found"
        click.echo(f"Error: {what}; there is no batch", err=True)
    else:
        queued = _counted(len(submission.upload_ids), "file")
        name = f" {literal(submission.name)}" if submission.name else ""
        click.echo(f"Batch {submission.batch_id}{name}: {queued} queued")


def _write_search_page(
    session: Session, file: Path, asked: str, found: "Sequence[SearchResult]"
) -> None:
    from batch_pipeline.services.reports.pages import write_whole  # noqa: PLC0415
    from batch_pipeline.services.reports.search_page import search_page  # noqa: PLC0415

    write_whole(file, search_page(session.pipeline.storage, asked, found))


def _print_demo_result(
    session: Session, found: dict[str, Any], question: str, results: Sequence[Any]
) -> None:
    from batch_pipeline import terminal  # noqa: PLC0415

    console = session.console
    console.print()
    console.print(terminal.uploads_table(found["uploads"]))
    console.print(f'\nbatch-pipeline search "{question}"', style="bold", highlight=False)
    console.print(terminal.search_table(results))


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, default=_json_value, indent=2))


def _json_value(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _wait_for_interrupt(announce: Callable[[], None]) -> None:
    """Wait for Ctrl-C, which may come as soon as it is announced."""
    import contextlib  # noqa: PLC0415

    with contextlib.suppress(KeyboardInterrupt):
        announce()
        signal.pause()
