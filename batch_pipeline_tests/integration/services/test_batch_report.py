"""The page to keep: complete, alone, and safe whatever files and models say."""

import html
import http.server
import io
import re
import shutil
import threading
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image
from sqlalchemy import insert

from batch_pipeline.database.models import Upload
from batch_pipeline.errors import NotFoundError, RefusedError
from batch_pipeline.services.reports.pages import write_whole
from batch_pipeline.services.reports.report_page import batch_report, render_html
from batch_pipeline.testing.media import HOSTILE_FILENAMES
from batch_pipeline.testing.records import USER, add_batch

THUMBNAIL = "thumb_256.jpg"
BEGIN = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def storage(pipeline):
    """A storage with one thumbnail, of a picture that does not compress well."""
    picture = Image.effect_noise((256, 192), 40).convert("RGB")
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    pipeline.storage.write(THUMBNAIL, data.getvalue())
    return pipeline.storage


def completed(**values):
    return {
        "processing_status": "completed",
        "description": "A calm sea under a bright sky.",
        "description_audit_score": 97,
        "thumbnail_path": THUMBNAIL,
        "stage_seconds": {"decode": 0.1, "thumbnail": 0.02, "describe": 2.0, "embed": 0.3},
        "attempts": 1,
    } | values


def page_of(database, storage, batch_id):
    return render_html(batch_report(database, storage, batch_id))


def test_the_page_shows_pictures_descriptions_failures_and_timings(database, storage):
    batch = add_batch(
        database,
        [
            completed(filename="sea.jpg"),
            completed(filename="slow.jpg", stage_seconds={"decode": 1.0, "describe": 90.0}),
            {
                "filename": "cut.jpg",
                "processing_status": "failed",
                "error_kind": "truncated",
                "error_message": "the JPEG ends before its picture does",
                "attempts": 1,
            },
        ],
        status="completed",
        processed_uploads=3,
        successful_uploads=2,
        failed_uploads=1,
        started_at=BEGIN,
        completed_at=BEGIN + timedelta(seconds=95),
    )
    page = page_of(database, storage, batch)
    report = batch_report(database, storage, batch)
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert re.findall('<img [^>]*alt="([^"]*)"', page) == ["sea.jpg", "slow.jpg"]
    assert "A calm sea under a bright sky." in page
    assert [card.filename for card in report.slowest] == ["slow.jpg", "sea.jpg"]
    assert [stage.stage for stage in report.stages] == ["decode", "thumbnail", "describe", "embed"]
    assert report.stages[2].median == 46.0
    assert sum(stage.share for stage in report.stages) == pytest.approx(1)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    assert "cut.jpg truncated the JPEG ends before its picture does 1" in text
    assert "took 1 min 35 s" in text
    assert "has not ended" not in text


def test_a_batch_in_work_says_that_it_has_not_ended(database, storage):
    batch = add_batch(database, [completed(), {}], status="processing")
    assert "The batch has not ended" in page_of(database, storage, batch)


def test_hidden_uploads_are_left_out_and_counted(database, storage):
    batch = add_batch(database, [completed(filename="secret.jpg", hidden=True), completed()])
    page = page_of(database, storage, batch)
    assert "secret.jpg" not in page
    assert "1 hidden upload left out." in page


@pytest.mark.parametrize("content", [None, b"<svg onload=alert(1)>", b""])
def test_a_thumbnail_that_is_none_leaves_its_place_empty(database, storage, content):
    if content is not None:
        storage.write("other", content)
    batch = add_batch(database, [completed(thumbnail_path="other")])
    page = page_of(database, storage, batch)
    assert "no thumbnail" in page
    assert "data:image" not in page


def test_a_thumbnail_path_that_leads_out_of_the_storage_is_not_read(database, storage, tmp_path):
    shutil.copy(tmp_path / "home" / "uploads" / THUMBNAIL, tmp_path / "elsewhere.jpg")
    batch = add_batch(database, [completed(thumbnail_path="../../elsewhere.jpg")])
    assert "data:image" not in page_of(database, storage, batch)


def test_a_page_of_a_thousand_uploads_has_a_reasonable_size(database, storage):
    batch = add_batch(database, [])
    with database.transaction() as connection:
        connection.execute(
            insert(Upload),
            [
                completed(
                    user_id=USER,
                    batch_id=batch,
                    filename=f"picture_{number}.jpg",
                    file_path="original.jpg",
                    file_type="image",
                    file_size=1000,
                    description="word " * 100,
                )
                for number in range(1000)
            ],
        )
    assert len(page_of(database, storage, batch)) < 12_000_000


