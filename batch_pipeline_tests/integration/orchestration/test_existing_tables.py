"""All commands and runs work on tables of an upload API, in every usable form."""

import hashlib
import io
import json
import uuid
from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image
from sqlalchemy import select, text

from batch_pipeline.database.existing_tables import rows_left_alone
from batch_pipeline.database.models import Stage, Upload
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.sweep import sweep_once, work_for_a_sweep
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.dispatch.slices import numbered_slices, open_slice, unnumbered_slices
from batch_pipeline.services.export import export_user
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.batch_watch import watch_batch
from batch_pipeline.services.reports.batch_status import (
    batch_head,
    batch_status,
    newest_batches,
    upload_status,
)
from batch_pipeline.services.reports.metrics import read_metrics
from batch_pipeline.services.reports.report_page import read_report, render_html
from batch_pipeline.services.reprocessing import Selection, reprocess
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import CompletedUpload, UploadProcessor, UploadReport
from batch_pipeline.terminal import batches_table, upload_table, uploads_table
from batch_pipeline.testing import media
from batch_pipeline.testing.api_tables import USABLE, USER, Api, ApiTables
from batch_pipeline.testing.media import Exif, encode_image
from batch_pipeline.testing.records import add_batch, upload_rows

from .conftest import Runner

ORIGINAL = "source/fog.webp"
MEDIA = Path(__file__).parents[2] / "cases" / "small"


def upgrade(url: str) -> None:
    database = Database(with_driver(url, "psycopg", variable="X"))
    try:
        database.upgrade()
    finally:
        database.close()


def sensor(pipeline: Pipeline, instance, name: str, cursor=None):
    resource = dg.ResourceDefinition.hardcoded_resource(pipeline)
    definitions = build_definitions(pipeline.settings, {"batch_pipeline": resource})
    repository = definitions.get_repository_def()
    context = dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        resources={"batch_pipeline": pipeline},
        repository_def=repository,
    )
    return repository.get_sensor_def(name).evaluate_tick(context)


def finish(pipeline: Pipeline) -> list[UploadReport]:
    """Process the slices like runs, without Dagster."""
    database, reports = pipeline.database, []
    with ClaimKeeper(pipeline.states, "run", lease_seconds=120) as keeper:
        processor = UploadProcessor(pipeline, keeper)
        while waiting := (numbered_slices(database) + unnumbered_slices(database, 250, at_most=1)):
            for slice_ in waiting:
                opened = open_slice(database, slice_, 250)
                assert opened, "what is listed as waiting can be opened"
                loaded = pipeline.states.load_batch(
                    opened.batch_id, "run", slice_number=opened.number, limit=250
                )
                for upload in loaded.reserved:
                    ended = processor.process(upload.id, "run", retries_left=0)
                    if isinstance(ended, CompletedUpload):
                        reports.append(ended.report)
    return reports


def use_every_command(pipeline: Pipeline, batch_ids: list[uuid.UUID]) -> None:
    database = pipeline.database
    assert batches_table(newest_batches(database, limit=500))
    for batch_id in batch_ids:
        uploads = batch_status(database, batch_id)["uploads"]
        uploads_table(uploads)
        for upload in uploads:
            assert upload_table(upload_status(database, upload["upload_id"]))
        assert render_html(read_report(database, pipeline.storage, batch_id))
    next(watch_batch(database, batch_ids[0]))
    read_metrics(database, pipeline.settings)
    health = {check.name: check for check in check_health(pipeline.settings)}
    assert health["tables"].ok, health["tables"].detail
    assert health["oldest waiting upload"].ok, health["oldest waiting upload"].detail


