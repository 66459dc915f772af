"""Commands about embedding spaces: list them, drop one."""

from dataclasses import asdict

import click

from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import Session
from batch_pipeline.visible_text import visible_line


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def spaces(context: click.Context, as_json: bool) -> None:
    """List embedding spaces: the vectors of each embedding model.

    A new embedding model gets a new space. The old space answers searches until the new one is
    complete; then it can be dropped.

    \b
    Examples:
      batch-pipeline spaces
      batch-pipeline spaces drop 1
    """
    if context.invoked_subcommand:
        if as_json:
            raise click.UsageError("--json belongs after the command: spaces drop ID --json")
        return
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.search.embedding_spaces import key_of_settings, overview  # noqa: PLC0415

    session: Session = context.obj
    pipeline = session.pipeline
    found = overview(pipeline.database, key_of_settings(pipeline.settings))
    if as_json:
        print_json([asdict(space) for space in found])
        return
    if not found:
        click.echo("Nothing is embedded yet.")
        return
    session.console.print(terminal.spaces_table(found))
    for line in terminal.spaces_lines(found):
        click.echo(line)


@spaces.command()
@click.argument("space", type=click.IntRange(1, 2**31 - 1), metavar="ID")
@json_option
@click.pass_obj
def drop(session: Session, space: int, as_json: bool) -> None:
    """Drop a space with its vectors; refused while it answers searches.

    Descriptions stay: the vectors can be made again.

    \b
    Example:
      batch-pipeline spaces drop 1
    """
    from batch_pipeline.services.search.embedding_spaces import drop as drop_space  # noqa: PLC0415
    from batch_pipeline.services.search.embedding_spaces import key_of_settings  # noqa: PLC0415

    pipeline = session.pipeline
    dropped = drop_space(pipeline.database, space, key_of_settings(pipeline.settings))
    if as_json:
        print_json({"dropped": space, "model": dropped.key.model, "dimensions": dropped.key.width})
    else:
        click.echo(f"Dropped embedding space {space} ({visible_line(dropped.key.model)}).")
