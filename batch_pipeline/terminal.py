"""Shows batches in a terminal: progress bars for a person, plain lines in a pipe.

File names and descriptions are untrusted. They are printed literally, without markup and control
characters.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

from batch_pipeline.database.models import IN_WORK
from batch_pipeline.services.error_kinds import BY_NAME
from batch_pipeline.services.pauses import Pause
from batch_pipeline.services.short_ids import batch_label, short
from batch_pipeline.visible_text import shown_filename, visible_line
from batch_pipeline.wording import counted

if TYPE_CHECKING:
    from batch_pipeline.model_servers.base import HealthCheck
    from batch_pipeline.services.deletion.forgetting import Receipt
    from batch_pipeline.services.inspection import Inspection
    from batch_pipeline.services.model_costs import UserCost
    from batch_pipeline.services.progress.batch_watch import BatchSnapshot, UploadSnapshot
    from batch_pipeline.services.reports.failures import FailureGroup, Failures
    from batch_pipeline.services.search.embedding_spaces import SpaceOverview
    from batch_pipeline.services.search.queries import SearchResult

#: Maximum number of uploads in progress that are shown at the same time.
_SHOWN_IN_WORK = 8
#: Characters of a description that a table shows.
_SHOWN_TEXT = 110
#: After this time without an upload in progress, show the reason; also the interval of checks (s).
_IDLE_SECONDS = 5.0
_COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow", "processing": "cyan"}


def literal(value: object) -> Text:
    """Return text on one line, without characters that move the cursor or reorder the line."""
    return Text(visible_line(value))


def _plain(value: object) -> str:
    """Return the same text, escaped for a place that reads markup."""
    return escape(visible_line(value))


def _filename(name: str) -> Text:
    return Text(shown_filename(name))


def inspection_table(seen: "Inspection") -> Table:
    """Show what was found in one file, one line per fact."""
    table = Table(title=literal(seen.file), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    lines: dict[str, object] = {}
    if seen.media_type is not None:
        lines["type"] = f"{seen.media_type.label} {seen.media_type.file_type}"
    if seen.file_size is not None:
        lines["size"] = f"{seen.file_size:,} bytes"
    facts = dict(seen.facts)
    warnings = facts.pop("warnings", [])
    lines |= {name.replace("_", " "): fact for name, fact in facts.items() if name != "format"}
    for name, value in lines.items():
        table.add_row(name, literal(value))
    for warning in warnings:
        table.add_row(Text("warning", "yellow"), literal(warning))
    if seen.error_kind is not None:
        table.add_row(Text("error", "red"), literal(f"{seen.error_kind}: {seen.error_message}"))
    for path in seen.written:
        table.add_row("written", literal(path))
    seconds = ", ".join(f"{stage} {spent:.3f} s" for stage, spent in seen.seconds.items())
    table.add_row("time", seconds or "none")
    return table


class BatchView:
    """Shows the snapshots of a batch as they arrive."""

    def __init__(
        self,
        console: Console,
        why_idle: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._why_idle = why_idle
        self._clock = clock
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            _PaceColumn(),
            console=console,
            expand=True,
        )
        self._task = self._bars.add_task("", total=None)
        self._printed: tuple[str, int] | None = None
        self._busy_at = clock()
        self._idle_reason = ""
        self._was_paused = False

    def follow(self, snapshots: Iterable["BatchSnapshot"]) -> "BatchSnapshot":
        """Show all snapshots; return the last."""
        last: BatchSnapshot | None = None
        if not self._console.is_interactive:
            for last in snapshots:
                self._print_lines(last)
        else:
            with Live(console=self._console, refresh_per_second=8) as live:
                for last in snapshots:
                    for upload in last.newly_ended:
                        if upload.status == "failed":
                            self._console.print(_failure_line(upload), style="red", soft_wrap=True)
                    live.update(self._bars_of(last), refresh=True)
        if last is None:
            raise ValueError("a batch has at least one snapshot")
        return last

    def _print_lines(self, snapshot: "BatchSnapshot") -> None:
        progress = snapshot.progress
        for upload in snapshot.newly_ended:
            line = Text.assemble("completed  ", _filename(upload.filename))
            if upload.status == "failed":
                line = _failure_line(upload)
            self._console.print(line, soft_wrap=True)
        if (progress.status, progress.processed) != self._printed:
            self._console.print(
                f"{_plain(progress.status)}  {progress.processed}/{progress.total}"
                f"  {progress.progress_percentage:g} %  {progress.failed} failed"
                f"  {escape(progress.label)}",
                highlight=False,
            )
        self._printed = progress.status, progress.processed
        before = self._idle_reason
        if (reason := self._reason_to_wait(snapshot)) and _gist(reason) != _gist(before):
            self._console.print(literal(reason), highlight=False, soft_wrap=True)

    def _bars_of(self, snapshot: "BatchSnapshot") -> Group:
        progress = snapshot.progress
        self._bars.update(
            self._task,
            completed=progress.processed,
            total=progress.total,
            description=f"{escape(progress.label)}  {_plain(progress.status)}",
        )
        lines = [
            Text.assemble("  ", (f"{upload.stage:<10}", "cyan"), "  ", _filename(upload.filename))
            for upload in snapshot.in_work[:_SHOWN_IN_WORK]
        ]
        if more := len(snapshot.in_work) - len(lines):
            lines.append(Text(f"  and {more} more in progress", style="dim"))
        if progress.failed:
            lines.append(Text(f"  {progress.failed} failed", style="red"))
        if reason := self._reason_to_wait(snapshot):
            lines.append(Text.assemble("  ", literal(reason), style="yellow"))
        return Group(self._bars, *(_on_one_line(line) for line in lines))

    def _reason_to_wait(self, snapshot: "BatchSnapshot") -> str:
        """Return why nothing was processed for a while, or why nothing new begins; else empty."""
        now = self._clock()
        was_paused, self._was_paused = self._was_paused, bool(snapshot.paused)
        if snapshot.paused:
            self._busy_at, self._idle_reason = now, "; ".join(map(str, snapshot.paused))
        elif snapshot.in_work or snapshot.newly_ended or snapshot.has_ended or was_paused:
            self._busy_at, self._idle_reason = now, ""
        elif now - self._busy_at > _IDLE_SECONDS:
            self._busy_at, self._idle_reason = now, self._why_idle()
        return self._idle_reason


def _gist(reason: str) -> str:
    """Return a reason without its numbers, so that a changed number does not print it again."""
    return "".join(letter for letter in reason if not letter.isdigit())


class _PaceColumn(ProgressColumn):
    """Uploads per second or minute, and the remaining time at this pace."""

    def render(self, task: Task) -> Text:
        speed, left = task.speed, task.time_remaining
        if task.finished or not speed:
            return Text("")
        pace = f"{speed:.1f}/s" if speed >= 1 else f"{speed * 60:.0f}/min"
        if left is None:
            return Text(pace, style="cyan")
        minutes, seconds = divmod(int(left), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return Text(f"{pace}, {clock} left", style="cyan")


def _failure_line(upload: "UploadSnapshot") -> Text:
    reason = _reason(upload.error_kind, upload.error_message)
    name = shown_filename(upload.filename)
    return literal(f"failed     {name}: {reason or 'no reason was kept'}")


def _reason(kind: str | None, message: str | None) -> str:
    """Return why an upload failed or waits; an upload API may store only one of them, or none."""
    return ": ".join(filter(None, [kind, message]))


def _shown_reason(upload: Mapping[str, Any]) -> str:
    """Return why an upload failed or waits; during an attempt, why the previous one failed."""
    reason = _reason(upload["error_kind"], upload["error_message"])
    if reason and upload["processing_status"] in IN_WORK:
        return f"last attempt: {reason}"
    return reason


def _on_one_line(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _plain_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _described(result: "SearchResult") -> Text:
    description = _shortened(result.description)
    if not result.tags:
        return description
    return Text.assemble(description, ("\n" + visible_line(", ".join(result.tags)), "dim"))


def _shortened(text: str) -> Text:
    """Return the beginning of a text; the JSON output contains all of it."""
    return literal(text if len(text) <= _SHOWN_TEXT else text[: _SHOWN_TEXT - 1].rstrip() + "…")


def uploads_table(uploads: Sequence[Mapping[str, Any]]) -> Table:
    """List uploads with their results, or why they failed; failed uploads come first."""
    table = _plain_table("upload", "file", "status", "score", "description or reason")
    table.columns[0].no_wrap = True
    table.columns[1].max_width = 24
    for upload in sorted(uploads, key=lambda one: one["processing_status"] != "failed"):
        status = upload["processing_status"]
        said = upload["description"] or ""
        reason = _shown_reason(upload)
        if reason and status != "completed":
            said = reason
        score = upload["description_audit_score"]
        table.add_row(
            Text(short(upload["upload_id"]), style="dim"),
            _filename(upload["filename"]),
            Text(visible_line(status), style=_COLOURS.get(status, "")),
            Text("" if score is None else str(score)),
            _shortened(said) if status == "completed" else literal(said),
        )
    return table


def upload_table(upload: Mapping[str, Any]) -> Table:
    """Show everything about one upload, one value per line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    kind = BY_NAME.get(upload["error_kind"])
    batch_id, seconds = upload["batch_id"], upload["stage_seconds"] or {}
    lines = {
        "upload": upload["upload_id"],
        "file": shown_filename(upload["filename"]),
        "stored as": upload["file_path"],
        "batch": batch_label(batch_id, upload["batch_name"]) if batch_id else "none",
        "status": upload["processing_status"],
        "attempts": upload["attempts"],
        "error": _shown_reason(upload),
        "what to do": kind and upload["error_message"] and kind.plain_advice,
        "description": upload["description"],
        "score": upload["description_audit_score"],
        "tags": ", ".join(upload["tags"] or ()),
        "visible text": upload["visible_text"],
        "described by": upload["vision_fingerprint"],
        "embedded by": upload["embedding_fingerprint"],
        "thumbnail": upload["thumbnail_path"],
        "seconds": ", ".join(f"{stage} {of_stage:g}" for stage, of_stage in seconds.items()),
    }
    metadata = upload["metadata"]  # an API may have written another value than an object
    named = metadata if isinstance(metadata, dict) else {"metadata": metadata or None}
    facts = [(name.replace("_", " "), value) for name, value in named.items()]
    for name, value in [*lines.items(), *facts]:
        if value is not None and value != "":
            shown = "; ".join(map(str, value)) if isinstance(value, list) else value
            table.add_row(literal(name), literal(shown))
    return table


