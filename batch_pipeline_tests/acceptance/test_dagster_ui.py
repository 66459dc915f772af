"""Dagster's pages in a real browser, used as an operator uses them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from .conftest import MEDIA, RealStack

#: Would run if any page put a file's name into its HTML.
HOSTILE_NAME = "<img src=x onerror='window.broken=1'>**bold**.jpg"
TIMEOUT_MS = 30_000


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
