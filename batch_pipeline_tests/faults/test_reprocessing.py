"""Redoing one stage: the others are not repeated, and nothing is lost if it fails."""

import pytest
from sqlalchemy import func, update

from batch_pipeline.database.models import Stage, Upload
from batch_pipeline.errors import RefusedError
from batch_pipeline.services import upload_processing
from batch_pipeline.services.reprocessing import Selection, reprocess
from batch_pipeline.services.search.queries import search
from batch_pipeline.testing.model_server import Fault
from batch_pipeline.testing.records import add_batch, batch_row, upload_rows

from .conftest import failures


def redo(work, stage, **selected):
    return reprocess(work.pipeline.database, work.pipeline.batches, Selection(stage, **selected))


@pytest.fixture
def done(work, model_server):
    """Two pictures and their batch, fully processed; the log of calls is empty again."""
    work = work()
    batch_id = work.submit("fog.webp", "sea.jpg")
    [result] = work.run_what_is_asked_for()
    assert result.success
    model_server.calls.clear()
    return work, batch_id


def nothing_is_decoded(*_):
    raise AssertionError("the file was decoded again")


def test_a_new_embedding_neither_decodes_nor_describes_again(done, model_server, monkeypatch):
    work, batch_id = done
    with work.pipeline.database.transaction() as connection:
        connection.execute(update(Upload).values(embedding_model="old", thumbnail_path=None))
    monkeypatch.setattr(upload_processing, "decode", nothing_is_decoded)
    before = work.column(batch_id, "description")

    [reopened] = redo(work, Stage.EMBEDDING, model_not="qwen3-embedding:0.6b")

    assert (reopened.uploads, reopened.progress.status) == (2, "processing")
    assert work.counts(batch_id) == ("processing", 0, 0)
    tick = work.tick()
    [request] = tick.run_requests
    assert request.tags["batch_pipeline/reason"] == "reprocess"
    [result] = work.run_what_is_asked_for(tick)
    assert result.success
    assert work.counts(batch_id) == ("completed", 2, 0)
    assert model_server.calls_of("vision") == []
    assert sorted(call.texts[0] for call in model_server.calls_of("embedding")) == sorted(before)
    assert work.column(batch_id, "description") == before
    assert set(work.column(batch_id, "embedding_model")) == {"qwen3-embedding:0.6b"}
    assert work.column(batch_id, "redo") == [[], []]
    with pytest.raises(RefusedError, match="nothing to redo"):
        redo(work, Stage.EMBEDDING, model_not="qwen3-embedding:0.6b")


def test_a_new_thumbnail_calls_no_model(done, model_server):
    work, batch_id = done
    paths = work.column(batch_id, "thumbnail_path")
    for path in paths:
        work.pipeline.storage.write(path, b"old")
    before = [list(vector) for vector in work.column(batch_id, "embedding_local")]

    redo(work, Stage.THUMBNAIL)
    [result] = work.run_what_is_asked_for()

    assert result.success
    assert model_server.calls == []
    assert all(work.pipeline.storage.read(path).startswith(b"\xff\xd8") for path in paths)
    assert [list(vector) for vector in work.column(batch_id, "embedding_local")] == before
    assert work.counts(batch_id) == ("completed", 2, 0)


@pytest.mark.parametrize("stage", [Stage.EMBEDDING, Stage.THUMBNAIL])
def test_a_description_that_an_upload_api_has_stored_without_a_score_is_kept(
    done, model_server, stage
):
    work, batch_id = done
    with work.pipeline.database.transaction() as connection:
        told = {"description": "Grandma at the sea.", "description_audit_score": None}
        connection.execute(update(Upload).values(told))

    redo(work, stage)
    [result] = work.run_what_is_asked_for()

    assert result.success
    assert model_server.calls_of("vision") == []
    assert set(work.column(batch_id, "description")) == {"Grandma at the sea."}
    assert work.counts(batch_id) == ("completed", 2, 0)


