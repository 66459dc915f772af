"""Commands that try a file without storing anything."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from batch_pipeline.cli.option_rules import at_least_one, at_most_one
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import FINISHED_WITH_FAILURES, OK, Session


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write the thumbnail and the frames to.",
)
@json_option
@click.pass_obj
def inspect(session: Session, files: Sequence[Path], output: Path | None, as_json: bool) -> None:
    """Show what the pipeline sees in files; nothing is stored.

    It shows the type, size, camera, the date and where it was found, warnings, and the time of
    each stage.

    \b
    Examples:
      batch-pipeline inspect IMG_1234.HEIC
      batch-pipeline inspect clip.mov --output seen/
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.inspection import inspect_file, output_stem  # noqa: PLC0415

    [(name, number)] = Counter(map(output_stem, files)).most_common(1)
    if output and number > 1:
        raise click.UsageError(
            f"two files have the name {name} or a similar one, so their pictures would have the "
            "same names in --output: inspect them one by one"
        )
    all_seen = [inspect_file(path, session.settings, output) for path in files]
    if as_json:
        print_json([seen.shape() for seen in all_seen])
    else:
        for seen in all_seen:
            session.console.print(terminal.inspection_table(seen))
    failed = any(seen.error_kind for seen in all_seen)
    sys.exit(FINISHED_WITH_FAILURES if failed else OK)


@click.command()
@click.option("--show", is_flag=True, help="Print the prompts and their placeholders.")
@click.option(
    "--try",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Print the vision model's answer for a file; nothing is stored.",
)
@json_option
@at_most_one("--show", "--try")
@at_least_one("--show", "--try")
@click.pass_obj
def prompt(session: Session, show: bool, files: Sequence[Path], as_json: bool) -> None:
    """Show the prompts for vision models, and try them on files.

    \b
    Examples:
      batch-pipeline prompt --show
      batch-pipeline prompt --try IMG_1234.HEIC
    """
    from batch_pipeline.services.descriptions.prompt_trial import (  # noqa: PLC0415
        lone_vision,
        shown_prompts,
        try_prompt,
    )
    from batch_pipeline.services.health.missing_home import missing_home  # noqa: PLC0415
    from batch_pipeline.visible_text import visible  # noqa: PLC0415

    if show:
        shown = shown_prompts(session.settings)
        if as_json:
            print_json(shown)
            return
        click.echo(f"Descriptions are written in {shown['language_name']}.")
        for each in shown["prompts"]:
            click.echo(f"\n{each['name']}.txt, {each['file'] or 'built in'}:\n")
            click.echo(visible(each["text"]))
            click.echo("\nPlaceholders:")
            for name, meaning in each["placeholders"].items():
                click.echo(f"  {'{' + name + '}':<12}  {meaning}")
        return
    is_new = missing_home(session.settings)  # no database is made for a trial
    vision = lone_vision(session.settings) if is_new else session.pipeline.analyzer.vision
    trials = []
    try:
        for file in files:
            trial = try_prompt(file, session.settings, vision)
            trials.append(trial)
            if as_json:
                continue
            usage = trial.usage
            tokens = f", {usage.tokens_in:,} tokens in, {usage.tokens_out:,} out"
            took = f", {usage.seconds:.1f} s{tokens}" if usage.calls else ""
            click.echo(f"{visible(trial.file)}, {trial.model}, score {trial.audit.score}{took}\n")
            click.echo(visible(trial.description.text))
            if trial.description.tags:
                click.echo(f"\nTags: {visible(', '.join(trial.description.tags))}")
            if trial.description.visible_text:
                click.echo(f"\nText in it: {visible(trial.description.visible_text)}")
            if trial.audit.reasons:
                click.echo(f"\nThe audit: {visible(trial.audit.reasons)}")
            click.echo()
    finally:  # the answers before an error are paid for
        if as_json:
            print_json([trial.shape() for trial in trials])
    passed = all(trial.audit.passed for trial in trials)
    sys.exit(OK if passed else FINISHED_WITH_FAILURES)
