"""The command line: reads arguments, calls a service, prints the result.

Exit codes: 0 ok; 1 finished with failures; 2 wrong use, or refused; 130 stopped by Ctrl-C.

Only modules that every command needs are imported here; each command imports the rest itself. So
help and completion are fast, and Ctrl-C is handled from the start.
"""

import logging

import click

from batch_pipeline.cli import (
    batches,
    database,
    deletion,
    demo,
    failures,
    health,
    inspection,
    notify,
    pauses,
    search,
    spaces,
)
from batch_pipeline.cli.session import Commands, Session

__all__ = ["main"]


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
    # Alembic and others log at INFO; commands print what a person needs to know.
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(message)s")


for _command in (
    batches.submit,
    batches.status,
    batches.show,
    batches.watch,
    batches.report,
    batches.cancel,
    pauses.pause,
    pauses.resume,
    pauses.paused,
    failures.list_failures,
    failures.retry,
    failures.reprocess,
    search.search,
    health.doctor,
    health.alive,
    health.metrics,
    health.costs,
    notify.notify,
    inspection.inspect,
    inspection.prompt,
    deletion.tidy,
    deletion.delete,
    deletion.export,
    spaces.spaces,
    database.db,
    demo.demo,
):
    main.add_command(_command)
