"""What failed and why, over all batches; short ids; a retry that says whether it can help."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, text

from batch_pipeline.database.models import ModelCall
from batch_pipeline.database.readings import LOCAL_USER
from batch_pipeline.services.short_ids import short
from batch_pipeline.testing.records import add_batch, batch_row, upload_row, upload_rows

from .test_cli import error_and_hint

HOUR = timedelta(hours=1)
ANNA, BEN = uuid.UUID(int=0xA << 124), uuid.UUID(int=0xB << 124)


def failed(kind, *, hours_ago=0, **values):
    return {
        "processing_status": "failed",
        "error_kind": kind,
        "error_message": f"the reason of {kind}",
        "updated_at": datetime.now(UTC) - hours_ago * HOUR,
        **values,
    }


def ended(database, rows, **values):
    return add_batch(
        database, rows, status="completed", processed_uploads=len(rows),
        failed_uploads=len(rows), **values,
    )  # fmt: skip


@pytest.fixture
def world(database):
    """Two batches with failures, one given up, one that waits for a model server."""
    return {
        "first": ended(
            database,
            [failed("truncated", filename="a.jpg"), failed("truncated", filename="b.jpg"),
             failed("model_timeout", filename="c.jpg")],
            user_id=ANNA,
        ),
        "second": ended(
            database,
            [failed("truncated", filename="d.jpg"), failed("empty_file", hours_ago=30)],
            user_id=BEN,
        ),
        "given_up": add_batch(database, 1, status="failed", error_message="ten runs died"),
        "waiting": add_batch(
            database, [{"error_kind": "model_server_down", "error_message": "refused"}]
        ),
    }  # fmt: skip


@pytest.fixture
def dagster_url(server):
    """A Dagster that has never run."""
    with server.new_database(migrated=False) as url:
        yield url


@pytest.fixture
def without_user(database):
    """A failure in rows of an upload API that has no users: they are the local user's."""
    batch_id = ended(database, [failed("truncated")], user_id=LOCAL_USER)
    with database.transaction() as connection:
        for table in ("uploads", "upload_batches"):
            connection.execute(text(f"ALTER TABLE {table} ALTER user_id DROP NOT NULL"))
            connection.execute(text(f"UPDATE {table} SET user_id = NULL"))
    return batch_id


def counts(answer):
    assert answer.code == 0, answer.err
    return {(kind["error_kind"], kind["state"]): kind["count"] for kind in answer.json["groups"]}


@pytest.mark.slow
def test_rows_without_a_user_are_the_local_users(console, without_user):
    user = str(LOCAL_USER)
    for shown in (user, short(user)):
        by_kind = counts(console("failures", "--user", shown, "--json"))
        assert by_kind == {("truncated", "failed"): 1}
    assert console("retry", "--user", user, "--json").json["reopened"] == 1
    cancelled = console("cancel", "--user", user, "--json").json["batches"]
    assert [batch["batch_id"] for batch in cancelled] == [str(without_user)]


def test_failures_of_all_batches_are_grouped_by_kind_the_most_frequent_first(console, world):
    answer = console("failures", "--json")
    assert counts(answer) == {
        ("truncated", "failed"): 3,
        ("model_timeout", "failed"): 1,
        ("model_server_down", "waiting"): 1,
    }
    [first, *_] = answer.json["groups"]
    assert (first["error_kind"], first["batches"], first["same_again"]) == ("truncated", 2, True)
    assert first["advice"] == "Copy or upload the file again from its source."
    assert {upload["filename"] for upload in first["uploads"]} == {"a.jpg", "b.jpg", "d.jpg"}
    assert [batch["batch_id"] for batch in answer.json["batches"]] == [str(world["given_up"])]


def test_failures_are_narrowed_by_time_kind_user_and_batch(console, world):
    week = counts(console("failures", "--since", "7d", "--json"))
    assert week["empty_file", "failed"] == 1
    # Failures of one batch, at any time.
    second = counts(console("failures", "--batch", world["second"], "--json"))
    assert second == {("truncated", "failed"): 1, ("empty_file", "failed"): 1}
    assert counts(console("failures", "--kind", "model_timeout", "--json")) == {
        ("model_timeout", "failed"): 1
    }
    listed = console("failures", "--limit", 1, "--kind", "truncated", "--json").json["groups"]
    assert [(group["count"], len(group["uploads"])) for group in listed] == [(3, 1)]
    wrong = console("failures", "--kind", "truncatd")
    assert (wrong.code, "did you mean truncated" in wrong.err) == (2, True)
    wrong = console("failures", "--since", "yesterday")
    assert (wrong.code, "how long ago (30min, 24h, 7d)" in wrong.err) == (2, True)


