"""The command that finds uploads."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batch_pipeline.cli.option_rules import at_most_one, needs
from batch_pipeline.cli.printing import json_option, print_json
from batch_pipeline.cli.session import Session
from batch_pipeline.cli.types import BATCH, UPLOAD, USER
from batch_pipeline.visible_text import visible_line
from batch_pipeline.wording import counted

if TYPE_CHECKING:
    from batch_pipeline.services.search.queries import SearchResult


@click.command()
@click.argument("text", nargs=-1)
@click.option("--like", type=UPLOAD, help="Instead of TEXT: find uploads similar to this one.")
@click.option("--user", type=USER, help="Only uploads of this user.")
@click.option("--batch", type=BATCH, help="Only uploads of this batch.")
@click.option("--kind", type=click.Choice(["image", "video"]), help="Only images, or only videos.")
@click.option("--format", "file_format", metavar="FORMAT", help="Only of this format: jpeg, mp4, …")
@click.option("--camera", metavar="NAME", help="Only from cameras whose name contains this.")
@click.option("--since", metavar="DATE", help="Only taken since then: 2024, 2024-05, 2024-05-17.")
@click.option(
    "--until", metavar="DATE", help="Only taken until the end of this year, month or day."
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="TAG",
    help="Only with this tag. Use it twice for uploads with both tags.",
)
@click.option("--has-text", is_flag=True, help="Only uploads with visible text.")
@click.option("--model", metavar="MODEL", help="Only uploads that this vision model described.")
@click.option(
    "--least",
    type=float,
    metavar="SIMILARITY",
    help="Only results of at least this similarity, -1 to 1.",
)
@click.option("--copies", is_flag=True, help="Show every upload of the same file, not only one.")
@click.option("--limit", type=int, default=10, show_default=True, help="How many results to show.")
@click.option("--after", metavar="CURSOR", help="Continue after this `cursor` (see --json).")
@click.option(
    "--html",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with pictures; an existing file is replaced.",
)
@click.option("--open", "opens", is_flag=True, help="Open the page of --html in the browser.")
@json_option
@at_most_one("TEXT", "--like")
@needs("--open", "--html")
@click.pass_obj
def search(  # noqa: PLR0917 - click passes them by name
    session: Session,
    text: tuple[str, ...],
    like: uuid.UUID | None,
    user: uuid.UUID | None,
    batch: uuid.UUID | None,
    kind: str | None,
    file_format: str | None,
    camera: str | None,
    since: str | None,
    until: str | None,
    tags: tuple[str, ...],
    has_text: bool,
    model: str | None,
    least: float | None,
    copies: bool,
    limit: int,
    after: str | None,
    file: Path | None,
    opens: bool,
    as_json: bool,
) -> None:
    """Find uploads by meaning, words or file name.

    Exact file names and quoted phrases come first. Files with the same content are shown once.
    Uncertain results are marked as weak. A file without a date counts as taken when it was
    uploaded.

    \b
    Examples:
      batch-pipeline search "dog on a beach" --limit 3
      batch-pipeline search IMG_2041.jpg
      batch-pipeline search boats --since 2024-05 --html boats.html --open
    """
    from batch_pipeline import terminal  # noqa: PLC0415
    from batch_pipeline.services.reports.batch_status import batch_head  # noqa: PLC0415
    from batch_pipeline.services.search.filters import Filters  # noqa: PLC0415
    from batch_pipeline.services.search.queries import search as find  # noqa: PLC0415

    pipeline = session.pipeline
    asked = " ".join(text)  # quotes around several words are easily forgotten
    if batch is not None:
        batch_head(pipeline.database, batch)  # refuses an unknown batch
    filters = Filters(
        user, batch, kind, file_format, camera, since, until, has_text, model, least, tags
    )
    found = find(
        pipeline.database,
        pipeline.spaces.model_of,
        asked,
        like=like,
        filters=filters,
        limit=limit,
        after=after,
        location=session.settings.storage_location,
        copies=copies,
    )
    if found.by_words_only:
        click.echo(f"Searched by words only: {visible_line(found.by_words_only)}", err=True)
    if file is not None:
        _write_search_page(session, file, asked or f"like {like}", found)
        if opens:
            click.launch(str(file))
    if as_json:
        print_json([asdict(result) for result in found])
    elif file is not None:
        click.echo(f"{file}: {counted(len(found), 'upload')}")
    elif found:
        session.console.print(terminal.search_table(found))
    elif (filters, like, after) == (Filters(user_id=user), None, None) and not found.by_words_only:
        whose = f" of user {user}" if user else ""
        click.echo(f"No upload{whose} is completed yet. See the progress:  batch-pipeline status")
    else:
        click.echo("Nothing found." if after is None else "Nothing more.")


def _write_search_page(
    session: Session, file: Path, asked: str, found: "Sequence[SearchResult]"
) -> None:
    from batch_pipeline.services.reports.pages import write_whole  # noqa: PLC0415
    from batch_pipeline.services.reports.search_page import search_page  # noqa: PLC0415

    ui = session.settings.dagster_ui_url
    write_whole(file, search_page(session.pipeline.storage, asked, found, dagster_ui_url=ui))
