"""Commands that pause and resume processing, and list what is paused."""

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from batch_pipeline.cli.option_rules import at_most_one
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import Session
from batch_pipeline.cli.types import BATCH, TEXT, USER
from batch_pipeline.visible_text import visible_line

if TYPE_CHECKING:
    from batch_pipeline.services.pauses import Pause


def _target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = at_most_one("--user", "--batch", "--server")(command)
    for option in (
        click.option("--server", type=TEXT, metavar="URL", help="Only calls to this model server."),
        click.option("--batch", type=BATCH, help="Only this batch."),
        click.option("--user", type=USER, help="Only the batches of this user."),
    ):
        command = option(command)
    return command


@click.command()
@_target_options
@click.option("--reason", default="", help="Reason, which is shown with the pause.")
@json_option
@click.pass_obj
def pause(  # noqa: PLR0917 - click passes them by name
    session: Session,
    user: uuid.UUID | None,
    batch: uuid.UUID | None,
    server: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Pause everything, or only a user, a batch or a model server.

    Model calls in flight finish, and their results are stored. After one second no new call begins.
    The pause lasts until `batch-pipeline resume`, even if everything is restarted.

    \b
    Examples:
      batch-pipeline pause --reason "new graphics card"
      batch-pipeline pause --batch 3f2a…
      batch-pipeline pause --server http://gpu1:11434
    """
    from batch_pipeline.services.pauses import chosen, pause  # noqa: PLC0415

    pipeline = session.pipeline
    scope, target = chosen(user, batch, server)
    paused = pause(pipeline.database, session.settings, scope, target, reason)
    if as_json:
        print_json(paused.shape())
        return
    _say([paused])
    option = {"everything": ""}.get(scope, f" --{scope} {target}")
    click.echo(f"Model calls in flight finish. To resume:  batch-pipeline resume{option}")


@click.command()
@_target_options
@json_option
@click.pass_obj
def resume(
    session: Session,
    user: uuid.UUID | None,
    batch: uuid.UUID | None,
    server: str | None,
    as_json: bool,
) -> None:
    """End a pause of everything, a user, a batch or a server.

    Without an option it ends the pause of everything. Pauses of a user, a batch or a server stay.

    \b
    Examples:
      batch-pipeline resume
      batch-pipeline resume --batch 3f2a…
    """
    from batch_pipeline.services.pauses import active_pauses, chosen, named, resume  # noqa: PLC0415

    database = session.pipeline.database
    resumed = resume(database, *chosen(user, batch, server))
    if as_json:
        print_json(resumed.shape())
        return
    click.echo(f"Resumed: {visible_line(named(resumed.scope, resumed.target, resumed.name))}")
    _say(active_pauses(database))


@click.command()
@json_option
@click.pass_obj
def paused(session: Session, as_json: bool) -> None:
    """List what is paused, with the reason and the time.

    \b
    Example:
      batch-pipeline paused
    """
    from batch_pipeline.services.pauses import active_pauses  # noqa: PLC0415

    pauses = active_pauses(session.pipeline.database)
    if as_json:
        print_json([pause.shape() for pause in pauses])
    elif pauses:
        _say(pauses)
    else:
        click.echo("Nothing is paused.")


def _say(pauses: "list[Pause]") -> None:
    from batch_pipeline.terminal import literal  # noqa: PLC0415

    for pause in pauses:
        click.echo(f"Paused: {literal(pause)}")
