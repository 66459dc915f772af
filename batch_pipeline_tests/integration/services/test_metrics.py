"""Metrics for Prometheus: for rows in every state, and from the installed command."""

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, insert, make_url, text, update

from batch_pipeline.database.models import ModelCallSlots, PauseScope, Upload
from batch_pipeline.demo import free_port
from batch_pipeline.services.pauses import pause
from batch_pipeline.services.reports.metrics import METRICS, RECENT_SECONDS, read_metrics
from batch_pipeline.testing.records import add_batch, make_unreadable, upload_rows
from batch_pipeline_tests.integration.console import COMMAND, Console

ROOT = Path(__file__).parents[3]


@pytest.fixture
def console(database_url, tmp_path):
    environment = {
        "PATH": os.environ["PATH"],
        "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
        "BATCH_PIPELINE_DATABASE_URL": database_url,
    }
    return Console(environment, tmp_path)


def numbers(database, settings):
    found = {}
    for name, labels, value in read_metrics(database, settings):
        found.setdefault(name.removeprefix("batch_pipeline_"), {})[" ".join(labels.values())] = (
            value
        )
    return found


def ended(status, seconds_ago, **values):
    moment = func.now() - text(f"interval '{seconds_ago} seconds'")
    return {"processing_status": status, "updated_at": moment, **values}


def test_paused_uploads_are_counted_separately_and_do_not_age(database, settings):
    old = {"created_at": func.now() - text("interval '1 day'")}
    held = add_batch(database, [old] * 3)
    add_batch(database, 2)
    pause(database, settings, PauseScope.BATCH, str(held))
    found = numbers(database, settings)
    assert found["open_uploads"] == {"pending": 2, "paused": 3}
    assert found["oldest_pending_seconds"][""] < 3600
    assert [*found["paused_seconds"]] == [f"batch {held}"]


def test_a_pause_of_a_batch_that_has_ended_counts_only_if_the_batch_is_reopened(pipeline, settings):
    database = pipeline.database
    ended, other = add_batch(database, 1), add_batch(database, 1)
    for batch_id in (ended, other):
        pause(database, settings, PauseScope.BATCH, str(batch_id))

    def paused():
        return {*numbers(database, settings)["paused_seconds"]}

    pipeline.batches.cancel_batch(ended)
    assert paused() == {f"batch {other}"}
    pipeline.batches.retry_batch(ended)
    assert paused() == {f"batch {ended}", f"batch {other}"}


def test_uploads_are_paused_if_every_model_server_of_a_kind_is_but_not_if_one_can_be_called(
    database, change
):
    one, two = "http://gpu1:11434", "http://gpu2:11434"
    settings = change(analyzer="ollama", ollama_host=f"{one},{two}")
    add_batch(database, [{"created_at": func.now() - text("interval '1 day'")}] * 2)
    pause(database, settings, PauseScope.SERVER, one)
    found = numbers(database, settings)
    assert found["open_uploads"] == {"pending": 2}
    assert found["oldest_pending_seconds"][""] > 80_000
    pause(database, settings, PauseScope.SERVER, two)
    found = numbers(database, settings)
    assert found["open_uploads"] == {"pending": 0, "paused": 2}
    assert found["oldest_pending_seconds"][""] == 0


def test_every_state_is_counted_and_only_what_ended_recently(database, settings):
    old = RECENT_SECONDS + 60
    add_batch(
        database,
        [
            {"created_at": func.now() - text("interval '90 seconds'")},
            {"error_kind": "model_timeout"},
            {"owner_run_id": "run"},
            {"processing_status": "analyzing", "owner_run_id": "run"},
            {"processing_status": "embedding", "owner_run_id": "run"},
            ended("completed", 10, stage_seconds={"description": 1.0, "thumbnail": 0.5}),
            ended("completed", 20, stage_seconds={"description": 3.0}),
            ended("completed", old, stage_seconds={"description": 99.0}),
            ended("failed", 30, error_kind="model_output_invalid"),
            ended("failed", old, error_kind="truncated"),
        ],
        status="processing",
    )
    with database.transaction() as connection:
        connection.execute(
            insert(ModelCallSlots).values(
                server="http://one",
                kind="vision",
                holder=func.gen_random_uuid(),
                wanted=5,
                held=2,
                since=func.now(),
                leased_until=func.now() + text("interval '1 minute'"),
            )
        )
    found = numbers(database, settings)
    oldest = found.pop("oldest_pending_seconds")[""]
    assert 90 <= oldest < 150
    assert found == {
        "open_uploads": {"pending": 2, "reserved": 1, "analyzing": 1, "embedding": 1},
        "ended_uploads": {"completed": 2, "failed": 1},
        "upload_errors": {"model_timeout waiting": 1, "model_output_invalid failed": 1},
        "stage_seconds": {
            "description 0.5": 2.0,
            "description 0.95": 2.9,
            "thumbnail 0.5": 0.5,
            "thumbnail 0.95": 0.5,
        },
        "open_batches": {"processing": 1},
        "model_calls": {"http://one vision held": 2, "http://one vision wanted": 5},
    }


