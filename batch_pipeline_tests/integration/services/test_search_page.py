"""The page of a search: pictures first, safe against text from files and models, fit for phones."""

import html
import io
import json
import os
import re
import uuid
from datetime import UTC, datetime
from urllib.parse import unquote

import pytest
from PIL import Image

from batch_pipeline.services.reports.search_page import search_page
from batch_pipeline.services.search.queries import Copy, SearchResult
from batch_pipeline.services.short_ids import short
from batch_pipeline_tests.integration.console import Console

BATCH, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
THUMBNAIL = "thumb_256.jpg"


@pytest.fixture
def storage(pipeline):
    data = io.BytesIO()
    Image.effect_noise((256, 192), 40).convert("RGB").save(data, "JPEG", quality=85)
    pipeline.storage.write(THUMBNAIL, data.getvalue())
    return pipeline.storage


def result(filename="sea.jpg", **values):
    fields = {
        "upload_id": uuid.uuid4(), "filename": filename, "similarity": 0.71234,
        "description": "A calm sea under a bright sky.", "thumbnail_path": THUMBNAIL,
        "file_path": "u/1/original.jpg", "original": "/srv/uploads/u/1/original.jpg",
        "thumbnail": None, "batch_id": BATCH, "batch_name": "Rome",
        "user_id": BATCH, "file_type": "image",
        "format": "jpeg", "camera": None, "taken_at": None,
        "uploaded_at": datetime(2026, 1, 2, tzinfo=UTC), "vision_model": None,
        "found_by": "meaning", "score": 0.7, "weak": False, "copies": [], "cursor": "x",
    }  # fmt: skip
    return SearchResult(**fields | values)


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]))


def test_a_result_shows_picture_description_likeness_date_batch_and_copies(storage):
    page = search_page(
        storage,
        "calm sea",
        [
            result(copies=[Copy(uuid.uuid4(), OTHER, "Paris", "again.jpg")]),
            result("IMG_1.jpg", found_by="filename", similarity=None, taken_at="2023-02-03T10:00"),
        ],
    )
    text = " ".join(text_of(page).split())

    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert 'href="file:///srv/uploads/u/1/original.jpg"' in page
    assert "0.71 · uploaded 2026-01-02 A calm sea under a bright sky." in text
    assert "its name matches · taken 2023-02-03" in text
    assert f"uploaded 2 times again.jpg · batch Paris ({short(OTHER)})" in text
    assert f"batch Rome ({short(BATCH)})" in text


def test_a_file_that_was_uploaded_very_often_names_only_some_copies(storage):
    copies = [Copy(BATCH, BATCH, "Rome", f"copy_{n}.jpg") for n in range(10_000)]

    text = " ".join(text_of(search_page(storage, "sea", [result(copies=copies)])).split())

    assert "uploaded 10,001 times copy_0.jpg" in text
    assert text.count("copy_") == 20
    assert "and 9,980 more" in text
    assert "more" not in text_of(search_page(storage, "sea", [result(copies=copies[:20])]))


def test_a_batch_is_linked_to_its_runs_if_the_address_of_the_ui_is_known(storage):
    found = [result(), result(batch_id=None)]

    page = search_page(storage, "sea", found, dagster_ui_url="http://127.0.0.1:3000")

    [link] = re.findall('<a href="(http[^"]*)">runs</a>', page)
    assert unquote(link) == f"http://127.0.0.1:3000/runs?q[]=tag:batch_pipeline/batch_id={BATCH}"
    assert "runs</a>" not in search_page(storage, "sea", found)


@pytest.mark.parametrize(
    ("original", "linked"),
    [
        ("/srv/a b/original.jpg", "file:///srv/a%20b/original.jpg"),
        ("file:///srv/original.jpg", "file:///srv/original.jpg"),
        ("https://files.example/original.jpg", "https://files.example/original.jpg"),
        ("s3://bucket/original.jpg", None),
        ("javascript:alert(1)", None),
    ],
)
def test_only_originals_that_a_browser_can_open_are_linked(storage, original, linked):
    page = search_page(storage, "sea", [result(original=original)])

    assert re.findall('href="([^"]+)"', page) == ([linked] if linked else [])


