"""A batch of real files, from the command line through Dagster to a search, and back by GraphQL."""

import json
import re
import shutil
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from standardwebhooks.webhooks import Webhook

from batch_pipeline.model_servers.embedded import EmbeddedVision
from batch_pipeline.testing import media
from batch_pipeline_tests.patience import wait_until

from .conftest import MEDIA, WEBHOOK_SECRET, metadata

pytestmark = pytest.mark.slow

PICTURES = ("sea.jpg", "forest.webp", "mountains.heic", "lighthouse.gif", "ball_on_meadow.mp4")


@pytest.fixture(scope="module")
def finished(stack):
    """A batch with one file that cannot be read, processed to its end."""
    return stack.cli(
        "submit", *(MEDIA / name for name in PICTURES), MEDIA / "truncated.jpg", "--wait", expect=1
    )


@pytest.fixture(scope="module")
def run(stack, finished):
    return stack.graphql.ended_run_of(finished["batch_id"])


@pytest.fixture(scope="module")
def events(stack, run):
    return stack.graphql.events_of(run["runId"])


def test_the_batch_is_completed_with_its_counts_and_a_reason_for_the_failure(finished):
    status = finished["status"]
    assert status["status"] == "completed"
    assert (status["total_uploads"], status["successful_uploads"], status["failed_uploads"]) == (
        6,
        5,
        1,
    )
    bad = next(u for u in status["uploads"] if u["filename"] == "truncated.jpg")
    assert (bad["processing_status"], bad["error_kind"]) == ("failed", "truncated")
    for upload in status["uploads"]:
        if upload["processing_status"] == "completed":
            assert upload["description_audit_score"] >= 60
            assert upload["thumbnail_path"].endswith("thumb_256.jpg")


def test_the_run_carries_the_tags_of_batch_user_slice_and_reason(run, finished):
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert run["jobName"] == "process_batch"
    assert tags["batch_pipeline/batch_id"] == finished["batch_id"]
    assert tags["batch_pipeline/slice"] == "1"
    assert tags["batch_pipeline/reason"] == "new"
    assert "batch_pipeline/user_id" in tags


def test_a_failed_upload_is_a_red_step_that_names_file_kind_and_reason(run, events):
    assert run["status"] == "FAILURE"
    [failure] = [e for e in events if e["__typename"] == "ExecutionStepFailureEvent"]
    assert failure["stepKey"].startswith("process_upload[truncated_jpg__")
    shown = metadata(failure["failureMetadata"]["metadataEntries"])
    assert shown["file"] == "truncated.jpg"
    assert shown["kind"] == "truncated"
    assert "the JPEG ends before its picture does" in shown["reason"]
    assert shown["attempt"] == 1


def test_every_good_upload_is_a_green_step_of_its_own(events):
    green = {e["stepKey"] for e in events if e["__typename"] == "ExecutionStepSuccessEvent"}
    stems = {key.split("[")[1].split("__")[0] for key in green if key.startswith("process_upload[")}
    assert stems == {name.replace(".", "_") for name in PICTURES}


def test_each_upload_is_materialized_with_preview_description_score_and_seconds(events, finished):
    made = [
        e
        for e in events
        if e["__typename"] == "MaterializationEvent"
        and e["assetKey"]["path"] == ["upload_analysis"]
    ]
    assert len(made) == len(PICTURES)
    assert {e["partition"] for e in made} == {finished["batch_id"]}
    for event in made:
        shown = metadata(event["metadataEntries"])
        assert shown["preview"].startswith("![thumbnail](data:image/webp;base64,")
        assert shown["audit_score"] >= 60
        assert shown["vision_model"] == EmbeddedVision().name
        assert shown["seconds_describe"] > 0
        assert len(shown["description"]) > 60


def test_batch_progress_is_materialized_in_numbers_and_ends_at_the_total(events):
    readings = [
        metadata(e["metadataEntries"])
        for e in events
        if e["__typename"] == "MaterializationEvent" and e["assetKey"]["path"] == ["batch_progress"]
    ]
    assert readings[-1]["processed"] == readings[-1]["total"] == 6
    assert readings[-1]["failed"] == 1
    assert readings[-1]["progress_percentage"] == 100


def executions(stack, asset, check, batch_id):
    query = """query ($asset: AssetKeyInput!, $check: String!, $batch: String!) {
      assetCheckExecutions(assetKey: $asset, checkName: $check, partition: $batch, limit: 5) {
        evaluation { success severity description
          metadataEntries { label ... on IntMetadataEntry { intValue } } } } }"""
    variables = {"asset": {"path": [asset]}, "check": check, "batch": batch_id}
    return stack.graphql(query, **variables)["assetCheckExecutions"]


def test_the_checks_of_a_batch_show_its_failures_and_the_scores_of_descriptions(stack, finished):
    batch = finished["batch_id"]
    [failures] = wait_until(
        lambda: executions(stack, "batch_report", "no_failed_uploads", batch), "it is judged"
    )
    assert failures["evaluation"]["success"] is False
    assert failures["evaluation"]["severity"] == "ERROR"
    assert failures["evaluation"]["description"] == "1 of 6 uploads failed"
    [quality] = wait_until(
        lambda: executions(stack, "upload_analysis", "description_quality", batch), "both are"
    )
    assert quality["evaluation"]["success"]
    found = metadata(quality["evaluation"]["metadataEntries"])
    assert (found["passed"], found["made"]) == (5, 5)
    assert found["lowest_audit_score"] >= 60


