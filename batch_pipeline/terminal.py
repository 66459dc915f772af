"""How batches look in a terminal: bars for a person, plain lines in a pipe.

File names and descriptions come from strangers: they are printed literally, without markup and
without control characters.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.services.batch_watch import BatchSnapshot, UploadSnapshot
from batch_pipeline.services.search import SearchResult

#: Uploads in work that are shown at once.
_SHOWN_IN_WORK = 8
#: Characters of a description that a table shows.
_SHOWN_TEXT = 110
#: Words for the statuses in which an upload is in work.
_STAGES = {"analyzing": "looking", "embedding": "embedding"}
_COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow", "processing": "cyan"}


def literal(value: object) -> Text:
    """Text exactly as it is, less what could move the cursor or reorder the line."""
    visible = (
        character if unicodedata.category(character)[0] != "C" else "�" for character in str(value)
    )
    return Text("".join(visible))


class BatchView:
    """Shows the snapshots of one batch as they come."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bars.add_task("batch", total=None)
        self._printed = -1

    def follow(self, snapshots: Iterable[BatchSnapshot]) -> BatchSnapshot:
        """Show snapshots until the last, and return it."""
        last: BatchSnapshot | None = None
        if not self._console.is_terminal:
            for last in snapshots:
                self._print_lines(last)
        else:
            with Live(console=self._console, refresh_per_second=8) as live:
                for last in snapshots:
                    for upload in last.newly_ended:
                        if upload.status == "failed":
                            self._console.print(_failure_line(upload), style="red")
                    live.update(self._bars_of(last))
        if last is None:
            raise ValueError("a batch has at least one snapshot")
        return last

    def _print_lines(self, snapshot: BatchSnapshot) -> None:
        progress = snapshot.progress
        for upload in snapshot.newly_ended:
            line = _failure_line(upload) if upload.status == "failed" else None
            self._console.print(line or literal(f"completed  {upload.filename}"), soft_wrap=True)
        if progress.processed != self._printed:
            self._console.print(
                f"{progress.status}  {progress.processed}/{progress.total}"
                f"  {progress.progress_percentage:g} %  {progress.failed} failed",
                highlight=False,
            )
        self._printed = progress.processed

    def _bars_of(self, snapshot: BatchSnapshot) -> Group:
        progress = snapshot.progress
        failed = f", {progress.failed} failed" if progress.failed else ""
        self._bars.update(
            self._task,
            completed=progress.processed,
            total=progress.total,
            description=f"{progress.status}{failed}",
        )
        lines = [
            Text.assemble("  ", (_STAGES[upload.status], "cyan"), "  ", literal(upload.filename))
            for upload in snapshot.in_work[:_SHOWN_IN_WORK]
        ]
        return Group(self._bars, *(_on_one_line(line) for line in lines))


def _failure_line(upload: UploadSnapshot) -> Text:
    return literal(f"failed     {upload.filename}: {upload.error_kind}: {upload.error_message}")


def _on_one_line(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _plain_table(title: str | None, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _shortened(text: str) -> Text:
    """The beginning of a text; the whole of it is in the JSON."""
    return literal(text if len(text) <= _SHOWN_TEXT else text[: _SHOWN_TEXT - 1] + "…")


def uploads_table(uploads: Sequence[Mapping[str, Any]]) -> Table:
    """List uploads with what is known of each: its description, or why it failed."""
    table = _plain_table(None, "file", "status", "score", "description or reason")
    table.columns[0].max_width = 24
    for upload in uploads:
        status = upload["processing_status"]
        said = upload["description"] or ""
        if upload["error_kind"] and status != "completed":
            said = f"{upload['error_kind']}: {upload['error_message']}"
        score = upload["description_audit_score"]
        table.add_row(
            literal(upload["filename"]),
            Text(status, style=_COLOURS.get(status, "")),
            Text("" if score is None else str(score)),
            _shortened(said) if status == "completed" else literal(said),
        )
    return table


def batch_table(status: Mapping[str, Any]) -> Table:
    """Show the head of a batch, a line per value."""
    table = Table(box=None, show_header=False, pad_edge=False)
    names = {
        "batch_id": "batch",
        "status": "status",
        "total_uploads": "uploads",
        "successful_uploads": "completed",
        "failed_uploads": "failed",
        "progress_percentage": "progress",
        "created_at": "created",
        "started_at": "started",
        "completed_at": "completed at",
        "error_message": "error",
    }
    for key, label in names.items():
        if status[key] is not None:
            table.add_row(Text(label, style="bold"), literal(_shown(key, status[key])))
    return table


def batches_table(batches: Sequence[Mapping[str, Any]]) -> Table:
    """List batches, a line each."""
    table = _plain_table(None, "batch", "status", "uploads", "failed", "created")
    for batch in batches:
        table.add_row(
            Text(str(batch["batch_id"])),
            Text(batch["status"], style=_COLOURS.get(batch["status"], "")),
            Text(f"{batch['processed_uploads']}/{batch['total_uploads']}"),
            Text(str(batch["failed_uploads"])),
            Text(_shown("created_at", batch["created_at"])),
        )
    return table


def search_table(results: Sequence[SearchResult]) -> Table:
    """List what a search found, best first."""
    table = _plain_table(None, "similarity", "file", "description")
    for result in results:
        table.add_row(
            Text(f"{result.similarity:.3f}"),
            literal(result.filename),
            _shortened(result.description),
        )
    return table


def health_table(checks: Sequence[HealthCheck]) -> Table:
    """List health checks; what to do stands below each that is not ok."""
    table = _plain_table(None, "", "check", "found")
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("FAIL", style="bold red")
        table.add_row(mark, Text(check.name), literal(check.detail))
        if not check.ok and check.hint:
            table.add_row("", "", Text.assemble(("→ ", "bold"), literal(check.hint)))
    return table


def _shown(key: str, value: Any) -> str:
    if key.endswith("_at"):
        return str(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    return f"{value:g} %" if key == "progress_percentage" else str(value)
