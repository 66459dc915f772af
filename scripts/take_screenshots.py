"""Take the screenshots of the docs: runs the demo's batch, then photographs Dagster's pages.

    python scripts/take_screenshots.py [--only NAME]

Needs Chromium (``scripts/install_test_system.sh``) and the extra ``dev``.
"""

import argparse
import shutil
import tempfile
import uuid
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from batch_pipeline.demo import running_stack, sample_media
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.batch_watch import watch_batch
from batch_pipeline.services.pipeline import Pipeline
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
            for name, visit in PAGES.items():
                if only in {None, name}:
                    visit(page, stack.url, submission.batch_id)
                    page.screenshot(path=FOLDER / f"{name}.png")
                    print(FOLDER / f"{name}.png")
            browser.close()
        pipeline.close()


def runs(page: Page, url: str, batch_id: uuid.UUID) -> None:
    page.goto(f"{url}/runs")
    page.get_by_text("process_batch").first.wait_for()
    page.get_by_text("Failure").first.wait_for()
    page.wait_for_timeout(1500)


def run(page: Page, url: str, batch_id: uuid.UUID) -> None:
    runs(page, url, batch_id)
    page.locator("a[href*='/runs/']").first.click()
    page.get_by_text("process_upload").first.wait_for()
    page.get_by_text("Re-execute", exact=False).first.wait_for()
    page.wait_for_timeout(2500)


def assets(page: Page, url: str, batch_id: uuid.UUID) -> None:
    page.goto(f"{url}/assets/upload_analysis?view=events")
    page.get_by_text("audit_score").first.wait_for()
    page.wait_for_timeout(2500)


def lineage(page: Page, url: str, batch_id: uuid.UUID) -> None:
    page.goto(f"{url}/asset-groups")
    page.get_by_text("upload_analysis").first.wait_for()
    page.wait_for_timeout(2500)


PAGES = {"runs": runs, "run": run, "upload": assets, "lineage": lineage}

if __name__ == "__main__":
    main()