@pytest.fixture
def unknown_moments(database):
    """Failures and batches for which an upload API has stored no time, or an infinite one."""
    with database.transaction() as connection:
        for table in ("uploads", "upload_batches"):
            for column in ("created_at", "updated_at"):
                connection.execute(text(f"ALTER TABLE {table} ALTER {column} DROP NOT NULL"))
    unknown = [None, text("'infinity'"), text("'-infinity'")]
    rows = [failed("truncated", updated_at=moment, filename="?") for moment in unknown]
    given_up = [add_batch(database, 1, status="failed", updated_at=moment) for moment in unknown]
    batches = [ended(database, [failed("truncated")], created_at=moment) for moment in unknown]
    return ended(database, rows, created_at=datetime.now(UTC)), given_up, batches


def test_a_failure_of_unknown_time_is_listed_last_and_retried(console, unknown_moments, world):
    answer = console("failures", "--kind", "truncated", "--limit", "100", "--json")
    files = [upload["filename"] for upload in answer.json["groups"][0]["uploads"]]
    assert len(files) == 9
    assert files[-3:] == ["?"] * 3

    with_unknown, given_up, _ = unknown_moments
    batches = [batch["batch_id"] for batch in console("failures", "--json").json["batches"]]
    assert batches[0] == str(world["given_up"])
    assert set(batches[1:]) == set(map(str, given_up))

    retried = console("retry", "--since", "1h", "--kind", "truncated", "--json").json["batches"]
    [found] = [batch for batch in retried if batch["batch_id"] == str(with_unknown)]
    assert found["reopened"] == 3


def test_status_lists_batches_of_unknown_time_last(console, unknown_moments, world):
    listed = console("status", "--json").json
    order = [batch["batch_id"] for batch in listed]
    assert set(order[-3:]) == set(map(str, unknown_moments[2]))


def test_a_kind_that_an_upload_api_has_written_can_be_chosen_like_any_other(console, database):
    ended(database, [failed("scan_failed")] * 2)
    shown = console("failures", "--limit", 1).out
    assert "  and 1 more: --kind scan_failed --limit 1000" in shown
    chosen = console("failures", "--kind", "scan_failed", "--limit", 1000, "--json")
    assert counts(chosen) == {("scan_failed", "failed"): 2}
    assert console("retry", "--kind", "scan_failed", "--json").json["reopened"] == 2


def test_failures_prints_what_to_do_in_80_columns(console, world):
    shown = console("failures", "--limit", 2).out
    assert shown.startswith("4 uploads failed since ")
    assert f"Batch {short(world['given_up'])} failed: ten runs died" in shown.replace("\n", " ")
    assert "truncated: 3 uploads in 2 batches" in shown
    assert "  → Copy or upload the file again from its source." in shown
    assert "  Until then, a retry fails in the same way." in shown
    assert "  and 1 more: --kind truncated --limit 1000" in shown
    assert "model_server_down: 1 upload in 1 batch, waiting; they continue" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.index("truncated:") < shown.index("model_timeout:")


def test_a_message_says_that_nothing_failed(console):
    answer = console("failures")
    assert (answer.code, answer.out.startswith("0 uploads failed since ")) == (0, True)


def test_status_lists_failures_first_or_alone_with_ids_that_can_be_typed(console, database):
    batch = add_batch(
        database,
        [{"processing_status": "completed", "filename": "good.jpg"},
         failed("truncated", filename="bad.jpg")],
    )  # fmt: skip
    shown = console("status", batch).out
    assert shown.index("bad.jpg") < shown.index("good.jpg")
    [line] = [line for line in shown.splitlines() if "bad.jpg" in line]
    alone = console("status", batch, "--failed", "--json").json
    assert [upload["filename"] for upload in alone["uploads"]] == ["bad.jpg"]
    typed = line.split()[0]
    assert alone["uploads"][0]["upload_id"].startswith(typed)
    assert (
        "1 failed upload will be processed again" in console("retry", batch, "--upload", typed).out
    )
    assert console("status", batch, "--failed").out.strip().endswith("No upload failed.")


