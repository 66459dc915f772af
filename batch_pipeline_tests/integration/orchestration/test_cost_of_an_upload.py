"""The budget of statements, commits and rows per upload, checked by counting.

If you raise a number, write the reason next to it. The cost of an upload is the difference between
a large and a small batch. Statements that depend on time (heartbeats, postponed messages) are
recognised by their words and not counted: a slow machine makes more of them.
"""

import uuid
from collections import Counter
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from PIL import Image
from sqlalchemy import event

from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.orchestration.dagster_storage import group_writer

#: Statements on our tables: start, thumbnail, description, end, and the look-up of known results,
#: which may save a call to a model. Each is one round trip and one transaction, which also queues
#: the messages. One more statement stores each call to a model server.
STATEMENTS, CALLS = 5, 2
#: The last upload of a batch takes more statements: lock, count, end, message, commit.
SLACK = 10
#: In Dagster's event log, with the page of the UI that reads each.
EVENTS = Counter(
    {
        "STEP_OUTPUT": 2,  # of load_batch, which makes the step, and of the step: re-execution
        "STEP_START": 1,  # run page
        "ASSET_MATERIALIZATION": 1,  # upload_analysis: preview, description, seconds
        "STEP_SUCCESS": 1,  # run page
    }
)
#: `batch_progress` is plotted, at most once per percent or second (`progress_meter`).
PROGRESS_POINTS = 1

SMALL_BATCH, LARGE_BATCH = 2, 16  # so that one more statement per upload exceeds SLACK


#: Statements of the thread that keeps claims alive, and the check for pauses: at most one for each
#: call, and two per second.
BY_TIME = (
    "FROM work_pauses LEFT OUTER JOIN",
    "uploads.owner_run_id, uploads.claim_token FROM",
    "SET heartbeat_at=now() WHERE",
    "FOR SHARE",
)


class Counts:
    """Statements and commits on our tables, and rows in the event log, of one run."""

    def __init__(self, runner, batch_id, monkeypatch):
        engine = runner.pipeline.database.engine
        self.statements, self.commits, self.lone = 0, 0, 0

        def note_statement(connection, _, statement, *__):
            if not any(words in " ".join(statement.split()) for words in BY_TIME):
                self.statements += 1
                connection.info["is_of_work"] = True

        def note_commit(connection):
            self.commits += connection.info.pop("is_of_work", False)

        def note_lone_statement(*words):
            self.lone += 1
            return execute(*words)

        execute = LoneStatement.execute
        monkeypatch.setattr(LoneStatement, "execute", note_lone_statement)
        event.listen(engine, "before_cursor_execute", note_statement)
        event.listen(engine, "commit", note_commit)
        try:
            result = runner.run(batch_id)
        finally:
            event.remove(engine, "before_cursor_execute", note_statement)
            event.remove(engine, "commit", note_commit)
            monkeypatch.setattr(LoneStatement, "execute", execute)
        assert result.success
        self.run_id = result.run_id
        entries = runner.instance.all_logs(result.run_id)
        self.lines = [entry for entry in entries if not entry.is_dagster_event]
        self.events = Counter(
            entry.dagster_event_type.value for entry in entries if entry.is_dagster_event
        )
        self.progress = sum(
            entry.dagster_event.asset_key == dg.AssetKey("batch_progress")
            for entry in entries
            if entry.asset_materialization
        )


def batch_of_pictures(runner, folder: Path, number: int) -> uuid.UUID:
    folder.mkdir()
    for n in range(number):
        Image.new("RGB", (8, 8), (9 * n, 200 - 8 * n, number)).save(folder / f"{n}.png")
    return runner.submit(folder)


@pytest.fixture
def counts(runner, tmp_path, monkeypatch):
    small = batch_of_pictures(runner, tmp_path / "small", SMALL_BATCH)
    large = batch_of_pictures(runner, tmp_path / "large", LARGE_BATCH)
    return Counts(runner, small, monkeypatch), Counts(runner, large, monkeypatch)


def test_an_upload_keeps_to_its_budget(counts, runner):
    small, large = counts
    more = LARGE_BATCH - SMALL_BATCH
    assert large.lone - small.lone == more * (STATEMENTS + CALLS)
    assert large.statements - small.statements <= SLACK
    assert large.commits - small.commits <= SLACK
    added = Counter(large.events)
    added.subtract(small.events)
    added["ASSET_MATERIALIZATION"] -= large.progress - small.progress
    assert +added == Counter({kind: count * more for kind, count in EVENTS.items()})
    assert large.progress - small.progress <= more * PROGRESS_POINTS
    assert len(large.lines) == len(small.lines)


def test_the_events_of_a_run_are_written_in_few_transactions(
    runner, tmp_path, monkeypatch, instance
):
    monkeypatch.setattr(group_writer, "GATHER_SECONDS", 1000)
    batch_id = batch_of_pictures(runner, tmp_path / "batch", LARGE_BATCH)
    counts = Counts(runner, batch_id, monkeypatch)
    url = instance.event_log_storage.postgres_url.replace("+psycopg2", "")
    with psycopg.connect(url) as connection:
        rows, transactions = connection.execute(
            "SELECT count(*), count(DISTINCT xmin::text) FROM event_logs WHERE run_id = %s",
            [counts.run_id],
        ).fetchone()
    assert rows > LARGE_BATCH * EVENTS.total()
    # Status events of the run, and its reads of the log.
    assert transactions <= 8
