"""Rows 23 to 28 of the list of faults: a model server fails during a run of the real job."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from batch_pipeline.model_servers import server_group
from batch_pipeline.model_servers.prompts import COLOUR
from batch_pipeline.services.descriptions.audit import PASS_SCORE
from batch_pipeline.services.outages import MAX_SERVER_DEATHS
from batch_pipeline.services.upload_processing import OUTAGE_PAUSE_SECONDS
from batch_pipeline.testing.model_server import Fault, at_random
from batch_pipeline_tests.patience import DEADLINE, promised, wait_until

from .conftest import PICTURES, both_dialects, failures

pytestmark = pytest.mark.usefixtures("model_server")


@contextmanager
def meanwhile(action):
    """Run a function in parallel to the block; an exception in it fails the test."""
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(action)
        yield
        future.result(timeout=DEADLINE)


def assert_nothing_burned(work, batch_id):
    assert set(work.column(batch_id, "processing_status")) == {"pending"}
    assert set(work.column(batch_id, "attempts")) == {0}
    assert set(work.column(batch_id, "owner_run_id")) == {None}
    assert work.counts(batch_id)[1:] == (0, 0)


# Row 23: refuses connections


def test_row_23_an_outage_in_mid_batch_costs_no_attempt_and_the_batch_continues(work, model_server):
    work = work(max_concurrent_uploads=4)
    batch_id = work.submit(*PICTURES)
    model_server.play("vision", itertools.repeat(Fault.HANG))

    def stop_with_four_calls_in_flight():
        wait_until(lambda: len(model_server.calls_of("vision")) == 4, "four calls in flight")
        model_server.stop()

    with meanwhile(stop_with_four_calls_in_flight):
        [result] = work.run_what_is_asked_for()

    assert_nothing_burned(work, batch_id)
    said = sorted(failures(result))
    assert len(said) == len(PICTURES)
    assert said[0].startswith("model_server_down: model server http://127.0.0.1:")
    assert set(said[1:]) == {f"stopped, the upload is pending: {said[0]}"}
    assert set(work.column(batch_id, "error_kind")) == {"model_server_down"}
    assert all("cannot be reached" in reason for reason in work.column(batch_id, "error_message"))
    assert len(model_server.calls_of("vision")) == 4

    assert max(work.rest(batch_id)) <= OUTAGE_PAUSE_SECONDS
    assert work.tick().run_requests == []

    model_server.play("vision", [])
    model_server.start()
    work.end_the_pause()
    # Each upload whose call was broken off gets its own run.
    while results := work.run_what_is_asked_for():
        assert all(result.success for result in results)
    assert work.counts(batch_id) == ("completed", len(PICTURES), 0)
    assert set(work.column(batch_id, "attempts")) == {1}
    assert set(work.column(batch_id, "error_kind")) == {None}


def test_row_23_while_the_server_is_down_no_run_is_launched_however_many_slices_wait(
    work, model_server
):
    work = work(uploads_per_run=1)
    batch_id = work.submit(*PICTURES)
    model_server.stop()

    for _ in range(3):
        tick = work.tick()
        assert tick.run_requests == []
        work.end_the_pause()

    assert "cannot be reached" in tick.skip_message
    assert tick.skip_message.count("cannot be reached") == 1
    assert work.pipeline.backlog.owners() == []
    model_server.start()
    assert len(work.tick().run_requests) == work.pipeline.settings.max_runs_in_flight
    assert_nothing_burned(work, batch_id)


def test_row_23_a_run_that_finds_the_server_down_at_its_start_takes_nothing_and_is_asked_for_again(
    work, model_server
):
    work = work()
    batch_id = work.submit(*PICTURES[:2])
    [request] = work.tick().run_requests
    model_server.stop()

    result = work.run(batch_id, slice=1)

    assert request.run_key == f"{batch_id}/1"
    assert not result.success
    [said] = failures(result)
    assert said.count("cannot be reached") == 1
    assert_nothing_burned(work, batch_id)
    assert set(work.column(batch_id, "slice")) == {None}
    assert max(work.rest(batch_id)) <= OUTAGE_PAUSE_SECONDS

    model_server.start()
    work.end_the_pause()
    [request] = work.tick().run_requests
    assert request.run_key == f"{batch_id}/2"


# Row 23, continued: the server lists its models, and fails every call


@pytest.mark.parametrize(
    ("dialect", "fault"),
    [
        ("ollama", Fault.ERROR_500),
        ("openai", Fault.BAD_GATEWAY_502),
        ("openai", Fault.BUSY_503),
    ],
    indirect=["dialect"],
)
def test_row_23_a_server_that_fails_every_call_fails_no_upload_in_many_rounds(
    work, model_server, fault, monkeypatch
):
    monkeypatch.setattr(server_group, "_BUSY_WAIT_SECONDS", 0.01)
    work = work(max_concurrent_uploads=2)
    batch_id = work.submit(*PICTURES)
    model_server.play("vision", itertools.repeat(fault))

    for _ in range(MAX_SERVER_DEATHS):
        result = work.run(batch_id)
        assert_nothing_burned(work, batch_id)
        assert all("model_" in said for said in failures(result))
        work.end_the_pause()

    model_server.play("vision", [])
    while results := work.run_what_is_asked_for():
        assert all(result.success for result in results)
    assert work.counts(batch_id) == ("completed", len(PICTURES), 0)
    assert set(work.column(batch_id, "attempts")) == {1}


# Row 24: model not found


@both_dialects
def test_row_24_a_model_that_goes_missing_stops_the_run_once_and_fast(work, model_server, dialect):
    work = work(max_concurrent_uploads=2)
    batch_id = work.submit(*PICTURES)
    model_server.play("vision", itertools.repeat(Fault.MISSING_404))
    began = time.monotonic()

    result = work.run(batch_id)

    assert time.monotonic() - began < promised(10)
    # Each of the two uploads calls once, and one of them tries a known picture.
    assert len(model_server.calls_of("vision")) <= 3
    assert_nothing_burned(work, batch_id)
    assert set(work.column(batch_id, "error_kind")) == {"model_missing"}
    first, *rest = sorted(failures(result))
    assert "model 'qwen3-vl:8b-instruct' not found" in first
    assert ("ollama pull qwen3-vl:8b-instruct" in first) == (dialect == "ollama")
    assert set(rest) == {f"stopped, the upload is pending: {first}"}


@pytest.mark.parametrize(
    ("models", "name"),
    [("vision_models", "qwen3-vl:8b-instruct"), ("embedding_models", "qwen3-embedding:0.6b")],
)
def test_row_24_a_missing_model_is_found_before_any_upload_is_taken(
    work, model_server, models, name
):
    work = work()
    batch_id = work.submit(*PICTURES[:2])
    getattr(model_server, models).clear()

    result = work.run(batch_id)

    [said] = failures(result)
    assert said.startswith("model_missing: ")
    assert f"ollama pull {name}" in said
    assert model_server.calls == []
    assert_nothing_burned(work, batch_id)
    assert all(f"ollama pull {name}" in m for m in work.column(batch_id, "error_message"))


# Row 25: accepts and sends nothing, or sends single bytes slowly


@pytest.mark.parametrize(
    ("fault", "deadline"),
    [(Fault.HANG, "model_read_seconds"), (Fault.DRIP, "model_total_seconds")],
)
def test_row_25_a_deadline_ends_the_call_and_the_lease_is_kept_meanwhile(
    work, model_server, fault, deadline
):
    work = work(lease_seconds=2, **{deadline: 5})
    batch_id = work.submit("fog.webp")
    model_server.play("vision", [fault])
    rescued = []

    def sweep_until_the_call_is_given_up():
        model_server.wait_for_calls(1)
        while not model_server.calls[0].client_left.wait(0.1):
            rescued.append(work.pipeline.backlog.rescue().returned)

    began = time.monotonic()
    with meanwhile(sweep_until_the_call_is_given_up):
        result = work.run(batch_id)

    assert result.success
    assert time.monotonic() - began < promised(12)
    assert len(rescued) >= 3
    assert sum(rescued) == 0
    assert work.column(batch_id, "attempts") == [2]
    assert work.counts(batch_id) == ("completed", 1, 0)


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DRIP])
def test_row_25_a_server_that_never_ends_an_answer_fails_the_upload(work, model_server, fault):
    work = work(model_read_seconds=0.3, model_total_seconds=0.5)
    batch_id = work.submit("fog.webp")
    model_server.play("vision", itertools.repeat(fault))

    work.run(batch_id)

    [row] = work.uploads(batch_id)
    assert (row.processing_status, row.error_kind) == ("failed", "model_timeout")
    assert row.attempts == 2
    assert work.counts(batch_id) == ("completed", 0, 1)


# Row 26: 500 at random, 503 busy


def test_row_26_with_four_calls_in_ten_crashing_every_upload_ends_and_the_cap_holds(
    work, model_server
):
    work = work(max_concurrent_uploads=6, max_vision_calls=2, max_embedding_calls=1)
    batch_id = work.submit(*PICTURES)
    model_server.latency_seconds = 0.1
    # With this seed, at most three calls in a row crash. Four would count as an outage.
    model_server.play("vision", at_random(Fault.ERROR_500, 0.4, seed=21))

    work.run(batch_id)

    crashes = [call for call in model_server.calls if call.fault]
    assert crashes
    assert model_server.most_in_flight == {"vision": 2, "embedding": 1}
    for row in work.uploads(batch_id):
        if row.processing_status == "failed":
            assert (row.error_kind, row.attempts) == ("model_server_error", 2)
            assert "unexpectedly stopped: signal: killed" in row.error_message
        else:
            assert (row.processing_status, row.error_kind) == ("completed", None)
    about_uploads = [
        call
        for call in model_server.calls_of("vision")
        if not any(text.startswith(COLOUR) for text in call.texts)  # known questions
    ]
    assert len(about_uploads) == sum(work.column(batch_id, "attempts"))
    assert work.counts(batch_id)[0] == "completed"


def test_row_26_a_busy_server_is_called_again_after_random_delays(work, model_server):
    work = work(max_concurrent_uploads=4)
    batch_id = work.submit(*PICTURES[:4])
    model_server.play("vision", [Fault.BUSY_503] * 4)
    model_server.together = {"vision": 4}  # each picture is refused once

    result = work.run(batch_id)

    assert result.success
    assert set(work.column(batch_id, "attempts")) == {1}
    by_picture = {}
    for call in model_server.calls_of("vision"):
        by_picture.setdefault(call.images[0], []).append(call.started_at)
    pauses = [again - first for first, again in by_picture.values()]
    assert len(pauses) == 4
    assert min(pauses) > 0.7
    assert max(pauses) < promised(3)
    assert max(pauses) - min(pauses) > 0.01


# Row 27: answers that are not a description


@pytest.mark.parametrize(
    ("dialect", "fault"),
    [
        ("ollama", Fault.CUT_JSON),
        ("ollama", Fault.EMPTY),
        ("ollama", Fault.LOOP),
        ("ollama", Fault.CUT_BY_LENGTH),
        ("ollama", Fault.CONTROL_TOKENS),
        ("openai", Fault.LOOP),
    ],
    indirect=["dialect"],
)
def test_row_27_a_bad_answer_is_not_stored_and_not_asked_for_again_by_the_same_call(
    work, model_server, dialect, fault
):
    work = work()
    batch_id = work.submit("fog.webp")
    model_server.play("vision", [fault])

    result = work.run(batch_id)

    assert result.success
    first, second = (call.body for call in model_server.calls_of("vision"))
    if dialect == "ollama":
        first, second = first["options"], second["options"]
    assert first["seed"] != second["seed"]
    assert first["temperature"] < second["temperature"]
    [row] = work.uploads(batch_id)
    assert "picture of" in row.description
    assert row.description_audit_score >= PASS_SCORE
    assert row.attempts == 2


@pytest.mark.parametrize("fault", [Fault.EMPTY, Fault.LOOP])
def test_row_27_a_model_with_only_bad_answers_fails_the_upload_with_the_reason(
    work, model_server, fault
):
    work = work()
    batch_id = work.submit("fog.webp")
    model_server.play("vision", itertools.repeat(fault))

    result = work.run(batch_id)

    [row] = work.uploads(batch_id)
    assert (row.processing_status, row.error_kind) == ("failed", "model_output_invalid")
    assert (row.description, row.embedding_local, row.attempts) == (None, None, 2)
    assert len(model_server.calls_of("vision")) == 2
    assert failures(result) == [f"fog.webp: model_output_invalid: {row.error_message}"]
    assert work.counts(batch_id) == ("completed", 0, 1)


# Row 28: answers that are not an embedding


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.NAN, "embedding_not_finite"),
        (Fault.ZEROS, "embedding_zero"),
        (Fault.EMPTY, "embedding_empty"),
    ],
)
def test_row_28_a_vector_that_cannot_be_compared_is_not_stored_and_has_its_own_kind(
    work, model_server, fault, kind
):
    work = work()
    batch_id = work.submit("fog.webp")
    model_server.play("embedding", itertools.repeat(fault))

    work.run(batch_id)

    [row] = work.uploads(batch_id)
    assert (row.processing_status, row.error_kind) == ("failed", kind)
    assert (row.embedding_local, row.embedding_model, row.attempts) == (None, None, 2)
    assert len(model_server.calls_of("vision")) == 1, "the description was asked for again"
    assert work.counts(batch_id) == ("completed", 0, 1)


def test_row_28_vectors_that_do_not_fit_the_column_stop_the_run_and_fail_no_upload(
    work, model_server
):
    work = work()
    batch_id = work.submit(*PICTURES[:3])
    model_server.play("embedding", itertools.repeat(Fault.WRONG_DIMENSION))

    result = work.run(batch_id)

    assert sorted(failures(result))[0].startswith(
        "embedding_wrong_length: vectors of qwen3-embedding:0.6b have 768"
    )
    assert_nothing_burned(work, batch_id)
    assert set(work.column(batch_id, "error_kind")) == {"embedding_wrong_length"}
    assert set(work.column(batch_id, "embedding_model")) == {None}