def test_the_waiting_time_of_a_reopened_upload_begins_when_it_was_reopened(database, settings):
    batch_id = add_batch(database, 1, status="processing")
    [upload] = upload_rows(database, batch_id)
    with database.transaction() as connection:
        connection.execute(
            update(Upload)
            .where(Upload.id == upload.id)
            .values(created_at=text("now() - interval '1 year'"), dispatch_reason="reprocess")
        )
    assert numbers(database, settings)["oldest_pending_seconds"][""] < 60


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_uploads_of_a_batch_that_was_cancelled_or_given_up_do_not_wait(database, settings, status):
    a_year_ago = func.now() - text("interval '1 year'")
    kinds = [{"error_kind": "model_timeout", "created_at": a_year_ago}]
    add_batch(database, kinds, status=status)
    found = numbers(database, settings)
    assert found["oldest_pending_seconds"] == {"": 0}
    assert found["open_uploads"] == {"pending": 0}
    assert "upload_errors" not in found


def test_uploads_whose_end_an_upload_api_has_dated_infinity_have_not_just_ended(database, settings):
    ended = {"processing_status": "failed", "updated_at": text("'infinity'"), "error_kind": "x"}
    add_batch(database, [ended | {"stage_seconds": {"thumbnail": 1.0}}], status="completed")
    found = numbers(database, settings)
    assert found["ended_uploads"] == {"completed": 0, "failed": 0}
    assert not {"upload_errors", "stage_seconds"} & set(found)


def test_an_empty_database_has_metrics_of_zero(database, settings):
    assert numbers(database, settings) == {
        "open_uploads": {"pending": 0},
        "oldest_pending_seconds": {"": 0},
        "ended_uploads": {"completed": 0, "failed": 0},
    }


@pytest.mark.slow
def test_the_command_prints_what_prometheus_reads_and_serves_it(console, database):
    add_batch(database, 3)
    printed = console("metrics")
    assert printed.code == 0, printed.err
    families = {family.name: family for family in text_string_to_metric_families(printed.out)}
    assert set(families) == {metric.name for metric in METRICS}
    [pending] = families["batch_pipeline_open_uploads"].samples
    assert (pending.labels, pending.value) == ({"state": "pending"}, 3)
    assert {
        "name": "batch_pipeline_open_uploads", "labels": {"state": "pending"}, "value": 3.0
    } in console("metrics", "--json").json  # fmt: skip

    port = free_port()
    with subprocess.Popen(
        [COMMAND, "metrics", "--serve", str(port)],
        env=console.environment,
        cwd=console.folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            address = re.search(r"http://\S+/metrics", process.stdout.readline())
            assert address
            for uploads in (3, 5):
                with urllib.request.urlopen(address.group(), timeout=30) as answer:
                    scraped = answer.read().decode()
                assert f'batch_pipeline_open_uploads{{state="pending"}} {uploads}.0' in scraped
                add_batch(database, 2)
            taken = console("metrics", "--serve", port)
            assert (taken.code, f"cannot listen at 127.0.0.1:{port}" in taken.err) == (2, True)
        finally:
            process.terminate()


@pytest.mark.slow
def test_while_the_database_is_down_a_scrape_gets_the_reason_and_the_log_one_line(
    console, database_url
):
    url = make_url(database_url)
    admin = url.set(database="postgres").render_as_string(hide_password=False)
    port = free_port()
    with subprocess.Popen(
        [COMMAND, "metrics", "--serve", str(port)],
        env=console.environment | {"BATCH_PIPELINE_LOG_FORMAT": "json"},
        cwd=console.folder,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert "Metrics are at" in json.loads(process.stderr.readline())["event"]
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    [url.database],
                )
                with pytest.raises(HTTPError) as refused:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60)
                connection.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                assert b"batch_pipeline_open_uploads" in answer.read()
        finally:
            process.terminate()
        logged = [json.loads(line) for line in process.stderr if line.strip()]
    assert refused.value.code == 503
    assert "the database does not answer" in refused.value.read().decode()
    failed, stopped = logged
    assert failed["level"] == "error"
    assert "the database does not answer" in failed["event"]
    assert stopped["event"] == "Stopped serving metrics."


def test_every_metric_has_its_line_in_the_documents():
    document = (ROOT / "docs" / "deployment.md").read_text()
    assert re.findall(r"^\| `(batch_pipeline_\w+)` \|", document, re.MULTILINE) == [
        metric.name for metric in METRICS
    ]


def test_one_row_that_cannot_be_read_costs_no_other_metric(database, settings, caplog):
    make_unreadable(database, "damaged")
    add_batch(database, [ended("completed", 10, filename="damaged"), {}], status="processing")
    found = numbers(database, settings)
    assert found["open_uploads"]["pending"] == 1
    assert found["open_batches"] == {"processing": 1}
    assert "stage_seconds" not in found
    assert "left out: batch_pipeline_stage_seconds (division by zero)" in caplog.text


@pytest.mark.parametrize("odd", [[], {"decode": "fast"}, {"decode": None}, 5])
def test_timings_that_are_not_numbers_are_left_out(database, settings, odd):
    good = ended("completed", 10, stage_seconds={"decode": 2.0})
    add_batch(database, [ended("completed", 10, stage_seconds=odd), good])
    assert numbers(database, settings)["stage_seconds"] == {"decode 0.5": 2.0, "decode 0.95": 2.0}
