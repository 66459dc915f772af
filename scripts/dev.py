"""`make dev`: runs Dagster with the home of this clone, where its history and logs are kept.

It prints only warnings. Arguments go to ``dg dev``; ``--log-level info`` shows every tick.
"""

import logging
import os
import sys
from itertools import pairwise

from batch_pipeline.cli.session import REFUSED
from batch_pipeline.database.session import open_database
from batch_pipeline.demo import dagster_environment, hold_home, require_free
from batch_pipeline.errors import PipelineError
from batch_pipeline.orchestration.dagster_storage.instance_storage import dagster_storage_url
from batch_pipeline.settings import load_settings

#: With a module, `dg` does not expect that the environment of the clone is active.
OPTIONS = ("--log-level", "warning", "-m", "batch_pipeline.definitions")


def main(arguments: list[str]) -> None:
    """Run `dg dev` in this process, unless another stack uses this home."""
    host = _value(arguments, "-h", "--host") or "127.0.0.1"
    port = _value(arguments, "-p", "--port") or "3000"
    try:
        settings = load_settings()
        hold_home(settings)  # until this process ends
        print(f"Everything is kept in {settings.home}", flush=True)
        # Dagster would notice these problems after half a minute: it prints a stack trace, or uses
        # another port.
        if port.isdecimal() and ":" not in host:
            require_free(int(port), host=host, advice="for example ARGS='--port 3001'")
        open_database(settings).close()
        dagster_storage_url(settings)
    except PipelineError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    print(
        f"In half a minute the UI is at http://{host}:{port} "
        "(Ctrl-C stops; ARGS='--log-level info' shows every tick)",
        flush=True,
    )
    os.environ.update(dagster_environment(settings))
    logging.getLogger("dagster").addFilter(_is_news)
    sys.argv = ["dg", "dev", *OPTIONS, *arguments]
    from dagster_dg_cli.cli import main as dg  # noqa: PLC0415 - a refusal need not wait for it

    dg()


def _is_news(record: logging.LogRecord) -> bool:
    """Return false for the warning about the clone's ``dagster.yaml``.

    That file is for a plain `dagster dev`, so it is right that it is not used here.
    """
    return not record.getMessage().startswith("Found a dagster instance configuration value")


def _value(arguments: list[str], *names: str) -> str | None:
    """Return the value of an option that is written as ``--name value`` or ``--name=value``."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for name, value in pairwise(words):
        if name in names:
            return value
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
