"""The report of an ended batch: one for each end, whatever happened to its runs."""

import base64
import io
import json
import os
import re
import shutil
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import dagster as dg
import pytest
from PIL import Image
from sqlalchemy import func, text, update

from batch_pipeline.database.models import Upload, UploadBatch
from batch_pipeline.orchestration.batch_checks import CHECKS
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.sensors import REPORTS_PER_TICK
from batch_pipeline.services.reports.batch_summary import MAX_FAILURES, MAX_SHEET_BYTES, MAX_SLOWEST
from batch_pipeline.services.reports.ended_batches import MAX_TRIES
from batch_pipeline.services.short_ids import short
from batch_pipeline.testing.records import USER, add_batch, embedded, make_unreadable, upload_rows

from .conftest import MEDIA

ENDED = {"processing_status": "completed"}


class Reporter:
    """Ticks the sensor like Dagster's daemon, and keeps its cursor."""

    def __init__(self, pipeline, instance):
        self.pipeline, self.instance, self.cursor = pipeline, instance, None
        resource = dg.ResourceDefinition.hardcoded_resource(pipeline)
        definitions = build_definitions(pipeline.settings, {"batch_pipeline": resource})
        self.definitions = definitions
        self.sensor = definitions.resolve_sensor_def("report_ended_batches")

    def tick(self):
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"batch_pipeline": self.pipeline},
            repository_def=self.definitions.get_repository_def(),
        )
        tick = self.sensor.evaluate_tick(context)
        self.cursor = tick.cursor
        return tick

    def reported(self):
        """Make a tick; return the batches that it reports."""
        return [event.partition for event in reports(self.tick())]


@pytest.fixture
def reporter(pipeline, instance):
    return Reporter(pipeline, instance)


def reports(tick, asset="batch_report"):
    return [
        event
        for event in tick.asset_events
        if event.asset_key == dg.AssetKey(asset) and not isinstance(event, dg.AssetCheckEvaluation)
    ]


def checks(tick):
    """Return the results of a batch's checks, by name."""
    return {
        event.check_name: event
        for event in tick.asset_events
        if isinstance(event, dg.AssetCheckEvaluation)
    }


def ended_batch(pipeline, uploads=(ENDED,), **values):
    """A batch that has ended now, by the clock that the sensor reads."""
    columns = {"status": "completed", "completed_at": func.now()}
    return add_batch(pipeline.database, list(uploads), **(columns | values))


def picture_in(value):
    media_type, data = re.fullmatch(r"!\[\]\(data:(.+);base64,(.+)\)", value.value).groups()
    return media_type, base64.b64decode(data)


def rows_of(value):
    return [record.data for record in value.records]


def test_a_tick_without_an_ended_batch_says_so(reporter, pipeline):
    add_batch(pipeline.database, 1)
    tick = reporter.tick()
    assert (tick.asset_events, tick.skip_message) == ([], "no batch has ended since")


def test_a_processed_batch_is_reported_with_counts_failures_pictures(runner, reporter, tmp_path):
    hostile = tmp_path / "<b>\u202ename.jpg"
    shutil.copy(MEDIA / "truncated.jpg", hostile)
    batch_id = runner.submit("lighthouse.gif", "ball_on_meadow.mp4", hostile)
    assert not runner.run(batch_id).success, "the collector ran, the report proves nothing"
    tick = reporter.tick()
    [report] = reports(tick)
    assert report.partition == str(batch_id)
    said = f"reported: batch {short(batch_id)} completed: 2 of 3 uploads completed, 1 failed"
    assert tick.skip_message == said
    found = report.metadata
    assert [found[name].value for name in ("status", "total", "successful", "failed")] == [
        "completed", 3, 2, 1,
    ]  # fmt: skip
    assert found["seconds"].value > 0
    assert rows_of(found["failures_by_kind"]) == [{"kind": "truncated", "uploads": 1}]
    [failure] = rows_of(found["failures"])
    assert (failure["file"], failure["kind"]) == (
        "<b>\N{REPLACEMENT CHARACTER}name.jpg",
        "truncated",
    )
    assert "the JPEG ends before its picture does" in failure["reason"]
    slowest = [row["seconds"] for row in rows_of(found["slowest_uploads"])]
    assert len(slowest) == 3, "the existing part of a cut picture is decoded, too"
    assert slowest == sorted(slowest, reverse=True)
    assert {row["stage"] for row in rows_of(found["stages"])} >= {"decode", "thumbnail", "embed"}
    media_type, sheet = picture_in(found["contact_sheet"])
    assert media_type == "image/jpeg"
    assert Image.open(io.BytesIO(sheet)).size == (240, 80), "three thumbnails side by side"
    media_type, plot = picture_in(found["throughput"])
    assert media_type == "image/svg+xml"
    words = [element.text for element in ET.fromstring(plot) if element.text]
    assert "uploads ended per 1 s" in words
    assert "failed in red" in words
    assert len(found["throughput"].value) < 1000, "the UI would hide it behind a click"


