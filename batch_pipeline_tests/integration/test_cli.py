"""Every command as people run it: the installed script, separate processes, a real database."""

import gc
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from batch_pipeline.cli.batches import follow
from batch_pipeline.cli.session import Session
from batch_pipeline.demo import hold_home
from batch_pipeline.errors import PermanentError
from batch_pipeline.services.dispatch.slices import unnumbered_slices
from batch_pipeline.services.progress.batch_watch import LONGEST_PAUSE, BatchSnapshot
from batch_pipeline.services.reports.batch_status import newest_batches
from batch_pipeline.services.short_ids import short
from batch_pipeline.testing.media import (
    HOSTILE_FILENAMES,
    cut_in_half,
    make_image,
    make_photo,
    make_video,
)
from batch_pipeline.testing.records import USER, add_batch, batch_row, embedded, upload_rows
from batch_pipeline_tests.patience import DEADLINE

from .conftest import program
from .console import COMMAND

MEDIA = Path(__file__).parents[2] / "examples" / "media"
BATCH_FIELDS = [
    "batch_id", "user_id", "status", "total_uploads", "processed_uploads", "successful_uploads",
    "failed_uploads", "name", "created_at", "started_at", "completed_at", "error_message",
    "priority", "progress_percentage", "paused", "cost",
]  # fmt: skip
UPLOAD_FIELDS = [
    "upload_id", "filename", "file_type", "processing_status", "attempts", "error_kind",
    "error_message", "description", "description_audit_score", "tags", "visible_text",
    "vision_fingerprint", "embedding_fingerprint", "thumbnail_path", "cost",
]  # fmt: skip


def error_and_hint(answer):
    assert "Traceback" not in answer.err
    return answer.err.strip().splitlines()


def test_submit_prints_the_agreed_json_and_keeps_the_files(console, database, tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    answer = console("submit", MEDIA / "fog.webp", "notes.jpg", "--json")
    assert answer.code == 1
    assert list(answer.json) == [
        "batch_id", "total_files", "queued", "failed", "upload_ids", "failed_files", "known",
    ]  # fmt: skip
    assert (answer.json["total_files"], answer.json["queued"], answer.json["failed"]) == (2, 1, 1)
    [refused] = answer.json["failed_files"]
    assert refused["filename"] == "notes.jpg"
    assert refused["error"]
    [upload] = upload_rows(database, uuid.UUID(answer.json["batch_id"]))
    assert [str(upload.id)] == answer.json["upload_ids"]
    assert (tmp_path / "home" / "uploads" / upload.file_path).is_file()


def test_a_batch_has_the_priority_that_it_was_submitted_with(console, database):
    urgent = console("submit", MEDIA / "fog.webp", "--priority", "high", "--json").json["batch_id"]
    usual = console("submit", MEDIA / "fog.webp", "--json").json["batch_id"]
    shown = {batch["batch_id"]: batch["priority"] for batch in console("status", "--json").json}
    assert shown == {urgent: "high", usual: "normal"}
    assert re.search(r"priority +high", console("status", urgent).out)
    assert batch_row(database, uuid.UUID(usual)).priority is None
    waiting = {str(s.batch_id): s.priority for s in unnumbered_slices(database, 9, at_most=1)}
    assert waiting == shown
    assert console("submit", MEDIA / "fog.webp", "--priority", "urgent").code == 2


@pytest.mark.slow
def test_a_simple_command_loads_nothing_that_it_does_not_need(console):
    """Migrations, decoders, servers and Dagster would double the time for the start."""
    heavy = {"alembic", "av", "dagster", "dagster_shared", "grpc", "httpx", "jinja2", "pillow_heif"}
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded', *sorted({heavy!r} & sys.modules.keys())))\n"
        "from batch_pipeline.__main__ import main\n"
        "sys.argv[1:] = ['status']\n"
        "main()\n"
    )
    said = subprocess.check_output([sys.executable, "-c", code], env=console.environment, text=True)
    assert said.splitlines() == ["No batches. Submit one:  batch-pipeline submit FOLDER", "loaded"]


def test_submit_says_in_words_how_to_follow_the_batch(console):
    answer = console("submit", MEDIA / "fog.webp")
    assert answer.code == 0
    first, second = answer.out.splitlines()
    assert first.endswith(": 1 file queued")
    assert second.startswith("Follow it:  batch-pipeline watch ")


NO_REDIS = {"BATCH_PIPELINE_REDIS_URL": "redis://127.0.0.1:1/0"}


def test_submit_works_and_warns_in_one_line_if_redis_refuses(console, database):
    answer = console("submit", MEDIA / "fog.webp", MEDIA / "sea.jpg", "--json", **NO_REDIS)
    assert answer.code == 0
    assert len(upload_rows(database, uuid.UUID(answer.json["batch_id"]))) == 2
    [line] = answer.err.splitlines()
    assert "progress is not published on Redis: " in line
    assert "Connection refused" in line

    answer = console("submit", MEDIA / "fog.webp", BATCH_PIPELINE_LOG_FORMAT="json", **NO_REDIS)
    assert answer.code == 0
    [line] = map(json.loads, answer.err.splitlines())
    assert line["level"] == "warning"
    assert line["event"].startswith("progress is not published on Redis: ")


