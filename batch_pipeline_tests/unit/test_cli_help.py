"""The help of every command is complete."""

import re
from datetime import UTC, datetime, timedelta

import click
import pytest
from click.testing import CliRunner

from batch_pipeline.cli import main
from batch_pipeline.cli.types import SINCE, Id


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
def test_every_option_for_an_id_accepts_its_beginning(path, command):
    typed = {
        parameter.name: parameter.type
        for parameter in command.params
        if parameter.name in {"batch", "batches", "uploads", "like", "user"}
    }
    if path[-1] == "submit":
        del typed["user"]  # may be an id that is not stored yet
    assert all(isinstance(kind, Id) for kind in typed.values())


CONTRADICTIONS = {
    "status 3f2a --limit 3": "BATCH and --limit cannot be used together",
    "status 3f2a --page 2": "BATCH and --page cannot be used together",
    "status --failed": "--failed needs BATCH; over all batches: batch-pipeline failures",
    "cancel": "expected BATCH, --user or --since",
    "cancel 3f2a --since 2h": "BATCH and --since cannot be used together",
    "pause --batch 3f2a --server http://gpu": "--batch and --server cannot be used together",
    "resume --user 3f2a --batch 3f2a": "--user and --batch cannot be used together",
    "reprocess --stage thumbnail --model a --model-not b": (
        "--model and --model-not cannot be used together"
    ),
    "search boats --like 3f2a": "TEXT and --like cannot be used together",
    "search boats --open": "--open needs --html",
    "alive daemon --port 4000": "--host and --port are for the code-server",
    "metrics --serve 9464 --json": "--serve and --json cannot be used together",
    "metrics --host 0.0.0.0": "--host needs --serve",
    "notify": "expected --test, --list or --again",
    "notify --test --list": "--test and --list cannot be used together",
    "inspect 2024/a.jpg 2025/a.jpg --output seen": "two files have the name a.jpg",
    "prompt": "expected --show or --try",
    "prompt --show --try a.jpg": "--show and --try cannot be used together",
    "tidy --dry-run --take-over": "--take-over and --dry-run cannot be used together",
    "spaces --json drop 1": "--json belongs after the command: spaces drop ID --json",
}


@pytest.mark.parametrize(("line", "said"), CONTRADICTIONS.items(), ids=CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(line, said):
    # Whole ids, so that nothing is looked up in a database
    words = [word.replace("3f2a", "0" * 32) for word in line.split()]
    result = CliRunner().invoke(main, words, prog_name="batch-pipeline")
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def test_since_zero_time_ago_is_now():
    assert abs(datetime.now(UTC) - SINCE.convert("0h", None, None)) < timedelta(minutes=1)
