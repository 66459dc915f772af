"""The report page: complete, self-contained, and safe against text from files and models."""

import html
import http.server
import io
import os
import re
import shutil
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from PIL import Image
from playwright.sync_api import expect
from sqlalchemy import insert

from batch_pipeline.database.models import Upload
from batch_pipeline.errors import NotFoundError, RefusedError
from batch_pipeline.services.reports.pages import write_whole
from batch_pipeline.services.reports.report_page import read_report, render_html
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


def text_of(page):
    body = re.sub(r"(?s)<script>.*</script>", "", page.partition("<body>")[2])
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def page_of(database, storage, batch_id):
    return render_html(read_report(database, storage, batch_id))


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
    report = read_report(database, storage, batch)
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert re.findall('<img [^>]*alt="([^"]*)"', page) == ["sea.jpg", "slow.jpg"]
    assert "A calm sea under a bright sky." in page
    assert [card.filename for card in report.slowest] == ["slow.jpg", "sea.jpg"]
    assert [stage.stage for stage in report.stages] == ["decode", "thumbnail", "describe", "embed"]
    assert report.stages[2].median == 46.0
    assert sum(stage.share for stage in report.stages) == pytest.approx(1)
    text = text_of(page)
    assert "cut.jpg truncated the JPEG ends before its picture does 1" in text
    assert "sea.jpg 2.4 s decode 100 ms, thumbnail 20 ms, describe 2.0 s, embed 300 ms" in text
    assert "took 1 min 35 s" in text
    assert "has not ended" not in text


def test_the_page_of_a_batch_in_progress_says_that_it_has_not_ended(database, storage):
    batch = add_batch(database, [completed(), {}], status="processing")
    assert "The batch has not ended" in page_of(database, storage, batch)


def test_the_name_and_the_error_of_a_batch_cannot_reverse_a_line(database, storage):
    batch = add_batch(
        database, [completed()], name="Rome\u202e\n2026", error_message="\u2066is dead"
    )
    page = page_of(database, storage, batch)
    assert "<title>Rome\N{REPLACEMENT CHARACTER} 2026</title>" in page
    assert "\N{REPLACEMENT CHARACTER}is dead" in page
    assert not {"\u202e", "\u2066"} & {*page}


def test_hidden_uploads_are_left_out_and_counted(database, storage):
    batch = add_batch(database, [completed(filename="secret.jpg", hidden=True), completed()])
    page = page_of(database, storage, batch)
    assert "secret.jpg" not in page
    assert "1 hidden upload left out." in page


@pytest.mark.parametrize("content", [None, b"<svg onload=alert(1)>", b""])
def test_an_invalid_thumbnail_leaves_its_place_empty(database, storage, content):
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


def test_failures_come_first_then_stages_and_slowest_and_the_cards_last(database, storage):
    failed = {"processing_status": "failed", "filename": "cut.jpg", "error_kind": "truncated"}
    batch = add_batch(database, [completed(filename="sea.jpg"), failed])
    page = page_of(database, storage, batch)
    ids = re.findall(r' id="([^"]+)"', page)
    assert ids == [
        "failures", "stages", "slowest", "filter", "index", "sheet", "upload-2", "upload-1",
    ]  # fmt: skip
    assert set(re.findall('href="#([^"]+)"', page)) == set(ids) - {"filter"}


def test_moments_have_their_dates_and_uploads_the_day_they_were_taken(database, storage):
    uploads = [
        completed(filename="old.jpg", facts={"captured_at": "2019-08-07T06:05:04"}),
        completed(filename="new.jpg", created_at=BEGIN),
        completed(filename="odd.jpg", facts={"captured_at": "<b>" * 99}),
    ]
    batch = add_batch(database, uploads, started_at=BEGIN, completed_at=BEGIN + timedelta(hours=20))
    text = text_of(page_of(database, storage, batch))
    assert "Started 2026-01-01 12:00:00 UTC, ended 2026-01-02 08:00:00 UTC" in text
    assert text.count("taken 2019-08-07") == text.count("uploaded 2026-01-01") == 2
    assert text.count("taken <b><b><b>< ") == 2


