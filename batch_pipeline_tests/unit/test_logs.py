"""Log lines of a separate process."""

import json
import os
import pty
import re
import subprocess
import sys
import uuid
from functools import cache

import pytest

SAYS = """
import logging, warnings
from batch_pipeline.logs import use_format
from batch_pipeline.settings import load_settings

use_format(load_settings())
use_format(load_settings())
logging.getLogger("batch_pipeline.services").warning("%s\\nlines", "two")
try:
    raise ValueError("caf\\u00e9")
except ValueError:
    logging.getLogger("some_library").exception("it broke")
warnings.warn("soon gone")
logging.getLogger("dagster.daemon").error("Dagster writes this one")
"""


#: A daemon of Dagster with its usual loggers, in which dagster-postgres reports an outage.
A_DAEMON = """
import logging
from dagster._utils.log import configure_loggers
from batch_pipeline.logs import say_each_line_once
from batch_pipeline.settings import load_settings

configure_loggers(formatter="json")
say_each_line_once(load_settings())
logging.warning("Retrying failed database connection")
logging.getLogger("dagster.daemon").info("checked for new runs")
"""
A_TICK = f"""
import uuid
import dagster as dg
from dagster._core.definitions.instigation_logger import InstigationLogger
from batch_pipeline.logs import use_format
from batch_pipeline.orchestration.run_logs import naming, write_ticks_as_json
from batch_pipeline.settings import load_settings

write_ticks_as_json(load_settings())
run = dg.DagsterRun("process_batch", run_id="{uuid.UUID(int=1)}",
                    tags={{"batch_pipeline/batch_id": "{uuid.UUID(int=2)}"}})
with InstigationLogger(repository_name="ours", instigator_name="pending_batches") as log:
    with naming(run, upload_id=uuid.UUID(int=3)):
        log.info("asked for a run: slice %s", 4)
    log.warning("nothing waits")
"""

#: Runs whose config names no logger, and runs whose config names the one of the argument.
A_RUN = """
import sys
import dagster as dg
from batch_pipeline.orchestration.run_logs import LOGGERS, use_format_in_runs
from batch_pipeline.settings import load_settings

@dg.op
def unreadable():
    raise dg.Failure("beach.jpg: truncated: it ends early")

@dg.op
def broken():
    raise ValueError("a bug")

@dg.job(logger_defs=LOGGERS)
def bad_file():
    unreadable()

@dg.job(logger_defs=LOGGERS)
def bug():
    broken()

use_format_in_runs(load_settings())
for named in ([], sys.argv[1:]):
    print("loggers:", *named, flush=True)
    for job in (bad_file, bug):
        config = {"loggers": {name: {} for name in named}}
        job.execute_in_process(run_config=config, raise_on_error=False)
"""


def said(log_format, program=SAYS, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"BATCH_PIPELINE_LOG_FORMAT": log_format, "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


@cache
def said_by_runs(log_format):
    """Return the lines of runs whose config names no logger, and of others, by that logger."""
    other = {"text": "json_lines", "json": "console"}[log_format]
    _, without, named = re.split(
        r"^loggers:.*\n", said(log_format, A_RUN, other), flags=re.MULTILINE
    )
    return {None: without.splitlines(), other: named.splitlines()}


def test_every_line_is_one_json_object_and_is_written_once():
    lines = [json.loads(line) for line in said("json").splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("batch_pipeline.services", "warning"),
        ("some_library", "error"),
        ("py.warnings", "warning"),
    ]
    assert lines[0]["event"] == "two\nlines"
    assert lines[1]["exception"].endswith("ValueError: café")
    assert "soon gone" in lines[2]["event"]
    assert all(line["timestamp"].endswith("Z") for line in lines)


def test_lines_of_text_are_as_python_writes_them():
    assert said("text").startswith("two\nlines\nit broke\nTraceback")


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_outage_does_not_make_a_daemon_say_each_line_twice(log_format):
    lines = said(log_format, A_DAEMON).splitlines()

    [of_root] = [line for line in lines if "Retrying failed" in line]
    [of_dagster] = [line for line in lines if "checked for new runs" in line]
    assert json.loads(of_dagster)["event"] == "checked for new runs"
    assert of_root.startswith("{") == (log_format == "json")


@pytest.mark.slow
def test_log_lines_of_a_sensor_are_json_and_name_run_batch_and_upload():
    first, second = map(json.loads, said("json", A_TICK).splitlines())

    assert first["event"] == "asked for a run: slice 4"
    assert first["instigator"] == second["instigator"] == "pending_batches"
    ids = ("run_id", "batch_id", "upload_id")
    assert [first[name] for name in ids] == [str(uuid.UUID(int=n)) for n in (1, 2, 3)]
    assert second["level"] == "warning"
    assert not second.keys() & set(ids)


@pytest.mark.slow
def test_a_sensor_writes_lines_for_people_by_default():
    assert "ours - pending_batches - asked for a run: slice 4" in said("text", A_TICK)


NOBODY = {
    "BATCH_PIPELINE_DATABASE_URL": "postgresql://me:s3cret@127.0.0.1:1/none",
    "BATCH_PIPELINE_STORAGE_URL": "/nowhere",
    "BATCH_PIPELINE_LOG_FORMAT": "json",
}


def upgrade(tmp_path, stderr):
    return subprocess.Popen(
        [sys.executable, "-m", "batch_pipeline", "db", "upgrade"],
        env=os.environ | NOBODY,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def test_a_command_that_fails_in_a_container_says_so_in_json(tmp_path):
    process = upgrade(tmp_path, subprocess.PIPE)
    out, err = process.communicate(timeout=60)

    [line] = map(json.loads, err.splitlines())
    assert (process.returncode, out) == (1, "")
    assert line["level"] == "error"
    assert "127.0.0.1" in line["event"]
    assert "BATCH_PIPELINE_DATABASE_URL" in line["event"]
    assert "s3cret" not in err


def test_a_person_at_a_terminal_gets_sentences_whatever_the_log_format(tmp_path):
    ours, theirs = pty.openpty()
    process = upgrade(tmp_path, theirs)
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # no process writes to the terminal any more
        pass
    os.close(ours)
    process.communicate(timeout=60)

    assert said.startswith(b"Error: ")
    assert b"{" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("log_format", "named"), [("text", None), ("json", "console")])
def test_a_run_says_what_is_wrong_with_a_file_on_one_line_and_keeps_the_traces_of_bugs(
    log_format, named
):
    lines = said_by_runs(log_format)[named]
    told = [line.rpartition(" - ")[2] for line in lines if "beach.jpg" in line]
    assert told[0] == 'Execution of step "unreadable" failed. beach.jpg: truncated: it ends early'
    assert "raise dg.Failure" not in "".join(lines)
    assert any("ValueError: a bug" in line for line in lines)
    assert any("in broken" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("log_format", "named"), [("json", None), ("text", "json_lines")])
def test_a_run_logs_json_if_the_format_or_its_config_says_so(log_format, named):
    lines = [json.loads(line) for line in said_by_runs(log_format)[named]]
    ended = [(line["job"], line["event_type"]) for line in lines if "event_type" in line]
    assert ("bad_file", "PIPELINE_FAILURE") in ended
    assert {line["level"] for line in lines} >= {"error"}
    assert not {line["level"] for line in lines} & {"debug"}