def test_stored_results_of_a_batch_are_reported_once_not_for_every_upload(runner, reporter):
    batch_id = runner.submit("lighthouse.gif", "fog.webp", "truncated.jpg")
    runner.run(batch_id)
    tick = reporter.tick()
    counts = {
        asset: [(e.partition, e.metadata["stored"].value, e.metadata["missing"].value)
                for e in reports(tick, asset)]
        for asset in ("thumbnails", "descriptions", "embeddings")
    }  # fmt: skip
    assert counts == {
        "thumbnails": [(str(batch_id), 3, 0)],  # also of the existing part of a cut picture
        "descriptions": [(str(batch_id), 2, 1)],
        "embeddings": [(str(batch_id), 2, 1)],
    }
    [described] = reports(tick, "descriptions")
    assert 0 < described.metadata["lowest_audit_score"].value <= 100
    assert (
        described.metadata["models"].value
        == upload_rows(runner.pipeline.database, batch_id)[0].vision_model
    )


def test_an_end_is_reported_once_and_the_next_end_again(reporter, pipeline):
    failed = {"processing_status": "failed", "error_kind": "source_missing"}
    batch_id = ended_batch(pipeline, [ENDED, failed], started_at=func.now())
    assert reporter.reported() == [str(batch_id)]
    assert reporter.reported() == []

    pipeline.batches.retry_batch(batch_id)
    assert reporter.reported() == [], "it is being processed again"
    [_, again] = upload_rows(pipeline.database, batch_id)
    pipeline.states.load_batch(batch_id, "run", upload_ids=[again.id], limit=10)
    claim = pipeline.states.start(again.id, "run").claim
    pipeline.states.complete(claim, embedded=embedded(pipeline.database), seconds={})
    tick = reporter.tick()
    assert [event.metadata["successful"].value for event in reports(tick)] == [2]
    assert reporter.reported() == []


@pytest.mark.parametrize(
    ("status", "reason"), [("failed", "3 runs died one after the other"), ("cancelled", None)]
)
def test_a_batch_that_was_given_up_or_cancelled_is_reported_with_its_reason(
    reporter, pipeline, status, reason
):
    batch_id = add_batch(pipeline.database, 2, status=status, error_message=reason)
    [report] = reports(reporter.tick())
    assert (report.partition, report.metadata["status"].value) == (str(batch_id), status)
    assert getattr(report.metadata.get("reason"), "value", None) == reason
    assert not {"contact_sheet", "throughput", "seconds"} & set(report.metadata)
    assert isinstance(report, dg.AssetObservation), "a materialization would be a green partition"


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_batch_that_was_given_up_or_cancelled_fails_its_check(reporter, pipeline, status):
    batch_id = add_batch(pipeline.database, [ENDED, {}], status=status)
    check = checks(reporter.tick())["no_failed_uploads"]
    assert (check.passed, check.partition) == (False, str(batch_id))
    assert check.description == f"the batch is {status}"


def test_the_checks_of_a_batch_show_its_failures_and_description_scores(reporter, pipeline):
    described = ENDED | {"description": "words"}
    refused = {"processing_status": "failed", "error_kind": "model_output_invalid"}
    first = ended_batch(
        pipeline,
        [described | {"description_audit_score": 90}, described | {"description_audit_score": 71},
         refused, refused | {"error_kind": "truncated"}],
    )  # fmt: skip
    found = checks(reporter.tick())
    assert {check.partition for check in found.values()} == {str(first)}
    failures, quality = found["no_failed_uploads"], found["description_quality"]
    assert (failures.passed, failures.description) == (False, "2 of 4 uploads failed")
    assert failures.severity is dg.AssetCheckSeverity.ERROR
    assert (quality.passed, quality.description) == (False, "2 of 3 descriptions passed the audit")
    assert quality.metadata["share_passed"].value == 0.667
    assert quality.metadata["lowest_audit_score"].value == 71
    # The next batch has its own checks.
    second = ended_batch(pipeline, [described | {"description_audit_score": 90}])
    found = checks(reporter.tick())
    assert {(check.partition, check.passed) for check in found.values()} == {(str(second), True)}