def batch_table(status: Mapping[str, Any]) -> Table:
    """Show the values of a batch itself, one per line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    names = {
        "batch_id": "batch",
        "name": "name",
        "user_id": "user",
        "status": "status",
        "total_uploads": "uploads",
        "successful_uploads": "completed",
        "failed_uploads": "failed",
        "progress_percentage": "progress",
        "created_at": "created",
        "started_at": "started",
        "completed_at": "completed at",
        "error_message": "error",
        "priority": "priority",
    }
    for key, label in names.items():
        if status[key] is not None:
            table.add_row(Text(label, style="bold"), literal(_shown(key, status[key])))
    for pause in status["paused"]:
        table.add_row(Text("paused", style="bold yellow"), literal(Pause(**pause)))
    for cost in status["cost"]["models"]:
        table.add_row(Text("model calls", style="bold"), literal(_cost_line(cost)))
    return table


def costs_table(costs: Sequence["UserCost"]) -> Table:
    """List the cost of model calls, by user and model."""
    table = _plain_table("user", "model", "kind", "calls", "tokens in", "tokens out", "seconds")
    for column in table.columns[3:]:
        column.justify = "right"
    for of_user in costs:
        cost = of_user.cost
        table.add_row(
            Text("-" if of_user.user_id is None else short(of_user.user_id)),
            literal(cost.model),
            literal(cost.kind),
            *(Text(f"{number:,}") for number in (cost.calls, cost.tokens_in, cost.tokens_out)),
            Text(f"{cost.seconds:,.1f}"),
        )
    return table


def batches_table(batches: Sequence[Mapping[str, Any]]) -> Table:
    """List batches, one per line; fits 80 columns."""
    table = _plain_table("batch", "name", "status", "uploads", "failed", "age")
    table.columns[0].no_wrap = True
    table.columns[1].max_width = 32
    for batch in batches:
        failed = batch["failed_uploads"]
        table.add_row(
            Text(short(batch["batch_id"])),
            literal(batch["name"] or ""),
            Text("paused", "yellow")
            if batch["paused"]
            else Text(visible_line(batch["status"]), _COLOURS.get(batch["status"], "")),
            Text(f"{batch['processed_uploads']}/{batch['total_uploads']}"),
            Text(str(failed), style="red" if failed else ""),
            Text(_age(batch["created_at"])),
        )
    return table


def failure_lines(found: "Failures", since: datetime | None) -> Iterator[RenderableType]:
    """Show failures by kind, with what to do about each kind."""
    when = "" if since is None else f" since {_shown('_at', since)[:16]}"
    failed = [group for group in found.groups if group.state == "failed"]
    count = sum(group.count for group in failed)
    yield Text(f"{counted(count, 'upload')} failed{when}.", style="bold")
    for batch in found.batches:
        yield Text.assemble(
            "\n",
            (f"Batch {batch_label(batch['batch_id'], batch['name'])} failed: ", "bold red"),
            literal(batch["error_message"] or "no reason was kept"),
        )
    for group in found.groups:
        yield from _group_lines(group)
    if any(not group.same_again for group in failed):
        yield Text("\nRetry what may work now:  batch-pipeline retry --all-retryable --dry-run")


def _group_lines(group: "FailureGroup") -> Iterator[RenderableType]:
    waits = group.state == "waiting"
    where = f"{counted(group.count, 'upload')} in {counted(group.batches, 'batch', 'batches')}"
    yield Text.assemble(
        "\n",
        (visible_line(group.error_kind), "bold yellow" if waits else "bold red"),
        f": {where}" + (", waiting; they continue by themselves" if waits else ""),
    )
    if group.means:
        yield Padding(Text(group.means), (0, 0, 0, 2))
        yield Padding(Text.assemble(("→ ", "bold"), group.advice), (0, 0, 0, 2))
    if group.same_again:
        yield Text("  Until then, a retry fails in the same way.", style="dim")
    if not group.uploads:
        return
    table = _plain_table("upload", "batch", "file", "reason")
    table.columns[0].no_wrap = True
    table.columns[1].max_width = table.columns[2].max_width = 20
    for upload in group.uploads:
        table.add_row(
            Text(short(upload["upload_id"])),
            literal(
                batch_label(upload["batch_id"], upload["batch_name"])
                if upload["batch_id"]
                else "none"
            ),
            _filename(upload["filename"]),
            literal(upload["error_message"] or ""),
        )
    yield Padding(table, (0, 0, 0, 2))
    if more := group.count - len(group.uploads):
        yield Text(f"  and {more} more: --kind {visible_line(group.error_kind)} --limit 1000")


def search_table(results: Sequence["SearchResult"]) -> Table:
    """List the results of a search, best first."""
    table = _plain_table("upload", "similarity", "file", "description")
    table.columns[0].no_wrap = True
    table.columns[2].max_width = 24
    for result in results:
        similarity = "" if result.similarity is None else f"{result.similarity:.3f}"
        table.add_row(
            Text(short(result.upload_id), style="dim"),
            Text(f"{similarity} weak", style="dim") if result.weak else Text(similarity),
            _filename(result.filename),
            _described(result),
        )
    return table


def spaces_table(spaces: Sequence["SpaceOverview"]) -> Table:
    """List embedding spaces, oldest first."""
    table = _plain_table("id", "model", "numbers", "vectors", "size", "answers", "settings")
    table.columns[1].min_width = 20
    for space in spaces:
        table.add_row(
            str(space.id),
            literal(space.model),
            f"{space.dimensions:,}",
            f"{space.vectors:,}",
            f"{space.bytes / 1024**2:,.1f} MiB",
            counted(space.users, "user"),
            "current" if space.is_current else "",
        )
    return table


def spaces_lines(spaces: Sequence["SpaceOverview"]) -> Iterator[str]:
    """Show the progress of the newest space, and which spaces can be dropped."""
    current = next((space for space in spaces if space.is_current), None)
    if current is None:
        yield "Nothing is embedded with the model of the settings yet. To embed everything with it:"
        yield "  batch-pipeline reprocess --stage embedding --stale"
    elif current.waiting_users:
        done = current.vectors / max(1, current.vectors + (current.missing or 0))
        yield (
            f"Space {current.id} is {done:.0%} complete: {counted(current.missing or 0, 'upload')} "
            f"missing. Older spaces answer {counted(current.waiting_users, 'user')} meanwhile."
        )
        if current.missing:
            yield "To embed them:  batch-pipeline reprocess --stage embedding --stale"
    for space in spaces:
        if not space.users and not space.is_current:
            yield f"Space {space.id} answers nobody:  batch-pipeline spaces drop {space.id}"


def receipt_lines(receipt: "Receipt") -> Iterator[str]:
    """Show what was or would be deleted: ids and counts, one per line."""
    done = "Would be deleted" if receipt.dry_run else "Deleted"
    at = "" if receipt.dry_run else f" at {receipt.at:%Y-%m-%d %H:%M:%S %Z}"
    yield f"{done}{at}: {receipt.named} {receipt.id}"
    for what, count in receipt.counts.items():
        if what not in {"files_kept", "files_missing"}:
            yield f"  {what.replace('_', ' '):<12} {count:>8,}"
    if kept := receipt.counts["files_kept"]:
        yield (
            f"Kept: {counted(kept, 'file')} that may belong to another system. --originals "
            "deletes them too."
        )
    if missing := receipt.counts["files_missing"]:
        files = counted(missing, "file")
        yield f"Missing: {files} that uploads name, but the storage does not have."


def health_table(checks: Sequence["HealthCheck"]) -> Table:
    """List health checks; a failed check is followed by what to do."""
    table = _plain_table("", "check", "found")
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("FAIL", style="bold red")
        table.add_row(mark, Text(check.name), literal(check.detail))
        if not check.ok and check.hint:
            table.add_row("", "", Text.assemble(("→ ", "bold"), literal(check.hint)))
    return table


def _shown(key: str, value: Any) -> str:
    if key.endswith("_at"):
        try:
            local = value.astimezone()
        except (OverflowError, ValueError, OSError):  # PostgreSQL's "infinity", from an upload API
            local = value
        return str(local.strftime("%Y-%m-%d %H:%M:%S"))
    return f"{value:g} %" if key == "progress_percentage" else str(value)


def _cost_line(cost: Mapping[str, Any]) -> str:
    return (
        f"{cost['calls']:,} to {cost['model']}: {cost['tokens_in']:,} tokens in, "
        f"{cost['tokens_out']:,} out, {cost['seconds']:,.1f} s"
    )


def _age(moment: datetime | None) -> str:
    if moment is None:  # an upload API wrote the row without this value
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
