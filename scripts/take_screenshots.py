"""Take the screenshots of the docs: runs the demo's batch, then photographs Dagster's pages.

    python scripts/take_screenshots.py [--only NAME]

Needs Chromium (``scripts/install_test_system.sh``) and the extra ``dev``.
"""

import argparse
import shutil
import tempfile
import uuid
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as PageTimeoutError

from batch_pipeline.demo import running_stack, sample_media
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.batch_watch import watch_batch
from batch_pipeline.settings import Settings

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
SIZE = {"width": 1440, "height": 900}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=sorted(PAGES), help="take just this one")
    only = arguments.parse_args().only
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, home=Path(folder))
        pipeline = Pipeline(settings)
        with running_stack(settings) as stack, sync_playwright() as playwright:
            submission = submit(
                sample_media(),
                publisher=pipeline.publisher,
                storage=pipeline.storage,
                settings=settings,
            )
            assert submission.batch_id
            for _ in watch_batch(pipeline.database, submission.batch_id):
                pass
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(60_000)
            for name, visit in PAGES.items():
                if only in {None, name}:
                    visit(page, stack.url, submission.batch_id)
                    take(page, FOLDER / f"{name}.png")
            browser.close()
        pipeline.close()


def take(page: Page, file: Path) -> None:
    """Photograph a page, in the few colours that it needs."""
    page.screenshot(path=file)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(256).save(file, optimize=True)
    print(file)


def runs(page: Page, url: str, batch_id: uuid.UUID) -> None:
    page.goto(f"{url}/runs")
    page.get_by_text("process_batch").first.wait_for()
    page.get_by_text("Failure").first.wait_for()
    page.wait_for_timeout(1500)


def run(page: Page, url: str, batch_id: uuid.UUID) -> None:
    runs(page, url, batch_id)
    page.locator("a[href*='/runs/']").first.click()
    page.get_by_text("process_upload").first.wait_for()
    # The failed step's own events: that of the run shows folders of this machine.
    page.get_by_text("process_upload[truncated_jpg").first.click()
    page.get_by_text("STEP_FAILURE").wait_for()
    page.wait_for_timeout(1500)


def assets(page: Page, url: str, batch_id: uuid.UUID) -> None:
    page.goto(f"{url}/assets/upload_analysis?view=events")
    page.get_by_text("audit_score").first.wait_for()
    page.wait_for_timeout(2500)


def lineage(page: Page, url: str, batch_id: uuid.UUID) -> None:
    page.goto(f"{url}/asset-groups")
    page.get_by_text("upload_analysis").first.wait_for()
    page.wait_for_timeout(2500)
    # The graph is drawn upwards by its ground: the slider of the zoom stands in front of its end.
    page.mouse.move(1000, 800)
    page.mouse.down()
    page.mouse.move(1000, 700, steps=10)
    page.mouse.up()
    page.wait_for_timeout(1000)


def report(page: Page, url: str, batch_id: uuid.UUID) -> None:
    wait_for_report(page, url)
    page.get_by_text("failures_by_kind").first.wait_for()
    page.wait_for_timeout(1500)


def contact_sheet(page: Page, url: str, batch_id: uuid.UUID) -> None:
    wait_for_report(page, url)
    page.get_by_text("Show Markdown").first.click()
    page.locator("img[src^='data:image/jpeg']").wait_for()
    page.wait_for_timeout(1000)


def sensor(page: Page, url: str, batch_id: uuid.UUID) -> None:
    wait_for_report(page, url)
    page.goto(f"{url}/locations/batch_pipeline.definitions/sensors/report_ended_batches")
    acted = page.get_by_role("row").filter(has_text='{"newest"').last
    acted.get_by_role("button", name="0 runs requested").click()
    page.get_by_text("reported: batch", exact=False).wait_for()
    page.wait_for_timeout(1000)


def wait_for_report(page: Page, url: str) -> None:
    """Look again until the sensor has reported the batch: the page does not renew itself."""
    for _ in range(20):
        page.goto(f"{url}/assets/batch_report?view=events")
        try:
            page.get_by_text("Show Markdown").first.wait_for(timeout=20_000)
        except PageTimeoutError:
            continue
        return
    raise SystemExit("the batch was not reported")


PAGES = {
    "runs": runs,
    "run": run,
    "upload": assets,
    "report": report,
    "contact_sheet": contact_sheet,
    "sensor": sensor,
    "lineage": lineage,
}

if __name__ == "__main__":
    main()
