"""All hostile inputs in one batch, processed with capped memory and file descriptors.

The tests write rows like an upload API, so the checks of a submission do not apply. For inputs that
a submission refuses, see ``integration/services/test_batch_intake.py``.
"""

import http.server
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import select

from batch_pipeline.database.models import Upload
from batch_pipeline.database.session import AnyRow
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_status import batch_status
from batch_pipeline.services.reports.report_page import read_report, render_html
from batch_pipeline.settings import Settings
from batch_pipeline.testing import media
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import USER, add_batch, batch_row, upload_rows
from batch_pipeline_tests.faults import capped_worker

# Their fixture takes several seconds.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECRET = b"the canary sings"
HOSTILE_NAME = "../..\u202e<b>" + "x" * 280 + "\n.jpg"
GPS_JPEG = media.make_image("jpeg", exif=media.Exif(with_gps=True))
FRAMES = 2000


@dataclass
class World:
    """The batch after processing."""

    pipeline: Pipeline
    batch_id: uuid.UUID
    rows: dict[str, AnyRow]
    spent: dict[str, int]
    output: str
    requests: list[str]
    storage: Path

    def outcome(self, name: str) -> str:
        row = self.rows[name]
        return row.error_kind or row.processing_status


def hostile_files(port: int, folder: Path) -> dict[str, bytes]:
    """Files by name; the number is the row in the list of hostile inputs."""
    (folder / "canary.mp4").write_bytes(media.make_video("mp4", 1))
    picture, video = media.make_image("jpeg", (320, 240)), media.make_video("mp4", 1)
    refused = media.make_unsupported_files()
    return {
        "1_bomb.png": media.make_png_bomb(20_000),
        "1_claim.gif": media.make_gif_bomb(),
        "2_below_pillows_limit.png": media.make_png_bomb(11_000),
        "3_many_frames.gif": media.make_animation("gif", FRAMES),
        "3_long.mp4": media.make_video("mp4", 600, (64, 64), fps=1),
        "4_half.jpg": media.cut_in_half(picture),
        "4_half.png": media.cut_in_half(media.make_image("png", (320, 240))),
        "4_half.mp4": media.cut_in_half(video),
        "4_empty.jpg": b"",
        "4_audio.mp4": media.make_audio_only_mp4(),
        "5_text.png": media.make_png_text_bomb(),
        **{f"6_{kind}.png": refused[kind] for kind in ("EPS", "SVG", "HTML", "PDF", "ZIP")},
        "7_jpeg.png": picture,
        "7_mov.mp4": media.make_video("mov", 1),
        "8_script_and_zip.jpg": media.make_jpeg_with_script_and_zip(),
        "9_gps.jpg": GPS_JPEG,
        "9_gps.mp4": media.make_video("mp4", 1, with_gps=True),
        "10_sibling.mp4": media.make_ffconcat("canary.mp4"),
        "10_itself.mp4": media.make_ffconcat("10_itself.mp4"),
        "10_local.mp4": media.make_hls_playlist((folder / "canary.mp4").as_uri()),
        "10_remote.mp4": media.make_hls_playlist(f"http://127.0.0.1:{port}/canary.mp4"),
        "11_wide.mp4": media.make_oversized_video(11_200),
        HOSTILE_NAME: picture,
        "sibling_photo.jpg": picture,
        "sibling_video.mp4": video,
    }