def change_rows_by_every_command(pipeline: Pipeline, batch_id: uuid.UUID, picture: Path) -> None:
    """``submit``, ``retry``, ``reprocess`` and ``cancel``, without the terminal."""
    database, batches = pipeline.database, pipeline.batches
    submission = submit(
        [picture],
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
        user_id=USER,
    )
    assert submission.batch_id, submission.refused
    retried = batches.retry_batch(batch_id)
    assert retried
    assert batches.cancel_batch(submission.batch_id)
    assert batches.retry_batch(submission.batch_id)
    redone = reprocess(database, batches, Selection(Stage.EMBEDDING, [batch_id]))
    assert sum(batch.uploads for batch in redone) > 0
    finish(pipeline)
    for ended in (batch_id, submission.batch_id):
        assert batch_head(database, ended)["status"] == "completed"


def jpeg(colour: str | tuple[int, int, int] = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    "tables",
    [
        pytest.param(
            tables,
            id=tables.name,
            # The other forms demand nothing either, and differ in their types, too.
            marks=[pytest.mark.proof] if tables.name in {"as ours", "nothing is demanded"} else [],
        )
        for tables in USABLE
    ],
)
def test_every_row_is_processed_and_every_command_works(  # noqa: PLR0917
    tables: ApiTables, server, change, open_pipeline, instance, model_server, tmp_path
):
    with server.new_database(migrated=False) as url, Api(url, tables, file_path=ORIGINAL) as api:
        tables.create(api.connection)
        written = api.fill(api.nullable_columns())
        upgrade(url)
        models = {"analyzer": "ollama", "ollama_host": model_server.ollama_url}
        pipeline = open_pipeline(change(database_url=url, **models))
        pipeline.storage.write(ORIGINAL, jpeg())
        batch_ids = [row[0] for row in api.connection.execute("SELECT id FROM upload_batches")]
        use_every_command(pipeline, [written.large])

        assert work_for_a_sweep(instance, pipeline, LeftOut())
        sweep_once(instance, pipeline, LeftOut())
        assert sensor(pipeline, instance, "pending_batches").run_requests
        Runner(pipeline, instance).run(written.large)
        finish(pipeline)
        sweep_once(instance, pipeline, LeftOut())
        finish(pipeline)  # an upload without a batch has got one now

        use_every_command(pipeline, batch_ids)
        cursor = None
        for _ in range(len(batch_ids)):
            tick = sensor(pipeline, instance, "report_ended_batches", cursor)
            if tick.cursor in {None, cursor}:
                break
            cursor = tick.cursor
        else:
            pytest.fail(f"reports do not come to an end: {cursor}")
        assert search(pipeline.database, pipeline.spaces.model_of, "fog", limit=200)

        picture = tmp_path / "mine.jpg"
        picture.write_bytes(jpeg())
        change_rows_by_every_command(pipeline, written.large, picture)

        rows = api.connection.execute(UNFINISHED).fetchall()
        assert {row[0] for row in rows} == set(written.left_alone), rows
        assert api.connection.execute(WRONG_COUNTERS).fetchall() == []
        assert api.connection.execute(FAILED).fetchall() == []
        assert work_for_a_sweep(instance, pipeline, LeftOut()) == {}
        with pipeline.database.transaction() as connection:
            assert len(list(rows_left_alone(connection))) == (4 if written.left_alone else 0)


#: Values that `json` accepts and `jsonb` refuses, in the order of the tests below.
REFUSED_BY_JSONB = (
    r'{"album": "Rome\u0000", "camera": "X\ud800 100"}',
    r'{"album": "Rome\udc00", "path": "C:\\u0000"}',
    '{"album": "Rome", "size": 1e999999}',
)