def test_status_with_failures_only_does_not_say_that_a_working_batch_is_idle(console, database):
    rows = [failed("truncated"), {"processing_status": "analyzing"}]
    batch = add_batch(database, rows, status="processing", processed_uploads=1, failed_uploads=1)
    for options in ([], ["--failed"]):
        assert "nothing is being processed" not in console("status", batch, *options).out


def test_any_beginning_of_an_id_that_names_only_one_is_accepted_everywhere(console, database):
    ids = [uuid.UUID(f"abcd{n}{'0' * 27}") for n in (1, 2)]
    for one in ids:
        add_batch(database, 1, id=one, status="completed")
    assert console("status", "abcd1", "--json").json["batch_id"] == str(ids[0])
    # The forms of an id in help and tables, and a part copied from a longer id.
    assert console("status", "abcd2…", "--json").json["batch_id"] == str(ids[1])
    assert console("watch", "ABCD2000-00", "--json").json["batch_id"] == str(ids[1])
    both = console("status", "abcd")
    assert both.code == 2
    assert error_and_hint(both) == [
        f"Error: abcd begins several ids: {ids[0]}, {ids[1]}; type more digits"
    ]
    assert "there is no batch ffff…" in console("cancel", "ffff").err
    assert "there is no user ffff…" in console("failures", "--user", "ffff").err
    assert "there is no upload ffff…" in console("search", "--like", "ffff").err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "commands"),
    [
        ("batch", ["retry ID", "retry ID --dry-run", "retry ID --kind truncated", "cancel ID",
                   "cancel ID --dry-run", "delete batch ID --yes", "delete batch ID --dry-run",
                   "reprocess --stage embedding --batch ID", "pause --batch ID", "watch ID",
                   "status ID", "failures --batch ID", "search boats --batch ID"]),
        ("upload", ["retry --upload ID", "retry --upload ID --dry-run", "search --like ID",
                    "delete upload ID --yes", "reprocess --stage embedding --upload ID"]),
    ],
)  # fmt: skip
def test_every_command_gives_the_same_error_for_an_unknown_id(
    console, dagster_url, database, named, commands
):
    twins = [uuid.UUID(f"abcd{n}{'0' * 27}") for n in (1, 2)]
    for one in twins:
        # A path of another storage, so that no file is missing on this one.
        row = {"id": one, "file_path": "/srv/photo.jpg"}
        add_batch(database, [row], id=one, status="completed")
    unknown, where = str(uuid.uuid4()), "`batch-pipeline status"
    several = f"Error: abcd begins several ids: {twins[0]}, {twins[1]}; type more digits"
    cases = [
        # Every command looks for a beginning in the same way: `unit/test_cli_help.py`.
        (commands[0], "ffff", f"Error: there is no {named} ffff…: {where}"),
        (commands[0], "abcd", several),
    ]
    cases += [
        (each, unknown, f"Error: there is no {named} {unknown}: {where}") for each in commands
    ]
    for command, id_, said in cases:
        words = [id_ if word == "ID" else word for word in command.split()]
        answer = console(*words, BATCH_PIPELINE_DAGSTER_DATABASE_URL=dagster_url)
        [line] = error_and_hint(answer)
        assert (answer.code, line.startswith(said)) == (2, True), (command, line)


def test_a_deleted_batch_does_not_stop_the_retry_of_the_others(console, database, pipeline):
    gone, stays = (ended(database, [failed("model_timeout")] * 2) for _ in range(2))
    with database.transaction() as connection:
        # As in tables of an API that has no foreign key.
        connection.execute(text("ALTER TABLE uploads DROP CONSTRAINT fk_uploads_batch_id"))
        connection.execute(text("DELETE FROM upload_batches WHERE id = :id"), {"id": gone})
    assert console("retry", "--all-retryable", "--dry-run", "--json").json["chosen"] == 2
    first, second = upload_rows(database, stays)
    # One that is deleted after it was chosen is left out, too.
    assert pipeline.batches.retry_batch(stays, [first.id, uuid.uuid4()])[0] == 1
    answer = console("retry", "--all-retryable", "--json")
    assert (answer.code, answer.json["chosen"], answer.json["reopened"]) == (0, 1, 1)
    assert upload_row(database, second.id).processing_status == "pending"


