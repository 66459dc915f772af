"""A change of the embedding model in real batches: search finds everything, and nothing is lost."""

import uuid

import pytest
from sqlalchemy import text

from batch_pipeline.database.models import PauseScope, Stage
from batch_pipeline.errors import RefusedError
from batch_pipeline.orchestration.sweep import sweep_once, work_for_a_sweep
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.pauses import TRUSTED_SECONDS, pause, resume
from batch_pipeline.services.reprocessing import Selection, reprocess
from batch_pipeline.services.search.embedding_spaces import (
    drop,
    key_of_settings,
    overview,
    switch_users,
)
from batch_pipeline.services.search.filters import Filters
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.states.upload_states import StartedUpload
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import Fault, ScriptedModelServer
from batch_pipeline.testing.records import upload_rows

OLD, NEW = "qwen3-embedding:0.6b", "nomic-embed-text:v1.5"
OTHER_USER = uuid.UUID(int=7)


def found(pipeline, question="A wide picture", **filters):
    results = search(
        pipeline.database,
        pipeline.spaces.model_of,
        question,
        filters=Filters(**filters),
        copies=True,
    )
    assert results.by_words_only == ""
    return {hit.filename for hit in results if hit.similarity is not None}


def spaces(pipeline):
    return overview(pipeline.database, key_of_settings(pipeline.settings))


def vectors(pipeline):
    """Return the number of vectors in each space, by model."""
    return {space.model: space.vectors for space in spaces(pipeline)}


def redo_stale(pipeline):
    fingerprint = pipeline.analyzer.embedding.fingerprint()
    selection = Selection(Stage.EMBEDDING, fingerprint_not=fingerprint)
    return reprocess(pipeline.database, pipeline.batches, selection)


def own(work, batch_id, user_id):
    with work.pipeline.database.transaction() as connection:
        for statement in (
            "UPDATE upload_batches SET user_id = :user WHERE id = :id",
            "UPDATE uploads SET user_id = :user WHERE batch_id = :id",
        ):
            connection.execute(text(statement), {"user": user_id, "id": batch_id})


def test_a_change_of_model_finds_the_same_before_during_and_after(work, model_server):
    make, work = work, work(max_concurrent_uploads=1)
    batch_id = work.submit("fog.webp", "sea.jpg", "city.jpg", "night.jpg")
    assert work.run(batch_id).success
    everything = {"fog.webp", "sea.jpg", "city.jpg", "night.jpg"}
    assert found(work.pipeline) == everything
    described = len(model_server.calls_of("vision"))

    # The settings name another model, of another width.
    model_server.embedding_models.append(NEW)
    model_server.cuts_vectors = True
    work = make(max_concurrent_uploads=1, embedding_model=NEW, embedding_dimensions=768)
    pipeline = work.pipeline
    assert found(pipeline) == everything

    # Half of them are embedded again; then the worker dies while it holds another upload.
    redo_stale(pipeline)
    rows = upload_rows(pipeline.database, batch_id)
    work.run(batch_id, upload_ids=[str(row.id) for row in rows[:2]])
    pipeline.states.load_batch(batch_id, "killed", upload_ids=[rows[2].id], limit=1)
    assert isinstance(pipeline.states.start(rows[2].id, "killed"), StartedUpload)
    assert vectors(pipeline) == {OLD: 4, NEW: 2}
    assert found(pipeline) == everything
    assert switch_users(pipeline.database, key_of_settings(pipeline.settings)) == 0
    [old, new] = spaces(pipeline)
    assert (old.users, new.users, new.missing, new.waiting_users) == (1, 0, 2, 1)
    with pytest.raises(RefusedError, match="answers the searches of 1 user"):
        drop(pipeline.database, old.id, key_of_settings(pipeline.settings))

    # Uploads that are new in the meantime are in both spaces.
    more = work.submit("forest.webp")
    assert work.run(more).success
    everything.add("forest.webp")
    assert found(pipeline) == everything
    assert vectors(pipeline) == {OLD: 5, NEW: 3}

    # The sweep releases the upload of the dead worker; the rest follows, nothing is done twice.
    assert pipeline.backlog.rescue(["killed"]).returned == 1
    assert work.run(batch_id).success
    assert vectors(pipeline) == {OLD: 5, NEW: 5}
    assert work_for_a_sweep(work.instance, pipeline, LeftOut())["users to switch"] == 1
    assert sweep_once(work.instance, pipeline, LeftOut())["users_switched"] == 1
    # No picture was described again, and none was embedded twice.
    assert len(model_server.calls_of("vision")) == described + 1
    anew = [text for call in model_server.calls if call.model == NEW for text in call.texts]
    assert len([text for text in anew if text.startswith("search_document: ")]) == 5
    model_server.calls.clear()
    assert found(pipeline) == everything
    [asked] = model_server.calls
    assert (asked.model, asked.texts) == (NEW, ["search_query: A wide picture"])
    # The vectors of the new model do not fit the column of upload APIs.
    assert {row.embedding_local for row in upload_rows(pipeline.database, batch_id)} == {None}

    dropped = drop(pipeline.database, old.id, key_of_settings(pipeline.settings))
    assert dropped.key.model == OLD
    assert found(pipeline) == everything
    assert vectors(pipeline) == {NEW: 5}
    with pytest.raises(RefusedError, match="answers the searches"):
        drop(pipeline.database, new.id, key_of_settings(pipeline.settings))