@pytest.mark.parametrize("name", ["no_failed_uploads", "description_quality"])
def test_a_check_can_be_run_from_the_ui_for_one_batch(reporter, pipeline, instance, name):
    bad = {"processing_status": "failed", "error_kind": "model_output_invalid"}
    batches = [ended_batch(pipeline, [bad]), ended_batch(pipeline, [ENDED])]
    instance.add_dynamic_partitions("batches", list(map(str, batches)))
    [check] = [one for one in CHECKS if [key.name for key in one.check_keys] == [name]]
    job = reporter.definitions.resolve_implicit_global_asset_job_def()
    results = []
    for batch in batches:
        result = job.get_subset(
            asset_selection=set(), asset_check_selection=set(check.check_keys)
        ).execute_in_process(
            instance=instance,
            tags={"dagster/partition": str(batch)},
            resources={"batch_pipeline": pipeline},
        )
        [evaluation] = result.get_asset_check_evaluations()
        results.append((evaluation.partition, evaluation.passed))
    assert results == [(str(batches[0]), False), (str(batches[1]), True)]


NO_BATCH = str(uuid.UUID(int=7))


@pytest.mark.parametrize(
    ("partition", "said"),
    [
        (
            "holiday",
            "partition: 'holiday' is not an id; expected 32 hexadecimal digits (a UUID)",
        ),
        (NO_BATCH, f"there is no batch {NO_BATCH}: `batch-pipeline status` lists the newest ones"),
    ],
)
def test_a_check_of_a_partition_of_no_batch_says_so(reporter, pipeline, instance, partition, said):
    """A partition may be added by hand in the UI."""
    instance.add_dynamic_partitions("batches", [partition])
    job = reporter.definitions.resolve_implicit_global_asset_job_def()
    keys = {key for check in CHECKS for key in check.check_keys}
    result = job.get_subset(asset_selection=set(), asset_check_selection=keys).execute_in_process(
        instance=instance,
        tags={"dagster/partition": partition},
        resources={"batch_pipeline": pipeline},
        raise_on_error=False,
    )
    failures = [e.step_failure_data.user_failure_data for e in result.get_step_failure_events()]
    assert [failure and failure.description for failure in failures] == [said] * 2


def test_an_end_that_commits_late_is_not_missed(reporter, pipeline):
    """The time of an end is the start of its transaction; a later transaction may commit first."""
    late = add_batch(pipeline.database, [ENDED], status="processing")
    with pipeline.database.transaction() as connection:
        connection.execute(
            update(UploadBatch)
            .where(UploadBatch.id == late)
            .values(status="completed", completed_at=func.now())
        )
        early = ended_batch(pipeline)
        assert reporter.reported() == [str(early)]
    assert reporter.reported() == [str(late)]
    assert reporter.reported() == []


def test_a_long_backlog_is_reported_in_turns_each_end_once(reporter, pipeline):
    batches = [
        ended_batch(pipeline, completed_at=func.now() - timedelta(minutes=7 * number))
        for number in range(2 * REPORTS_PER_TICK + 1, 0, -1)
    ]
    ticks = [reporter.reported() for _ in range(4)]
    assert [len(tick) for tick in ticks] == [REPORTS_PER_TICK, REPORTS_PER_TICK, 1, 0]
    assert [batch for tick in ticks for batch in tick] == list(map(str, batches))
    assert len(reporter.cursor) < 200, "the cursor keeps what cannot be found again"


def test_a_tick_that_takes_long_leaves_reports_to_the_next(reporter, pipeline, monkeypatch):
    monkeypatch.setattr("batch_pipeline.orchestration.sensors.REPORTS_SECONDS", 0, raising=False)
    make_unreadable(pipeline.database, "damaged")
    bad = ended_batch(pipeline, [ENDED | {"filename": "damaged"}])
    good = [ended_batch(pipeline) for _ in range(2)]
    ticks = [reporter.reported() for _ in range(3 + MAX_TRIES)]
    assert [len(tick) for tick in ticks] == [0, 1, 1, 0, 1, 0]
    assert [batch for tick in ticks for batch in tick] == list(map(str, [*good, bad]))


def test_the_first_tick_does_not_report_old_batches(reporter, pipeline):
    ended_batch(pipeline, completed_at=func.now() - timedelta(days=2))
    recent = ended_batch(pipeline, completed_at=func.now() - timedelta(hours=2))
    assert reporter.reported() == [str(recent)]