def test_failed_uploads_whose_batch_an_api_has_deleted_are_retried_in_a_new_one(
    console, database, pipeline
):
    batch = ended(database, [failed("model_timeout", created_at=datetime.now(UTC) - HOUR)] * 2)
    ids = [row.id for row in upload_rows(database, batch)]
    with database.transaction() as connection:
        connection.execute(text("DELETE FROM upload_batches WHERE id = :id"), {"id": batch})
    told = console("retry", "--all-retryable", "--dry-run", "--json").json
    assert (told["chosen"], told["reopened"]) == (2, 0)
    answer = console("retry", "--upload", str(ids[0]))
    assert "1 failed upload without a batch will be processed again" in answer.out
    told = console("retry", "--all-retryable", "--json").json
    assert (told["chosen"], told["reopened"], told["batches"]) == (1, 1, [])
    assert pipeline.backlog.adopt() == 2


def test_retry_warns_of_uploads_that_will_fail_the_same_way(console, world, database):
    first = world["first"]
    said = console("retry", first, "--dry-run").out
    assert "3 uploads in 1 batch would be processed again." in said
    assert (
        "2 of 3 uploads will fail in the same way again unless you fix the cause: truncated 2"
        in said
    )
    # Its advice is about this batch, too.
    assert f"batch-pipeline failures --batch {first}\n" in said
    assert "Retry all but these:    the same command with --all-retryable\n" in said
    assert counts(console("failures", "--batch", first, "--json")), "a dry run changes nothing"

    retried = console("retry", first, "--all-retryable", "--json")
    assert (retried.code, retried.json["reopened"], retried.json["same_again"]) == (0, 1, {})
    assert counts(console("failures", "--batch", first, "--json")) == {("truncated", "failed"): 2}


def test_retry_chooses_by_the_model_that_was_used(console, database):
    batch = add_batch(
        database,
        [failed("model_output_invalid", filename="described.jpg", vision_model="seer"),
         failed("model_output_invalid", filename="called.jpg"),
         failed("model_output_invalid", filename="other.jpg", vision_model="another")],
    )  # fmt: skip
    called = next(row for row in upload_rows(database, batch) if row.filename == "called.jpg")
    former = uuid.uuid4()  # the batch of that time
    with database.transaction() as connection:
        connection.execute(
            insert(ModelCall).values(
                id=uuid.uuid4(), upload_id=called.id, batch_id=former, kind="vision", model="seer",
                tokens_in=1, tokens_out=1, seconds=1,
            )
        )  # fmt: skip

    assert console("retry", "--model", "seer", "--dry-run", "--json").json["chosen"] == 2
    assert console("retry", batch, "--model", "seer", "--json").json["reopened"] == 2

    [left] = console("failures", "--batch", batch, "--json").json["groups"]
    assert [upload["filename"] for upload in left["uploads"]] == ["other.jpg"]


def test_retry_over_all_batches_takes_filters_and_needs_one(console, world):
    refused = console("retry")
    assert (refused.code, "expected a BATCH, --all-retryable" in refused.err) == (2, True)
    answer = console("retry", "--kind", "truncated", "--since", "24h", "--json")
    assert (answer.json["reopened"], len(answer.json["batches"])) == (3, 2)
    nothing = console("retry", "--kind", "truncated")
    assert nothing.out == "Nothing to process again: no failed upload matches.\n"
    assert console("retry", "--since", "48h", "--json").json["reopened"] == 2


def test_retry_reopens_a_cancelled_batch_only_if_it_is_named(console, database):
    rows = [failed("model_timeout"), {}, {}]
    cancelled = add_batch(database, rows, status="cancelled", name="holiday")
    named = f"holiday ({short(cancelled)})"
    for chosen in (["--all-retryable"], ["--upload", upload_rows(database, cancelled)[0].id]):
        for dry in (["--dry-run"], []):
            said = console("retry", *chosen, *dry).out
            assert "1 upload of cancelled batches left out: `batch-pipeline retry BATCH`" in said
            assert "Nothing to process again" in said
    answer = console("retry", "--kind", "model_timeout", "--json").json
    assert (answer["chosen"], answer["cancelled"], answer["reopened"]) == (0, 1, 0)
    assert batch_row(database, cancelled).status == "cancelled"

    said = console("retry", cancelled, "--dry-run").out.splitlines()
    assert said == [
        "1 upload in 1 batch would be processed again.",
        f"Batch {named} is cancelled and would be reopened: 2 uploads not processed yet.",
    ]
    assert console("retry", cancelled, "--dry-run", "--json").json["not_processed"] == 2
    said = console("retry", cancelled).out.splitlines()[0]
    assert said == (
        f"Batch {named} is pending: 1 failed upload will be processed again, "
        "2 uploads not processed yet."
    )