@pytest.mark.slow
def test_metadata_that_jsonb_cannot_hold_neither_fails_an_upload_nor_is_lost(
    server, change, open_pipeline, tmp_path
):
    tables = ApiTables("json", nullable=True, types={"jsonb": "json"})
    with server.new_database(migrated=False) as url, Api(url, tables, file_path=ORIGINAL) as api:
        tables.create(api.connection)
        batch_id = api.add_batch()
        ids = [api.add_upload(batch_id, metadata=said) for said in REFUSED_BY_JSONB]
        upgrade(url)
        pipeline = open_pipeline(change(database_url=url))
        pipeline.storage.write(ORIGINAL, jpeg())
        export_user(pipeline.database, pipeline.storage, USER, tmp_path / "before", originals=False)
        finish(pipeline)
        assert batch_head(pipeline.database, batch_id)["successful_uploads"] == len(ids)
        with pipeline.database.transaction() as connection:
            by_id = dict(connection.execute(select(Upload.id, Upload.facts)).all())
        one, two, three = (by_id[id_] for id_ in ids)
        assert (one["album"], two["album"], two["path"]) == ("Rome", "Rome", r"C:\u0000")
        assert one["format"] == two["format"] == three["format"] == "jpeg"

        for id_, said in zip(ids, REFUSED_BY_JSONB, strict=True):
            api.connection.execute("UPDATE uploads SET metadata = %s WHERE id = %s", [said, id_])
        use_every_command(pipeline, [batch_id])
        found = search(pipeline.database, pipeline.spaces.model_of, "fog", copies=True)
        assert {hit.upload_id: hit.camera for hit in found}[ids[0]] == "X 100"
        assert search(pipeline.database, pipeline.spaces.model_of, '"X 100"')
        export_user(pipeline.database, pipeline.storage, USER, tmp_path / "after", originals=False)
        written = (tmp_path / "after" / "uploads.jsonl").read_text(encoding="utf-8").splitlines()
        exported = {row["id"]: row for row in map(json.loads, written)}
        assert exported[str(ids[0])]["metadata"] == json.loads(REFUSED_BY_JSONB[0])
        [vector] = exported[str(ids[0])]["vectors"]
        assert vector["vector"] == exported[str(ids[0])]["embedding_local"]


@pytest.mark.slow
def test_metadata_that_is_no_object_hides_no_upload_from_a_filter(pipeline, console):
    # By what is written before: what is kept of it.
    kept_of = {
        "[]": {},
        "null": {},
        '["Rome"]': {"metadata": ["Rome"]},
        '"Rome"': {"metadata": "Rome"},
        "5": {"metadata": 5},
        '{"album": "Rome"}': {"album": "Rome"},
    }
    paths = [f"source/{number}.jpg" for number in range(len(kept_of))]
    for number, path in enumerate(paths):
        pipeline.storage.write(path, jpeg((0, 40 * number, 120)))  # no copies of each other
    batch_id = add_batch(pipeline.database, [{"file_path": path} for path in paths])
    ids = {row.file_path: row.id for row in upload_rows(pipeline.database, batch_id)}
    written = {ids[path]: value for path, value in zip(paths, kept_of, strict=True)}
    with pipeline.database.transaction() as connection:
        for id_, value in written.items():
            connection.execute(
                text("UPDATE uploads SET metadata = CAST(:it AS jsonb) WHERE id = :id"),
                {"it": value, "id": id_},
            )
    for id_, value in written.items():
        assert console("show", id_).code == 0, value

    finish(pipeline)

    for id_, value in written.items():
        shown, kept = console("show", id_), kept_of[value]
        assert (shown.code, "jpeg" in shown.out) == (0, True), value
        facts = json.loads(console("show", id_, "--json").out)["metadata"]
        assert facts["format"] == "jpeg", value
        assert facts.items() >= kept.items()
        assert "metadata" in kept or "metadata" not in facts, value
    found = json.loads(console("search", "fog", "--format", "jpeg", "--json").out)
    assert {hit["upload_id"] for hit in found} == {str(id_) for id_ in written}


