"""Output in a terminal: with 80 columns, without colour, in a pipe, with hostile file names."""

import io
import re
import uuid
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from batch_pipeline import terminal
from batch_pipeline.database.models import PauseScope
from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.services.model_costs import ModelCost, UserCost
from batch_pipeline.services.pauses import Pause
from batch_pipeline.services.progress.batch_watch import BatchSnapshot, UploadSnapshot
from batch_pipeline.services.progress.publishing import BatchProgress
from batch_pipeline.services.reports.failures import FailureGroup, Failures
from batch_pipeline.services.search.queries import SearchResult
from batch_pipeline.testing.media import HOSTILE_FILENAMES

BATCH, USER = uuid.UUID(int=1), uuid.UUID(int=2)
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def upload(name="sea.jpg", status="analyzing", **values):
    fields = {"error_kind": None, "error_message": None, "thumbnail_path": None} | values
    return UploadSnapshot(uuid.uuid4(), name, status, **fields)


def snapshot(
    processed=0, total=3, failed=0, *, status="processing", in_work=(), ended=(), name="Rome"
):
    counts = total, processed, processed - failed, failed
    progress = BatchProgress(BATCH, USER, status, *counts, name)
    return BatchSnapshot(progress, list(in_work), list(ended))


def nothing():
    raise AssertionError("nobody waits here")


def a_pipe():
    return Console(file=io.StringIO(), width=80)


def a_terminal():
    return Console(file=io.StringIO(), width=80, force_terminal=True, force_interactive=True)


def lines_of(console):
    return CONTROL.sub("", console.file.getvalue()).replace("\r", "\n").splitlines()


def found(name, text, tags=()):
    return SearchResult(
        upload_id=BATCH, filename=name, similarity=0.5, description=text, thumbnail_path=None,
        file_path=name, original=name, thumbnail=None, batch_id=BATCH, batch_name=name,
        user_id=BATCH, file_type="image", format=None, camera=None, taken_at=None,
        uploaded_at=datetime.now(UTC),
        vision_model=None, found_by="meaning", score=0.5, weak=True, copies=[], cursor="x",
        tags=tags,
    )  # fmt: skip


def test_a_pipe_gets_plain_lines_and_each_state_once():
    console = a_pipe()
    failed = upload("cut.jpg", "failed", error_kind="truncated", error_message="it ends")
    snapshots = [
        snapshot(),
        snapshot(),
        snapshot(1, ended=[upload("sea.jpg", "completed")]),
        snapshot(2, failed=1, ended=[failed]),
        snapshot(3, failed=1, status="completed", ended=[upload("fog.webp", "completed")]),
    ]
    last = terminal.BatchView(console, nothing).follow(snapshots)
    assert last is snapshots[-1]
    assert console.file.getvalue().splitlines() == [
        "processing  0/3  0 %  0 failed  Rome (00000000)",
        "completed  sea.jpg",
        "processing  1/3  33.3 %  0 failed  Rome (00000000)",
        "failed     cut.jpg: truncated: it ends",
        "processing  2/3  66.7 %  1 failed  Rome (00000000)",
        "completed  fog.webp",
        "completed  3/3  100 %  1 failed  Rome (00000000)",
    ]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("analyzing", "last attempt: internal_error: no memory"),
        ("embedding", "last attempt: internal_error: no memory"),
        ("pending", "internal_error: no memory"),
        ("failed", "internal_error: no memory"),
    ],
)
def test_the_reason_of_an_upload_in_progress_is_from_its_last_attempt(status, said):
    row = {
        "upload_id": BATCH, "filename": "sea.jpg", "processing_status": status,
        "description": None, "description_audit_score": None,
        "error_kind": "internal_error", "error_message": "no memory",
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal.uploads_table([row]))
    assert console.file.getvalue().splitlines()[1].split("  ")[-1].strip() == said