def test_a_description_without_a_score_is_kept_if_the_first_attempt_ends_after_the_thumbnail(
    done, model_server
):
    work, batch_id = done
    with work.pipeline.database.transaction() as connection:
        told = {"description": "Grandma at the sea.", "description_audit_score": None}
        connection.execute(update(Upload).values(told | {"embedding_model": None}))
    model_server.play("embedding", [Fault.NAN] * 2)

    redo(work, Stage.THUMBNAIL)
    [result] = work.run_what_is_asked_for()

    assert result.success
    assert work.column(batch_id, "attempts") == [2, 2]
    assert model_server.calls_of("vision") == []
    assert set(work.column(batch_id, "description")) == {"Grandma at the sea."}
    assert work.column(batch_id, "redo") == [[], []]


def test_a_new_description_gets_a_new_embedding_and_keeps_the_thumbnail(done, model_server):
    work, batch_id = done
    first, second = work.uploads(batch_id)

    redo(work, Stage.DESCRIPTION, upload_ids=[first.id])
    work.run_what_is_asked_for()

    assert [call.kind for call in model_server.calls] == ["vision", "embedding"]
    assert work.column(batch_id, "regeneration_count") == [1, 0]
    assert work.column(batch_id, "updated_at")[1] == second.updated_at
    assert work.counts(batch_id) == ("completed", 2, 0)


def test_a_new_description_is_embedded_even_if_its_first_attempt_ends_in_between(
    done, model_server
):
    work, batch_id = done
    first, _ = work.uploads(batch_id)
    model_server.play("embedding", [Fault.NAN])

    redo(work, Stage.DESCRIPTION, upload_ids=[first.id])
    work.run_what_is_asked_for()

    kinds = [call.kind for call in model_server.calls]
    assert kinds == ["vision", "embedding", "embedding"]
    assert work.counts(batch_id) == ("completed", 2, 0)


def test_old_results_stay_and_are_found_until_the_new_ones_are_stored(done, model_server):
    work, batch_id = done
    redo(work, Stage.DESCRIPTION)
    first, _ = work.uploads(batch_id)

    found = search(work.pipeline.database, work.pipeline.spaces.model_of, first.description)

    assert found[0].upload_id == first.id
    assert found[0].similarity > 0.8  # a question has a prefix


def test_a_redo_that_fails_leaves_the_old_results_and_a_retry_redoes_it(done, model_server):
    work, batch_id = done
    before, _ = work.uploads(batch_id)
    model_server.refuse = lambda _: (403, "Your input was flagged by the content policy")

    redo(work, Stage.DESCRIPTION, upload_ids=[before.id])
    [result] = work.run_what_is_asked_for()

    assert failures(result)[0].startswith("fog.webp: model_refused_input")
    failed, _ = work.uploads(batch_id)
    assert failed.processing_status == "failed"
    assert failed.description == before.description
    assert list(failed.embedding_local) == list(before.embedding_local)
    assert work.counts(batch_id) == ("completed", 1, 1)

    model_server.refuse = lambda _: None
    work.pipeline.batches.retry_batch(batch_id)
    work.run_what_is_asked_for()
    assert len(model_server.calls_of("vision")) == 2
    assert work.column(batch_id, "regeneration_count") == [1, 0]
    assert work.counts(batch_id) == ("completed", 2, 0)


def done_batch(pipeline, uploads, **values):
    batch_id = add_batch(
        pipeline.database,
        [{"processing_status": "completed", **upload} for upload in uploads],
        **{
            "status": "completed",
            "processed_uploads": len(uploads),
            "successful_uploads": len(uploads),
            "completed_at": func.now(),
            **values,
        },
    )
    return batch_id, [row.id for row in upload_rows(pipeline.database, batch_id)]