def test_an_unknown_batch_is_refused(database, storage):
    with pytest.raises(NotFoundError):
        batch_report(database, storage, USER)


def test_the_page_is_written_whole_or_not_at_all(tmp_path):
    page = tmp_path / "page.html"
    write_whole(page, "first")
    write_whole(page, "second")
    assert page.read_text() == "second"
    (tmp_path / "folder").mkdir()
    with pytest.raises(RefusedError, match="cannot be written"):
        write_whole(tmp_path / "folder", "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "page.html"]


# In a real browser


@pytest.fixture
def canary():
    """A server that notes every request; nobody is to make one."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.requests = requests
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def browse(browser, tmp_path):
    """Opens a page in Chromium, and returns it as it is once everything has been loaded."""

    def open_(page):
        file = tmp_path / "opened.html"
        file.write_text(page)
        tab = browser.new_page()
        tab.goto(file.as_uri(), timeout=60_000)
        shown = tab.content()
        tab.close()
        return shown

    return open_


def test_nothing_that_files_and_models_say_runs_or_is_loaded(database, storage, browse, canary):
    url = f"http://127.0.0.1:{canary.server_port}"
    attacks = [
        "<script>document.title = 'pwned'</script>",
        f"<img src={url}/image onerror=\"document.title = 'pwned'\">",
        f'"><svg onload="document.title = \'pwned\'"><link rel=stylesheet href={url}/style>',
        f"</style></title><style>body {{ background: url({url}/background) }}</style>",
        f"<meta http-equiv=refresh content='0;url={url}/refresh'>{{{{ 7 * 7 }}}}",
    ]
    uploads = [
        completed(filename=f"{attack} \N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", description=attack * 9)
        for attack in attacks
    ] + [
        {
            "filename": name.replace("\0", ""),
            "processing_status": "failed",
            "error_kind": attacks[1],
            "error_message": "".join(attacks),
        }
        for name in HOSTILE_FILENAMES
    ]
    batch = add_batch(
        database, uploads, status="failed", error_message=attacks[0], failed_uploads=len(uploads)
    )
    page = page_of(database, storage, batch)

    shown = browse(page)
    assert f"<title>Batch {batch}</title>" in shown
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in shown
    assert canary.requests == []

    # Were anything not escaped, the policy would still hold; a refresh needs no script.
    raw = html.unescape(page).replace("http-equiv=refresh", "")
    assert "pwned</title>" not in browse(raw)
    assert canary.requests == []

    # Without both, the attacks work: the test can fail.
    assert "<title>pwned</title>" in browse(f"<title>Batch</title>{attacks[0]}{attacks[1]}")
    assert canary.requests == ["/image"]


def test_a_large_page_is_narrowed_in_the_browser_and_shows_failures_first(
    database, storage, browser, tmp_path
):
    bad = {
        "filename": "torn.jpg",
        "processing_status": "failed",
        "error_kind": "truncated",
        "error_message": "ends early",
    }
    good = [completed(filename=f"picture_{number}.jpg") for number in range(48)]
    dated = completed(filename="ZEBRA.jpg", facts={"captured_at": "2023-02-03T10:00"})
    batch = add_batch(
        database, [*good, dated, bad], status="completed", failed_uploads=1, successful_uploads=49
    )
    file = tmp_path / "page.html"
    file.write_text(page_of(database, storage, batch))
    tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    said = []
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(file.as_uri(), timeout=60_000)

    headings = tab.locator("h2").all_inner_texts()
    assert headings == ["Failures", "Time per stage", "Slowest uploads", "Contact sheet"]
    cards = tab.locator(".sheet > li")
    assert "torn.jpg" in cards.first.text_content()
    assert tab.get_by_role("status").inner_text() == "50 of 50 shown"
    tab.get_by_label("Show only").fill("zebra 2023-02-03")
    assert tab.locator(".sheet > li:visible h3").all_text_contents() == ["ZEBRA.jpg"]
    assert tab.get_by_role("status").inner_text() == "1 of 50 shown"
    tab.get_by_label("Show only").fill("")
    tab.get_by_role("link", name="torn.jpg").first.click()
    assert tab.locator("li:target h3").text_content() == "torn.jpg"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert said == []
    tab.close()