def test_weak_results_are_marked_and_a_page_with_only_weak_ones_says_so(storage):
    some = text_of(search_page(storage, "x", [result(), result(weak=True)]))
    none = text_of(search_page(storage, "x", [result(weak=True)]))

    assert some.count("weak") == 1
    assert "guesses" not in some
    assert "results below are guesses" in none
    assert "Nothing was found." in search_page(storage, "x", [])


def test_a_picture_that_is_gone_leaves_its_card(storage):
    assert "no thumbnail" in search_page(storage, "x", [result(thumbnail_path="gone.jpg")])


# In a real browser --------------------------------------------------------------------------------


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page in Chromium at a given width, in light or dark mode."""
    tabs = []

    def open_(page, width, scheme="light"):
        file = tmp_path / "page.html"
        file.write_text(page)
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tabs.append(tab)
        tab.goto(file.as_uri(), timeout=60_000)
        return tab

    yield open_
    for tab in tabs:
        tab.close()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(storage, opened, width):
    long = "x" * 300
    page = search_page(
        storage,
        long,
        [
            result(
                f"{long}.jpg",
                description=long,
                batch_name=long,
                copies=[Copy(BATCH, BATCH, long, long)],
            )
        ]
        * 7,
    )

    tab = opened(page, width)

    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.wait_for_function("[...document.images].every(i => i.naturalWidth > 0)")


def test_the_page_is_light_or_dark_as_the_browser_asks(storage, opened):
    page = search_page(storage, "sea", [result()])
    brightness = "parseInt(getComputedStyle(document.body).backgroundColor.slice(4))"

    assert opened(page, 800, "light").evaluate(brightness) > 200
    assert opened(page, 800, "dark").evaluate(brightness) < 50


def test_texts_of_files_and_models_are_only_displayed(storage, opened):
    attack = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    page = search_page(
        storage,
        attack,
        [
            result(
                attack,
                description=attack,
                taken_at=attack,
                batch_name=attack,
                copies=[Copy(BATCH, BATCH, attack, attack)],
            )
        ],
    )

    tab = opened(page, 800)

    assert tab.title().startswith("Search: <script>")
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.evaluate("document.images.length") == 1


@pytest.mark.slow
def test_the_command_writes_the_page_and_prints_its_path(database_url, tmp_path):
    environment = {
        "PATH": os.environ["PATH"],
        "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
        "BATCH_PIPELINE_DATABASE_URL": database_url,
    }
    console = Console(environment, tmp_path)
    file = tmp_path / "found.html"

    answer = console("search", "sea", "--html", file, "--json")
    refused = console("search", "sea", "--open")

    assert json.loads(answer.out) == []
    assert "Nothing was found." in file.read_text()
    assert refused.code == 2
    assert "--html" in refused.err


@pytest.mark.slow
def test_only_the_visible_part_of_a_long_page_is_laid_out(storage, opened):
    tab = opened(search_page(storage, "sea", [result() for _ in range(300)]), 1280)
    rendered = """[...document.querySelectorAll('li h2')]
        .map(h => h.checkVisibility({contentVisibilityAuto: true}))"""

    assert "300 uploads" in tab.inner_text("header")
    shown = tab.evaluate(rendered)
    assert len(shown) == 300
    assert (shown[0], shown[-1]) == (True, False)
    assert shown.count(True) < 60

    tab.evaluate("document.querySelector('ul:last-of-type li:last-child').scrollIntoView()")
    tab.wait_for_function(f"({rendered}).at(-1)")


def test_a_long_description_is_cut_and_can_be_opened(storage, opened):
    long = "A calm sea under a bright sky. " * 20 + "The end."
    tab = opened(search_page(storage, "sea", [result(description=long), result()]), 1280)

    assert tab.locator("details.description").count() == 1
    assert "The end." not in tab.inner_text("li:first-child")
    tab.click("details.description summary")
    assert tab.inner_text("li:first-child").count("A calm sea") == 20
    assert "The end." in tab.inner_text("li:first-child")


def test_copies_are_listed_one_below_the_other_without_empty_lines(storage, opened):
    copies = [Copy(BATCH, BATCH, "Rome", f"{n}.jpg") for n in range(2)]
    tab = opened(search_page(storage, "sea", [result(copies=copies)]), 1280)
    tab.click(".copies summary")
    places = tab.locator(".copies p").evaluate_all("all => all.map(p => p.getBoundingClientRect())")
    first, second = places
    assert second["top"] - first["bottom"] < first["height"] / 2
