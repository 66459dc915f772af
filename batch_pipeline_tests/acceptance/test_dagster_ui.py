"""Dagster's pages in a real browser, used as an operator uses them.

Each test first waits by GraphQL until the data exist. Then it opens the page, which has a minute to
show them. So a slow machine does not look like a page that never shows them.
"""

import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from batch_pipeline.services.short_ids import short
from batch_pipeline_tests.patience import wait_until

from .conftest import MEDIA, RealStack

#: A script that runs if a page puts file names into its HTML; a direction mark; Markdown for bold.
HOSTILE_NAME = "<img src=x onerror='window.broken=1'>**bold**\N{RIGHT-TO-LEFT OVERRIDE}gpj.jpg"
SHOWN_NAME = HOSTILE_NAME.replace("\N{RIGHT-TO-LEFT OVERRIDE}", "\N{REPLACEMENT CHARACTER}")
TIMEOUT_MS = 60_000
LOCATION = "/locations/batch_pipeline.definitions"

pytestmark = pytest.mark.slow


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


def freshness(stack: RealStack, asset: str) -> str:
    query = f"""{{ assetNodeOrError(assetKey: {{path: ["{asset}"]}}) {{
      ... on AssetNode {{ freshnessStatusInfo {{ freshnessStatus }} }}
    }} }}"""
    found: str = stack.graphql(query)["assetNodeOrError"]["freshnessStatusInfo"]["freshnessStatus"]
    return found


def wait_for_tick(stack: RealStack, kind: str, name: str, said: str) -> float:
    """Wait until a tick of a sensor or schedule has this message; return its time."""
    query = f"""query ($name: String!) {{ {kind}OrError({kind}Selector: {{
      repositoryName: "__repository__", repositoryLocationName: "batch_pipeline.definitions",
      {kind}Name: $name
    }}) {{ ... on {kind.capitalize()} {{ {kind}State {{
      skipped: ticks(limit: 50, statuses: [SKIPPED]) {{ timestamp skipReason }}
      acted: ticks(limit: 20, statuses: [SUCCESS]) {{
        timestamp logEvents {{ events {{ message }} }}
      }}
    }} }} }} }}"""

    def found() -> float | None:
        state: dict[str, Any] = stack.graphql(query, name=name)[f"{kind}OrError"][f"{kind}State"]
        said_by = [(t["timestamp"], t["skipReason"]) for t in state["skipped"]] + [
            (tick["timestamp"], event["message"])
            for tick in state["acted"]
            for event in tick["logEvents"]["events"]
        ]
        return next((timestamp for timestamp, words in said_by if said in (words or "")), None)

    return wait_until(found, f"a tick of {name} says: {said}")


def expect_said_by_the_tick(page: Page, timestamp: float, button: str, said: str) -> None:
    """Click the button in the tick's row, and return the text that it shows."""
    moment = datetime.fromtimestamp(timestamp).strftime(":%M:%S ")
    row = page.get_by_role("row").filter(has_text=re.compile(moment))
    row.filter(has=page.get_by_role("button", name=button)).last.get_by_role(
        "button", name=button
    ).last.click()
    expect(page.get_by_text(said, exact=False).last).to_be_visible()


def re_execute_from_failure(page: Page, run_url: str) -> str:
    """Press the button on a run's page; return the id of the new run."""
    page.goto(run_url)
    page.locator("button:right-of(button:has-text('Re-execute'))").first.click()
    page.get_by_role("menuitem", name="From failure", disabled=False).click()
    page.wait_for_url(lambda url: run_url not in url and "/runs/" in url)
    return page.url.rsplit("/", 1)[-1]


def open_failed_step(page: Page, name: str) -> Locator:
    """Click a step of the open run; return the part of its events that says why it failed."""
    page.get_by_text(name, exact=False).first.click()
    panel = page.locator("div").filter(has=page.get_by_text("STEP_FAILURE", exact=True))
    panel = panel.filter(has_text="upload_id").last
    expect(panel).to_be_visible()
    return panel