def test_a_kind_or_reason_that_an_upload_api_does_not_store_is_not_shown_as_none():
    console = a_pipe()
    ends = [
        upload("a.jpg", "failed", error_message="scanner offline"),
        upload("b.jpg", "failed", error_kind="truncated"),
        upload("c.jpg", "failed"),
    ]
    terminal.BatchView(console, nothing).follow([snapshot(3, failed=3, ended=ends)])
    assert console.file.getvalue().splitlines()[:3] == [
        "failed     a.jpg: scanner offline",
        "failed     b.jpg: truncated",
        "failed     c.jpg: no reason was kept",
    ]
    rows = [
        asdict(end)
        | {"processing_status": end.status, "description": None, "description_audit_score": None}
        for end in ends
    ]
    given_up = {"batch_id": BATCH, "name": None, "error_message": None}
    console.print(terminal.uploads_table(rows))
    for line in terminal.failure_lines(Failures([], [given_up]), None):
        console.print(line)
    shown = console.file.getvalue()
    assert shown.count("scanner offline") == 2
    assert "failed: no reason was kept" in shown
    assert "None" not in shown


def test_a_terminal_shows_pace_stages_and_failures_within_80_columns():
    console = a_terminal()
    in_work = [
        upload("x" * 300 + ".jpg"),
        upload("fog.webp", thumbnail_path="thumb.jpg"),
        upload("sun.jpg", "embedding"),
        *(upload() for _ in range(9)),
    ]
    failed = upload("cut.jpg", "failed", error_kind="truncated", error_message="it ends")
    terminal.BatchView(console, nothing).follow(
        [
            snapshot(total=1000, in_work=in_work),
            snapshot(500, 1000, 1, in_work=in_work, ended=[failed]),
            snapshot(1000, 1000, 1, status="completed"),
        ]
    )
    text = "\n".join(lines_of(console))
    stages = ("reading", "describing", "embedding")
    for shown in (*stages, "and 4 more in progress", "500/1000", "100%"):
        assert shown in text
    assert "failed     cut.jpg: truncated: it ends" in text
    assert max(map(len, lines_of(console))) <= 80


@pytest.mark.parametrize("make", [a_pipe, a_terminal])
def test_a_waiting_batch_shows_what_it_waits_for(make):
    seconds = iter(range(0, 1000, 10))
    console = make()
    found = iter(f"waits behind {n} uploads of [b]2[/b] other batches" for n in range(12, 0, -1))
    view = terminal.BatchView(console, lambda: next(found), clock=lambda: float(next(seconds)))
    snapshots = [snapshot(status="pending") for _ in range(5)]
    view.follow([*snapshots, snapshot(3, status="completed")])
    assert "waits behind 12 uploads of [b]2[/b] other batches" in console.file.getvalue()
    if make is a_pipe:
        assert console.file.getvalue().count("waits behind") == 1, "said once, whatever the number"


def test_a_batch_in_progress_shows_no_reason_to_wait():
    seconds = iter(range(0, 1000, 60))
    console = a_pipe()
    view = terminal.BatchView(console, nothing, clock=lambda: float(next(seconds)))
    view.follow([snapshot(in_work=[upload()]), snapshot(3, status="completed")])
    assert "Dagster" not in console.file.getvalue()


@pytest.mark.parametrize("make", [a_pipe, a_terminal])
def test_a_paused_batch_shows_the_pause_at_once_even_while_calls_in_flight_end(make):
    console = make()
    held = Pause(PauseScope.EVERYTHING, "", "new [b]card[/b]", datetime.now(UTC))
    paused = replace(snapshot(in_work=[upload()]), paused=[held])
    view = terminal.BatchView(console, nothing)
    view.follow([snapshot(), paused, paused, snapshot(1), snapshot(3, status="completed")])
    shown = console.file.getvalue()
    assert "everything has been paused since" in shown
    assert "new [b]card" in shown
    if make is a_pipe:
        assert shown.count("has been paused") == 1


def test_a_file_without_a_name_is_called_so_in_lines():
    console = a_pipe()
    failed = upload("", "failed", error_kind="source_missing", error_message="it names no file")
    terminal.BatchView(console, nothing).follow(
        [snapshot(2, 2, 1, status="completed", ended=[upload("", "completed"), failed])]
    )
    assert lines_of(console)[:2] == [
        "completed  (no name)",
        "failed     (no name): source_missing: it names no file",
    ]