@pytest.mark.parametrize("cursor", ["", "{}", "null", '{"newest": 5, "recent": {}}', "by hand"])
def test_an_invalid_cursor_counts_as_none(reporter, pipeline, cursor):
    batch_id = ended_batch(pipeline)
    reporter.cursor = cursor
    assert reporter.reported() == [str(batch_id)]
    assert reporter.reported() == []


def test_a_cursor_that_a_person_sets_to_a_date_begins_there(reporter, pipeline):
    ended_batch(pipeline, completed_at=func.now() - timedelta(days=9))
    since = ended_batch(pipeline, completed_at=func.now() - timedelta(days=3))
    day = (datetime.now(UTC) - timedelta(days=5)).date()
    reporter.cursor = json.dumps({"newest": f"{day}", "recent": {}})
    assert reporter.reported() == [str(since)]
    assert reporter.reported() == []


@pytest.mark.slow
def test_the_report_of_a_thousand_uploads_stays_small(reporter, pipeline):
    """JPEGs of noise are the largest; every name and reason is as long as possible."""
    noise = Image.frombytes("RGB", (256, 256), os.urandom(3 * 256 * 256))
    thumbnail = io.BytesIO()
    noise.save(thumbnail, "JPEG", quality=95)
    uploads = [
        {
            "processing_status": "failed" if number % 2 else "completed",
            "filename": f"{number:04}" + "x" * 250,
            "error_kind": "undecodable",
            "error_message": "y" * 5000,
            "thumbnail_path": f"{USER}/{number % 50}/thumb_256.jpg",
            "stage_seconds": {"decode": 0.1, "describe": number / 100},
        }
        for number in range(1000)
    ]
    for number in range(50):
        pipeline.storage.write(f"{USER}/{number}/thumb_256.jpg", thumbnail.getvalue())
    batch_id = ended_batch(pipeline, uploads, total_uploads=1000, failed_uploads=500)
    with pipeline.database.transaction() as connection:
        connection.execute(
            update(Upload)
            .where(Upload.batch_id == batch_id)
            .values(updated_at=func.now() + text("random() * interval '3 days'"))
        )
    [report] = reports(reporter.tick())
    _, sheet = picture_in(report.metadata["contact_sheet"])
    _, plot = picture_in(report.metadata["throughput"])
    assert len(sheet) <= MAX_SHEET_BYTES
    assert len(plot) < 1500
    assert len(rows_of(report.metadata["failures"])) == MAX_FAILURES
    assert report.metadata["failures_not_shown"].value == 500 - MAX_FAILURES
    slowest = rows_of(report.metadata["slowest_uploads"])
    assert [row["seconds"] for row in slowest][:2] == [10.09, 10.08]
    assert len(slowest) == MAX_SLOWEST
    assert len(dg.serialize_value(report)) < 150_000


def test_hidden_uploads_are_counted_but_not_shown(reporter, pipeline):
    hidden = {
        "processing_status": "failed",
        "filename": "secret.jpg",
        "error_kind": "truncated",
        "error_message": "secret.jpg",
        "hidden": True,
        "stage_seconds": {"decode": 9.0},
    }
    ended_batch(pipeline, [ENDED, hidden], total_uploads=2, failed_uploads=1)
    [report] = reports(reporter.tick())
    assert report.metadata["failed"].value == 1
    assert rows_of(report.metadata["failures"]) == []
    assert "secret" not in dg.serialize_value(report)


def test_a_damaged_thumbnail_is_left_out(reporter, pipeline):
    path = f"{USER}/1/thumb_256.jpg"
    pipeline.storage.write(path, b"no picture")
    gone = {"thumbnail_path": f"{USER}/2/thumb_256.jpg"}
    ended_batch(pipeline, [ENDED | {"thumbnail_path": path}, ENDED | gone])
    [report] = reports(reporter.tick())
    assert "contact_sheet" not in report.metadata


# One bad file or row


def looping_link(pipeline, path):
    """A thumbnail that cannot be read, although the storage is available."""
    link = Path(pipeline.settings.storage_location) / path
    link.parent.mkdir(parents=True)
    link.symlink_to(link.name)
    return {"thumbnail_path": path}


def stored_thumbnail(pipeline, path):
    data = io.BytesIO()
    Image.new("RGB", (40, 30)).save(data, "JPEG")
    pipeline.storage.write(path, data.getvalue())
    return {"thumbnail_path": path}