def is_in_sight(element: Locator) -> bool:
    """Return whether a person sees the middle of an element: neither cut off nor covered."""
    found: bool = element.evaluate(
        """element => {
            const {left, top, width, height} = element.getBoundingClientRect();
            const seen = document.elementFromPoint(left + width / 2, top + height / 2);
            return element.contains(seen);
        }"""
    )
    return found


def test_the_runs_page_shows_tags_and_the_failure(stack, run, finished, page):
    tag = f"batch_pipeline/batch_id={finished['batch_id']}"
    page.goto(f"{stack.graphql.url}/runs?q[]=tag:{tag}")
    expect(page.get_by_text(run["runId"][:8]).first).to_be_visible()
    expect(page.get_by_text("Failure").first).to_be_visible()
    for name in ("batch_id", "user_id", "slice: 1", "reason: new"):
        expect(page.get_by_text(f"batch_pipeline/{name}", exact=False).first).to_be_visible()


def test_the_failed_step_has_a_readable_name_and_says_file_kind_reason_and_attempt(
    stack, run, page
):
    page.goto(f"{stack.graphql.url}/runs/{run['runId']}")
    panel = open_failed_step(page, "process_upload[truncated_jpg__")
    for words in (
        "truncated.jpg: truncated: the JPEG ends before its picture does",
        *("file", "kind", "reason", "attempt"),
    ):
        expect(panel.get_by_text(words, exact=False).first).to_be_visible()


