"""Dagster's pages in a real browser, used as an operator uses them."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from .conftest import MEDIA, RealStack, wait_until

#: Would run if any page put a file's name into its HTML.
HOSTILE_NAME = "<img src=x onerror='window.broken=1'>**bold**.jpg"
TIMEOUT_MS = 30_000
#: Ticks that are looked into; what is looked for is among the newest.
MOST_TICKS = 8
LOCATION = "/locations/batch_pipeline.definitions"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    browser_path = shutil.which("chromium")
    if browser_path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: scripts/install_test_system.sh installs it")
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def finished(stack: RealStack, tmp_path_factory) -> dict:
    folder: Path = tmp_path_factory.mktemp("hostile")
    shutil.copy(MEDIA / "night.jpg", folder / HOSTILE_NAME)
    return stack.cli("submit", folder, MEDIA / "truncated.jpg", "--wait", expect=1)


@pytest.fixture(scope="module")
def run(stack: RealStack, finished: dict) -> dict:
    return stack.graphql.ended_run_of(finished["batch_id"])


@pytest.fixture(scope="module")
def reported(stack: RealStack, finished: dict) -> None:
    wait_until_reported(stack, finished["batch_id"])


def wait_until_reported(stack: RealStack, batch_id: str) -> None:
    query = """{ assetOrError(assetKey: {path: ["batch_report"]}) {
      ... on Asset { assetMaterializations { partition } } } }"""

    def is_there() -> bool:
        asset = stack.graphql(query)["assetOrError"]
        made = asset.get("assetMaterializations", [])
        return batch_id in {event["partition"] for event in made}

    wait_until(is_there, "the batch is reported")


def expect_said_by_a_tick(page: Page, button: str, said: str) -> None:
    """Open the ticks of the page, the newest first, until one says it."""
    buttons = page.get_by_role("button", name=button)
    # The words of a tick come some time after its dialog; who looked away too soon looks again.
    for patience_ms in (2_000, 5_000, 15_000):
        page.reload()
        expect(buttons.first).to_be_visible()
        for number in range(min(buttons.count(), MOST_TICKS)):
            buttons.nth(number).click()
            with contextlib.suppress(AssertionError):
                expect(page.get_by_text(said, exact=False)).to_be_visible(timeout=patience_ms)
                return
            page.get_by_role("button", name="Close").click()
    raise AssertionError(f"no tick says: {said}")


def test_the_runs_page_shows_tags_and_the_failure(stack, run, finished, page):
    tag = f"batch_pipeline/batch_id={finished['batch_id']}"
    page.goto(f"{stack.graphql.url}/runs?q[]=tag:{tag}")
    expect(page.get_by_text(run["runId"][:8]).first).to_be_visible()
    expect(page.get_by_text("Failure").first).to_be_visible()
    expect(page.get_by_text("batch_pipeline/reason", exact=False).first).to_be_visible()


def test_the_failed_step_says_file_kind_and_reason(stack, run, page):
    page.goto(f"{stack.graphql.url}/runs/{run['runId']}")
    failure = page.get_by_text("the JPEG ends before its picture does", exact=False)
    expect(failure.first).to_be_visible()
    expect(page.get_by_text("process_upload[truncated_jpg", exact=False).first).to_be_visible()
    page.get_by_text("View full message").first.click()
    for words in ("kind", "truncated", "reason", "attempt"):
        expect(page.get_by_text(words, exact=True).first).to_be_visible()


def test_an_uploads_materialization_shows_its_picture_and_the_name_literally(
    stack, run, finished, page
):
    page.goto(f"{stack.graphql.url}/assets/upload_analysis?view=events")
    expect(page.get_by_text(HOSTILE_NAME).first).to_be_visible()
    page.get_by_text("Show Markdown").first.click()
    picture = page.locator("img[src^='data:image/jpeg;base64,']")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 50
    assert page.evaluate("window.broken") is None


def test_a_batchs_report_shows_its_failures_contact_sheet_and_throughput(
    stack, finished, reported, page
):
    page.goto(f"{stack.graphql.url}/assets/batch_report?view=events")
    page.get_by_text(finished["batch_id"]).first.click()
    expect(page.get_by_text("1 of 2 uploads completed, 1 failed", exact=False)).to_be_visible()
    cell = page.get_by_role("cell", name="the JPEG ends before its picture does", exact=False)
    expect(cell.last).to_be_visible()
    expect(page.get_by_role("cell", name=HOSTILE_NAME).last).to_be_visible()
    plot = page.locator("img[src^='data:image/svg+xml;base64,']")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") == 640
    page.get_by_text("Show Markdown").click()
    sheet = page.locator("img[src^='data:image/jpeg;base64,']")
    expect(sheet).to_be_visible()
    assert sheet.evaluate("image => image.naturalWidth") == 80
    page.get_by_role("button", name="Close").click()
    assert page.evaluate("window.broken") is None


@pytest.mark.parametrize("asset", ["thumbnails", "descriptions", "embeddings"])
def test_what_is_stored_of_a_batch_has_owner_kinds_and_a_description(
    stack, finished, reported, page, asset
):
    page.goto(f"{stack.graphql.url}/assets/{asset}?view=overview")
    for words in (finished["batch_id"], "Partition: batch.", "media", "uploads", "stored"):
        expect(page.get_by_text(words, exact=False).first).to_be_visible()


def test_the_lineage_leads_from_the_files_to_the_report(stack, reported, page):
    page.goto(f"{stack.graphql.url}/asset-groups")
    for asset in ("submitted_files", "upload_analysis", "batch_progress", "batch_report"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()


def test_the_progress_of_a_batch_is_plotted(stack, reported, page):
    page.goto(f"{stack.graphql.url}/assets/batch_progress?view=overview")
    page.get_by_text("Plots", exact=True).click()
    expect(page.get_by_text("progress_percentage", exact=True)).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()


def test_the_launchpad_refuses_a_run_without_a_batch_and_the_run_says_what_is_no_id(stack, page):
    page.goto(f"{stack.graphql.url}{LOCATION}/jobs/process_batch/playground")
    expect(page.get_by_text('Missing required config entry "batch_id"')).to_be_visible()
    launch = page.get_by_role("button", name="Launch Run")
    expect(launch).to_be_disabled()
    expect(page.get_by_text("How the steps of a run are run", exact=False)).to_be_visible()
    page.get_by_text("Scaffold missing config").click()
    page.get_by_role("button", name="Confirm").click()
    expect(launch).to_be_enabled()
    page.locator(".CodeMirror").first.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text("ops: {load_batch: {config: {batch_id: holiday}}}")
    expect(launch).to_be_enabled()
    launch.click()
    page.wait_for_url("**/runs/*")
    said = "batch_id: 'holiday' is not an id; expected 32 hexadecimal digits (a UUID)"
    expect(page.get_by_text(said, exact=False).first).to_be_visible(timeout=2 * TIMEOUT_MS)


def test_the_sensor_says_why_it_skipped(stack, finished, reported, page):
    page.goto(f"{stack.graphql.url}{LOCATION}/sensors/pending_batches")
    page.get_by_role("button", name="0 runs requested").first.click()
    expect(page.get_by_text("no upload is pending", exact=False)).to_be_visible()


def test_the_sensor_says_which_run_it_asked_for_and_why(stack, finished, reported, page):
    # Only the ticks that asked for a run: those that skipped are soon a page and more.
    page.goto(f"{stack.graphql.url}{LOCATION}/sensors/pending_batches?status=success")
    said = f"asked for a run: batch {finished['batch_id']}, slice 1, new"
    expect_said_by_a_tick(page, "View logs", said)


def test_the_tick_that_reported_a_batch_says_which(stack, reported, page):
    # A batch of its own, so that its tick is among the newest.
    batch_id = stack.cli("submit", MEDIA / "night.jpg", "--wait")["batch_id"]
    wait_until_reported(stack, batch_id)
    page.goto(f"{stack.graphql.url}{LOCATION}/sensors/report_ended_batches")
    said = f"reported: batch {batch_id} completed: 1 of 1 uploads completed"
    expect_said_by_a_tick(page, "0 runs requested", said)


def test_the_schedule_says_that_there_is_nothing_to_put_right(stack, reported, page):
    page.goto(f"{stack.graphql.url}{LOCATION}/schedules/backlog_sweep")
    page.get_by_text("Preview tick result").click()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("nothing to put right", exact=False)).to_be_visible()


def test_re_execute_from_failure_clicked_in_the_browser_works_the_failed_upload_alone(
    stack, run, finished, page
):
    [bad] = [u for u in finished["status"]["uploads"] if u["filename"] == "truncated.jpg"]
    [folder] = (stack.home / "uploads").glob(f"*/{bad['upload_id']}")
    shutil.copy(MEDIA / "city.jpg", folder / "original.jpg")

    page.goto(f"{stack.graphql.url}/runs/{run['runId']}")
    page.locator("button:right-of(button:has-text('Re-execute'))").first.click()
    page.get_by_text("From failure").click()
    page.wait_for_url(lambda url: run["runId"] not in url)

    again = stack.graphql.ended_run_of(finished["batch_id"])
    assert again["runId"] != run["runId"]
    assert again["status"] == "SUCCESS"
    status = stack.cli("status", finished["batch_id"])
    assert (status["status"], status["successful_uploads"]) == ("completed", 2)
