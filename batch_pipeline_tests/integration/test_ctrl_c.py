"""Ctrl-C in a real terminal, at several moments of `submit --wait` and `watch`.

The demo, which takes longer, is stopped in ``acceptance/test_demo.py``.
"""

import os
import random
import signal
import subprocess

import psutil
import psycopg
import pytest
from PIL import Image
from sqlalchemy import text

from batch_pipeline.services.reports.batch_status import newest_batches
from batch_pipeline.testing.records import add_batch, batch_row, upload_rows
from batch_pipeline_tests.patience import DEADLINE, wait_until

from .console import COMMAND, Console

FILES = 300


@pytest.fixture
def console(database_url, tmp_path):
    return Console(
        {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
            "BATCH_PIPELINE_DATABASE_URL": database_url,
        },
        tmp_path,
    )


@pytest.fixture
def many_pictures(tmp_path):
    """Enough pictures that Ctrl-C comes when some are stored and others are not."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = random.Random(0)
    for number in range(FILES):
        picture = Image.frombytes("RGB", (64, 64), noise.randbytes(64 * 64 * 3))
        picture.save(folder / f"{number}.png")
    return folder


def assert_stopped(terminal):
    assert terminal.wait() == 130, terminal.text
    assert "Traceback" not in terminal.text
    assert "Exception" not in terminal.text
    assert terminal.raw.count("\x1b[?25h") >= terminal.raw.count("\x1b[?25l")  # cursor is back
    left = [p for p in psutil.process_iter() if os_session(p) == terminal.pid]
    assert left == []


def os_session(process):
    try:
        return os.getsid(process.pid)
    except OSError:  # it has ended since it was listed
        return None


def stored_files(tmp_path):
    return [path for path in (tmp_path / "home").rglob("original.*") if path.is_file()]


@pytest.fixture
def delayed_commits(database_url):
    """Delays the commit of a submission, so that Ctrl-C always comes before it."""
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE upload_batches IN EXCLUSIVE MODE")
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("delayed_commits")
@pytest.mark.parametrize("stored", [1, FILES])
def test_ctrl_c_before_the_commit_leaves_nothing_half_done(
    console, database, many_pictures, tmp_path, stored
):
    with console.in_terminal("submit", many_pictures, "--wait") as terminal:
        wait_until(lambda: len(stored_files(tmp_path)) >= stored, "the files are stored")
        terminal.press_ctrl_c()
        assert_stopped(terminal)
    assert "`batch-pipeline status` tells whether the batch was submitted" in terminal.text
    assert newest_batches(database) == []
    assert stored_files(tmp_path) == []


@pytest.mark.slow
def test_ctrl_c_while_submit_waits_lets_the_batch_go_on(console, database, many_pictures, tmp_path):
    with console.in_terminal("submit", many_pictures, "--wait") as terminal:
        terminal.wait_until(lambda text: f"0/{FILES}" in text)
        terminal.press_ctrl_c()
        assert_stopped(terminal)
    [batch] = newest_batches(database)
    assert f"the batch goes on: batch-pipeline watch {batch['batch_id']}" in terminal.text
    assert (batch["status"], batch["total_uploads"]) == ("pending", FILES)
    assert len(upload_rows(database, batch["batch_id"])) == FILES
    assert len(stored_files(tmp_path)) == FILES


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_while_watching_lets_the_batch_go_on(console, database, pipeline, as_json):
    batch = add_batch(database, 2)
    first, _ = upload_rows(database, batch)
    pipeline.states.load_batch(batch, "run", limit=2)
    pipeline.states.start(first.id, "run")
    seen = '"total": 2' if as_json else "0/2"
    with console.in_terminal("watch", batch, *(["--json"] if as_json else [])) as terminal:
        terminal.wait_until(lambda text: seen in text)
        terminal.press_ctrl_c()
        assert_stopped(terminal)
    assert f"the batch goes on: batch-pipeline watch {batch}" in terminal.text
    assert batch_row(database, batch).status == "processing"
    assert [row.processing_status for row in upload_rows(database, batch)] == [
        "analyzing",
        "pending",
    ]


@pytest.mark.slow
def test_ctrl_c_pressed_again_and_again_prints_one_sentence(console, database):
    batch = add_batch(database, 1)
    with console.in_terminal("watch", batch) as terminal:
        terminal.wait_until(lambda text: "0/1" in text)
        for _ in range(200):
            terminal.press_ctrl_c()
            terminal.read_for(0.003)  # otherwise they would arrive as one
        assert_stopped(terminal)
    assert terminal.text.count("Stopped watching") == 1


#: Python's `input` flushes stderr before it reads, and drops an exception that is raised meanwhile.
LOSES_ONE = """
import builtins, signal
read = builtins.input
def input(*prompt):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    return read(*prompt)
builtins.input = input
"""


def stop_at(terminal, question):
    terminal.wait_until(lambda text: question in text)
    terminal.press_ctrl_c()
    terminal.read_for(1.0)
    terminal.press_ctrl_c()  # in case that `input` has lost the first
    assert_stopped(terminal)


@pytest.mark.slow
def test_ctrl_c_at_the_question_of_delete_deletes_nothing_even_if_one_is_lost(
    console, database, server, tmp_path
):
    (tmp_path / "sitecustomize.py").write_text(LOSES_ONE)
    # A path of another storage, so that no file is missing on this one.
    batch = add_batch(database, [{"file_path": "/srv/photo.jpg"}], status="cancelled")
    with (
        server.new_database(migrated=False) as url,
        console.in_terminal(
            "delete",
            "batch",
            batch,
            BATCH_PIPELINE_DAGSTER_DATABASE_URL=url,
            PYTHONPATH=str(tmp_path),
        ) as terminal,
    ):
        stop_at(terminal, "Delete?")
    assert "Stopped; nothing was deleted." in terminal.text
    assert len(upload_rows(database, batch)) == 1


@pytest.mark.slow
def test_ctrl_c_at_the_question_of_reprocess_redoes_nothing(console, database):
    batch = add_batch(database, [{"processing_status": "completed"}], status="completed")
    with console.in_terminal("reprocess", "--stage", "embedding") as terminal:
        stop_at(terminal, "Redo all of them?")
    assert "1 upload in 1 batch would be redone (embedding)." in terminal.text
    assert "Stopped; nothing was redone." in terminal.text
    assert upload_rows(database, batch)[0].processing_status == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_backup_that_a_supervisor_ends_leaves_no_file_and_no_program(
    console, database, database_url, tmp_path, number
):
    def dumps():
        with database.transaction() as connection:
            found = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' "
            return connection.scalar(text(f"{found} AND datname = current_database()"))

    with (
        psycopg.connect(database_url) as other,
        subprocess.Popen(
            [COMMAND, "db", "backup", "x.tar", "--files"],
            env={**console.environment, "BATCH_PIPELINE_DAGSTER_DATABASE_URL": database_url},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            # With `nohup`, tests inherit that SIGHUP is ignored.
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509
        ) as process,
    ):
        try:
            other.execute("LOCK TABLE uploads")  # pg_dump waits for it
            wait_until(dumps, "pg_dump has begun")
            process.send_signal(number)
            assert process.wait(DEADLINE) == -number
        finally:
            process.kill()
        assert process.stderr.read().split() == [b"Stopped."]
    wait_until(lambda: not dumps(), "pg_dump has ended", DEADLINE)
    assert list(tmp_path.glob("x.tar*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["click.core", "batch_pipeline.cli", "psycopg.sql"])
def test_ctrl_c_at_any_moment_of_the_start_stops_with_one_message(console, database, imported):
    batch = add_batch(database, 1)
    with console.in_terminal("watch", batch, PYTHONPROFILEIMPORTTIME="1") as terminal:
        terminal.wait_until(lambda text: f" {imported}\r\n" in text)
        terminal.press_ctrl_c()
        assert_stopped(terminal)
    assert "Stopped" in terminal.text