@pytest.mark.parametrize(
    ("stage", "column"),
    [(Stage.DESCRIPTION, "vision_model"), (Stage.EMBEDDING, "embedding_model")],
)
def test_uploads_are_selected_by_the_model_of_the_stage_and_a_missing_model_differs(
    pipeline, stage, column
):
    models = ["new", "old", None]
    batch_id, (new, old, none) = done_batch(pipeline, [{column: model} for model in models])

    reprocess(pipeline.database, pipeline.batches, Selection(stage, model_not="new"))

    rows = {row.id: row for row in upload_rows(pipeline.database, batch_id)}
    assert rows[new].processing_status == "completed"
    assert {rows[id_].processing_status for id_ in (old, none)} == {"pending"}
    assert rows[old].redo == [stage]
    batch = batch_row(pipeline.database, batch_id)
    assert (batch.status, batch.successful_uploads) == ("processing", 1)
    assert batch.completed_at is None


def test_only_completed_uploads_of_batches_that_are_not_cancelled_are_redone(pipeline):
    cancelled, _ = done_batch(pipeline, [{}], status="cancelled")
    mixed, (_, failed, waiting) = done_batch(
        pipeline,
        [{}, {"processing_status": "failed"}, {"processing_status": "pending"}],
        status="processing",
    )

    [reopened] = reprocess(pipeline.database, pipeline.batches, Selection(Stage.EMBEDDING))

    assert (reopened.progress.batch_id, reopened.uploads) == (mixed, 1)
    assert {row.id: row.redo for row in upload_rows(pipeline.database, mixed)}[failed] == []
    assert {row.id: row.redo for row in upload_rows(pipeline.database, mixed)}[waiting] == []
    assert upload_rows(pipeline.database, cancelled)[0].processing_status == "completed"


@pytest.fixture
def command(console):
    return lambda *arguments: console("reprocess", *arguments)


def test_the_command_says_what_it_reopened(pipeline, command):
    mine, _ = done_batch(pipeline, [{}, {}])
    done_batch(pipeline, [{}])

    result = command("--stage", "embedding", "--batch", str(mine), "--json")

    assert result.code == 0, result.err
    assert (result.json["stage"], result.json["reopened"]) == ("embedding", 2)
    assert [batch["batch_id"] for batch in result.json["batches"]] == [str(mine)]


@pytest.mark.parametrize(
    ("arguments", "answer", "redone"),
    [
        (["--stage", "embedding"], "n", 0),
        (["--stage", "embedding"], "y", 3),
        (["--stage", "embedding", "--yes"], None, 3),
        (["--stage", "embedding", "--kind", "image"], None, 3),
    ],
)
def test_in_a_terminal_the_command_asks_before_it_redoes_everything(
    pipeline, console, arguments, answer, redone
):
    batch_ids = [done_batch(pipeline, [{}, {}])[0], done_batch(pipeline, [{}])[0]]

    with console.in_terminal("reprocess", *arguments) as terminal:
        if answer:
            terminal.wait_until(lambda text: "Redo all of them? [y/N]:" in text)
            terminal.enter(answer)
        code = terminal.wait()

    assert code == (0 if redone else 2), terminal.text
    assert ("3 uploads in 2 batches would be redone" in terminal.text) == bool(answer)
    rows = [row for batch_id in batch_ids for row in upload_rows(pipeline.database, batch_id)]
    assert [row.processing_status for row in rows].count("pending") == redone


def test_outside_a_terminal_the_command_redoes_everything_without_a_question(pipeline, command):
    done_batch(pipeline, [{}, {}])

    result = command("--stage", "embedding", "--json")

    assert (result.code, result.json["reopened"]) == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "embedding"], "nothing to redo: no completed upload is there"),
        (
            ["--stage", "embedding", "--model-not", "qwen3-embedding:0.6b"],
            "no completed upload has its embedding from another model than qwen3-embedding:0.6b",
        ),
        (["--stage", "thumbnail", "--model-not", "x"], "thumbnails are made without a model"),
        (["--stage", "embedding", "--batch", "0" * 32], "there is no batch 00000000-"),
        (["--stage", "embedding", "--upload", "0" * 32], "there is no upload 00000000-"),
    ],
)
def test_the_command_refuses_what_selects_nothing_and_says_why(pipeline, command, arguments, said):
    result = command(*arguments)

    assert result.code == 2
    assert said in result.err.replace("\n", " ")