@pytest.mark.parametrize("status", ["cancelled", "failed", "pending"])
def test_retry_says_that_a_batch_has_no_uploads_and_leaves_it_as_it_is(console, database, status):
    batch = add_batch(database, 0, status=status, name="Empty", error_message="why")
    assert (
        console("retry", batch, "--dry-run").out == "Nothing to process again: no upload failed.\n"
    )
    answer = console("retry", batch)
    assert (answer.code, answer.out.splitlines()) == (
        0,
        [f"Nothing to process again: batch Empty ({short(batch)}) is {status} and has no uploads."],
    )
    row = batch_row(database, batch)
    assert (row.status, row.error_message) == (status, "why")


def test_a_dry_run_of_retry_says_what_the_command_reopens(console, database):
    row = failed("model_timeout")
    given_up = add_batch(database, [row, {}], status="failed")
    nothing_failed = add_batch(database, 3, status="cancelled")
    said = console("retry", "--all-retryable", "--dry-run").out
    assert f"Batch {short(given_up)} is failed and would be reopened: 1 upload not" in said
    assert console("retry", "--all-retryable", "--json").json["not_processed"] == 1
    said = console("retry", nothing_failed, "--dry-run").out
    assert said == (
        f"Batch {short(nothing_failed)} is cancelled and would be reopened: "
        "3 uploads not processed yet.\n"
    )


@pytest.mark.parametrize("command", [["failures"], ["search", "boats"]])
def test_an_unknown_batch_is_named_and_not_taken_for_an_empty_one(console, command):
    unknown = uuid.uuid4()
    answer = console(*command, "--batch", unknown)
    assert (answer.code, f"there is no batch {unknown}" in answer.err) == (2, True)


def test_retry_of_a_user_leaves_others_alone(console, database):
    for user in (ANNA, BEN):
        ended(database, [failed("model_timeout", user_id=user)], user_id=user)
    answer = console("retry", "--user", "a0", "--json")
    assert answer.json["reopened"] == 1
    [batch] = answer.json["batches"]
    assert upload_row(database, uuid.UUID(_only_upload(console, batch))).user_id == ANNA


def _only_upload(console, batch):
    [upload] = console("status", batch["batch_id"], "--json").json["uploads"]
    return upload["upload_id"]


def test_cancel_takes_all_open_batches_of_a_user_after_a_dry_run(console, database):
    mine = [add_batch(database, 2, user_id=ANNA) for _ in range(2)]
    other = add_batch(database, 1, user_id=BEN)
    add_batch(database, 1, user_id=ANNA, status="completed")
    said = console("cancel", "--user", "a0", "--dry-run").out
    assert said == "".join(
        f"Batch {short(one)} would be cancelled, 2 uploads left\n" for one in mine
    )
    done = console("cancel", "--user", "a0", "--since", "1h", "--json").json
    assert {batch["batch_id"]: batch["status"] for batch in done["batches"]} == {
        str(one): "cancelled" for one in mine
    }
    assert batch_row(database, other).status == "pending"
    wrong = console("cancel", other, "--user", "b0")
    assert (wrong.code, "BATCH and --user cannot be used together" in wrong.err) == (2, True)


def test_reprocess_takes_filters_and_a_dry_run(console, database):
    done = {"processing_status": "completed", "vision_model": "old", "description": "words"}
    batch = ended(
        database,
        [done, done | {"file_type": "video"}, done | {"vision_model": "new"},
         done | {"created_at": datetime.now(UTC) - 72 * HOUR}],
    )  # fmt: skip
    chosen = ("reprocess", "--stage", "description", "--model", "old", "--since", "24h",
              "--kind", "image", "--json")  # fmt: skip
    dry = console(*chosen, "--dry-run").json
    assert (dry["chosen"], dry["batches"]) == (1, [{"batch_id": str(batch), "uploads": 1}])
    assert console(*chosen).json["reopened"] == 1
    nothing = console(*chosen)
    assert (nothing.code, "nothing to redo: no completed upload" in nothing.err) == (2, True)