def test_each_user_is_switched_when_nothing_of_that_user_is_missing(work, model_server):
    make, work = work, work()
    first, second = work.submit("fog.webp"), work.submit("sea.jpg")
    own(work, second, OTHER_USER)
    assert work.run(first).success
    assert work.run(second).success
    user = upload_rows(work.pipeline.database, first)[0].user_id
    model_server.embedding_models.append("bge-m3")
    work = make(embedding_model="bge-m3")
    pipeline = work.pipeline
    redo_stale(pipeline)
    assert work.run(second).success

    assert switch_users(pipeline.database, key_of_settings(pipeline.settings)) == 1

    model_server.calls.clear()
    assert found(pipeline, user_id=OTHER_USER) == {"sea.jpg"}
    assert found(pipeline, user_id=user) == {"fog.webp"}
    assert [call.model for call in model_server.calls] == ["bge-m3", OLD]
    # Both spaces answer a search over all users.
    assert found(pipeline) == {"fog.webp", "sea.jpg"}


def test_a_description_made_meanwhile_is_embedded_before_the_old_model_answers_again(
    work, model_server
):
    make, work = work, work()
    batch_id = work.submit("fog.webp", "sea.jpg")
    assert work.run(batch_id).success
    model_server.embedding_models.append("bge-m3")
    work = make(embedding_model="bge-m3")
    redo_stale(work.pipeline)
    assert work.run(batch_id).success
    assert switch_users(work.pipeline.database, key_of_settings(work.pipeline.settings)) == 1

    [anew, _] = work.column(batch_id, "id")
    selection = Selection(Stage.DESCRIPTION, upload_ids=[anew])
    reprocess(work.pipeline.database, work.pipeline.batches, selection)
    assert work.run(batch_id).success
    assert vectors(work.pipeline) == {OLD: 1, "bge-m3": 2}

    work = make(embedding_model=OLD)
    pipeline = work.pipeline
    assert switch_users(pipeline.database, key_of_settings(pipeline.settings)) == 0
    redo_stale(pipeline)
    assert work.run(batch_id).success
    assert vectors(pipeline) == {OLD: 2, "bge-m3": 2}
    assert switch_users(pipeline.database, key_of_settings(pipeline.settings)) == 1


def test_the_old_model_finds_no_upload_by_a_description_that_was_replaced(work, model_server):
    make, work = work, work()
    batch_id = work.submit("fog.webp", "sea.jpg")
    assert work.run(batch_id).success
    model_server.embedding_models[:] = ["bge-m3"]
    close_analyzers()
    work = make(embedding_model="bge-m3")
    [anew, _] = work.column(batch_id, "id")

    reprocess(
        work.pipeline.database,
        work.pipeline.batches,
        Selection(Stage.DESCRIPTION, upload_ids=[anew]),
    )
    assert work.run(batch_id).success

    assert vectors(work.pipeline) == {OLD: 1, "bge-m3": 1}


def test_old_vectors_go_with_a_description_that_an_upload_api_has_removed(work, model_server):
    make, work = work, work()
    batch_id = work.submit("fog.webp")
    assert work.run(batch_id).success
    model_server.embedding_models.append("bge-m3")
    work = make(embedding_model="bge-m3")
    pipeline = work.pipeline
    redo_stale(pipeline)
    assert work.run(batch_id).success
    assert switch_users(pipeline.database, key_of_settings(pipeline.settings)) == 1

    with pipeline.database.transaction() as connection:
        connection.execute(
            text("UPDATE uploads SET description = NULL, processing_status = 'pending'")
        )
    assert sweep_once(work.instance, pipeline, LeftOut())["uploads_found_in_ended_batches"] == 1
    assert work.run(batch_id).success

    assert vectors(pipeline) == {OLD: 0, "bge-m3": 1}