@pytest.mark.slow
def test_in_a_terminal_the_warning_about_redis_is_a_sentence_among_the_others(console):
    with console.in_terminal(
        "submit", MEDIA / "fog.webp", BATCH_PIPELINE_LOG_FORMAT="json", **NO_REDIS
    ) as terminal:
        assert terminal.wait() == 0
    assert terminal.text.count("progress is not published on Redis") == 1
    assert "{" not in terminal.text
    assert "1 file queued" in terminal.text


def test_other_files_next_to_photos_are_summed_up_and_are_not_failures(console, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(make_image("png"))
    for name in ("a.XMP", "b.xmp", "a.png.json"):
        (folder / name).write_text("{}")
    answer = console("submit", folder)
    # The sidecar of a.png is read for its date.
    assert (answer.code, answer.err) == (0, "1 .json file left out\n1 .xmp file left out\n")
    told = console("submit", folder, "--json")
    assert (told.code, told.json["total_files"], told.json["failed"]) == (0, 1, 0)
    # Its content decides, not its name; a file of another type is refused.
    (folder / "picture.json").write_bytes(make_image("png", seed=7))
    (folder / "notes.txt").write_text("no picture")
    told = console("submit", folder, "--json")
    assert (told.code, told.json["queued"], told.json["failed"]) == (1, 2, 1)
    (folder / "page.html").write_text("<html></html>")
    said = console("submit", folder).err
    assert f"refused    {folder}/notes.txt: the content looks like a text file\n" in said
    assert said.count("ccepted are JPEG") == 1
    alone = console("submit", folder / "b.xmp")
    assert alone.code == 2
    assert "Error: no file was accepted; there is no batch" in alone.err


def test_a_batch_has_the_name_that_is_given_or_the_folders_and_shows_it_everywhere(
    console, database, tmp_path
):
    holiday = tmp_path / "Rome \x1b[31m2026"
    holiday.mkdir()
    (holiday / "a.png").write_bytes(make_image("png"))
    (holiday / "b.png").write_bytes(make_image("png")[:-30])
    named = console("submit", holiday, "--json").json["batch_id"]
    given = console("submit", holiday / "a.png", "--name", "only [red]one", "--json").json
    assert (
        console("status", named, "--json").json["name"] == "Rome \N{REPLACEMENT CHARACTER}[31m2026"
    )
    shown = console("status").out
    assert "only [red]one" in shown
    assert "Rome \N{REPLACEMENT CHARACTER}[31m2026" in shown
    assert max(map(len, shown.splitlines())) <= 80
    console("cancel", given["batch_id"])
    assert console("watch", given["batch_id"], "--json").json["name"] == "only [red]one"
    console("report", given["batch_id"], "--html", "page.html")
    assert "<title>only [red]one</title>" in (tmp_path / "page.html").read_text()
    # Batches from several folders, and from an upload API, have no name.
    both = console("submit", holiday, MEDIA / "fog.webp", "--json").json["batch_id"]
    assert console("status", both, "--json").json["name"] is None


def test_submit_without_anything_acceptable_makes_no_batch_and_is_wrong_use(console, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    answer = console("submit", "notes.txt")
    assert answer.code == 2
    assert "Error: no file was accepted; there is no batch" in answer.err
    assert console("status").out.startswith("No batches.")
    answer = console("submit", "nowhere")
    assert answer.code == 2
    assert error_and_hint(answer) == [
        "Error: nowhere does not exist: name files, or folders of them"
    ]
    (tmp_path / "empty").mkdir()
    answer = console("submit", "empty")
    assert answer.code == 2
    assert error_and_hint(answer) == ["Error: no file was found; there is no batch"]
    # An unset variable in a script is an empty text; as a path it would be the current folder.
    answer = console("submit", "")
    assert answer.code == 2
    assert error_and_hint(answer)[0] == "Error: Invalid value for 'PATHS...': a path is empty."


def test_status_prints_the_agreed_json_page_by_page(console, database):
    batches = [str(add_batch(database, 1)) for _ in range(3)]
    answer = console("status", batches[0], "--json")
    assert answer.code == 0
    assert list(answer.json) == [*BATCH_FIELDS, "uploads"]
    assert list(answer.json["uploads"][0]) == UPLOAD_FIELDS
    pages = [console("status", "--limit", 2, "--page", page, "--json").json for page in (1, 2)]
    assert [len(page) for page in pages] == [2, 1]
    assert list(pages[0][0]) == BATCH_FIELDS
    assert [batch["batch_id"] for page in pages for batch in page] == batches[::-1]
    assert console("status", "--page", 2).out == "No more batches.\n"


def test_status_tables_fit_80_columns_and_show_names_literally(console, database):
    rows = [
        {"filename": name.replace("\0", ""), "processing_status": "failed",
         "error_kind": "truncated", "error_message": "the picture ends in the middle"}
        for name in HOSTILE_FILENAMES
    ]  # fmt: skip
    batch = add_batch(database, rows)
    listed, shown = console("status").out, console("status", batch).out
    assert max(map(len, (listed + shown).splitlines())) <= 80
    assert str(batch)[:8] in listed
    assert "<b>bold</b><script>alert" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_status_of_a_batch_that_waits_says_what_for(console, database, database_url):
    batch = add_batch(database, 2)
    nowhere = make_url(database_url).set(database="nowhere").render_as_string(False)
    shown = console("status", batch, BATCH_PIPELINE_DAGSTER_DATABASE_URL=nowhere).out
    assert "is Dagster running? It has never run on this database: start it with `make" in " ".join(
        shown.split()
    )
    listed = console("status", BATCH_PIPELINE_DAGSTER_DATABASE_URL=nowhere).out
    listed = " ".join(listed.split())
    assert "is Dagster running? It has never run on this database" in listed


def test_watch_of_an_ended_batch_prints_its_last_state_and_its_failures(console, database):
    batch = add_batch(
        database,
        [{"processing_status": "completed"}, {"processing_status": "failed"}],
        status="completed",
        processed_uploads=2,
        successful_uploads=1,
        failed_uploads=1,
    )
    answer = console("watch", batch, "--json")
    assert answer.code == 1
    assert answer.json == {
        "batch_id": str(batch), "status": "completed", "total": 2, "processed": 2,
        "successful": 1, "failed": 1, "progress_percentage": 100.0, "name": None, "paused": [],
    }  # fmt: skip
    assert console("watch", batch).out.splitlines()[-2:] == [
        f"See why:    batch-pipeline status {batch}",
        f"Try again:  batch-pipeline retry {batch}",
    ]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_watch_of_a_cancelled_batch_says_that_not_all_is_done(console, database, arguments):
    batch = add_batch(database, 1, status="cancelled")
    assert console("watch", batch, *arguments).code == 1


def searchable(filename):
    return {
        "filename": filename,
        "processing_status": "completed",
        "embedding_model": "embedded-of-another-version",
        "embedding_local": [1.0] * 1024,
    }


def test_search_says_why_nothing_can_be_found(console, database):
    empty = console("search", " ")
    assert (empty.code, error_and_hint(empty)) == (
        2, ["Error: the search text is empty: say what to look for"],
    )  # fmt: skip
    limit = console("search", "sea", "--limit", 0)
    assert (limit.code, error_and_hint(limit)) == (
        2, ["Error: the limit is 0: expected 1 to 5000"],
    )  # fmt: skip
    nothing = console("search", "sea")
    assert (nothing.code, nothing.out) == (
        0, "No upload is completed yet. See the progress:  batch-pipeline status\n",
    )  # fmt: skip
    add_batch(database, [searchable("sea.jpg")])
    other = console("search", "sea")
    assert (other.code, "sea.jpg" in other.out) == (0, True)
    assert "Searched by words only: embedded-of-another-version" in other.err
    assert console("search", "zebra").out == "Nothing found.\n", "an upload is completed"
    [only] = json.loads(console("search", "sea", "--json").out)
    assert console("search", "--like", only["upload_id"]).out == "Nothing found.\n"


def test_results_of_a_search_have_the_ids_that_other_commands_take(console, database):
    batch = add_batch(database, [searchable("sea.jpg")])
    [upload] = upload_rows(database, batch)

    assert short(upload.id) in console("search", "sea").out


def test_words_of_a_search_need_no_quotes(console, database):
    add_batch(database, [searchable("the sea.jpg")])

    unquoted = console("search", "the", "sea.jpg", "--limit", 1, "--json")

    assert (unquoted.code, unquoted.json[0]["found_by"]) == (0, "filename")
    assert console("search", "sea", "--like", "3f2a").code == 2


def test_show_says_everything_about_one_upload(console, database):
    text = "A calm sea. " * 20
    done = searchable("sea.jpg") | {
        "description": text, "vision_tags": ["sea"], "file_path": "a/" * 45 + "sea.jpg",
        "facts": {"camera": "Kestrel K-2", "status": "of the API", "warnings": ["cut", "dark"]},
    }  # fmt: skip
    failed = {"processing_status": "failed", "error_kind": "truncated", "error_message": "it ends"}
    batch = add_batch(database, [done, failed], name="Rome")
    first, second = upload_rows(database, batch)

    shown = console("show", short(first.id))
    why = console("show", second.id).out
    missing = console("show", uuid.UUID(int=9))

    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= 80
    assert " ".join(shown.out.split()).count("A calm sea.") == 20
    assert "".join(shown.out.split()).count(first.file_path) == 1
    of_row = ["status +completed", rf"batch +Rome \({short(batch)}\)", "tags +sea"]
    of_metadata = ["status +of the API", "camera +Kestrel", "warnings +cut; dark"]
    for line in of_row + of_metadata:
        assert re.search(f"^{line}", shown.out, re.MULTILINE)
    assert re.search("^error +truncated: it ends", why, re.MULTILINE)
    assert "Copy or upload the file again from its source." in why
    assert console("show", first.id, "--json").json["metadata"]["camera"] == "Kestrel K-2"
    assert (missing.code, "there is no upload" in missing.err) == (2, True)


def test_retry_and_cancel_say_what_they_did_and_cancel_refuses_what_has_ended(console, database):
    batch = add_batch(
        database,
        [{"processing_status": "failed"}],
        status="completed",
        processed_uploads=1,
        failed_uploads=1,
    )
    refused = console("cancel", batch)
    assert refused.code == 2
    assert error_and_hint(refused) == [
        f"Error: batch {short(batch)} is completed; only a batch that has not ended can be "
        "cancelled"
    ]
    foreign = uuid.uuid4()
    refused = console("retry", batch, "--upload", foreign)
    assert refused.code == 2
    assert error_and_hint(refused) == [f"Error: batch {batch} holds no upload {foreign}"]
    retried = console("retry", batch, "--json")
    assert (retried.code, retried.json["reopened"]) == (0, 1)
    cancelled = console("cancel", batch)
    assert (cancelled.code, cancelled.out) == (
        0,
        f"Batch {short(batch)} is cancelled after 0 of 1 uploads.\n",
    )
    assert batch_row(database, batch).status == "cancelled"
    reopened = console("retry", batch).out.splitlines()[0]
    assert reopened == f"Batch {short(batch)} is pending: 1 upload not processed yet."


@pytest.mark.slow
def test_while_it_waits_for_json_submit_keeps_only_the_last_snapshot(
    pipeline, database, monkeypatch
):
    """A batch that takes days has a snapshot for each second, with the uploads that ended then."""
    batch, session = add_batch(database, 2), Session()
    monkeypatch.setattr(Session, "pipeline", pipeline)
    kept = []

    def count_and_cancel():
        try:
            for _ in range(5):
                time.sleep(LONGEST_PAUSE)
                gc.collect()
                # Not `isinstance`, which asks proxies of other tests for objects that are gone.
                kept.append(sum(type(one) is BatchSnapshot for one in gc.get_objects()))
        finally:
            pipeline.batches.cancel_batch(batch)  # ends the watch

    with ThreadPoolExecutor() as pool:
        counted = pool.submit(count_and_cancel)
        assert follow(session, batch, quiet=True)
        counted.result()
    assert max(kept) <= 2


def test_report_writes_the_page_and_says_how_large_it_is(console, database, tmp_path):
    batch = add_batch(database, 2)
    answer = console("report", batch, "--html", "page.html", "--json")
    assert answer.code == 0
    assert answer.json == {
        "batch_id": str(batch),
        "file": "page.html",
        "bytes": (tmp_path / "page.html").stat().st_size,
        "uploads": 2,
    }
    refused = console("report", batch, "--html", "no/such/folder/page.html")
    assert refused.code == 2
    assert error_and_hint(refused) == [
        "Error: no/such/folder/page.html cannot be written: No such file or directory"
    ]


def test_inspect_prints_what_is_seen_and_stores_nothing(console, database, tmp_path):
    (tmp_path / "IMG_20210506_070809.jpg").write_bytes(make_image("jpeg")[:-20])
    (tmp_path / "clip.mp4").write_bytes(make_video("mp4", 2))
    (tmp_path / "clip.xmp").write_text('<rdf:Description xmp:CreateDate="2021-05-06T07:08:09"/>')
    (tmp_path / "cut.png").write_bytes(cut_in_half(make_image("png")))
    (tmp_path / "notes.svg").write_text("<svg/>")

    answer = console(
        "inspect", "IMG_20210506_070809.jpg", "clip.mp4", "cut.png", "notes.svg", "gone.jpg",
        "--output", "seen", "--json",
    )  # fmt: skip

    assert answer.code == 1, "not all could be decoded"
    still, film, cut, drawing, gone = answer.json
    assert (still["format"], still["error_kind"]) == ("jpeg", None)
    assert still["facts"]["date_source"] == "file name"
    assert still["facts"]["warnings"][0].startswith("damaged: ")
    assert set(still["seconds"]) == {"sniff", "decode", "thumbnail"}
    assert (film["file_type"], film["facts"]["duration_seconds"]) == ("video", 2.0)
    assert film["facts"]["date_source"] == "sidecar XMP"
    assert len(film["written"]) == 3, "a thumbnail, and a frame for each second"
    assert cut["error_kind"] == "truncated"
    assert drawing["error_kind"] == "unsupported_format"
    assert gone["error_kind"] == "source_missing"
    written = [path for seen in answer.json for path in seen["written"]]
    assert sorted(map(str, (tmp_path / "seen").iterdir())) == sorted(
        str(tmp_path / path) for path in written
    )
    assert newest_batches(database, limit=10, offset=0) == []
    assert list((tmp_path / "home").iterdir()) == []


def test_inspect_shows_a_line_for_each_fact(console, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(make_photo(0.1))

    answer = console("inspect", "photo.jpg")

    assert answer.code == 0
    for expected in ("photo.jpg", "JPEG image", "EXIF DateTimeOriginal", "Example Camera One"):
        assert expected in answer.out


def test_inspect_does_not_blame_the_picture_for_a_folder_that_cannot_be_written(console):
    answer = console("inspect", MEDIA / "fog.webp", "--output", "/dev/null/seen")
    assert answer.code == 2
    assert error_and_hint(answer) == [
        "Error: /dev/null/seen/fog.webp_thumbnail.jpg cannot be written: Not a directory"
    ]


def test_pictures_of_a_file_with_a_long_name_can_be_written(console, tmp_path):
    name = "海" * 80 + ".jpg"
    shutil.copy(MEDIA / "sea.jpg", tmp_path / name)

    answer = console("inspect", name, "--output", "seen", "--json")

    assert answer.code == 0, answer.err
    assert len(list((tmp_path / "seen").iterdir())) == 2


def test_two_files_whose_pictures_would_have_one_name_are_refused(console, tmp_path):
    for name in ("sea 1.jpg", "sea_1.jpg"):
        shutil.copy(MEDIA / "sea.jpg", tmp_path / name)

    answer = console("inspect", "sea 1.jpg", "sea_1.jpg", "--output", "seen")

    assert answer.code == 2
    assert "inspect them one by one" in answer.err
    assert not (tmp_path / "seen").exists()


def test_inspect_names_the_kind_of_error_that_the_pipeline_names(console, tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    answer = console("inspect", "x" * 300 + ".jpg", "loop.jpg", "folder.jpg", "gone.jpg", "--json")
    kinds = [seen["error_kind"] for seen in answer.json]
    assert kinds == [*["source_unreadable"] * 2, *["source_missing"] * 2]


def test_inspect_and_prompt_refuse_a_picture_with_too_many_bytes(console):
    limit = {"BATCH_PIPELINE_MAX_FILE_BYTES": "1000"}
    inspected = console("inspect", MEDIA / "fog.webp", "--json", **limit)
    assert inspected.json[0]["error_kind"] == "file_too_large"
    tried = console("prompt", "--try", MEDIA / "fog.webp", **limit)
    assert tried.code == 1
    assert "a picture may have 1,000" in tried.err


def test_a_named_pipe_is_refused_and_not_waited_for(console, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    reason = "it is a pipe, a socket or a device; name a file"

    inspected = console("inspect", "pipe.jpg", "--json")
    tried = console("prompt", "--try", "pipe.jpg")

    assert (inspected.code, inspected.json[0]["error_message"]) == (1, reason)
    assert tried.code == 2
    assert error_and_hint(tried) == [f"Error: pipe.jpg cannot be read: {reason}"]


def test_a_format_that_the_operator_leaves_out_is_refused(console):
    answer = console("submit", MEDIA / "fog.webp", BATCH_PIPELINE_ACCEPTED_FORMATS="png,mp4")

    assert answer.code == 2
    assert "fog.webp: the content is WebP" in answer.err
    assert "BATCH_PIPELINE_ACCEPTED_FORMATS" in answer.err


def test_reprocess_without_anything_to_redo_is_refused(console):
    answer = console("reprocess", "--stage", "embedding")
    assert answer.code == 2
    assert error_and_hint(answer)[0].startswith("Error: nothing to redo")


def test_db_upgrade_makes_the_tables_and_is_safe_to_repeat(console, server):
    with server.new_database(migrated=False) as url:
        missing = console("status", BATCH_PIPELINE_DATABASE_URL=url)
        assert missing.code == 2
        assert "run `batch-pipeline db upgrade`" in missing.err
        made = console("db", "upgrade", "--json", BATCH_PIPELINE_DATABASE_URL=url)
        assert made.code == 0
        assert made.json["before"] is None
        again = console("db", "upgrade", BATCH_PIPELINE_DATABASE_URL=url)
        in_json = console(
            "db", "upgrade", BATCH_PIPELINE_DATABASE_URL=url, BATCH_PIPELINE_LOG_FORMAT="json"
        )
        assert (again.code, again.out) == (
            0, f"Nothing to do: the tables are at revision {made.json['after']}.\n",
        )  # fmt: skip
        assert in_json.out == ""
        assert json.loads(in_json.err)["event"] == again.out.strip()
        with psycopg.connect(url, autocommit=True) as api:
            api.execute("DROP TRIGGER batch_pipeline_uploads_gone ON uploads")
        repaired = console("db", "upgrade", BATCH_PIPELINE_DATABASE_URL=url)
        assert repaired.out == (
            "Missing triggers were created again: batch_pipeline_uploads_gone.\n"
        )


def test_doctor_says_what_to_do_about_each_thing_that_is_not_ok(console):
    answer = console("doctor", "--json")
    assert answer.code == 1  # no daemon runs on this database
    assert {check["name"] for check in answer.json} >= {"database", "migrations", "storage"}
    assert all(check["hint"] for check in answer.json if not check["ok"])


def test_doctor_fails_when_an_upload_has_waited_for_too_long(console, database):
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    add_batch(database, [{"created_at": long_ago - timedelta(days=9)}], status="cancelled")
    batch = add_batch(database, [{"created_at": long_ago}], name="Rome")

    def oldest(*arguments):
        found = console("doctor", "--quick", "--json", *arguments).json
        [check] = [check for check in found if check["name"] == "oldest waiting upload"]
        return check

    assert oldest()["ok"]
    late = oldest("--longest-wait", "1h")
    assert not late["ok"]
    assert f"its batch Rome ({short(batch)}) is pending, longer than 1:00:00" in late["detail"]


@pytest.mark.slow
def test_pause_and_resume_say_what_they_did_and_notify_everybody(console, database, tmp_path):
    batch, other = add_batch(database, 1, name="Rome"), add_batch(database, 1)
    assert console("paused").out == "Nothing is paused.\n"
    label = f"Rome ({short(batch)})"
    answer = console("pause", "--batch", short(batch), "--reason", "wrong folder")
    assert answer.code == 0
    assert answer.out.startswith(f"Paused: batch {label} has been paused since ")
    assert "(wrong folder)" in answer.out
    assert console("pause", "--user", str(batch_row(database, batch).user_id)).code == 0

    assert [pause["scope"] for pause in console("paused", "--json").json] == ["batch", "user"]
    status = console("status")
    assert status.out.count("paused") == 4, "two batches, and a line for each pause"
    assert "(wrong folder)" in " ".join(status.out.split())
    assert "(wrong folder)" in " ".join(console("status", batch).out.split())
    assert len(console("status", batch, "--json").json["paused"]) == 2
    assert len(console("status", other, "--json").json["paused"]) == 1
    with console.in_terminal("watch", batch) as terminal:
        terminal.wait_until(lambda text: "has been paused since" in text)
    [pauses] = [c for c in console("doctor", "--quick", "--json").json if c["name"] == "pauses"]
    assert pauses["ok"]
    assert "wrong folder" in pauses["detail"]
    assert console("report", batch, "--html", "r.html").code == 0
    assert "It has been paused (batch)" in (tmp_path / "r.html").read_text()

    refused = console("resume")
    assert refused.code == 2
    assert "there is no pause of everything; batch " in refused.err
    assert console("pause", "--batch", batch, "--server", "http://x").code == 2
    answer = console("resume", "--batch", short(batch))
    assert answer.out.splitlines()[0] == f"Resumed: batch {label}"
    assert answer.out.splitlines()[1].startswith("Paused: user ")


@pytest.mark.slow
def test_a_letter_that_cannot_be_printed_does_not_end_a_command(console, database, tmp_path):
    add_batch(database, [{"processing_status": "failed", "error_kind": "truncated"}])
    done = subprocess.run(
        [COMMAND, "failures"],
        env={**console.environment, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"? Copy or upload the file again" in done.stdout  # an arrow precedes it
    old = os.fsdecode(b"caf\xe9.html")  # a file name in an old encoding
    answer = console("report", add_batch(database, 1), "--html", old)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("caf?.html: 1 upload, ")
    assert (tmp_path / old).is_file()


@pytest.mark.parametrize(
    "command",
    ["retry --model", "reprocess --stage embedding --model", "failures --kind", "retry --kind",
     "reprocess --stage embedding --model-not", "resume --server", "alive code-server --host",
     "metrics --serve 9464 --host"],
)  # fmt: skip
def test_an_argument_that_is_not_text_is_refused(console, command):
    wrong = console(*command.split(), os.fsdecode(b"caf\xe9"))
    option = command.split()[-1]
    assert wrong.code == 2
    assert error_and_hint(wrong)[0] == (
        f"Error: Invalid value for '{option}': 'caf\\udce9' is not text in UTF-8."
    )


@pytest.mark.parametrize("command", ["watch", "retry", "cancel", "report"])
def test_an_unknown_batch_is_refused_by_every_command(console, command):
    unknown = uuid.uuid4()
    answer = console(command, unknown, *(["--html", "x"] if command == "report" else []))
    assert answer.code == 2
    assert error_and_hint(answer)[0].startswith(f"Error: there is no batch {unknown}")


def test_wrong_use_is_explained_with_a_hint(console):
    wrong = console("status", "not-a-uuid")
    assert wrong.code == 2
    assert error_and_hint(wrong) == [
        "Error: Invalid value for '[BATCH]': 'not-a-uuid' is not an id; expected an id or "
        "its first characters, such as 3f2a91c0.",
        "Hint: `batch-pipeline status --help` shows how it is used",
    ]
    assert console("no-such-command").code == 2
    assert console().code == 2


def test_an_unreachable_database_and_a_wrong_setting_have_different_errors(console):
    gone = console("status", BATCH_PIPELINE_DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert gone.code == 1
    assert gone.err.startswith("Error: the database does not answer: ")
    assert error_and_hint(gone)[-1].startswith("Hint: start the server, or correct BATCH_PIPELINE_")
    wrong = console("status", BATCH_PIPELINE_MAX_ATTEMPTS="none")
    assert wrong.code == 2
    assert "BATCH_PIPELINE_MAX_ATTEMPTS='none'" in wrong.err


def test_the_error_for_a_storage_that_is_not_mounted_says_to_mount_it(console, tmp_path):
    assert console("submit", MEDIA / "fog.webp").code == 0
    answer = console(
        "submit", MEDIA / "sea.jpg", BATCH_PIPELINE_STORAGE_URL=str(tmp_path / "mount")
    )
    assert answer.code == 1
    error, hint = error_and_hint(answer)
    assert "the storage holds none of its files" in error
    assert hint.startswith("Hint: mount the storage or make it writable, or correct BATCH_")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DATABASE_URL", "postgresql://u:p@[::1/x", "is not a URL: expected postgresql://"),
        ("DATABASE_URL", "postgresql://127.0.0.1:1/x?odd=1", "cannot be used: invalid"),
        ("HOME", "/proc/nowhere", "cannot be made: No such file or directory"),
        ("REDIS_URL", "nonsense", "expected redis://host:port/0"),
        ("STORAGE_URL", "odd://x", "Protocol not known: odd; expected a path or an fsspec URL"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_what_is_expected(
    console, variable, value, said
):
    setting = {f"BATCH_PIPELINE_{variable}": value}
    command = ["status"]
    if variable == "HOME":
        setting["BATCH_PIPELINE_DATABASE_URL"] = ""
        command = ["submit", MEDIA / "fog.webp"]
    answer = console(*command, **setting)
    assert answer.code == 2
    error, hint = error_and_hint(answer)[-2:]
    assert error.startswith(f"Error: BATCH_PIPELINE_{variable}")
    assert said in error
    assert hint == "Hint: settings come from the environment and .env: docs/settings.md"


def test_a_port_that_somebody_listens_on_is_refused_at_once(console):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = console("demo", "--exit", "--port", port)
    assert answer.code == 2
    assert error_and_hint(answer) == [
        f"Error: port {port} cannot be used: Address already in use; choose another, or leave "
        "out --port for a free one"
    ]


def test_a_demo_that_is_refused_does_not_say_that_it_starts(console, settings):
    lock = hold_home(settings)
    answer = console("demo", "--exit")
    os.close(lock)
    assert (answer.code, answer.out) == (2, "")
    assert f"a stack already runs on {settings.home}" in answer.err

    (settings.home / "dagster.lock").unlink()
    (settings.home / "dagster.lock").mkdir()  # like a lock file that we may not open, even as root
    answer = console("demo", "--exit")
    assert (answer.code, answer.out) == (2, "")
    assert error_and_hint(answer)[0] == (
        f"Error: BATCH_PIPELINE_HOME={str(settings.home)!r} cannot be used: Is a directory; "
        "expected a folder that can be written"
    )


def test_a_demo_of_a_folder_without_pictures_is_refused_before_anything_starts(console, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = console("demo", "--exit", "--media", "empty")
    assert (answer.code, answer.out) == (2, "")
    assert error_and_hint(answer) == ["Error: empty holds no photo or video"]


@pytest.mark.parametrize(
    "command",
    [
        ["db", "backup", "gone/x.tar"],
        ["db", "backup", "file/x.tar"],
        ["export", USER, "file/x"],
        ["export", USER, "loop"],
    ],
)
def test_the_error_for_a_path_that_cannot_be_written_is_one_short_line(
    console, database, tmp_path, command
):
    add_batch(database, 1)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    answer = console(*command)
    assert answer.code == 1
    assert re.fullmatch(
        f"Error: {command[-1]} cannot be written: (No such file or|Not a) directory\n", answer.err
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [["--version"], ["prompt", "--show"], ["status", "--json"]])
def test_output_that_finds_the_disk_full_is_a_plain_error(console, database, command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, *command],
            env=console.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: the output cannot be written: No space left on device",
        "Hint: make room, then run the command again",
    ]


def test_an_error_of_a_file_names_it_and_gives_no_hint_about_the_services(console, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    answer = console("prompt", "--try", MEDIA / "sea.jpg", "--try", "notes.txt")
    assert "sea.jpg, embedded-" in answer.out  # an answer that was paid for is not lost
    told = console("prompt", "--try", MEDIA / "sea.jpg", "--try", "notes.txt", "--json")
    assert [trial["file"] for trial in told.json] == [str(MEDIA / "sea.jpg")]
    answer = console("prompt", "--try", "notes.txt")
    assert answer.code == 1
    [error] = error_and_hint(answer)
    assert error.startswith("Error: notes.txt: the content looks like a text file; accepted are")


def test_tracebacks_are_shown_only_with_debug(console, database):
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE uploads CASCADE")
    batch = add_batch_row(database)
    plain = console("status", batch)
    assert plain.code == 1
    first, hint = error_and_hint(plain)
    assert first.startswith("Error: this should not happen: ProgrammingError")
    assert "--debug" in hint
    debugged = console("--debug", "status", batch)
    assert debugged.code == 1
    assert "Traceback" in debugged.err


def add_batch_row(database):
    with database.engine.begin() as connection:
        return connection.exec_driver_sql(
            "INSERT INTO upload_batches (user_id, total_uploads) "
            "VALUES (gen_random_uuid(), 0) RETURNING id"
        ).scalar_one()


#: For each shell, set up as in the quickstart: what it completes after `batch-pipeline re`.
COMPLETIONS = {
    "bash": (
        ["--norc", "-c"],
        """COMP_WORDS=(batch-pipeline re); COMP_CWORD=1
        _batch_pipeline_completion batch-pipeline re; printf '%s\\n' ${COMPREPLY[@]}""",
    ),
    # zsh completes only in its line editor; here it prints the completions.
    "zsh": (
        ["-f", "-c"],
        """_describe() { print -l ${${(P)3}%%:*} }
        words=(batch-pipeline re); CURRENT=2; _batch_pipeline_completion""",
    ),
    "fish": (["--no-config", "-c"], "complete -C 'batch-pipeline re'"),
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_completion_works_as_the_quickstart_sets_it_up(console, shell):
    options, question = COMPLETIONS[shell]
    quickstart = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()
    setup = [
        line.partition(f"# {shell}")[0]
        for line in quickstart.splitlines()
        if re.search(rf" # {shell}\b", line)
    ]
    assert setup
    done = subprocess.run(
        [program(shell), *options, "\n".join([*setup, question])],
        env={**console.environment, "PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}"},
        cwd=console.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    offered = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert {"report", "reprocess", "retry"} <= set(offered), done
    assert "status" not in offered


# In a terminal


@pytest.fixture
def batch_in_work(database):
    batch = add_batch(
        database,
        [
            {"filename": "first.jpg"},
            {"filename": "b\x1b[31mad.jpg"},
            {"filename": "a very long name " * 10 + ".jpg"},
        ],
    )
    states_of = upload_rows(database, batch)
    return batch, [upload.id for upload in states_of]


@pytest.mark.slow
def test_watch_in_a_terminal_of_80_columns_shows_stages_failures_and_the_end(
    console, pipeline, batch_in_work
):
    batch, uploads = batch_in_work
    states = pipeline.states
    states.load_batch(batch, "run", limit=10)
    claims = [states.start(upload, "run").claim for upload in uploads]
    with console.in_terminal("watch", batch) as terminal:
        terminal.wait_until(lambda text: "first.jpg" in text and "0/3" in text)
        assert "reading" in terminal.text
        states.store_thumbnail(claims[0], "thumb.jpg", {})
        terminal.wait_until(lambda text: "describing" in text)
        states.fail(claims[1], PermanentError("truncated", "it ends in the middle"))
        terminal.wait_until(lambda text: "failed     b\ufffd[31mad.jpg: truncated: it ends" in text)
        for claim in (claims[0], claims[2]):
            states.complete(claim, embedded=embedded(pipeline.database), seconds={})
        assert terminal.wait() == 1
    assert "3/3" in terminal.text
    assert "\x1b[31mad.jpg" not in terminal.raw
    assert max(map(len, terminal.text.replace("\r", "\n").split("\n"))) <= 80


@pytest.mark.slow
def test_no_color_is_respected(console, batch_in_work):
    batch, _ = batch_in_work
    with console.in_terminal("status", batch, NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
    assert "pending" in terminal.text
    assert "\x1b[3" not in terminal.raw
    with console.in_terminal("watch", batch, NO_COLOR="1") as terminal:
        terminal.wait_until(lambda text: "0/3" in text)
    assert "\x1b[3" not in terminal.raw


def test_submit_wait_as_json_names_the_batch_although_the_wait_ends_with_an_error(
    console, database
):
    ended = threading.Event()

    def delete():
        while not newest_batches(database):
            assert not ended.wait(0.05)
        with database.transaction() as connection:
            connection.execute(text("DELETE FROM upload_batches"))

    worker = threading.Thread(target=delete)
    worker.start()
    answer = console("submit", MEDIA / "fog.webp", "--wait", "--json")
    ended.set()
    worker.join(10)
    assert answer.code == 2
    assert "there is no batch" in answer.err
    assert uuid.UUID(answer.json["batch_id"])
    assert "status" not in answer.json


def test_submit_wait_in_a_pipe_prints_plain_lines(console, pipeline, database):
    ended = threading.Event()

    def work():
        while not (batches := newest_batches(database)):
            assert not ended.wait(0.05)
        states, batch = pipeline.states, batches[0]["batch_id"]
        [upload] = states.load_batch(batch, "run", limit=10).reserved
        claim = states.start(upload.id, "run").claim
        states.complete(claim, embedded=embedded(pipeline.database), seconds={})

    worker = threading.Thread(target=work)
    worker.start()
    answer = console("submit", MEDIA / "fog.webp", "--wait")
    ended.set()
    worker.join(10)
    assert (answer.code, answer.err) == (0, "")
    assert "\x1b" not in answer.out
    lines = answer.out.splitlines()
    assert "completed  fog.webp" in lines
    label = f"{MEDIA.name} ({short(newest_batches(database)[0]['batch_id'])})"
    assert lines[-1] == f"completed  1/1  100 %  0 failed  {label}"
