"""Pauses: what each pause stops, and that a call checks for pauses right before it begins."""

import time
import uuid

import pytest
from sqlalchemy import event

from batch_pipeline.database.models import PauseScope
from batch_pipeline.errors import (
    NotFoundError,
    RefusedError,
    ServiceDownError,
    TransientError,
    WorkPausedError,
)
from batch_pipeline.model_servers.base import Caller
from batch_pipeline.services import pauses
from batch_pipeline.services.dispatch.signals import work_signals
from batch_pipeline.services.dispatch.slices import unnumbered_slices
from batch_pipeline.services.outages import apart_from_suspects
from batch_pipeline.services.pauses import (
    Pauses,
    active_pauses,
    chosen,
    pause,
    resume,
    why_paused,
)
from batch_pipeline.services.reports.batch_status import (
    batch_head,
    newest_batches,
    oldest_waiting,
)
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.shared_call_slots import name_for_all_hosts
from batch_pipeline.services.states.upload_states import SkippedUpload, StartedUpload
from batch_pipeline.testing.model_server import ScriptedModelServer
from batch_pipeline.testing.pgbouncer import pgbouncer
from batch_pipeline.testing.records import (
    USER,
    add_batch,
    batch_row,
    embedded,
    upload_row,
    upload_rows,
)
from batch_pipeline_tests.integration.conftest import program
from batch_pipeline_tests.patience import wait_until

OTHER_USER = uuid.UUID(int=7)
A, B = "http://gpu1:11434", "http://gpu2:11434"


@pytest.fixture
def served(change, open_pipeline):
    """A pipeline with two vision servers."""
    return open_pipeline(change(analyzer="ollama", ollama_host=f"{A},{B}"))


def target_of(scope, batch_id):
    return {"everything": "", "user": str(USER), "batch": str(batch_id)}[scope]


def is_started(pipeline, batch_id):
    [first, *_] = upload_rows(pipeline.database, batch_id)
    return isinstance(pipeline.states.start(first.id, "run"), StartedUpload)


@pytest.mark.parametrize("scope", ["everything", "user", "batch"])
def test_a_pause_holds_its_batches_and_no_others(pipeline, settings, scope):
    database = pipeline.database
    held = add_batch(database, 2)
    other = add_batch(database, [{"user_id": OTHER_USER}], user_id=OTHER_USER)
    pause(database, settings, PauseScope(scope), target_of(scope, held), "works")

    both = scope == "everything"
    paused = {
        slice_.batch_id: slice_.is_paused for slice_ in unnumbered_slices(database, 9, at_most=1)
    }
    assert paused == {held: True, other: both}
    assert "(works)" in str(why_paused(database, settings, held))
    assert bool(why_paused(database, settings, other)) == both
    assert bool(why_paused(database, settings)) == both
    assert pipeline.pauses.of(held)("")
    assert bool(pipeline.pauses.of(other)("")) == both
    assert not is_started(pipeline, held)
    assert is_started(pipeline, other) != both
    [shown] = batch_head(database, held)["paused"]
    assert (shown["scope"], shown["reason"]) == (scope, "works")
    listed = {batch["batch_id"]: bool(batch["paused"]) for batch in newest_batches(database)}
    assert listed == {held: True, other: both}

    resume(database, PauseScope(scope), target_of(scope, held))
    assert why_paused(database, settings, held) is None
    assert is_started(pipeline, held)


def test_a_paused_upload_is_not_started_and_waits_as_it_was(pipeline, settings):
    batch_id = add_batch(pipeline.database, 1)
    pipeline.states.load_batch(batch_id, "run", limit=1)
    [before] = upload_rows(pipeline.database, batch_id)
    pause(pipeline.database, settings, PauseScope.BATCH, str(batch_id))

    skipped = pipeline.states.start(before.id, "run")
    assert skipped == SkippedUpload(before.id, "it is paused", before.filename)
    row = upload_row(pipeline.database, before.id)
    assert (row.processing_status, row.owner_run_id, row.slice) == ("pending", None, None)
    assert (row.attempts, row.not_before, row.error_kind) == (0, None, None)


def test_a_waiting_retry_is_released_with_its_number_of_attempts(pipeline, settings):
    batch_id = add_batch(pipeline.database, 1)
    pipeline.states.load_batch(batch_id, "run", limit=1)
    [row] = upload_rows(pipeline.database, batch_id)
    claim = pipeline.states.start(row.id, "run").claim
    pipeline.states.note_error(claim, TransientError("model_timeout", "slow"))
    pause(pipeline.database, settings, PauseScope.USER, str(USER))

    assert isinstance(pipeline.states.start(row.id, "run"), SkippedUpload)
    row = upload_row(pipeline.database, row.id)
    assert (row.processing_status, row.owner_run_id, row.attempts) == ("pending", None, 1)