def test_tags_of_an_api_stay_and_facts_of_a_replaced_file_go(pipeline):
    theirs = {"tags": ["Grandma"], "visible_text": "for Ann", "album": "Rome"}
    taken = Exif(captured_at=datetime(2019, 7, 1, 12), model="X 100").to_bytes()
    with Image.open(MEDIA / "sea.jpg") as sea:
        dated = encode_image(sea, "jpeg", exif=taken)
    pipeline.storage.write(ORIGINAL, dated)
    row = {"file_path": ORIGINAL}
    batch_id = add_batch(
        pipeline.database, [row | {"facts": theirs}, row | {"facts": {"tags": None}}, row]
    )
    finish(pipeline)
    before = upload_rows(pipeline.database, batch_id)
    for upload in before:
        assert upload.metadata["captured_at"].startswith("2019-07-01")
    assert before[0].metadata.items() >= theirs.items()
    assert before[1].metadata["tags"] == before[2].metadata["tags"] == before[0].vision_tags

    pipeline.storage.write(ORIGINAL, (MEDIA / "city.jpg").read_bytes())
    reprocess(pipeline.database, pipeline.batches, Selection(Stage.DESCRIPTION, [batch_id]))
    finish(pipeline)

    after = upload_rows(pipeline.database, batch_id)
    assert after[0].metadata.items() >= theirs.items()
    assert after[0].vision_tags != before[0].vision_tags
    for upload in after[1:]:
        assert upload.metadata.get("tags", []) == upload.vision_tags
    for upload in after:
        assert upload.metadata.keys().isdisjoint({"captured_at", "date_source"})


def test_a_checksum_that_is_no_sha256_stays_and_finds_no_known_results(pipeline):
    theirs = "0" * 32  # of a hash that takes these films for the same file
    films = [media.make_video("mp4", seconds) for seconds in (1, 2)]
    rows = []
    for number, film in enumerate([*films, films[0]]):
        path = f"inbox/{number}.mp4"
        pipeline.storage.write(path, film)
        rows.append({"file_path": path, "file_size": len(film), "checksum": theirs})
    rows[2]["checksum"] = None
    pipeline.storage.write(ORIGINAL, jpeg())
    rows.append({"file_path": ORIGINAL, "checksum": theirs})

    batch_id = add_batch(pipeline.database, rows)
    finish(pipeline)

    done = upload_rows(pipeline.database, batch_id)
    assert {row.processing_status for row in done} == {"completed"}
    ours = hashlib.sha256(films[0]).hexdigest()
    assert [row.checksum for row in done] == [theirs, theirs, ours, theirs]

    again = add_batch(pipeline.database, [rows[0], rows[1]])
    reports = finish(pipeline)
    copied_from = [report.described.copied_from for report in reports]
    assert copied_from == [done[2].id, None]
    assert [row.checksum for row in upload_rows(pipeline.database, again)] == [theirs, theirs]


#: Uploads that have not ended although their batch was not stopped.
UNFINISHED = """
    SELECT u.id, processing_status, error_kind, u.error_message, b.status
    FROM uploads u LEFT JOIN upload_batches b ON b.id = batch_id
    WHERE coalesce(processing_status::text, '') NOT IN ('completed', 'failed')
        AND coalesce(b.status::text NOT IN ('cancelled', 'failed'), true)
"""
WRONG_COUNTERS = """
    SELECT b.* FROM upload_batches b, LATERAL (
        SELECT count(*) AS total, count(*) FILTER (WHERE processing_status = 'completed') AS good,
            count(*) FILTER (WHERE processing_status = 'failed') AS bad
        FROM uploads WHERE batch_id = b.id AND processing_status IN ('pending', 'analyzing',
            'embedding', 'completed', 'failed')
    ) counted
    WHERE status::text IN ('pending', 'processing', 'completed')
        AND (status <> 'completed' AND total > 0
        OR (total_uploads, processed_uploads, successful_uploads, failed_uploads)
            IS DISTINCT FROM (total, good + bad, good, bad))
"""
#: Uploads that the pipeline has failed; only those without a file are expected.
FAILED = """
    SELECT file_path, error_kind, error_message FROM uploads
    WHERE error_kind IS NOT NULL AND (error_kind <> 'source_missing' OR file_path IS NOT NULL)
"""
