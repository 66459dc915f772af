"""The help of every command is complete."""

import re

import click
import pytest
from click.testing import CliRunner

from batch_pipeline.cli import main
from batch_pipeline.cli.types import Id


def commands(command, path=("batch-pipeline",)):
    yield pytest.param(path, command, id=" ".join(path))
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = list(commands(main))


def help_of(path):
    result = CliRunner().invoke(main, [*path[1:], "--help"], terminal_width=80)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_command_shows_an_example_of_itself(path, command):
    examples = re.findall(r"^ {4}(batch-pipeline .+)$", help_of(path), re.MULTILINE)
    assert any(example.startswith(" ".join(path)) for example in examples)


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_option_is_described(path, command):
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert all(option.help for option in options)


@pytest.mark.parametrize(("path", "command"), ALL)
def test_help_fits_80_columns(path, command):
    assert max(map(len, help_of(path).splitlines())) <= 80


@pytest.mark.parametrize(("path", "command"), ALL)
def test_a_list_of_commands_shows_each_description_whole(path, command):
    listed = help_of(path).partition("\nCommands:\n")[2]
    assert "..." not in listed


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_command_that_does_something_prints_json_on_request(path, command):
    if isinstance(command, click.Group):
        return
    assert "--json" in {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize(("path", "command"), ALL)
def test_wherever_an_id_is_typed_its_beginning_is_enough(path, command):
    typed = {
        parameter.name: parameter.type
        for parameter in command.params
        if parameter.name in {"batch", "batches", "uploads", "like", "user"}
    }
    if path[-1] == "submit":
        del typed["user"]  # may be an id that is not stored yet
    assert all(isinstance(kind, Id) for kind in typed.values())