def test_a_webhook_about_the_end_of_the_batch_arrives_with_its_counts(webhooks, finished):
    def of_the_batch():
        said = [(one, json.loads(one.body)) for one in webhooks.received]
        return [(one, body) for one, body in said if body["data"]["batch_id"] == batch_id]

    batch_id, status = finished["batch_id"], finished["status"]
    request, said = wait_until(of_the_batch, "the webhook arrives")[0]
    Webhook(WEBHOOK_SECRET).verify(request.body, dict(request.headers))
    assert said["type"] == "batch.completed"
    assert said["data"]["name"] == status["name"]
    counts = tuple(said["data"][name] for name in ("total", "successful", "failed"))
    assert counts == (6, 5, 1)


def test_upload_analysis_has_an_owner_kinds_and_dependencies(stack, finished):
    query = """{ assetNodeOrError(assetKey: {path: ["upload_analysis"]}) { ... on AssetNode {
        owners { ... on TeamAssetOwner { team } } kinds groupName description
        dependencyKeys { path } } } }"""
    node = stack.graphql(query)["assetNodeOrError"]
    assert node["owners"] == [{"team": "media"}]
    assert node["groupName"] == "uploads"
    assert sorted(node["kinds"]) == ["postgres", "python"]
    assert node["description"].startswith("One materialization per upload that was processed")
    assert sorted(key["path"][0] for key in node["dependencyKeys"]) == [
        "descriptions",
        "embeddings",
        "thumbnails",
    ]


def test_a_search_finds_the_right_picture(stack, finished):
    names = [hit["filename"] for hit in stack.cli("search", "bright blue landscape")]
    assert names[0] in {"sea.jpg", "mountains.heic"}
    assert stack.cli("search", "green forest", "--limit", "1")[0]["filename"] == "forest.webp"


def test_doctor_finds_no_problem(stack):
    checks = {check["name"]: check for check in stack.cli("doctor")}
    assert all(check["ok"] for check in checks.values())
    assert checks["dagster daemon"]["detail"] == "alive"
    # The web server and the code server are connected too; this finds the daemon.
    assert re.fullmatch(r"dagster-daemon \S+ \d+", checks["one daemon"]["detail"])


def outcome_tag(stack, batch_id):
    """Return how the newest run of a batch ended, by its tag."""
    tags = stack.graphql.ended_run_of(batch_id)["tags"]
    return {tag["key"]: tag["value"] for tag in tags}.get("batch_pipeline/outcome")


def test_re_execute_from_failure_processes_only_the_failed_upload(stack, finished, run):
    # Given: the file in the storage has been repaired.
    [bad] = [u for u in finished["status"]["uploads"] if u["filename"] == "truncated.jpg"]
    [folder] = (stack.home / "uploads").glob(f"*/{bad['upload_id']}")
    shutil.copy(MEDIA / "sunset.jpg", folder / "original.jpg")
    wait_until(lambda: outcome_tag(stack, finished["batch_id"]), "its outcome is a tag")
    # When: an operator presses "Re-execute from failure".
    mutation = """mutation ($run: String!) { launchRunReexecution(
        reexecutionParams: {parentRunId: $run, strategy: FROM_FAILURE}
      ) { __typename ... on LaunchRunSuccess { run { runId } }
          ... on PythonError { message } } }"""
    launched = stack.graphql(mutation, run=run["runId"])["launchRunReexecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    again = stack.graphql.ended_run_of(finished["batch_id"])
    # Then: only that step ran, and the batch counts six successes.
    assert again["status"] == "SUCCESS"
    assert outcome_tag(stack, finished["batch_id"]) == "not_failed"
    events = stack.graphql.events_of(again["runId"])
    started = [e["stepKey"] for e in events if e["__typename"] == "ExecutionStepStartEvent"]
    assert [key.split("__")[0] for key in started if "process_upload" in key] == [
        "process_upload[truncated_jpg"
    ]
    status = stack.cli("status", finished["batch_id"])
    assert (status["status"], status["successful_uploads"], status["failed_uploads"]) == (
        "completed",
        6,
        0,
    )


def test_the_ui_answers(stack):
    with urllib.request.urlopen(f"{stack.graphql.url}/runs", timeout=30) as page:
        assert b"dagster" in page.read().lower()


@pytest.fixture(scope="module")
def sixty_photos_and_every_format(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    originals = [media.make_photo(12, seed=seed) for seed in range(4)]
    for number in range(60):
        # A different comment makes each file new, so that none is a copy.
        text = f"photo {number}".encode()
        comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        original = originals[number % len(originals)]
        (folder / f"photo_{number:02}.jpg").write_bytes(original[:2] + comment + original[2:])
    for name in media.IMAGE_FORMATS:
        (folder / f"image.{name}").write_bytes(media.make_image(name, (640, 480), seed=99))
    for name in media.VIDEO_FORMATS:
        (folder / f"video.{name}").write_bytes(media.make_video(name, 1.0))
    return folder


@pytest.mark.proof
def test_sixty_photos_of_12_megapixels_and_every_format_are_processed(
    stack, sixty_photos_and_every_format
):
    with Image.open(sixty_photos_and_every_format / "photo_59.jpg") as photo:
        assert photo.width * photo.height >= 12e6 * 0.99
    result = stack.cli("submit", sixty_photos_and_every_format, "--wait", expect=None)
    expected = 60 + len(media.IMAGE_FORMATS) + len(media.VIDEO_FORMATS)
    assert result["failed_files"] == []
    status = result["status"]
    failures = [u for u in status["uploads"] if u["processing_status"] != "completed"]
    assert failures == []
    assert (status["status"], status["successful_uploads"]) == ("completed", expected)
