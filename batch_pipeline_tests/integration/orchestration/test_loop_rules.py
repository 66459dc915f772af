"""The rules L1 to L18 of the sequential loop that we replace; each has at least one test."""

import json
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image
from sqlalchemy import delete, text, update

from batch_pipeline.database.models import Upload, UploadBatch
from batch_pipeline.database.session import connect
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.executors import MAX_WORKING
from batch_pipeline.services import upload_processing
from batch_pipeline.services.pipeline import shared_pipeline
from batch_pipeline.settings import load_settings
from batch_pipeline.testing.media import cut_in_half, make_image, make_photo
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline.testing.records import add_batch, batch_row, upload_rows
from batch_pipeline_tests.patience import DEADLINE

from .conftest import Runner


def statuses(runner, batch_id):
    return [row.processing_status for row in upload_rows(runner.pipeline.database, batch_id)]


def counts(runner, batch_id):
    row = batch_row(runner.pipeline.database, batch_id)
    return row.status, row.processed_uploads, row.successful_uploads, row.failed_uploads


def observation(result):
    [event] = [e for e in result.all_events if e.is_asset_observation]
    return {
        key: value.value
        for key, value in event.asset_observation_data.asset_observation.metadata.items()
    }


def failed_steps(result):
    return [event.step_key for event in result.all_events if event.is_step_failure]


# L1


