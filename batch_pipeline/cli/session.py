"""Runs a command: opens what it needs, and turns errors into messages, hints and exit codes."""

import errno
import io
import logging
import os
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
    PermanentError,
    PipelineError,
    RefusedError,
)
from batch_pipeline.masking import masked

if TYPE_CHECKING:
    from rich.console import Console

    from batch_pipeline.services.pipeline import Pipeline
    from batch_pipeline.settings import Settings

OK, FINISHED_WITH_FAILURES, REFUSED, STOPPED = 0, 1, 2, 130


#: What to do about an error, if its message does not say it.
_HINTS = {
    "database_down": "start the server, or correct BATCH_PIPELINE_DATABASE_URL",
    "storage_full": "make room, or set BATCH_PIPELINE_STORAGE_URL; then run the command again",
    "storage_down": "mount the storage or make it writable, or correct BATCH_PIPELINE_STORAGE_URL",
}


#: How long after a Ctrl-C any further one is ignored: longer than the demo's stack takes to stop.
_PATIENCE_SECONDS = 30.0


class Session:
    """What all commands share. The database is opened when the command first needs it."""

    def __init__(self) -> None:
        self.debug = False
        self.when_stopped = "Stopped."
        """Message after Ctrl-C; commands change it."""
        self.stopped_by: int | None = None
        """Signal that has stopped the command."""
        self.asks = False
        """Whether the command waits for an answer to `confirm`."""
        self.log: logging.Logger | None = None
        """Logger for messages of services, if log lines are for machines."""

    @cached_property
    def console(self) -> "Console":
        """Return the console for tables and progress bars."""
        from rich.console import Console  # noqa: PLC0415

        return Console()

    @cached_property
    def settings(self) -> "Settings":
        """Return the settings; they are read once."""
        from batch_pipeline.settings import LogFormat, load_settings  # noqa: PLC0415

        settings = load_settings()
        # In a terminal a person reads the messages, so they stay plain text.
        if settings.log_format is not LogFormat.TEXT and not sys.stderr.isatty():
            from batch_pipeline.logs import use_format  # noqa: PLC0415

            use_format(settings)
            self.log = logging.getLogger(__name__)
            self.log.setLevel(logging.INFO)
        return settings

    def report(self, line: str) -> None:
        """Report what a service has done: to a person, or as a log line."""
        if self.log:
            self.log.info(line)
        else:
            click.echo(line)

    def report_error(self, message: str, hint: str | None = None) -> None:
        """Report why a command ends early: to a person, or as a log line."""
        if self.log:
            self.log.error(f"{message}; {hint}" if hint else message)
        else:
            _say_error(message, hint)

    def confirm(self, question: str) -> bool:
        """Ask a person. Every Ctrl-C counts meanwhile: Python's `input` may lose the first."""
        self.asks = True
        try:
            return click.confirm(question, err=True)
        finally:
            self.asks = False

    @property
    def pipeline(self) -> "Pipeline":
        """Return the existing pipeline, opened once; for commands that only read or change data."""
        self.require_home()
        return self._opened_pipeline

    @property
    def new_pipeline(self) -> "Pipeline":
        """Return the pipeline, opened once; it is created if it does not exist."""
        self.say_if_home_is_new()
        return self._opened_pipeline

    @cached_property
    def _opened_pipeline(self) -> "Pipeline":
        from batch_pipeline.services.pipeline import Pipeline  # noqa: PLC0415

        return Pipeline(self.settings)

    def require_home(self) -> None:
        """Require an existing home, so that a command that only reads does not create a database.

        Raises:
            NotFoundError: there is no home.
        """
        from batch_pipeline.services.health.missing_home import missing_home  # noqa: PLC0415

        if said := missing_home(self.settings):
            raise NotFoundError(said)

    def say_if_home_is_new(self) -> None:
        """Print where data is kept, if the home is new."""
        home = self.settings.home
        if not home.exists() and not (self.settings.database_url and self.settings.storage_url):
            click.echo(f"New: everything is kept in {home}", err=True)


class Commands(click.Group):
    """Turns the error that ends a command early into a message, a hint and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the named command, and exit."""
        session = Session()
        _stop_once(session)
        if isinstance(sys.stdout, io.TextIOWrapper):  # "?" for unknown letters
            sys.stdout.reconfigure(errors="replace")
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
        except click.Abort:  # raised by click after Ctrl-C, on a new line
            # The interpreter removes its handlers before it ends; a second Ctrl-C would kill it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if session.log:
                session.log.info(session.when_stopped)
            else:
                click.echo(session.when_stopped, err=True)
            if (number := session.stopped_by) and number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)  # tells a supervisor what ended us
            sys.exit(STOPPED)
        except Exception as error:
            if session.debug:
                click.echo(masked(traceback.format_exc()), err=True)
            sys.exit(_explain(error, session.report_error))


def _stop_once(session: Session) -> None:
    """Let the first Ctrl-C stop the command, and ignore further ones while it cleans up.

    The command may remove files or stop a stack. If that were interrupted, some would be left. The
    same goes for SIGTERM, and for SIGHUP, when the terminal is closed.
    """
    stopped_at = -_PATIENCE_SECONDS

    def stop(number: int, _: object) -> None:
        nonlocal stopped_at
        now = time.monotonic()
        if session.asks or now - stopped_at >= _PATIENCE_SECONDS:
            stopped_at = now
            session.stopped_by = number
            raise KeyboardInterrupt

    for name, usual in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),  # Windows has none
    ):
        number = getattr(signal, name, None)
        # Otherwise whoever has started us handles or ignores it.
        if number and signal.getsignal(number) is usual:
            signal.signal(number, stop)


def _explain(error: Exception, report: Callable[..., None]) -> int:
    """Report an error, and return the exit code."""
    message = str(error).strip()
    match error:
        case ConfigurationError():
            report(message, "settings come from the environment and .env: docs/settings.md")
            return REFUSED
        case RefusedError():
            report(message)
            return REFUSED
        case PermanentError():  # `doctor` knows nothing about files
            report(message)
        case KindedError():
            doctor = "`batch-pipeline doctor` checks everything"
            hint = _HINTS.get(error.kind)
            report(message, f"{hint}; {doctor}" if hint else doctor)
        case PipelineError():
            report(message)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            what = error.filename or "the output"
            report(
                f"{what} cannot be written: {error.strerror}",
                "make room, then run the command again",
            )
            _drop_output()
        case _:
            first_line = f"{type(error).__name__}: {message}".partition("\n")[0]
            report(
                f"this should not happen: {first_line}",
                "run it again as `batch-pipeline --debug …` and report what it prints",
            )
    return FINISHED_WITH_FAILURES


def _drop_output() -> None:
    """Drop what could not be printed: the interpreter would try again, and report it once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _say_error(message: str, hint: str | None = None) -> None:
    from batch_pipeline.visible_text import visible  # noqa: PLC0415

    click.echo(f"Error: {visible(masked(message))}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