def add_many(database, number):
    """Add a batch with this number of uploads: one of a pelican, three failed."""
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
                    description="word " * 100 + ("pelican" if number == 7 else ""),
                )
                for number in range(number - 3)
            ],
        )
        connection.execute(
            insert(Upload),
            [
                {
                    "user_id": USER,
                    "batch_id": batch,
                    "filename": f"Cafe\u0301_{number}.jpg",  # as a Mac writes the letter
                    "file_path": "original.jpg",
                    "file_type": "image",
                    "file_size": 1000,
                    "processing_status": "failed",
                    "error_kind": "truncated",
                }
                for number in range(3)
            ],
        )
    return batch


def test_an_unknown_batch_is_refused(database, storage):
    with pytest.raises(NotFoundError):
        read_report(database, storage, USER)


def test_the_page_is_written_whole_or_not_at_all(tmp_path):
    page = tmp_path / "page.html"
    write_whole(page, "first")
    write_whole(page, "second")
    assert page.read_text() == "second"
    (tmp_path / "folder").mkdir()
    with pytest.raises(RefusedError, match="cannot be written"):
        write_whole(tmp_path / "folder", "third")
    with pytest.raises(RefusedError, match="cannot be written: Not a directory"):
        write_whole(page / "below.html", "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "page.html"]


def test_a_page_goes_into_a_pipe_and_does_not_replace_it(tmp_path):
    page = tmp_path / "page.html"  # as /dev/stdout and /dev/null
    os.mkfifo(page)
    reader = os.open(page, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(page, "first")
        assert page.is_fifo()
        assert os.read(reader, 100) == b"first"
    finally:
        os.close(reader)


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "page.html").write_text("old")
    link = tmp_path / "link.html"
    link.symlink_to("page.html")
    write_whole(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "page.html").read_text() == "new"


# In a real browser


@pytest.fixture
def canary():
    """A server that records every request; no page should make one."""
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
    """Opens a page in Chromium, and returns it when everything has been loaded."""

    def open_(page):
        file = tmp_path / "opened.html"
        file.write_text(page)
        tab = browser.new_page()
        tab.goto(file.as_uri(), timeout=60_000)
        shown = tab.content()
        tab.close()
        return shown

    return open_


@pytest.mark.slow
def test_texts_of_files_and_models_neither_run_nor_load_anything(database, storage, browse, canary):
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

    # If something was not escaped, the policy would still stop scripts, but not a refresh.
    raw = html.unescape(page).replace("http-equiv=refresh", "")
    assert "pwned</title>" not in browse(raw)
    assert canary.requests == []

    # Without escaping and policy, the attacks work. So this test can fail.
    assert "<title>pwned</title>" in browse(f"<title>Batch</title>{attacks[0]}{attacks[1]}")
    assert canary.requests == ["/image"]


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page in Chromium, at a given width, in light or dark mode."""
    tabs = []

    def open_(page, width=1280, **options):
        file = tmp_path / "page.html"
        file.write_text(page)
        tab = browser.new_page(viewport={"width": width, "height": 800}, **options)
        tabs.append(tab)
        tab.requests = []
        tab.on("request", lambda request: tab.requests.append(request.url[:60]))
        tab.goto(file.as_uri(), timeout=60_000)
        return tab

    yield open_
    for tab in tabs:
        tab.close()


def test_the_filter_shows_cards_with_all_words_without_a_request(database, storage, opened):
    tab = opened(page_of(database, storage, add_many(database, 20)))
    cards, lines = tab.locator(".sheet > li:visible"), tab.locator(".index > li:not([hidden])")
    assert (cards.count(), lines.count()) == (20, 20)

    tab.get_by_label("Filter").fill("PELICAN word")
    assert cards.locator("h3").all_inner_texts() == ["picture_7.jpg"]
    assert lines.count() == 1
    assert tab.locator("output").inner_text() == "1 of 20 shown"

    tab.get_by_label("Filter").fill("caf\u00e9")
    assert cards.count() == 3
    tab.get_by_label("Filter").fill("")
    tab.get_by_label("Status").select_option("failed")
    assert (cards.count(), lines.count()) == (3, 3)
    tab.get_by_label("Status").select_option("")
    assert cards.count() == 20

    tab.get_by_label("Filter").press("Enter")
    assert [url for url in tab.requests if not url.startswith(("data:", "file:"))] == []
    assert tab.url.endswith("/page.html")


@pytest.mark.slow
def test_failures_and_index_lead_to_the_cards(database, storage, opened):
    tab = opened(page_of(database, storage, add_many(database, 20)))
    failure = tab.locator("#failures + .scroll a").nth(1)
    name = failure.inner_text()
    failure.click()
    assert tab.locator(".sheet > li:target h3").inner_text() == name
    tab.get_by_label("Filter").fill("pelican")
    tab.locator("#failures + .scroll a").nth(0).click()
    expect(tab.locator(".sheet > li:target h3")).to_be_in_viewport()
    tab.get_by_role("link", name="Index").click()
    tab.locator("#index").get_by_role("link", name="picture_16.jpg").click()
    expect(tab.locator(".sheet > li:target img")).to_be_in_viewport()


@pytest.mark.slow
def test_a_page_of_a_thousand_uploads_has_a_reasonable_size_and_shows_what_is_on_the_screen(
    database, storage, opened
):
    page = page_of(database, storage, add_many(database, 1000))
    assert len(page) < 12_000_000
    tab = opened(page)
    rendered = "e => e.checkVisibility({contentVisibilityAuto: true})"
    shown = f"[...document.querySelectorAll('.sheet h3')].filter({rendered}).length"
    assert tab.evaluate(shown) < 100, "the rest is laid out when it is scrolled to"
    card = tab.locator("#upload-900 h3")
    card.scroll_into_view_if_needed()
    expect(card).to_be_in_viewport()
    assert card.evaluate(rendered)
    tab.get_by_label("Filter").fill("pelican")
    assert tab.locator("output").inner_text() == "1 of 1000 shown"


def test_the_page_is_complete_without_scripts_and_has_no_filter(database, storage, opened):
    batch = add_batch(database, [completed(filename="sea.jpg")])
    tab = opened(page_of(database, storage, batch), java_script_enabled=False)
    assert not tab.locator("#filter").is_visible()
    assert tab.locator(".sheet > li:visible").count() == 1


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(database, storage, opened, width):
    long = "x" * 250
    failed = {"processing_status": "failed", "error_kind": "truncated", "error_message": long}
    uploads = [completed(filename=long, description=long), failed | {"filename": long}]
    batch = add_batch(database, uploads * 3, name=long, error_message=long)
    tab = opened(page_of(database, storage, batch), width)
    tab.locator("#index summary").click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("scheme", "is_light"), [("light", True), ("dark", False)])
def test_the_page_is_light_or_dark_as_the_browser_asks(database, storage, opened, scheme, is_light):
    batch = add_batch(database, [completed()])
    tab = opened(page_of(database, storage, batch), color_scheme=scheme)
    for part in ("body", "#filter input"):
        brightness = (
            f"parseInt(getComputedStyle(document.querySelector({part!r})).backgroundColor.slice(4))"
        )
        assert (tab.evaluate(brightness) > 128) == is_light


def test_a_reason_in_a_script_from_right_to_left_begins_at_the_right(database, storage, opened):
    failed = {"processing_status": "failed", "error_kind": "model_refused_input"}
    batch = add_batch(database, [failed | {"error_message": "\u05d4\u05e7\u05d5\u05d1\u05e5"}])
    cell = opened(page_of(database, storage, batch)).locator(".reason")
    space_at_the_right = """cell => {
        const words = document.createRange();
        words.selectNodeContents(cell);
        return cell.getBoundingClientRect().right - words.getBoundingClientRect().right;
    }"""
    assert cell.evaluate(space_at_the_right) < 30


def test_a_name_from_right_to_left_does_not_turn_the_heading_around(database, storage, opened):
    batch = add_batch(database, [completed()], name="\u05e8\u05d5\u05de\u05d0")
    heading = opened(page_of(database, storage, batch)).locator("h1")
    assert heading.evaluate("heading => getComputedStyle(heading).direction") == "ltr"


def test_each_column_of_the_index_has_room_for_its_numbers(database, storage, opened):
    tab = opened(page_of(database, storage, add_many(database, 40)))
    tab.locator("#index summary").click()
    lines = tab.locator(".index li").evaluate_all("all => all.map(e => e.getBoundingClientRect())")
    rights = {line["left"]: line["right"] for line in lines}
    columns = sorted(rights)
    assert len(columns) > 1
    for before, after in pairwise(columns):
        assert after - rights[before] > 45, "four digits and a full stop"