@pytest.fixture(scope="module")
def world(server: DatabaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hostile")
    requests: list[str] = []

    class Canary(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

    canary = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canary)
    threading.Thread(target=canary.serve_forever, daemon=True).start()
    with server.new_database() as url:
        settings = Settings(_env_file=None, home=folder / "home", database_url=url)
        pipeline = Pipeline(settings)
        storage = folder / "home" / "uploads"
        (storage / str(USER)).mkdir(parents=True)
        files = hostile_files(canary.server_port, folder)
        uploads = []
        for name, data in files.items():
            upload_id = uuid.uuid4()
            path = storage / str(USER) / str(upload_id) / f"original{Path(name).suffix[:5].strip()}"
            path.parent.mkdir()
            path.write_bytes(data)
            uploads.append(row_of(upload_id, name, str(path.relative_to(storage))))
        (folder / "secret.jpg").write_bytes(GPS_JPEG + SECRET)
        (storage / str(USER) / "link.jpg").symlink_to(folder / "secret.jpg")
        outside = {
            "14_parent.jpg": "../../secret.jpg",
            "14_absolute.jpg": str(folder / "secret.jpg"),
            "14_symlink.jpg": f"{USER}/link.jpg",
        }
        uploads += [row_of(uuid.uuid4(), name, path) for name, path in outside.items()]
        batch_id = add_batch(pipeline.database, uploads)
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", capped_worker.__name__, str(batch_id)],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "BATCH_PIPELINE_HOME": str(settings.home),
                "BATCH_PIPELINE_DATABASE_URL": url,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        rows = {row.filename: row for row in upload_rows(pipeline.database, batch_id)}
        yield World(
            pipeline,
            batch_id,
            rows,
            json.loads(result.stdout.splitlines()[-1]),
            result.stdout + result.stderr,
            requests,
            storage,
        )
        pipeline.close()
    canary.shutdown()
    canary.server_close()


def row_of(upload_id: uuid.UUID, name: str, path: str) -> dict[str, object]:
    return {
        "id": upload_id,
        "filename": name,
        "file_path": path,
        "file_type": "video" if name.endswith(".mp4") else "image",
    }


OUTCOMES = {
    "1_bomb.png": {"too_many_pixels"},
    "1_claim.gif": {"too_many_pixels"},
    "2_below_pillows_limit.png": {"too_many_pixels"},
    "3_many_frames.gif": {"completed"},
    "3_long.mp4": {"completed"},
    "4_half.jpg": {"truncated"},
    "4_half.png": {"truncated"},
    "4_half.mp4": {"truncated"},
    "4_empty.jpg": {"empty_file"},
    "4_audio.mp4": {"no_video_stream"},
    "5_text.png": {"oversized_metadata"},
    **{f"6_{kind}.png": {"unsupported_format"} for kind in ("EPS", "SVG", "HTML", "PDF", "ZIP")},
    "7_jpeg.png": {"completed"},
    "7_mov.mp4": {"completed"},
    "8_script_and_zip.jpg": {"completed"},
    "9_gps.jpg": {"completed"},
    "9_gps.mp4": {"completed"},
    **{
        f"10_{what}.mp4": {"unsupported_format"}
        for what in ("sibling", "itself", "local", "remote")
    },
    "11_wide.mp4": {"too_many_pixels"},
    HOSTILE_NAME: {"completed"},
    "14_parent.jpg": {"source_missing"},
    "14_absolute.jpg": {"source_missing"},
    "14_symlink.jpg": {"source_missing"},
    "sibling_photo.jpg": {"completed"},
    "sibling_video.mp4": {"completed"},
}


@pytest.mark.parametrize("name", OUTCOMES, ids=lambda name: name[:24])
def test_each_hostile_input_ends_with_its_own_kind_and_a_reason_and_its_siblings_finish(
    world, name
):
    assert world.outcome(name) in OUTCOMES[name], world.rows[name].error_message
    if world.rows[name].processing_status == "failed":
        assert len(world.rows[name].error_message) > 10


def test_the_batch_is_completed_and_its_counters_are_a_recount(world):
    batch = batch_row(world.pipeline.database, world.batch_id)
    good = sum(row.processing_status == "completed" for row in world.rows.values())
    assert batch.status == "completed"
    assert (batch.successful_uploads, batch.failed_uploads) == (good, len(world.rows) - good)
    assert good == sum(outcome == {"completed"} for outcome in OUTCOMES.values())


def test_memory_and_file_descriptors_stay_capped(world):
    # At a limit, the other uploads would have failed too. These are the measured values.
    assert 0 < world.spent["megabytes"] < capped_worker.MEMORY_BYTES / 1024**2
    assert world.spent["files_left_open"] <= 0


def test_7_the_true_type_is_stored(world):
    assert world.rows["7_jpeg.png"].mime_type == "image/jpeg"
    assert world.rows["7_mov.mp4"].mime_type == "video/quicktime"


def test_8_nothing_appended_is_in_the_thumbnail(world):
    thumbnail = world.pipeline.storage.read(world.rows["8_script_and_zip.jpg"].thumbnail_path)
    assert media.APPENDED_SCRIPT not in thumbnail
    assert b"PK\x03\x04" not in thumbnail


@pytest.mark.parametrize("name", ["9_gps.jpg", "9_gps.mp4"])
def test_9_the_position_of_a_file_is_never_stored_or_shown(world, name):
    row = world.rows[name]
    with Image.open(world.storage / row.thumbnail_path) as thumbnail:
        assert not dict(thumbnail.getexif())
    status = batch_status(world.pipeline.database, world.batch_id)
    said = [row.description, row.metadata, world.output, status]
    for word in (f"{media.GPS_LATITUDE:.2f}", f"{media.GPS_LONGITUDE:.2f}", "Latitude"):
        assert word not in json.dumps(said, default=str)


def test_10_no_canary_is_touched(world):
    assert world.requests == []


def test_13_a_hostile_name_is_never_part_of_a_path_or_html(world):
    row = world.rows[HOSTILE_NAME]
    assert (world.storage / row.thumbnail_path).resolve().is_relative_to(world.storage)
    page = render_html(read_report(world.pipeline.database, world.pipeline.storage, world.batch_id))
    assert "<b>xxx" not in page
    assert "\u202e" not in page


def test_14_nothing_outside_the_storage_is_read(world):
    for path in world.storage.rglob("thumb_*"):
        assert SECRET not in path.read_bytes()
    for name in ("14_parent.jpg", "14_absolute.jpg", "14_symlink.jpg"):
        assert world.rows[name].thumbnail_path is None
        assert world.rows[name].attempts <= 1


def test_15_a_folder_without_media_makes_no_batch(pipeline, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    refused = submit(
        [tmp_path],
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    )
    assert refused.batch_id is None
    with pipeline.database.transaction() as connection:
        assert connection.execute(select(Upload.id)).all() == []
