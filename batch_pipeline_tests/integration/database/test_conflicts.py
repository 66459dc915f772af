"""Transactions that conflict with others, and a server that accepts no writes for some time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy import make_url

from batch_pipeline.database import failures
from batch_pipeline.database.failures import _TRIES, ConflictError, repeated
from batch_pipeline.errors import PermanentError, ServiceDownError, TransientError
from batch_pipeline.services import upload_processing
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.states.upload_states import StartedUpload
from batch_pipeline.services.upload_processing import CompletedUpload, UploadProcessor
from batch_pipeline.testing.records import (
    USER,
    add_batch,
    batch_row,
    embedded,
    upload_row,
    upload_rows,
)
from batch_pipeline_tests.patience import DEADLINE

PICTURE = "source/one.webp"
WEBP = (Path(__file__).parents[3] / "examples" / "media" / "fog.webp").read_bytes()


def started(pipeline, upload_id):
    result = pipeline.states.start(upload_id, "run")
    assert isinstance(result, StartedUpload)
    return result.claim


def counts(pipeline, batch_id):
    row = batch_row(pipeline.database, batch_id)
    return row.status, row.processed_uploads, row.successful_uploads, row.failed_uploads


def waits_for_a_lock(observer, statement):
    """Return whether a session waits in a statement that contains these words."""
    return observer.execute(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() "
        "AND wait_event_type = 'Lock' AND query ILIKE %s",
        [f"%{statement}%"],
    ).fetchone()[0]


@pytest.mark.slow
@pytest.mark.parametrize("uploads", [1, 2], ids=["the last upload", "one of two"])
def test_an_api_that_locks_batch_then_uploads_costs_no_result(
    pipeline, database_url, uploads, monkeypatch
):
    repeats = []
    monkeypatch.setattr(
        failures, "random", SimpleNamespace(uniform=lambda least, _: repeats.append(1) or least)
    )
    batch_id = add_batch(pipeline.database, uploads)
    pipeline.states.load_batch(batch_id, "run", limit=uploads)
    upload = upload_rows(pipeline.database, batch_id)[0]
    claim = started(pipeline, upload.id)
    with (
        psycopg.connect(database_url) as api,
        psycopg.connect(database_url, autocommit=True) as observer,
    ):
        # The first session to wait detects the deadlock first and fails. It must be the pipeline.
        api.execute("SET deadlock_timeout = '60s'")
        api.execute("SELECT FROM upload_batches WHERE id = %s FOR UPDATE", [batch_id])
        result = embedded(pipeline.database)
        ended = threading.Thread(
            target=lambda: pipeline.states.complete(claim, embedded=result, seconds={})
        )
        ended.start()
        while not waits_for_a_lock(observer, "UPDATE"):
            assert ended.is_alive()
        api.execute("SELECT FROM uploads WHERE id = %s FOR UPDATE", [upload.id])  # the deadlock
        assert ended.is_alive()
        api.commit()
        ended.join(DEADLINE)
    assert repeats, "the pipeline gave way, and tried again"
    assert upload_row(pipeline.database, upload.id).processing_status == "completed"
    assert counts(pipeline, batch_id)[1:] == (1, 1, 0)


INSERT = """INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size)
    VALUES (%s, %s, 'new.jpg', 'new.jpg', 'image', 1)"""


def complete_while_an_api_inserts(pipeline, api, batch_id):
    """Complete the last upload of a batch while an API has inserted one and not committed yet."""
    pipeline.states.load_batch(batch_id, "run", limit=1)
    claim = started(pipeline, upload_rows(pipeline.database, batch_id)[0].id)
    api.execute(INSERT, [USER, batch_id])
    with psycopg.connect(api.info.dsn, autocommit=True) as observer, ThreadPoolExecutor(1) as pool:
        result = embedded(pipeline.database)
        ending = pool.submit(pipeline.states.complete, claim, embedded=result, seconds={})
        while not ending.done():
            if waits_for_a_lock(observer, "upload_batches"):
                api.rollback()
                pytest.fail("the pipeline waits until the API commits its insert")
        ending.result()


@pytest.mark.slow
def test_the_last_upload_completes_while_an_api_inserts_and_that_api_may_change_the_batch(
    pipeline, database_url
):
    batch_id = add_batch(pipeline.database, 1)
    with psycopg.connect(database_url) as api:
        complete_while_an_api_inserts(pipeline, api, batch_id)
        api.execute(
            "UPDATE upload_batches SET total_uploads = total_uploads + 1 WHERE id = %s", [batch_id]
        )
    assert batch_row(pipeline.database, batch_id).total_uploads == 2


@pytest.mark.parametrize("counts_it", [True, False])
def test_a_batch_that_ended_before_an_insert_was_committed_is_reopened_and_completes(
    pipeline, database_url, counts_it
):
    batch_id = add_batch(pipeline.database, 1)
    with psycopg.connect(database_url) as api:
        complete_while_an_api_inserts(pipeline, api, batch_id)
        assert counts(pipeline, batch_id) == ("completed", 1, 1, 0)
        if counts_it:
            api.execute("UPDATE upload_batches SET total_uploads = 2 WHERE id = %s", [batch_id])
    assert pipeline.backlog.overdue()["uploads in batches that had ended"] == 1
    assert pipeline.backlog.reopen_ended() == 1
    assert counts(pipeline, batch_id) == ("processing", 1, 1, 0)
    [added] = pipeline.states.load_batch(batch_id, "next", limit=1).reserved
    result = pipeline.states.start(added.id, "next")
    pipeline.states.complete(result.claim, embedded=embedded(pipeline.database), seconds={})
    assert counts(pipeline, batch_id) == ("completed", 2, 2, 0)


def test_a_serializable_database_works_like_any_other(
    database_url, server_url, settings, open_pipeline
):
    with psycopg.connect(server_url, autocommit=True) as owner:
        name = make_url(database_url).database
        owner.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    pipeline = open_pipeline(settings)
    batch_id = add_batch(pipeline.database, 40)
    pipeline.states.load_batch(batch_id, "run", limit=40)
    errors = []

    def work(uploads):
        for upload in uploads:
            try:
                claim = started(pipeline, upload.id)
                pipeline.states.complete(claim, embedded=embedded(pipeline.database), seconds={})
            except Exception as error:
                errors.append(error)

    uploads = upload_rows(pipeline.database, batch_id)
    threads = [threading.Thread(target=work, args=[uploads[part::4]]) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert errors == []
    assert counts(pipeline, batch_id) == ("completed", 40, 40, 0)


@pytest.mark.parametrize(
    ("transition", "result"),
    [
        (lambda p, batch_id: p.batches.recount_batch(batch_id), None),
        (lambda p, batch_id: p.states.load_batch(batch_id, "run", limit=9), None),
        (lambda p, _: p.backlog.reopen_ended(), 0),
        (lambda p, _: p.backlog.reconcile_batches(), []),
    ],
    ids=["recount", "load", "reopen", "reconcile"],
)
def test_a_batch_that_an_api_deletes_while_we_wait_for_it_is_not_an_error(
    pipeline, database_url, transition, result
):
    batch_id = add_batch(pipeline.database, 2, status="completed")
    with (
        psycopg.connect(database_url) as api,
        psycopg.connect(database_url, autocommit=True) as observer,
        ThreadPoolExecutor(1) as pool,
    ):
        api.execute("DELETE FROM upload_batches WHERE id = %s", [batch_id])
        waiting = pool.submit(transition, pipeline, batch_id)
        while not waits_for_a_lock(observer, "FOR NO KEY UPDATE"):
            assert not waiting.done()
        api.commit()
        assert waiting.result(DEADLINE) == result


@pytest.mark.parametrize("limit", ["statement_timeout", "lock_timeout"])
def test_a_time_limit_that_ends_a_statement_is_an_outage_and_costs_no_result(
    database_url, change, open_pipeline, limit
):
    """Such limits apply behind PgBouncer, and if the URL names them."""
    joint = "&" if "?" in database_url else "?"
    url = f"{database_url}{joint}options=-c{limit}%3D300ms"
    pipeline = open_pipeline(change(database_url=url))
    batch_id = add_batch(pipeline.database, 1)
    pipeline.states.load_batch(batch_id, "run", limit=1)
    [upload] = upload_rows(pipeline.database, batch_id)
    claim, result = started(pipeline, upload.id), embedded(pipeline.database)
    with psycopg.connect(database_url) as api:
        api.execute("SELECT FROM uploads WHERE id = %s FOR UPDATE", [upload.id])
        with pytest.raises(ServiceDownError, match=limit.replace("_", " ")):
            pipeline.states.complete(claim, embedded=result, seconds={})
    pipeline.states.complete(claim, embedded=result, seconds={})


def test_a_transaction_that_conflicts_every_time_is_an_outage_in_the_end(monkeypatch):
    calls = []

    @repeated
    def gives_way() -> None:
        calls.append(1)
        raise ConflictError("database_down", "another one went first")

    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(ServiceDownError):
        gives_way()
    assert len(calls) == _TRIES


def set_read_only(owner, name, read_only):
    """Make all connections read-only, existing and new ones, as in a failover."""
    owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {read_only}")
    owner.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
    )


@pytest.fixture
def begin_failover(database_url, server_url, monkeypatch):
    """Return a function that begins a failover, which ends when a write of an upload is refused."""
    name = make_url(database_url).database
    refused = threading.Event()
    monkeypatch.setattr(upload_processing, "_TRY_PAUSE_SECONDS", 0.05)
    warn = upload_processing.log.warning

    def note(message, *args):
        warn(message, *args)
        if "waits to be stored" in message and "accepts no writes" in str(args):
            refused.set()

    def end_the_failover():
        assert refused.wait(DEADLINE)
        with psycopg.connect(server_url, autocommit=True) as other:
            set_read_only(other, name, "off")

    monkeypatch.setattr(upload_processing.log, "warning", note)
    ending = threading.Thread(target=end_the_failover)
    ending.start()
    with psycopg.connect(server_url, autocommit=True) as owner:
        yield lambda: set_read_only(owner, name, "on")
        ending.join(DEADLINE)
    assert refused.is_set()


class CountedModel:
    """Passes calls on, counts them, and runs a function after the first."""

    def __init__(self, model, then):
        self.model, self.then, self.calls = model, then, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def describe(self, *args, **kwargs):
        answer = self.model.describe(*args, **kwargs)
        return self._answered(answer)

    def embed(self, *args, **kwargs):
        return self._answered(self.model.embed(*args, **kwargs))

    def _answered(self, answer):
        self.calls += 1
        if self.calls == 1:
            self.then()
        return answer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vision", "embedding"])
def test_a_model_is_not_asked_again_when_the_database_takes_no_writes_for_a_while(
    pipeline, begin_failover, kind
):
    pipeline.storage.write(PICTURE, WEBP)
    batch_id = add_batch(pipeline.database, [{"file_path": PICTURE}])
    pipeline.states.load_batch(batch_id, "run", limit=1)
    [upload] = upload_rows(pipeline.database, batch_id)
    model = CountedModel(getattr(pipeline.analyzer, kind), begin_failover)
    pipeline.__dict__["analyzer"] = replace(pipeline.analyzer, **{kind: model})
    with ClaimKeeper(pipeline.states, "run", lease_seconds=120) as keeper:
        outcome = UploadProcessor(pipeline, keeper).process(upload.id, "run", retries_left=0)
    assert isinstance(outcome, CompletedUpload)
    assert model.calls == 1
    assert counts(pipeline, batch_id) == ("completed", 1, 1, 0)


class FailingModel(CountedModel):
    """Runs a function during its first call, and fails each time."""

    def __init__(self, model, then, error):
        super().__init__(model, then)
        self.error = error

    def _answered(self, answer):
        super()._answered(answer)
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TransientError("model_timeout", "silent"), ("pending", "model_timeout", 1)),
        (PermanentError("model_refused_input", "no"), ("failed", "model_refused_input", 1)),
        (ServiceDownError("model_server_down", "gone"), ("pending", "model_server_down", 0)),
    ],
    ids=["retry", "failed", "outage"],
)
def test_the_end_of_an_attempt_waits_for_a_database_that_takes_no_writes(
    pipeline, begin_failover, error, expected
):
    """Otherwise the upload would count as one whose worker died, with an attempt more."""
    pipeline.storage.write(PICTURE, WEBP)
    batch_id = add_batch(pipeline.database, [{"file_path": PICTURE}])
    pipeline.states.load_batch(batch_id, "run", limit=1)
    [upload] = upload_rows(pipeline.database, batch_id)
    vision = FailingModel(pipeline.analyzer.vision, begin_failover, error)
    pipeline.__dict__["analyzer"] = replace(pipeline.analyzer, vision=vision)
    with (
        ClaimKeeper(pipeline.states, "run", lease_seconds=120) as keeper,
        suppress(ServiceDownError),
    ):
        UploadProcessor(pipeline, keeper).process(upload.id, "run", retries_left=1)
    row = upload_row(pipeline.database, upload.id)
    assert (row.processing_status, row.error_kind, row.attempts) == expected
    assert row.deaths == 0