def test_an_uploads_materialization_shows_its_picture_and_the_name_literally(
    stack, run, finished, page
):
    page.goto(
        f"{stack.graphql.url}/assets/upload_analysis?view=partitions"
        f"&partition={finished['batch_id']}"
    )
    expect(page.get_by_text(SHOWN_NAME).first).to_be_visible()
    picture = page.locator("img[src^='data:image/webp;base64,']")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") >= 48
    for name in ("description", "audit_score", "seconds_describe"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    assert page.locator("strong").filter(has_text="bold").count() == 0
    assert page.evaluate("window.broken") is None


def test_a_batchs_report_shows_its_failures_contact_sheet_and_throughput(
    stack, finished, reported, page
):
    page.goto(f"{stack.graphql.url}/assets/batch_report?view=events")
    page.get_by_text(finished["batch_id"]).first.click()
    expect(page.get_by_text("1 of 2 uploads completed, 1 failed", exact=False)).to_be_visible()
    cell = page.get_by_role("cell", name="the JPEG ends before its picture does", exact=False)
    expect(cell.last).to_be_visible()
    expect(page.get_by_role("cell", name=SHOWN_NAME).last).to_be_visible()
    plot = page.locator("img[src^='data:image/svg+xml;base64,']")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") == 640
    page.get_by_text("Show Markdown").click()
    sheet = page.locator("img[src^='data:image/jpeg;base64,']")
    expect(sheet).to_be_visible()
    assert sheet.evaluate("image => image.naturalWidth") == 160, "also of the cut picture"
    page.get_by_role("button", name="Close").click()
    assert page.evaluate("window.broken") is None


def test_a_batch_with_failures_has_a_check_that_is_red(stack, finished, reported, page):
    page.goto(f"{stack.graphql.url}/assets/batch_report?view=checks&checkDetail=no_failed_uploads")
    expect(page.get_by_text("no_failed_uploads", exact=True).first).to_be_visible()
    expect(page.get_by_text("1 of 2 uploads failed", exact=False).first).to_be_visible()
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()


@pytest.mark.parametrize("asset", ["thumbnails", "descriptions", "embeddings"])
def test_the_assets_of_a_batch_have_an_owner_kinds_and_a_description(stack, reported, page, asset):
    page.goto(f"{stack.graphql.url}/assets/{asset}?view=overview")
    for words in ("Partition: batch.", "media", "uploads", "stored"):
        expect(page.get_by_text(words, exact=False).first).to_be_visible()


def test_the_lineage_leads_from_the_files_to_the_report(stack, reported, page):
    page.goto(f"{stack.graphql.url}/asset-groups")
    assets = ("submitted_files", "upload_analysis", "batch_progress", "batch_report")
    for asset in (*assets, "run_cleanups"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()


@pytest.mark.parametrize("asset", ["thumbnails", "descriptions", "embeddings", "batch_report"])
def test_assets_that_a_sensor_makes_name_it_as_their_automation(stack, reported, asset):
    query = """
        query ($path: [String!]!) { assetNodeOrError(assetKey: {path: $path}) {
            ... on AssetNode { targetingInstigators { ... on Sensor { name } } }
        } }
    """
    node = stack.graphql(query, path=[asset])["assetNodeOrError"]
    assert node["targetingInstigators"] == [{"name": "report_ended_batches"}]


def test_the_progress_of_a_batch_is_plotted(stack, reported, page):
    page.goto(f"{stack.graphql.url}/assets/batch_progress?view=overview")
    page.get_by_text("Plots", exact=True).click()
    expect(page.get_by_text("progress_percentage", exact=True)).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()


def test_the_launchpad_refuses_a_run_without_a_batch_and_a_run_names_an_invalid_id(stack, page):
    page.goto(f"{stack.graphql.url}{LOCATION}/jobs/process_batch/playground")
    expect(page.get_by_text('Missing required config entry "batch_id"')).to_be_visible()
    launch = page.get_by_role("button", name="Launch Run")
    expect(launch).to_be_disabled()
    expect(page.get_by_text("How the steps of a run are executed", exact=False)).to_be_visible()
    page.get_by_text("Scaffold missing config").click()
    page.get_by_role("button", name="Confirm").click()
    expect(launch).to_be_enabled()

    # The config in between is not valid. Then the button launches the config that was typed last.
    write_config(page, "ops: {}")
    expect(launch).to_be_disabled()
    write_config(page, "ops: {load_batch: {config: {batch_id: holiday}}}")
    expect(launch).to_be_enabled()
    launch.click()
    page.wait_for_url("**/runs/*")
    run_id = page.url.rsplit("/", 1)[-1]
    status = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
    wait_until(
        lambda: stack.graphql(status, run=run_id)["runOrError"]["status"] == "FAILURE",
        "the run fails",
    )
    page.reload()
    said = "batch_id: 'holiday' is not an id; expected 32 hexadecimal digits (a UUID)"
    expect(page.get_by_text(said, exact=False).first).to_be_visible()


def write_config(page: Page, yaml: str) -> None:
    page.locator(".CodeMirror").first.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(yaml)


def test_the_sensor_says_why_it_skipped(stack, reported, page):
    said = "no upload is pending"
    timestamp = wait_for_tick(stack, "sensor", "pending_batches", said)
    page.goto(f"{stack.graphql.url}{LOCATION}/sensors/pending_batches?status=skipped")
    expect_said_by_the_tick(page, timestamp, "0 runs requested", said)


def test_the_sensor_says_which_run_it_asked_for_and_why(stack, reported, finished, page):
    name = stack.cli("status", finished["batch_id"])["name"]
    label = f"{name} ({short(finished['batch_id'])})" if name else short(finished["batch_id"])
    said = f"asked for a run: batch {label}, slice 1, new"
    timestamp = wait_for_tick(stack, "sensor", "pending_batches", said)
    # Only ticks that asked for a run: skipped ticks soon fill more than a page.
    page.goto(f"{stack.graphql.url}{LOCATION}/sensors/pending_batches?status=success")
    expect_said_by_the_tick(page, timestamp, "View logs", said)


def test_the_sensor_of_failed_runs_says_what_it_cleaned_up(stack, reported, run, page):
    name = "release_uploads_of_failed_runs"
    said = f"run {run['runId']} of batch"
    timestamp = wait_for_tick(stack, "sensor", name, said)
    page.goto(f"{stack.graphql.url}{LOCATION}/sensors/{name}?status=success")
    expect_said_by_the_tick(page, timestamp, "View logs", "it held no upload any more")


def test_the_tick_that_reported_a_batch_says_which(stack, reported, page):
    # A separate batch, so that its tick is among the newest.
    batch_id = stack.cli("submit", MEDIA / "night.jpg", "--wait")["batch_id"]
    said = f"reported: batch {MEDIA.name} ({short(batch_id)}) completed: 1 of 1 uploads completed"
    timestamp = wait_for_tick(stack, "sensor", "report_ended_batches", said)
    page.goto(f"{stack.graphql.url}{LOCATION}/sensors/report_ended_batches")
    expect_said_by_the_tick(page, timestamp, "0 runs requested", said)


def test_the_schedule_says_that_there_is_nothing_to_put_right(stack, reported, page):
    timestamp = wait_for_tick(stack, "schedule", "backlog_sweep", "nothing to put right")
    page.goto(f"{stack.graphql.url}{LOCATION}/schedules/backlog_sweep")
    expect_said_by_the_tick(page, timestamp, "0 runs requested", "nothing to put right")


def test_re_execute_from_failure_clicked_in_the_browser_processes_only_the_failed_upload(
    stack, run, finished, page
):
    [bad] = [u for u in finished["status"]["uploads"] if u["filename"] == "truncated.jpg"]
    [folder] = (stack.home / "uploads").glob(f"*/{bad['upload_id']}")
    shutil.copy(MEDIA / "city.jpg", folder / "original.jpg")

    clicked = re_execute_from_failure(page, f"{stack.graphql.url}/runs/{run['runId']}")

    again = stack.graphql.ended_run_of(finished["batch_id"])
    assert again["runId"] == clicked
    assert again["status"] == "SUCCESS"
    status = stack.cli("status", finished["batch_id"])
    assert (status["status"], status["successful_uploads"]) == ("completed", 2)


def launch(page: Page, stack: RealStack, job: str, config: str) -> None:
    """Press *Launch Run* in the launchpad of a job; return when the run has succeeded."""
    page.goto(f"{stack.graphql.url}{LOCATION}/jobs/{job}/playground")
    button = page.get_by_role("button", name="Launch Run")
    # The config in between is not valid. Then the button launches the config that was typed last.
    write_config(page, "ops: {none: {}}")
    expect(button).to_be_disabled()
    write_config(page, config)
    expect(button).to_be_enabled()
    button.click()
    page.wait_for_url("**/runs/*")
    run_id = page.url.rsplit("/", 1)[-1]
    status = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
    ended = wait_until(
        lambda: (
            {stack.graphql(status, run=run_id)["runOrError"]["status"]} & {"SUCCESS", "FAILURE"}
        ),
        "the run ends",
    )
    assert ended == {"SUCCESS"}


def test_everything_or_a_batch_is_paused_and_resumed_by_the_jobs_of_the_ui(
    page: Page, stack: RealStack
) -> None:
    page.goto(f"{stack.graphql.url}/jobs")
    for job in ("pause", "resume"):
        expect(page.get_by_role("link", name=f"job {job} info").first).to_be_visible()
    launch(page, stack, "pause", "{}")
    batch = stack.cli("submit", MEDIA / "fog.webp")["batch_id"]
    of_batch = f"config: {{batch: {batch}"
    launch(page, stack, "pause", f"ops: {{pause_work: {{{of_batch}, reason: grey}}}}}}")
    held = {(p["scope"], p["target"], p["reason"]) for p in stack.cli("paused")}
    assert held == {("everything", "", ""), ("batch", batch, "grey")}
    launch(page, stack, "resume", "{}")
    launch(page, stack, "resume", f"ops: {{resume_work: {{{of_batch}}}}}}}")
    assert stack.cli("paused") == []
    wait_until(lambda: stack.cli("status", batch)["status"] == "completed", "the batch is done")


@pytest.mark.proof
def test_a_backlog_that_was_swept_is_fresh(stack: RealStack) -> None:
    launch = """mutation { launchRun(executionParams: {runConfigData: {}, selector: {
      repositoryName: "__repository__", repositoryLocationName: "batch_pipeline.definitions",
      jobName: "sweep_backlog"
    }}) { __typename } }"""
    assert stack.graphql(launch)["launchRun"]["__typename"] == "LaunchRunSuccess"
    wait_until(lambda: freshness(stack, "backlog") == "HEALTHY", "the backlog is fresh")


@pytest.mark.proof
def test_a_batch_that_has_ended_makes_the_reports_fresh(stack: RealStack, reported: None) -> None:
    wait_until(lambda: freshness(stack, "batch_report") == "HEALTHY", "the reports are fresh")
