"""The example that shows progress in a browser: a real server, a real Redis, a real page."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from batch_pipeline.demo import free_port
from batch_pipeline.errors import PermanentError
from batch_pipeline.services.progress.publishing import check_redis
from batch_pipeline.testing.records import add_batch, upload_rows
from batch_pipeline.visible_text import visible
from batch_pipeline_tests.patience import DEADLINE, wait_until

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[3] / "examples" / "progress_websocket"
expect.set_options(timeout=1000 * DEADLINE)
HOSTILE_NAME = "<img src=x onerror='window.broken=1'>\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe"


@pytest.fixture(params=["postgres", "redis"])
def app_settings(request, change):
    """With Redis, the server must receive messages only from there."""
    if request.param == "postgres":
        return change()
    return change(redis_url=request.getfixturevalue("redis_url"))


@pytest.fixture
def app_pipeline(app_settings, open_pipeline):
    return open_pipeline(app_settings)


@pytest.fixture
def address(app_settings, tmp_path):
    """Host and port of a running server."""
    port = free_port()
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, EXAMPLE / "server.py", "--port", str(port)],
            env={
                "PATH": os.environ["PATH"],
                "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
                "BATCH_PIPELINE_DATABASE_URL": app_settings.database_url,
                "BATCH_PIPELINE_REDIS_URL": app_settings.redis_url,
            },
            stdout=log,
            stderr=log,
        )

    def answers():
        assert server.poll() is None, (tmp_path / "server.log").read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE).close()
        except urllib.error.URLError:
            return False
        return True

    wait_until(answers, "the server answers", DEADLINE)
    yield f"127.0.0.1:{port}"
    server.terminate()
    assert server.wait(20) in {0, -15}
    assert "Traceback" not in (tmp_path / "server.log").read_text()


def work(pipeline, batch_id, fail=()):
    states = pipeline.states
    for upload in states.load_batch(batch_id, "run", limit=10_000).reserved:
        claim = states.start(upload.id, "run").claim
        if upload.filename in fail:
            states.fail(claim, PermanentError("truncated", "it ends in the middle"))
        else:
            states.complete(claim, seconds={})


def test_a_page_shows_a_batch_to_its_end_and_names_literally(address, app_pipeline, browser):
    batch_id = add_batch(app_pipeline.database, [{"filename": HOSTILE_NAME}, {}, {}])
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(f"http://{address}/?batch={batch_id}")
    expect(page.locator("#summary")).to_have_text("pending: 0 of 3, 0 failed")

    work(app_pipeline, batch_id, fail=[HOSTILE_NAME])
    expect(page.locator("#summary")).to_have_text("completed: 3 of 3, 1 failed")
    expect(page.locator("#bar")).to_have_js_property("value", 100)
    expect(page.locator("#files li")).to_have_count(3)
    expect(page.locator("#files li.failed bdi")).to_have_text(visible(HOSTILE_NAME))
    assert page.locator("#files img").count() == 0
    assert page.evaluate("window.broken") is None
    assert errors == []

    # A client that connects after the end gets the end at once.
    page.reload()
    expect(page.locator("#summary")).to_have_text("completed: 3 of 3, 1 failed")
    page.close()


def test_a_client_is_sent_a_few_frames_a_second_and_the_end(address, app_pipeline):
    batch_id = add_batch(app_pipeline.database, 500)
    url = f"ws://{address}/batches/{batch_id}"
    worker = threading.Thread(target=work, args=(app_pipeline, batch_id))
    frames = []
    with connect(url, origin=f"http://{address}") as socket:
        frames.append(json.loads(socket.recv(DEADLINE)))
        begin = time.monotonic()
        worker.start()
        while frames[-1][-1]["payload"]["status"] != "completed" or not is_batch(frames[-1][-1]):
            frames.append(json.loads(socket.recv(DEADLINE)))
        seconds = time.monotonic() - begin
    worker.join()
    assert frames[0][-1]["payload"]["status"] == "pending"
    assert len(frames) <= seconds / 0.2 + 2
    assert max(len(frame) for frame in frames) <= 51
    assert frames[-1][-1]["payload"]["progress_percentage"] == 100
    files = {m["payload"]["upload_id"] for frame in frames for m in frame if not is_batch(m)}
    assert files <= {str(upload.id) for upload in upload_rows(app_pipeline.database, batch_id)}


@pytest.mark.parametrize("app_settings", ["redis"], indirect=True)
def test_a_health_check_does_not_end_the_messages(address, app_pipeline, app_settings):
    batch_id = add_batch(app_pipeline.database, 1)
    with connect(f"ws://{address}/batches/{batch_id}", origin=f"http://{address}") as socket:
        frame = json.loads(socket.recv(DEADLINE))
        check_redis(app_settings.redis_url)
        work(app_pipeline, batch_id)
        while frame[-1]["payload"]["status"] != "completed" or not is_batch(frame[-1]):
            frame = json.loads(socket.recv(DEADLINE))


def is_batch(message):
    return message["action"] == "batch_progress"


@pytest.mark.parametrize("app_settings", ["postgres"], indirect=True)
def test_a_page_from_elsewhere_is_refused(address, app_pipeline):
    batch_id = add_batch(app_pipeline.database, 1)
    for origin in ("http://elsewhere.example", None):
        with (
            pytest.raises(InvalidStatus, match="403"),
            connect(f"ws://{address}/batches/{batch_id}", origin=origin),
        ):
            pass