def test_an_upload_that_another_run_processes_is_left_alone(pipeline, settings):
    batch_id = add_batch(pipeline.database, 1)
    [row] = upload_rows(pipeline.database, batch_id)
    pipeline.states.start(row.id, "another run")
    pause(pipeline.database, settings, PauseScope.EVERYTHING)
    skipped = pipeline.states.start(row.id, "run")
    assert "another run" in skipped.reason
    assert upload_row(pipeline.database, row.id).owner_run_id == "another run"


def test_a_failed_upload_that_is_executed_again_is_opened_and_waits(pipeline, settings):
    batch_id = add_batch(
        pipeline.database,
        [{"processing_status": "failed", "error_kind": "model_timeout", "attempts": 2}],
        status="completed",
        processed_uploads=1,
        failed_uploads=1,
    )
    [row] = upload_rows(pipeline.database, batch_id)
    pause(pipeline.database, settings, PauseScope.BATCH, str(batch_id))
    assert isinstance(pipeline.states.start(row.id, "run"), SkippedUpload)
    assert upload_row(pipeline.database, row.id).processing_status == "pending"
    batch = batch_row(pipeline.database, batch_id)
    assert (batch.status, batch.failed_uploads) == ("processing", 0)
    resume(pipeline.database, PauseScope.BATCH, str(batch_id))
    assert isinstance(pipeline.states.start(row.id, "run"), StartedUpload)


def test_one_paused_server_holds_calls_to_it_and_all_hold_everything(served):
    database, settings = served.database, served.settings
    batch_id = add_batch(database, 1)
    pause(database, settings, PauseScope.SERVER, f"{A}/", "cables")
    asked = Pauses(database).of(batch_id)
    assert "cables" in asked(A)
    assert [asked(server) for server in (B, "")] == ["", ""]
    assert why_paused(database, settings, batch_id) is None

    pause(database, settings, PauseScope.SERVER, B)
    assert "every vision server is paused" in str(why_paused(database, settings, batch_id))
    assert not [slice_ for slice_ in unnumbered_slices(database, 9, at_most=1) if slice_.is_paused]
    resume(database, PauseScope.SERVER, A)
    assert why_paused(database, settings) is None


def test_a_server_on_loopback_is_another_one_on_each_host(served):
    with pytest.raises(NotFoundError, match=f"expected one of: {A}, {B}"):
        pause(served.database, served.settings, PauseScope.SERVER, "http://localhost:11434")
    name = name_for_all_hosts("http://localhost:11434")
    assert " of " in name
    assert name_for_all_hosts(name) == name


def test_only_existing_things_can_be_paused_and_only_paused_ones_resumed(pipeline, settings):
    database = pipeline.database
    with pytest.raises(NotFoundError, match="there is no batch"):
        pause(database, settings, PauseScope.BATCH, str(uuid.uuid4()))
    with pytest.raises(NotFoundError, match="the models are embedded"):
        pause(database, settings, PauseScope.SERVER, A)
    with pytest.raises(RefusedError, match="not the address"):
        pause(database, settings, PauseScope.SERVER, "http://[gpu")
    with pytest.raises(NotFoundError, match="there is no pause of everything; nothing is paused"):
        resume(database, PauseScope.EVERYTHING)
    with pytest.raises(RefusedError, match="expected at most one"):
        chosen(USER, None, A)
    pause(database, settings, PauseScope.USER, str(USER))
    with pytest.raises(
        NotFoundError, match=f"there is no pause of everything; user {USER} has been paused"
    ):
        resume(database, PauseScope.EVERYTHING)


def test_a_second_pause_keeps_the_first_and_may_replace_its_reason(pipeline, settings):
    first = pause(pipeline.database, settings, PauseScope.EVERYTHING, reason="one")
    again = pause(pipeline.database, settings, PauseScope.EVERYTHING)
    assert again == first
    told = pause(pipeline.database, settings, PauseScope.EVERYTHING, reason="two")
    assert (told.since, told.reason) == (first.since, "two")
    assert active_pauses(pipeline.database) == [told]


def test_a_pause_of_a_batch_that_has_ended_is_kept_but_not_listed(pipeline, settings):
    batch_id = add_batch(pipeline.database, 1)
    paused = pause(pipeline.database, settings, PauseScope.BATCH, str(batch_id))
    of_user = pause(pipeline.database, settings, PauseScope.USER, str(USER))
    pipeline.batches.cancel_batch(batch_id)
    assert active_pauses(pipeline.database) == [of_user]
    pipeline.batches.retry_batch(batch_id)
    assert active_pauses(pipeline.database) == [paused, of_user]
    pipeline.batches.cancel_batch(batch_id)
    assert resume(pipeline.database, PauseScope.BATCH, str(batch_id)) == paused