def test_costs_of_a_user_are_one_line_of_80_columns():
    cost = ModelCost("vision", "qwen3-vl:8b-instruct", 12_345, 1_234_567, 234_567, 12_345.6)
    console = a_pipe()
    console.print(terminal.costs_table([UserCost(USER, cost)]))
    _head, row = console.file.getvalue().splitlines()
    assert "12,345.6" in row


@pytest.mark.parametrize("name", HOSTILE_FILENAMES)
def test_names_and_texts_are_shown_literally_in_every_table(name):
    text = f"{name} [red]not markup[/red]"
    now = datetime.now(UTC)
    upload_row = {
        "upload_id": BATCH,
        "filename": name,
        "processing_status": "failed",
        "description": None,
        "description_audit_score": None,
        "error_kind": "truncated",
        "error_message": text,
    }
    batch_row = {
        "batch_id": BATCH, "user_id": BATCH, "name": name, "status": "processing",
        "total_uploads": 100000,
        "processed_uploads": 99999, "successful_uploads": 1, "failed_uploads": 99998,
        "progress_percentage": 99.9, "created_at": now - timedelta(days=900), "started_at": now,
        "completed_at": None, "error_message": text, "paused": [],
        "priority": "high",
        "cost": {"models": [
            {"model": text, "calls": 2, "tokens_in": 1, "tokens_out": 1, "seconds": 0.5},
        ]},
    }  # fmt: skip
    failure = {
        "upload_id": BATCH,
        "batch_id": None,
        "batch_name": name,
        "filename": name,
        "error_message": text,
    }
    group = FailureGroup(text, "failed", 7, 1, now, "means", "do", True, [failure])
    held = Pause(PauseScope.SERVER, text, text, now)
    console = a_pipe()
    for table in (
        *terminal.failure_lines(Failures([group], [batch_row]), now),
        terminal.uploads_table([upload_row]),
        terminal.batch_table(batch_row),
        terminal.batches_table([batch_row]),
        terminal.batch_table(batch_row | {"paused": [asdict(held)]}),
        terminal.batches_table([batch_row | {"paused": [asdict(held)]}]),
        terminal.search_table([found(name, text), found(name, text, tags=[text, name])]),
        terminal.health_table([HealthCheck("storage", False, text, text)]),
    ):
        console.print(table)
    shown = console.file.getvalue()
    assert shown.replace("\n", "").isprintable()
    assert "[red]" in shown
    assert ("(no name)" in shown) == (not name)
    assert max(map(len, shown.splitlines())) <= 80
    assert "  processing  99999/100000  99998   900 d" in shown


@pytest.mark.parametrize("console", [a_pipe, a_terminal])
def test_a_status_of_an_upload_api_is_shown_literally(console):
    console, status = console(), "x\x1b]0;owned\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}[red]y[/red]"
    row = {
        "upload_id": BATCH, "filename": "sea.jpg", "processing_status": status,
        "description": None, "description_audit_score": None,
        "error_kind": None, "error_message": None,
    }  # fmt: skip
    batch = {
        "batch_id": BATCH, "name": None, "status": status, "total_uploads": 1,
        "processed_uploads": 0, "failed_uploads": 0, "created_at": None, "paused": [],
    }  # fmt: skip
    console.print(terminal.uploads_table([row]))
    console.print(terminal.batches_table([batch]))
    console.print(terminal.costs_table([UserCost(None, ModelCost(status, "m", 1, 1, 1, 1.0))]))
    terminal.BatchView(console, nothing).follow([snapshot(status=status)])
    shown = console.file.getvalue()
    for dangerous in ("\x1b]", "\x1b[2J", "\N{RIGHT-TO-LEFT OVERRIDE}"):
        assert dangerous not in shown
    assert CONTROL.sub("", shown).count("[red]y[/red]") >= 4