def test_an_old_model_that_is_gone_leaves_words_and_new_uploads_are_completed(work, model_server):
    make, work = work, work()
    batch_id = work.submit("fog.webp")
    assert work.run(batch_id).success
    model_server.embedding_models[:] = ["bge-m3"]
    close_analyzers()
    work = make(embedding_model="bge-m3")
    pipeline = work.pipeline
    more = work.submit("sea.jpg")
    assert work.run(more).success

    results = search(pipeline.database, pipeline.spaces.model_of, "fog.webp")

    assert [hit.filename for hit in results] == ["fog.webp"]
    assert f"{OLD}, which embeds questions, cannot be asked" in results.by_words_only
    assert vectors(pipeline) == {OLD: 1, "bge-m3": 1}
    redo_stale(pipeline)
    assert work.run(batch_id).success
    assert switch_users(pipeline.database, key_of_settings(pipeline.settings)) == 1
    assert found(pipeline) == {"fog.webp", "sea.jpg"}


def test_a_pause_between_the_embeddings_for_two_spaces_lets_the_upload_wait_for_both(
    work, model_server
):
    make, work = work, work()
    assert work.run(work.submit("fog.webp")).success
    model_server.embedding_models.append("bge-m3")
    work = make(embedding_model="bge-m3")
    pipeline = work.pipeline
    more = work.submit("sea.jpg")

    def pause_while_the_new_model_answers():
        pause(pipeline.database, pipeline.settings, PauseScope.EVERYTHING)
        yield None

    model_server.latency_seconds = 2 * TRUSTED_SECONDS
    model_server.play("embedding", pause_while_the_new_model_answers())
    work.run(more)
    assert work.column(more, "processing_status") == ["pending"]

    resume(pipeline.database, PauseScope.EVERYTHING)
    assert work.run(more).success
    assert vectors(pipeline) == {OLD: 2, "bge-m3": 1}
    assert found(pipeline) == {"fog.webp", "sea.jpg"}


@pytest.mark.parametrize("dialect", ["openai"], indirect=True)
def test_a_pause_of_the_old_models_server_alone_holds_nothing_up(work, model_server):
    make, work = work, work()
    assert work.run(work.submit("fog.webp")).success
    old = model_server.openai_url
    pause(work.pipeline.database, work.pipeline.settings, PauseScope.SERVER, old)
    with ScriptedModelServer() as new:
        new.embedding_models[:] = ["bge-m3"]
        work = make(embedding_model="bge-m3", openai_base_url=new.openai_url)
        assert work.run(more := work.submit("sea.jpg")).success
    assert work.column(more, "processing_status") == ["completed"]
    assert vectors(work.pipeline) == {OLD: 1, "bge-m3": 1}


def test_an_upload_whose_new_embedding_fails_is_still_found(work, model_server):
    make, work = work, work()
    batch_id = work.submit("fog.webp", "sea.jpg")
    assert work.run(batch_id).success
    model_server.embedding_models.append("bge-m3")
    work = make(embedding_model="bge-m3", max_attempts=1)
    pipeline = work.pipeline
    redo_stale(pipeline)
    model_server._faults["embedding"] = iter([None, Fault.NAN])
    work.run(batch_id)

    assert sorted(work.column(batch_id, "processing_status")) == ["completed", "failed"]
    assert found(pipeline) == {"fog.webp", "sea.jpg"}
    # It is retried later; the old space answers until then.
    assert switch_users(pipeline.database, key_of_settings(pipeline.settings)) == 0


def test_the_commands_list_spaces_and_drop_one(work, model_server, console):
    make, work = work, work()
    batch_id = work.submit("fog.webp")
    assert work.run(batch_id).success
    model_server.embedding_models.append("bge-m3")
    work = make(embedding_model="bge-m3")
    redo_stale(work.pipeline)
    assert work.run(batch_id).success
    new = {"BATCH_PIPELINE_EMBEDDING_MODEL": "bge-m3", "BATCH_PIPELINE_ANALYZER": "ollama"}

    listed = console("spaces", "--json", **new).json

    assert [(one["model"], one["users"], one["is_current"]) for one in listed] == [
        (OLD, 1, False),
        ("bge-m3", 0, True),
    ]
    shown = console("spaces", **new).out
    assert "0 uploads missing. Older spaces answer 1 user meanwhile." in shown
    old = listed[0]["id"]
    refused = console("spaces", "drop", old, **new)
    assert (refused.code, "answers the searches of 1 user" in refused.err) == (2, True)
    switch_users(work.pipeline.database, key_of_settings(work.pipeline.settings))
    assert (
        f"Space {old} answers nobody:  batch-pipeline spaces drop {old}"
        in console("spaces", **new).out
    )
    assert console("spaces", "drop", old, "--json", **new).json == {
        "dropped": old,
        "model": OLD,
        "dimensions": 1024,
    }
    assert console("spaces", "drop", old, **new).code == 2