def test_l1_the_pipeline_is_opened_once_per_process_by_however_many_threads(settings):
    opened = []
    barrier = threading.Barrier(8)

    def open_():
        barrier.wait(DEADLINE)
        opened.append(shared_pipeline(settings))

    threads = [threading.Thread(target=open_) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 8
    assert len(set(map(id, opened))) == 1
    opened[0].close()


def test_l1_a_failed_set_up_names_the_setting_and_is_tried_again(change, server):
    with server.new_database(migrated=False) as url:
        settings = change(database_url=url)
        with pytest.raises(ConfigurationError, match="batch-pipeline db upgrade"):
            shared_pipeline(settings)
        database = connect(settings)
        database.upgrade()
        database.close()
        pipeline = shared_pipeline(settings)
        assert pipeline.database.revisions()[0]
        pipeline.close()


# L2


def test_l2_an_unknown_batch_is_reported_and_the_run_ends_without_harm(runner):
    unknown = uuid.uuid4()
    result = runner.run(unknown)
    assert result.success
    assert observation(result)["outcome"] == f"there is no batch {unknown}; nothing was done"
    assert runner.log_of(result, "ERROR") == [f"there is no batch {unknown}"]


# L3


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_l3_a_batch_that_is_over_is_skipped(runner, status):
    batch_id = add_batch(
        runner.pipeline.database,
        [{"processing_status": "completed" if status == "completed" else "pending"}],
        status=status,
    )
    result = runner.run(batch_id)
    assert result.success
    assert observation(result)["outcome"] == f"the batch is {status}; nothing was done"
    assert batch_row(runner.pipeline.database, batch_id).status == status
    assert batch_row(runner.pipeline.database, batch_id).started_at is None


def test_l3_a_cancel_takes_effect_before_the_next_upload(runner, model_server):
    batch_id = runner.submit("fog.webp", "sea.jpg", "city.jpg")
    cancelled = threading.Event()

    def cancel_during_the_first_call():
        model_server.wait_for_calls(1)
        runner.pipeline.batches.cancel_batch(batch_id)
        cancelled.set()

    model_server.play("vision", [Fault.HANG])
    thread = threading.Thread(target=cancel_during_the_first_call)
    thread.start()
    result = runner.run(batch_id)
    thread.join()
    assert cancelled.is_set()
    assert result.success
    assert len(model_server.calls_of("vision")) == 1
    assert statuses(runner, batch_id) == ["pending"] * 3
    assert counts(runner, batch_id) == ("cancelled", 0, 0, 0)


# L4


def test_l4_the_batch_becomes_processing_and_keeps_its_first_start(runner, messages):
    batch_id = runner.submit("fog.webp", "truncated.jpg")
    runner.run(batch_id)
    first_start = batch_row(runner.pipeline.database, batch_id).started_at
    progress = [
        m["payload"] for m in map(json.loads, messages()) if m["action"] == "batch_progress"
    ]
    assert [p["status"] for p in progress][:2] == ["pending", "processing"]

    runner.pipeline.batches.retry_batch(batch_id)
    runner.run(batch_id)
    assert batch_row(runner.pipeline.database, batch_id).started_at == first_start


# L5


def test_l5_uploads_are_started_oldest_first_and_ties_by_id(runner, messages):
    batch_id = runner.submit("fog.webp", "lighthouse.gif", "city.jpg")
    with runner.pipeline.database.transaction() as connection:
        newest = upload_rows(runner.pipeline.database, batch_id)[-1].created_at
        oldest = upload_rows(runner.pipeline.database, batch_id)[0]
        connection.execute(
            update(Upload)
            .where(Upload.batch_id == batch_id, Upload.id != oldest.id)
            .values(created_at=oldest.created_at.replace(year=2020))
        )
    assert newest
    runner.run(batch_id)
    started = [
        m["payload"]["upload_id"]
        for m in map(json.loads, messages())
        if m["action"] == "file_progress" and m["payload"]["progress_percentage"] == 0
    ]
    expected = [str(row.id) for row in upload_rows(runner.pipeline.database, batch_id)]
    assert started == expected
    assert expected[-1] == str(oldest.id)


# L6


@pytest.mark.parametrize("announced", [1, 5])
def test_l6_a_wrong_total_is_a_warning_and_is_corrected_so_that_the_batch_can_end(
    runner, announced
):
    batch_id = runner.submit("fog.webp", "lighthouse.gif")
    with runner.pipeline.database.transaction() as connection:
        connection.execute(
            update(UploadBatch).where(UploadBatch.id == batch_id).values(total_uploads=announced)
        )
    result = runner.run(batch_id)
    seen = observation(result)
    assert (seen["uploads_announced"], seen["uploads_found"]) == (announced, 2)
    assert any("the total was corrected" in line for line in runner.log_of(result, "WARNING"))
    assert counts(runner, batch_id) == ("completed", 2, 2, 0)


# L7


def test_l7_a_completed_upload_is_not_processed_or_counted_again(runner, model_server):
    batch_id = runner.submit("fog.webp", "lighthouse.gif")
    runner.run(batch_id)
    calls = len(model_server.calls_of("vision"))
    uploads = upload_rows(runner.pipeline.database, batch_id)
    result = runner.run(batch_id, upload_ids=[str(row.id) for row in uploads])
    assert result.success
    assert len(model_server.calls_of("vision")) == calls
    assert counts(runner, batch_id) == ("completed", 2, 2, 0)


def test_l7_a_resumed_batch_does_not_count_twice(runner, model_server):
    model_server.play("vision", [None, Fault.REFUSED_INPUT_400])
    batch_id = runner.submit("fog.webp", "lighthouse.gif")
    runner.run(batch_id)
    assert counts(runner, batch_id) == ("completed", 2, 1, 1)
    runner.pipeline.batches.retry_batch(batch_id)
    assert counts(runner, batch_id) == ("processing", 1, 1, 0)
    runner.run(batch_id)
    assert counts(runner, batch_id) == ("completed", 2, 2, 0)


# L8 and L12


def file_messages(messages, name):
    found = [m["payload"] for m in map(json.loads, messages()) if m["action"] == "file_progress"]
    return [(p["status"], p["progress_percentage"]) for p in found if p["file_name"] == name]


def test_l8_progress_is_published_before_an_upload_and_at_every_stage_reached(runner, messages):
    runner.run(runner.submit("fog.webp"))
    assert file_messages(messages, "fog.webp")[:3] == [
        ("processing", 0),
        ("processing", 25),
        ("processing", 75),
    ]


def test_l12_a_completed_upload_ends_at_100_percent(runner, messages):
    runner.run(runner.submit("fog.webp"))
    assert file_messages(messages, "fog.webp")[-1] == ("completed", 100)


def test_l12_a_failed_upload_ends_at_the_stage_where_it_failed(runner, model_server, messages):
    model_server.play("vision", [Fault.REFUSED_INPUT_400])
    batch_id = runner.submit("fog.webp", "truncated.jpg", "lighthouse.gif")
    lost = upload_rows(runner.pipeline.database, batch_id)[-1]
    (Path(runner.pipeline.settings.storage_location) / lost.file_path).unlink()
    runner.run(batch_id)
    assert file_messages(messages, "fog.webp")[-1] == ("failed", 25)
    assert file_messages(messages, "truncated.jpg")[-1] == ("failed", 25), "a thumbnail of a part"
    assert file_messages(messages, lost.filename)[-1] == ("failed", 0)


# L9


def test_l9_a_thumbnail_is_made_once(runner, model_server):
    model_server.play("vision", [Fault.ERROR_500])
    batch_id = runner.submit("fog.webp")
    runner.run(batch_id)
    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert (row.processing_status, row.attempts) == ("completed", 2)
    assert runner.pipeline.storage.read(row.thumbnail_path).startswith(b"\xff\xd8")
    made = [
        event
        for event in runner.runs[0].all_events
        if event.is_step_materialization and "upload_analysis" in str(event.asset_key)
    ]
    metadata = made[0].materialization.metadata
    assert "seconds_thumbnail" not in metadata, "the second attempt made the thumbnail again"


def test_l9_a_thumbnail_that_cannot_be_made_is_a_warning(runner, monkeypatch, caplog):
    batch_id = runner.submit("fog.webp")
    real_decode = upload_processing.decode

    def decode_with_an_encoder_that_fails(*args, **options):
        def fail() -> bytes:
            raise OSError("encoder error -2")

        return replace(real_decode(*args, **options), make_thumbnail=fail)

    monkeypatch.setattr(upload_processing, "decode", decode_with_an_encoder_that_fails)
    assert runner.run(batch_id).success
    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert (row.processing_status, row.thumbnail_path) == ("completed", None)
    assert "no thumbnail of 'fog.webp': encoder error -2" in caplog.text


def test_l9_a_cut_picture_fails_with_a_thumbnail_of_what_is_there(runner, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(cut_in_half(make_photo(0.5)))
    batch_id = runner.submit(tmp_path / "cut.jpg")

    runner.run(batch_id)

    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert (row.processing_status, row.error_kind) == ("failed", "truncated")
    assert runner.pipeline.storage.read(row.thumbnail_path).startswith(b"\xff\xd8")


def test_l9_a_damaged_picture_completes_and_its_metadata_has_a_warning(runner, tmp_path):
    (tmp_path / "IMG_20210506_070809.jpg").write_bytes(make_image("jpeg")[:-20])
    batch_id = runner.submit(tmp_path / "IMG_20210506_070809.jpg")

    runner.run(batch_id)

    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert row.processing_status == "completed"
    assert row.metadata["warnings"][0].startswith("damaged: ")
    assert row.metadata["captured_at"] == "2021-05-06T07:08:09"
    assert row.metadata["date_source"] == "file name"


def test_a_sidecar_gives_the_date_that_the_file_lacks(runner, tmp_path):
    (tmp_path / "IMG_20190101_000000.jpg").write_bytes(make_image("jpeg"))
    (tmp_path / "IMG_20190101_000000.xmp").write_text(
        '<rdf:Description exif:DateTimeOriginal="2021-05-06T07:08:09"/>'
    )
    batch_id = runner.submit(tmp_path / "IMG_20190101_000000.jpg")

    runner.run(batch_id)

    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert row.metadata["captured_at"] == "2021-05-06T07:08:09"
    assert row.metadata["date_source"] == "sidecar XMP"


# L10


def test_l10_an_upload_is_tried_at_most_twice_and_the_real_reason_is_kept(runner, model_server):
    # A known picture is tried after each error, and answered.
    model_server.play("vision", [Fault.ERROR_500, None] * 9)
    batch_id = runner.submit("fog.webp")
    result = runner.run(batch_id)
    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert len(model_server.calls_of("vision")) == 2 * 2
    assert (row.processing_status, row.attempts) == ("failed", 2)
    assert row.error_kind == "model_server_error"
    assert "model runner has unexpectedly stopped: signal: killed" in row.error_message
    [failure] = [event for event in result.all_events if event.is_step_failure]
    metadata = failure.step_failure_data.user_failure_data.metadata
    assert metadata["file"].value == "fog.webp"
    assert metadata["kind"].value == "model_server_error"
    assert metadata["reason"].value == row.error_message
    assert metadata["attempt"].value == 2


def test_l10_a_picture_of_an_api_with_too_many_bytes_fails_at_once_and_says_so(
    runner, model_server, change, open_pipeline, instance
):
    batch_id = runner.submit("fog.webp")
    url = model_server.ollama_url
    settings = change(analyzer="ollama", ollama_host=url, max_file_bytes=1000)
    assert not Runner(open_pipeline(settings), instance).run(batch_id).success
    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert (row.error_kind, row.attempts) == ("file_too_large", 1)
    assert "a picture may have 1,000" in row.error_message


def test_l10_the_number_of_attempts_is_a_setting(model_server, change, open_pipeline, instance):
    model_server.play("vision", [Fault.ERROR_500, None] * 3)
    settings = change(analyzer="ollama", ollama_host=model_server.ollama_url, max_attempts=4)
    runner = Runner(open_pipeline(settings), instance)
    batch_id = runner.submit("fog.webp")
    assert runner.run(batch_id).success
    assert upload_rows(runner.pipeline.database, batch_id)[0].attempts == 4


def test_l10_attempts_are_spaced_with_exponential_backoff_and_jitter(
    model_server, change, open_pipeline, instance
):
    base = 0.05
    model_server.play("vision", [Fault.ERROR_500, None] * 3)
    settings = change(
        analyzer="ollama",
        ollama_host=model_server.ollama_url,
        max_attempts=4,
        retry_base_seconds=base,
    )
    runner = Runner(open_pipeline(settings), instance)
    result = runner.run(runner.submit("fog.webp"))
    waits = [
        event.step_retry_data.seconds_to_wait
        for event in result.all_events
        if event.event_type_value == "STEP_UP_FOR_RETRY"
    ]
    assert len(waits) == 3
    for wait, factor in zip(waits, (1, 3, 7), strict=True):
        assert abs(wait - factor * base) <= base
    assert all(wait % base for wait in waits), "they are varied by chance"


def test_l10_a_permanent_error_is_not_tried_again(runner):
    batch_id = runner.submit("truncated.jpg")
    result = runner.run(batch_id)
    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert (row.error_kind, row.attempts) == ("truncated", 1)
    assert not [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]


def test_l10_a_description_that_fails_the_audit_is_not_stored_as_good(runner, model_server):
    model_server.play("vision", [Fault.LOOP, Fault.CONTROL_TOKENS])
    batch_id = runner.submit("fog.webp")
    runner.run(batch_id)
    [row] = upload_rows(runner.pipeline.database, batch_id)
    assert (row.processing_status, row.error_kind) == ("failed", "model_output_invalid")
    assert row.description is None
    assert row.embedding_local is None


# L11


def test_l11_one_bad_upload_never_stops_the_batch(runner):
    batch_id = runner.submit("truncated.jpg", "fog.webp", "lighthouse.gif")
    result = runner.run(batch_id)
    assert statuses(runner, batch_id) == ["failed", "completed", "completed"]
    assert counts(runner, batch_id) == ("completed", 3, 2, 1)
    [step] = failed_steps(result)
    assert step.startswith("process_upload[truncated_jpg__")
    assert not result.success


def test_l11_no_exception_of_one_upload_stops_the_batch(runner, monkeypatch):
    batch_id = runner.submit("fog.webp", "lighthouse.gif")
    real_decode = upload_processing.decode

    def decode_all_but_webp(file, media_type, **options):
        if media_type.format == "webp":
            raise MemoryError("too big")
        return real_decode(file, media_type, **options)

    monkeypatch.setattr(upload_processing, "decode", decode_all_but_webp)
    runner.run(batch_id)
    first, second = upload_rows(runner.pipeline.database, batch_id)
    assert (first.processing_status, first.error_kind) == ("failed", "internal_error")
    assert first.error_message == "MemoryError: too big"
    assert second.processing_status == "completed"


def test_l11_a_service_that_is_down_stops_the_run_and_nothing_is_marked_failed(
    change, open_pipeline, instance
):
    with ScriptedModelServer() as model_server:
        settings = change(analyzer="ollama", ollama_host=model_server.ollama_url)
        runner = Runner(open_pipeline(settings), instance)
        batch_id = runner.submit("fog.webp", "sea.jpg", "city.jpg")
        model_server.play("vision", [Fault.HANG])
        stopper = threading.Thread(
            target=lambda: (model_server.wait_for_calls(1), model_server.stop())
        )
        stopper.start()
        result = runner.run(batch_id)
        stopper.join()
    assert not result.success
    assert statuses(runner, batch_id) == ["pending"] * 3
    assert counts(runner, batch_id)[1:] == (0, 0, 0)
    rows = upload_rows(runner.pipeline.database, batch_id)
    assert {row.owner_run_id for row in rows} == {None}


# L13


def test_l13_counters_go_down_again_when_a_failed_upload_is_re_executed(runner, messages):
    batch_id = runner.submit("truncated.jpg", "fog.webp")
    runner.run(batch_id)
    bad, _ = upload_rows(runner.pipeline.database, batch_id)
    Path(runner.pipeline.settings.storage_location, bad.file_path).write_bytes(
        Path(__file__).parents[3].joinpath("examples/media/sea.jpg").read_bytes()
    )
    runner.run(batch_id, upload_ids=[str(bad.id)])
    assert counts(runner, batch_id) == ("completed", 2, 2, 0)
    progress = [
        m["payload"] for m in map(json.loads, messages()) if m["action"] == "batch_progress"
    ]
    assert (2, 1, 1) in [(p["processed"], p["successful"], p["failed"]) for p in progress]
    assert all(p["processed"] == p["successful"] + p["failed"] for p in progress)


# L14


def test_l14_the_batch_is_completed_with_or_without_failures(runner):
    batch_id = runner.submit("truncated.jpg", "fog.webp")
    runner.run(batch_id)
    row = batch_row(runner.pipeline.database, batch_id)
    assert row.status == "completed"
    assert row.completed_at >= row.started_at


def test_l14_a_batch_with_open_uploads_is_never_completed(runner):
    batch_id = runner.submit("fog.webp", "lighthouse.gif")
    one, _ = upload_rows(runner.pipeline.database, batch_id)
    runner.run(batch_id, upload_ids=[str(one.id)])
    assert counts(runner, batch_id) == ("processing", 1, 1, 0)
    # … not even if the API that filled it set a total that is too low.
    with runner.pipeline.database.transaction() as connection:
        connection.execute(
            update(UploadBatch).where(UploadBatch.id == batch_id).values(total_uploads=1)
        )
    runner.pipeline.backlog.reconcile_batches()
    assert counts(runner, batch_id)[0] == "processing"


def test_l14_a_summary_is_shown_at_the_end(runner):
    result = runner.run(runner.submit("fog.webp"))
    lines = runner.log_of(result, "INFO")
    assert any("is completed: 1 upload, 1 completed, 0 failed" in line for line in lines)


# L15


def test_l15_the_final_batch_message_is_the_last_one_of_that_batch(runner, messages):
    runner.run(runner.submit("fog.webp", "truncated.jpg"))
    last = json.loads(messages()[-1])
    assert last["action"] == "batch_progress"
    assert last["payload"]["status"] == "completed"
    assert last["payload"]["progress_percentage"] == 100


# L16


def test_l16_a_publisher_that_fails_is_one_warning(
    model_server, change, open_pipeline, instance, caplog
):
    settings = change(
        analyzer="ollama", ollama_host=model_server.ollama_url, redis_url="redis://127.0.0.1:1/0"
    )
    runner = Runner(open_pipeline(settings), instance)
    batch_id = runner.submit("fog.webp", "lighthouse.gif")
    assert runner.run(batch_id).success
    assert statuses(runner, batch_id) == ["completed"] * 2
    assert caplog.text.count("progress is not published on Redis") == 1


# L17


def test_l17_an_upload_deleted_while_in_progress_leaves_nothing_of_ours_behind(
    runner, model_server
):
    batch_id = runner.submit("fog.webp", "lighthouse.gif")
    doomed, other = upload_rows(runner.pipeline.database, batch_id)
    storage = runner.pipeline.storage
    model_server.play("vision", [Fault.HANG])

    def delete_during_the_first_call():
        model_server.wait_for_calls(1)
        with runner.pipeline.database.transaction() as connection:
            connection.execute(delete(Upload).where(Upload.id == doomed.id))

    thread = threading.Thread(target=delete_during_the_first_call)
    thread.start()
    result = runner.run(batch_id)
    thread.join()
    assert result.success
    left = storage.names(f"{doomed.user_id}/{doomed.id}")
    assert left == [Path(doomed.file_path).name], "the original alone, which is no work of ours"
    assert "thumb_256.jpg" in storage.names(f"{other.user_id}/{other.id}")
    assert counts(runner, batch_id) == ("completed", 1, 1, 0)
    assert batch_row(runner.pipeline.database, batch_id).total_uploads == 1


def test_l17_a_thumbnail_that_a_copy_of_the_deleted_row_names_stays(runner, model_server):
    batch_id = runner.submit("fog.webp")
    [doomed] = upload_rows(runner.pipeline.database, batch_id)
    model_server.play("vision", [Fault.HANG])
    columns = "user_id, filename, file_path, file_type, file_size, thumbnail_path"

    def copy_and_delete_during_the_first_call():
        model_server.wait_for_calls(1)
        with runner.pipeline.database.transaction() as connection:
            connection.execute(
                text(f"INSERT INTO uploads ({columns}, processing_status)"
                     f" SELECT {columns}, 'completed' FROM uploads")
            )  # fmt: skip
            connection.execute(delete(Upload).where(Upload.id == doomed.id))

    thread = threading.Thread(target=copy_and_delete_during_the_first_call)
    thread.start()
    result = runner.run(batch_id)
    thread.join()
    assert result.success
    assert "thumb_256.jpg" in runner.pipeline.storage.names(f"{doomed.user_id}/{doomed.id}")
    assert runner.pipeline.ownership.made_thumbnail(doomed.id), "so the tidy can remove it later"


# L18


def test_l18_uploads_run_concurrently_up_to_the_setting(
    model_server, settings, monkeypatch, runner, request
):
    threads = MAX_WORKING + 1  # a step that waits for a model does not count as working
    pictures = [settings.home.parent / f"{number}.png" for number in range(threads + 1)]
    for number, path in enumerate(pictures):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(path)
    model_server.latency_seconds = 0.2
    model_server.together = {"vision": threads}
    for name, value in {
        "DATABASE_URL": settings.database_url,
        "HOME": str(settings.home),
        "ANALYZER": "ollama",
        "OLLAMA_HOST": model_server.ollama_url,
        "MAX_CONCURRENT_UPLOADS": str(threads),
        "MAX_VISION_CALLS": str(threads + 1),
    }.items():
        monkeypatch.setenv(f"BATCH_PIPELINE_{name}", value)
    # Resources of the run live as long as the process, and this process continues.
    request.addfinalizer(shared_pipeline(load_settings()).close)
    batch_id = runner.submit(*pictures)
    result = dg.execute_job(
        dg.reconstructable(process_batch_of_the_environment),
        runner.instance,
        run_config={"ops": {"load_batch": {"config": {"batch_id": str(batch_id)}}}},
    )
    assert result.success
    assert model_server.most_in_flight["vision"] == threads
    assert batch_row(runner.pipeline.database, batch_id).successful_uploads == threads + 1


def process_batch_of_the_environment():
    return build_definitions().resolve_job_def("process_batch")