def test_a_resume_wakes_the_sensor(pipeline, settings):
    pause(pipeline.database, settings, PauseScope.EVERYTHING)
    with work_signals(pipeline.database) as wait:
        assert not wait(0.1)
        resume(pipeline.database, PauseScope.EVERYTHING)
        assert wait(20)


def test_a_paused_upload_waits_for_a_person_and_is_not_overdue(pipeline, settings):
    add_batch(pipeline.database, 1)
    assert oldest_waiting(pipeline.database)
    pause(pipeline.database, settings, PauseScope.EVERYTHING)
    assert oldest_waiting(pipeline.database) is None


@pytest.fixture(params=["direct", "pgbouncer"])
def database_of_a_worker(request, settings, tmp_path, open_pipeline):
    if request.param == "direct":
        yield open_pipeline(settings).database
        return
    folder = tmp_path / "pgbouncer"
    folder.mkdir()
    with pgbouncer(program("pgbouncer"), settings.database_url, "transaction", folder) as url:
        yield open_pipeline(settings.model_copy(update={"database_url": url})).database


def test_a_call_checks_pauses_at_most_half_a_second_after_the_last_check(
    pipeline, settings, database_of_a_worker
):
    batch_id = add_batch(pipeline.database, 1)
    asked = Pauses(database_of_a_worker).of(batch_id)
    assert not asked("")
    looked_at = time.monotonic()
    pause(pipeline.database, settings, PauseScope.EVERYTHING)
    wait_until(lambda: asked("") or time.monotonic() > looked_at + pauses.TRUSTED_SECONDS, "it")
    assert asked("")


def test_many_short_calls_share_one_check(pipeline, settings, monkeypatch):
    monkeypatch.setattr(pauses, "TRUSTED_SECONDS", 600)
    looks = []
    event.listen(
        pipeline.database.engine,
        "before_cursor_execute",
        lambda *words: looks.append(words[2]) if "work_pauses" in words[2] else None,
    )
    batch_id = add_batch(pipeline.database, 1)
    for _ in range(50):
        assert not pipeline.pauses.of(batch_id)("")
    assert len(looks) == 1


def test_a_call_does_not_begin_while_its_pause_is_unknown(pipeline, settings, monkeypatch):
    monkeypatch.setattr(pauses, "PATIENCE_SECONDS", 0.3)
    asked = Pauses(pipeline.database)
    failures = [ServiceDownError("database_down", "gone")] * 2

    def transaction():
        if failures:
            raise failures.pop()
        return original()

    original = pipeline.database.transaction
    monkeypatch.setattr(pipeline.database, "transaction", transaction)
    assert not asked.of(None)("")  # it came back in time
    failures.extend([ServiceDownError("database_down", "gone")] * 1000)
    with pytest.raises(ServiceDownError):
        Pauses(pipeline.database).of(None)("")


def test_a_suspect_asks_its_known_question_of_no_paused_server(served, monkeypatch):
    batch_id = add_batch(served.database, [{"server_deaths": 1}])
    [upload] = upload_rows(served.database, batch_id)
    for server in (A, B):
        pause(served.database, served.settings, PauseScope.SERVER, server)
    vision, asked = served.analyzer.vision, served.pauses.of(batch_id)
    with (
        pytest.raises(WorkPausedError, match="has been paused since"),
        apart_from_suspects(served, upload, vision, Caller(paused=asked)),
    ):
        pytest.fail("its call would begin")


def test_a_search_calls_no_paused_server_and_is_not_held_by_a_pause_of_everything(
    change, open_pipeline
):
    with ScriptedModelServer(embedding_models=["m"]) as server:
        served = open_pipeline(
            change(analyzer="ollama", ollama_host=server.ollama_url, embedding_model="m")
        )
        database, model_of = served.database, served.spaces.model_of
        batch_id = add_batch(database, 1)
        [row] = upload_rows(database, batch_id)
        claim = served.states.start(row.id, "run").claim
        served.states.complete(claim, embedded=embedded(database), seconds={})
        pause(database, served.settings, PauseScope.EVERYTHING)
        assert not search(database, model_of, "sea").by_words_only
        assert len(server.calls) == 1
        pause(database, served.settings, PauseScope.SERVER, server.ollama_url)
        found = search(database, model_of, "sea")
        assert "cannot be asked: model server" in found.by_words_only
        assert len(server.calls) == 1