def test_a_thumbnail_that_nobody_can_read_is_left_out_of_the_contact_sheet(reporter, pipeline):
    bad = looping_link(pipeline, f"{USER}/1/thumb_256.jpg")
    good = stored_thumbnail(pipeline, f"{USER}/2/thumb_256.jpg")
    ended_batch(pipeline, [ENDED | bad, ENDED | good])
    [report] = reports(reporter.tick())
    assert "contact_sheet" in report.metadata


def test_a_batch_whose_only_thumbnail_nobody_can_read_is_reported_and_so_are_the_others(
    reporter, pipeline
):
    bad = ended_batch(pipeline, [ENDED | looping_link(pipeline, f"{USER}/1/thumb_256.jpg")])
    other = ended_batch(pipeline)
    assert set(reporter.reported()) == {str(bad), str(other)}


def test_while_the_storage_is_down_reports_wait_and_none_is_lost(reporter, pipeline):
    batch_id = ended_batch(
        pipeline, [ENDED | stored_thumbnail(pipeline, f"{USER}/1/thumb_256.jpg")]
    )
    root = Path(pipeline.settings.storage_location)
    root.rename(root.with_name("away"))
    root.symlink_to(root.name)
    tick = reporter.tick()
    assert (tick.asset_events, tick.cursor) == ([], None)
    assert tick.skip_message.startswith("reports wait, because the storage cannot be used")
    root.unlink()
    root.with_name("away").rename(root)
    [report] = reports(reporter.tick())
    assert report.partition == str(batch_id)
    assert "contact_sheet" in report.metadata


def test_batches_that_cannot_be_reported_delay_no_other_and_get_an_observation(reporter, pipeline):
    make_unreadable(pipeline.database, "damaged")
    bad = [
        ended_batch(pipeline, [ENDED | {"filename": "damaged"}]) for _ in range(REPORTS_PER_TICK)
    ]
    good = [ended_batch(pipeline) for _ in range(REPORTS_PER_TICK)]
    first = reporter.tick()
    assert reports(first) == []
    assert f"left out: batch {short(bad[0])} (division by zero)" in first.skip_message
    assert reporter.reported() == [str(batch_id) for batch_id in good]
    last = reports(reporter.tick())
    assert {report.partition for report in last} == {str(batch_id) for batch_id in bad}
    assert {report.metadata["reason"].value for report in last} == {"division by zero"}
    assert reporter.tick().skip_message == "no batch has ended since"


def test_a_tick_calls_a_batch_by_its_name_also_when_it_is_tried_again(reporter, pipeline):
    good = ended_batch(pipeline, name="Rome")
    assert f"reported: batch Rome ({short(good)}) completed: " in reporter.tick().skip_message
    make_unreadable(pipeline.database, "damaged")
    bad = ended_batch(pipeline, [ENDED | {"filename": "damaged"}], name="Oslo")
    for _ in range(MAX_TRIES):
        said = reporter.tick().skip_message
        assert f"left out: batch Oslo ({short(bad)}) (division by zero)" in said


def test_a_batch_that_was_deleted_meanwhile_is_not_reported(reporter, pipeline):
    make_unreadable(pipeline.database, "damaged")
    batch_id = ended_batch(pipeline, [{"filename": "damaged"}])
    reporter.tick()
    with pipeline.database.transaction() as connection:
        connection.execute(text("DELETE FROM upload_batches WHERE id = :id"), {"id": batch_id})
    assert reporter.tick().skip_message == "no batch has ended since"


@pytest.mark.parametrize("moment", ["infinity", "294000-01-01", "9000-01-01"])
def test_an_end_in_the_future_hides_no_other(reporter, pipeline, moment):
    odd = ended_batch(pipeline, completed_at=text(f"'{moment}'::timestamptz"))
    before = ended_batch(pipeline)
    reported = [batch_id for _ in range(MAX_TRIES) for batch_id in reporter.reported()]
    assert sorted(reported) == sorted(map(str, (odd, before)))
    after = ended_batch(pipeline)
    assert reporter.reported() == [str(after)]
    assert reporter.reported() == []


def test_a_check_judges_a_batch_again_when_it_has_ended_again(instance):
    """Dagster's own storage refuses the second time."""
    batch = str(uuid.uuid4())
    check = dg.AssetCheckKey(dg.AssetKey("batch_report"), "no_failed_uploads")
    for passed in (False, True):
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=check.asset_key, check_name=check.name, passed=passed, partition=batch
            )
        )
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=100)
    evaluations = [record.event.asset_check_evaluation for record in history]
    assert [found.passed for found in evaluations if found and found.partition == batch] == [True]
