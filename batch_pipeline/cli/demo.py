"""The command that runs everything on sample files."""

import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batch_pipeline.cli.batches import follow, print_submission, status_of
from batch_pipeline.cli.health import wait_for_interrupt
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import FINISHED_WITH_FAILURES, OK, Session
from batch_pipeline.errors import PipelineError, RefusedError

if TYPE_CHECKING:
    from batch_pipeline.demo import Stack
    from batch_pipeline.services.progress.batch_watch import BatchSnapshot

#: With ``--exit`` there may be nobody who sees that a batch waits. The demo ends after a standstill
#: of this length (seconds): a restart of a service or the load of a model often takes minutes.
STANDSTILL_SECONDS = 600.0


@click.command()
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
    """Start everything, and process the sample files.

    It shows the progress, the results and a search. Then it runs until Ctrl-C. With --exit it stops
    with an error if the batch stands still for ten minutes.

    \b
    Examples:
      batch-pipeline demo
      batch-pipeline demo --exit
    """
    from batch_pipeline import demo as stack_runner  # noqa: PLC0415
    from batch_pipeline.services.batch_intake import examine, store  # noqa: PLC0415
    from batch_pipeline.services.search.queries import search as find  # noqa: PLC0415

    offer = examine([media] if media else stack_runner.sample_media(), session.settings)
    if not offer.accepted:
        raise RefusedError(f"{media or 'the sample folder'} holds no photo or video")
    pipeline = session.new_pipeline
    say: Callable[[str], None] = (lambda _: None) if as_json else click.echo
    session.when_stopped = "Stopped. The next start continues the work."
    with stack_runner.running_stack(
        session.settings, port=port, announce=lambda: say("Starting Dagster …")
    ) as stack:
        say(f"The UI is at {stack.url}\n")
        submission = store(
            offer,
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=session.settings,
        )
        if submission.batch_id is None:
            raise AssertionError("some files were accepted")
        if not as_json:
            print_submission(submission)
        check = _check_of(session, submission.batch_id, stack, watched=not exit_after)
        follow(session, submission.batch_id, quiet=as_json, of_demo=check)
        found = status_of(session, submission.batch_id)
        question = "bright blue landscape"
        results = find(pipeline.database, pipeline.spaces.model_of, question, limit=3)
        if as_json:
            print_json(
                {"ui": stack.url, "status": found, "search": [asdict(hit) for hit in results]}
            )
        else:
            _print_demo_result(session, found, question, results)
        if not exit_after:
            say(f"\nSee it in Dagster: {stack.url}/runs")
            wait_for_interrupt(
                lambda: say(
                    "\nThe stack stays up; Ctrl-C stops it. Everything is kept for the next start."
                )
            )
            say("\nStopping …")
    if exit_after:
        say("\nStopped. To see it in Dagster: `make demo` in a terminal, or `make dev`.")
    as_expected = found["status"] == "completed" and results
    sys.exit(OK if as_expected else FINISHED_WITH_FAILURES)


def _check_of(
    session: Session, batch_id: uuid.UUID, stack: "Stack", *, watched: bool
) -> "Callable[[BatchSnapshot], None]":
    """Return a function that raises an error for a snapshot of a batch that cannot end.

    If a person watches, they see what the batch waits for, and decide how long they wait.
    """
    from batch_pipeline.services.progress.batch_watch import Standstill  # noqa: PLC0415
    from batch_pipeline.services.progress.waiting import what_it_waits_for  # noqa: PLC0415

    standstill = Standstill()

    def check(snapshot: "BatchSnapshot") -> None:
        if snapshot.has_ended:
            return
        stack.require_alive()
        if not watched and standstill.seconds(snapshot) >= STANDSTILL_SECONDS:
            reason = what_it_waits_for(session.pipeline.database, session.settings, batch_id)
            raise PipelineError(
                f"the batch has stood still for {STANDSTILL_SECONDS / 60:g} minutes: {reason}"
            )

    return check


def _print_demo_result(
    session: Session, found: dict[str, Any], question: str, results: Sequence[Any]
) -> None:
    from batch_pipeline import terminal  # noqa: PLC0415

    console = session.console
    console.print()
    console.print(terminal.uploads_table(found["uploads"]))
    console.print(f'\nbatch-pipeline search "{question}"', style="bold", highlight=False)
    console.print(terminal.search_table(results))
