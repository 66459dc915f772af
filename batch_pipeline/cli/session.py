"""Runs a command: opens what it needs, and turns what ends it early into words."""

import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from batch_pipeline.errors import (
    ConfigurationError,
    KindedError,
    NotFoundError,
    PipelineError,
    RefusedError,
)
from batch_pipeline.masking import masked

if TYPE_CHECKING:
    from rich.console import Console

    from batch_pipeline.services.pipeline import Pipeline
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
