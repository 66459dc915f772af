"""Takes the screenshots for the docs: processes fifty batches, and photographs Dagster's pages.

    python scripts/take_screenshots.py [--only NAME]

It needs Chromium (``scripts/install_test_system.sh``) and the extra ``dev``, and takes about five
minutes.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as PageTimeoutError
from sample_batches import SAMPLE, SampleBatches

from batch_pipeline.demo import running_stack
from batch_pipeline.orchestration.tags import BATCH_TAG, NAME_TAG, REASON_TAG, SLICE_TAG, USER_TAG
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import Settings

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
SIZE = {"width": 1440, "height": 900}
#: Tags that are hidden, as with *Hide tag* in the UI; the name and the outcome stay.
HIDDEN_TAGS = [BATCH_TAG, REASON_TAG, SLICE_TAG, USER_TAG]
SENSORS = "locations/batch_pipeline.definitions/sensors"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    names = sorted(AFTERWARDS | MEANWHILE)
    arguments.add_argument("--only", choices=names, help="take just this one")
    only = arguments.parse_args().only
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ["BATCH_PIPELINE_MAX_RUNS_IN_FLIGHT"] = "2"  # so that some have to wait
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, home=Path(folder))
        pipeline = Pipeline(settings)
        batches = SampleBatches(pipeline, Path(folder) / "drawn")
        with running_stack(settings) as stack, sync_playwright() as playwright:
            batches.submit_those_that_end()
            batches.submit_the_sample()
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(60_000)
            hidden = json.dumps(json.dumps(HIDDEN_TAGS))
            page.add_init_script(f"localStorage.setItem('unpinned-tags', {hidden})")
            for pages in (AFTERWARDS, MEANWHILE):
                if pages is MEANWHILE:
                    batches.submit_those_in_progress()
                for name, visit in pages.items():
                    if only in {None, name}:
                        visit(page, stack.url)
                        take(page, FOLDER / f"{name}.png")
            browser.close()
        pipeline.close()


def take(page: Page, file: Path) -> None:
    """Take a screenshot of a page, with 256 colours."""
    page.screenshot(path=file)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(256).save(file, optimize=True)
    print(file, flush=True)


def runs(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 1920, "height": 960})
    page.goto(f"{url}/runs")
    for status in ("Started", "Failure", "Success"):
        page.get_by_text(status, exact=True).first.wait_for()
    page.wait_for_timeout(1500)


def run(page: Page, url: str) -> None:
    page.set_viewport_size(SIZE | {"height": 1200})
    page.goto(f"{url}/runs?q[]=tag:{NAME_TAG}={SAMPLE}")
    address = page.locator("a[href*='/runs/']").first.get_attribute("href")
    # Only the event of the failed step is shown, because that of the run has paths of this machine.
    page.goto(f"{url}{address}?logs=type:STEP_FAILURE")
    page.get_by_text("STEP_FAILURE", exact=True).wait_for()
    page.wait_for_timeout(1500)
    drag(page, (900, 472), (900, 860))
    page.locator(".chart-element[data-tooltip*='truncated_jpg']").hover()
    page.wait_for_timeout(1000)


def assets(page: Page, url: str) -> None:
    page.set_viewport_size(SIZE)
    page.goto(f"{url}/assets/upload_analysis?view=events")
    page.get_by_text("audit_score").first.wait_for()
    page.wait_for_timeout(2500)


def lineage(page: Page, url: str) -> None:
    page.set_viewport_size(SIZE)
    page.goto(f"{url}/asset-groups")
    page.get_by_text("upload_analysis").first.wait_for()
    page.wait_for_timeout(2500)
    # The graph is dragged upwards by its background, because the zoom slider covers its end.
    drag(page, (1000, 800), (1000, 700))
    page.wait_for_timeout(1000)


def report(page: Page, url: str) -> None:
    page.set_viewport_size(SIZE)
    wait_for_report(page, url)
    page.get_by_text("failures_by_kind").first.wait_for()
    page.wait_for_timeout(1500)


def contact_sheet(page: Page, url: str) -> None:
    page.set_viewport_size(SIZE)
    wait_for_report(page, url)
    page.get_by_text("Show Markdown").first.click()
    page.locator("img[src^='data:image/jpeg']").wait_for()
    page.wait_for_timeout(1000)


def sensor(page: Page, url: str) -> None:
    wait_for_report(page, url)
    open_tick(page, url, "report_ended_batches", "reported: batch")


def waiting(page: Page, url: str) -> None:
    open_tick(page, url, "pending_batches", "behind other runs")


def open_tick(page: Page, url: str, name: str, said: str) -> None:
    """Open the newest tick of a sensor that contains a text."""
    page.set_viewport_size({"width": 1200, "height": 480})
    for _ in range(20):
        page.goto(f"{url}/{SENSORS}/{name}?status=skipped")
        buttons = page.get_by_role("row").get_by_role("button", name="0 runs requested")
        buttons.first.wait_for()
        try:  # the rows move when there is a new tick
            for number in range(10):
                buttons.nth(number).click(timeout=5000)
                page.get_by_text("Skip reason:").wait_for(timeout=5000)
                if page.get_by_text(said, exact=False).count():
                    page.wait_for_timeout(1000)
                    return
                page.get_by_role("button", name="Close").click(timeout=5000)
        except PageTimeoutError:
            continue
    raise SystemExit(f"no tick of {name} says {said!r}")


def drag(page: Page, start: tuple[int, int], end: tuple[int, int]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=10)
    page.mouse.up()


def wait_for_report(page: Page, url: str) -> None:
    """Reload the page until the sensor has reported the batch; the page does not update itself."""
    for _ in range(20):
        page.goto(f"{url}/assets/batch_report?view=events")
        try:
            page.get_by_text(SAMPLE.replace(" ", "_")).first.wait_for(timeout=20_000)
            page.get_by_text("Show Markdown").first.wait_for(timeout=20_000)
        except PageTimeoutError:
            continue
        return
    raise SystemExit("the batch was not reported")


#: Screenshots that are taken when all batches except the paused ones have ended, and while others
#: are processed.
AFTERWARDS = {
    "run": run,
    "upload": assets,
    "report": report,
    "contact_sheet": contact_sheet,
    "sensor": sensor,
    "lineage": lineage,
}
MEANWHILE = {"waiting": waiting, "runs": runs}

if __name__ == "__main__":
    main()
