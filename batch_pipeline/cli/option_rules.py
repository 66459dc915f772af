"""Rules about the options of a command: which contradict each other, and which need another one.

A rule is a decorator, directly above `click.pass_obj`. Options are named as they are typed, an
argument by its name in the help: ``BATCH``.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

_Command = Callable[..., Any]
_Decorator = Callable[[_Command], _Command]


def at_most_one(*names: str) -> _Decorator:
    """Refuse a command line with several of these options or arguments."""

    def check(given: list[str]) -> None:
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} cannot be used together")

    return _checking(names, check)


def at_least_one(*names: str) -> _Decorator:
    """Refuse a command line without one of these options or arguments."""

    def check(given: list[str]) -> None:
        if not given:
            raise click.UsageError(f"expected {', '.join(names[:-1])} or {names[-1]}")

    return _checking(names, check)


def needs(name: str, other: str, hint: str = "") -> _Decorator:
    """Refuse an option that has no effect without another one; `hint` ends the message."""

    def check(given: list[str]) -> None:
        if given == [name]:
            raise click.UsageError(f"{name} needs {other}{hint}")

    return _checking((name, other), check)


def is_given(name: str) -> bool:
    """Return whether the running command was given this option or argument."""
    context = click.get_current_context()
    [parameter] = [one for one in context.command.params if name in _names(one)]
    return context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE


def _names(parameter: click.Parameter) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [(parameter.name or "").upper()]
    return parameter.opts


def _checking(names: tuple[str, ...], check: Callable[[list[str]], None]) -> _Decorator:
    def decorate(command: _Command) -> _Command:
        @wraps(command)
        def checked(*arguments: Any, **values: Any) -> Any:
            check([name for name in names if is_given(name)])
            return command(*arguments, **values)

        return checked

    return decorate
