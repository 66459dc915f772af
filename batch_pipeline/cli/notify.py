"""The command about notifications: test the targets, list what did not arrive."""

import sys
from dataclasses import asdict

import click

from batch_pipeline.cli.option_rules import at_least_one, at_most_one
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import FINISHED_WITH_FAILURES, OK, Session
from batch_pipeline.errors import RefusedError
from batch_pipeline.visible_text import visible_line


@click.command()
@click.option("--test", is_flag=True, help="Send a test event to each target now.")
@click.option("--list", "lists", is_flag=True, help="List what has not arrived.")
@click.option("--again", is_flag=True, help="Send given-up notifications again.")
@json_option
@at_most_one("--test", "--list", "--again")
@at_least_one("--test", "--list", "--again")
@click.pass_obj
def notify(session: Session, test: bool, lists: bool, again: bool, as_json: bool) -> None:
    """Test notifications, and list those that did not arrive.

    \b
    Examples:
      batch-pipeline notify --test
      batch-pipeline notify --list
    """
    if test:
        _test(session, as_json)
    elif lists:
        _list(session, as_json)
    else:
        from batch_pipeline.services.notifications.outbox import try_again  # noqa: PLC0415
        from batch_pipeline.services.notifications.sending import targets_of  # noqa: PLC0415

        targets = [target.id for target in targets_of(session.settings)]
        count = try_again(session.pipeline.database, targets)
        if as_json:
            print_json({"again": count})
        else:
            click.echo(f"Notifications that will be sent again: {count}")


def _test(session: Session, as_json: bool) -> None:
    from batch_pipeline.services.notifications.sending import send_test  # noqa: PLC0415

    answers = send_test(session.settings)
    if not answers:
        raise RefusedError(
            "there is no target: set BATCH_PIPELINE_WEBHOOK_URLS or BATCH_PIPELINE_NOTIFY_URLS"
        )
    if as_json:
        print_json([asdict(answer) for answer in answers])
    else:
        for answer in answers:
            said = "delivered" if answer.delivered else "not delivered"
            click.echo(f"{answer.target}: {said}, {visible_line(answer.detail)}")
    sys.exit(OK if all(answer.delivered for answer in answers) else FINISHED_WITH_FAILURES)


def _list(session: Session, as_json: bool) -> None:
    from batch_pipeline.services.notifications.outbox import undelivered  # noqa: PLC0415
    from batch_pipeline.services.notifications.sending import targets_of  # noqa: PLC0415

    names = {target.id: target.name for target in targets_of(session.settings)}
    rows = [
        row._asdict() | {"target": names.get(row.target, "a target that is not set any more")}
        for row in undelivered(session.pipeline.database)
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        again = row["next_attempt_at"]
        state = f"next attempt at {again:%Y-%m-%d %H:%M:%S %Z}" if again else "given up"
        line = (
            f"{row['type']} of {row['occurred_at']:%Y-%m-%d %H:%M:%S %Z} to {row['target']}: "
            f"{state} after {row['attempts']} attempts; {row['answer'] or 'not tried yet'}"
        )
        click.echo(visible_line(line))
    if not rows:
        click.echo("No notification is waiting or was given up.")
