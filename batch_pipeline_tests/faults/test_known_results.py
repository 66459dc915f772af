"""Fingerprints in real batches: no result is paid for twice, and stale results are found."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from batch_pipeline.database.models import Stage
from batch_pipeline.errors import RefusedError, ServiceDownError
from batch_pipeline.orchestration.assets import upload_analysis
from batch_pipeline.orchestration.sweep import sweep_once, work_for_a_sweep
from batch_pipeline.services.descriptions.known_results import (
    count_known,
    forget_old_notes,
    look_up,
)
from batch_pipeline.services.one_by_one import LeftOut
from batch_pipeline.services.reprocessing import Selection, reprocess
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import CompletedUpload, UploadProcessor
from batch_pipeline.testing import media
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline.testing.model_server import Fault

PICTURE = "sea.jpg"
OTHER_USER = uuid.UUID(int=7)


def calls(model_server, kind="vision"):
    """Return the calls for uploads, without the call that finds the length of vectors."""
    return [call for call in model_server.calls_of(kind) if call.texts != ["check"]]


def own(work, batch_id, user_id):
    """Give a batch and its uploads to another user."""
    with work.pipeline.database.transaction() as connection:
        for table, column in (("upload_batches", "id"), ("uploads", "batch_id")):
            connection.execute(
                text(f"UPDATE {table} SET user_id = :user WHERE {column} = :id"),
                {"user": user_id, "id": batch_id},
            )


def of_another_model(work, model_server, dialect):
    """Change the model behind the name; how that is noticed depends on the dialect."""
    model_server.digests["qwen3-vl:8b-instruct"] = "sha256:ffff0000"
    close_analyzers()
    work.pipeline.__dict__.pop("analyzer", None)
    if dialect == "openai":  # the protocol has no digest; the options change instead
        return {"vision_options": '{"top_p": 0.5}'}
    return {}


def test_the_same_bytes_are_described_and_embedded_once(work, model_server):
    model_server.structured = True
    work = work(max_concurrent_uploads=1)
    first = work.submit(PICTURE)
    assert work.run(first).success
    again = work.submit(PICTURE, "city.jpg")

    assert count_known(work.pipeline, again) == 1
    result = work.run(again)

    assert result.success
    assert len(calls(model_server)) == len(calls(model_server, "embedding")) == 2
    [one], [same, _] = work.uploads(first), work.uploads(again)
    for column in (
        "description", "description_audit_score", "vision_tags", "visible_text", "vision_model",
        "vision_fingerprint", "embedding_fingerprint", "embedding_model", "metadata",
    ):  # fmt: skip
        assert getattr(same, column) == getattr(one, column), column
    assert list(same.embedding_local) == list(one.embedding_local)
    assert same.thumbnail_path != one.thumbnail_path
    copied = [
        entry.asset_materialization.metadata["copied_from"].value
        for entry in work.instance.all_logs(result.run_id)
        if entry.asset_materialization
        and entry.asset_materialization.asset_key == upload_analysis.key
        and "copied_from" in entry.asset_materialization.metadata
    ]
    assert copied == [str(one.id)]

    database, model_of = work.pipeline.database, work.pipeline.spaces.model_of
    shown = search(database, model_of, one.description)
    assert len({hit.upload_id for hit in shown} & {one.id, same.id}) == 1
    everything = search(database, model_of, one.description, copies=True)
    assert {one.id, same.id} <= {hit.upload_id for hit in everything}


def test_results_of_another_user_are_reused_only_if_a_setting_allows_it(work, model_server):
    first_work = work(max_concurrent_uploads=1)
    first = first_work.submit(PICTURE)
    own(first_work, first, OTHER_USER)
    assert first_work.run(first).success
    second = first_work.submit(PICTURE)

    assert count_known(first_work.pipeline, second) == 0
    assert first_work.run(second).success
    assert len(calls(model_server)) == 2

    sharing = work(max_concurrent_uploads=1, share_results=True)
    third = sharing.submit(PICTURE)
    own(sharing, third, uuid.UUID(int=9))
    assert count_known(sharing.pipeline, third) == 1
    assert sharing.run(third).success
    assert len(calls(model_server)) == 2


def test_uploads_of_an_api_that_has_no_users_are_known_to_the_local_user(work):
    work = work(max_concurrent_uploads=1)
    first = work.submit(PICTURE)
    assert work.run(first).success
    with work.pipeline.database.transaction() as connection:
        connection.execute(text("ALTER TABLE uploads ALTER user_id DROP NOT NULL"))
        connection.execute(text("UPDATE uploads SET user_id = NULL"))
    assert count_known(work.pipeline, work.submit(PICTURE)) == 1


def test_results_of_another_model_are_stale_and_are_made_again(work, model_server, dialect):
    old = work(max_concurrent_uploads=1)
    stale = old.submit(PICTURE, "city.jpg")
    assert old.run(stale).success
    changed = of_another_model(old, model_server, dialect)
    new = work(max_concurrent_uploads=1, **changed)
    fresh = new.submit(PICTURE)

    assert count_known(new.pipeline, fresh) == 0
    assert new.run(fresh).success
    assert len(calls(model_server)) == 3

    current = new.pipeline.analyzer.vision.fingerprint()
    assert new.column(fresh, "vision_fingerprint") == [current]
    assert current not in new.column(stale, "vision_fingerprint")
    selection = Selection(Stage.DESCRIPTION, fingerprint_not=current)
    [reopened] = reprocess(new.pipeline.database, new.pipeline.batches, selection)
    assert (reopened.uploads, reopened.progress.batch_id) == (2, stale)
    new.run_what_is_asked_for()

    assert set(new.column(stale, "vision_fingerprint")) == {current}
    # One of the two already has a new description: a copy is enough.
    assert len(calls(model_server)) == 4
    with pytest.raises(RefusedError, match="nothing to redo"):
        reprocess(new.pipeline.database, new.pipeline.batches, selection)


def test_a_fingerprint_contains_prompts_language_and_options_but_not_slots(work, tmp_path):
    (tmp_path / "image.txt").write_text("What is it?")
    plain = work().pipeline.analyzer.vision.fingerprint()
    unlike = [
        work(**changed).pipeline.analyzer.vision.fingerprint()
        for changed in (
            {"prompts": tmp_path},
            {"prompts": "", "language": "de"},
            {"language": "", "vision_options": '{"top_p": 0.1}'},
            {"vision_options": "", "vision_longest_side": 640},
        )
    ]
    like = work(vision_longest_side=1568, max_vision_calls=7).pipeline.analyzer.vision.fingerprint()

    assert len({plain, *unlike}) == 5
    assert like == plain
    assert plain.startswith("qwen3-vl:8b-instruct")


def test_a_description_that_is_requested_again_is_a_new_one(work, model_server):
    work = work(max_concurrent_uploads=1)
    first, again = work.submit(PICTURE), work.submit(PICTURE)
    for batch_id in (first, again):
        assert work.run(batch_id).success
    assert len(calls(model_server)) == 1

    reprocess(work.pipeline.database, work.pipeline.batches, Selection(Stage.DESCRIPTION, [again]))
    work.run_what_is_asked_for()

    assert len(calls(model_server)) == 2


def test_a_copy_of_a_description_whose_vector_is_not_made_yet_is_embedded_itself(
    work, model_server
):
    work = work(max_concurrent_uploads=1)
    first = work.submit(PICTURE)
    assert work.run(first).success
    with work.pipeline.database.transaction() as connection:  # a redo before its second store
        connection.execute(text("UPDATE uploads SET description = 'A kite.', redo = '{embedding}'"))

    again = work.submit(PICTURE)
    assert work.run(again).success

    assert work.column(again, "description") == ["A kite."]
    assert [call.texts for call in calls(model_server, "embedding")][1:] == [["A kite."]]


def test_an_upload_whose_row_has_no_checksum_gets_one(work, model_server):
    work = work(max_concurrent_uploads=1)
    first, again = work.submit(PICTURE), work.submit(PICTURE)
    checksums = work.column(first, "checksum")
    with work.pipeline.database.transaction() as connection:
        connection.execute(text("UPDATE uploads SET checksum = NULL"))

    for batch_id in (first, again):
        assert work.run(batch_id).success

    assert work.column(first, "checksum") == work.column(again, "checksum") == checksums
    assert len(calls(model_server)) == 1


@pytest.mark.parametrize("kind", ["picture", "film"])
def test_a_replaced_file_has_its_own_checksum(work, model_server, tmp_path, kind):
    """Otherwise the description of the new file would be copied to uploads of the old one."""
    work = work(max_concurrent_uploads=1)
    first, second = Path(PICTURE), Path("city.jpg")
    if kind == "film":
        first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
        first.write_bytes(media.make_video("mp4", 1))
        second.write_bytes(media.make_video("mp4", 2))
    replaced, unchanged = work.submit(first), work.submit(second)
    assert work.run(replaced).success
    [path], [other] = work.column(replaced, "file_path"), work.column(unchanged, "file_path")
    work.pipeline.storage.write(path, work.pipeline.storage.read(other))
    with work.pipeline.database.transaction() as connection:
        connection.execute(
            text(
                "UPDATE uploads SET processing_status = 'pending', description = NULL "
                "WHERE batch_id = :id"
            ),
            {"id": replaced},
        )
    work.pipeline.backlog.reopen_ended()
    assert work.run(replaced).success
    old_bytes, before = work.submit(first), len(calls(model_server))

    assert work.run(old_bytes).success

    assert len(calls(model_server)) > before
    assert work.column(replaced, "checksum") == work.column(unchanged, "checksum")
    found = search(work.pipeline.database, work.pipeline.spaces.model_of, "picture")
    assert [hit.copies for hit in found] == [[], []]


def copies_in_one_batch(work, count, *others):
    """Add a batch like an upload API, with copies of one picture that `submit` would refuse."""
    batch_id = work.submit(PICTURE, *others)
    with work.pipeline.database.transaction() as connection:
        for _ in range(count - 1):
            connection.execute(
                text(
                    "INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, "
                    "file_size) SELECT user_id, batch_id, 'copy.jpg', file_path, file_type, "
                    "file_size FROM uploads WHERE batch_id = :id AND filename = :name LIMIT 1"
                ),
                {"id": batch_id, "name": PICTURE},
            )
    return batch_id


def test_copies_in_progress_at_the_same_time_are_described_once(work, model_server):
    model_server.latency_seconds = 0.5
    work = work(max_concurrent_uploads=6)
    batch_id = copies_in_one_batch(work, 5, "city.jpg")

    assert work.run(batch_id).success

    assert work.counts(batch_id) == ("completed", 6, 0)
    assert len(calls(model_server)) == 2
    assert len(set(work.column(batch_id, "description"))) == 2


def test_copies_of_two_runs_are_described_once(work, model_server):
    model_server.latency_seconds = 1.0
    work = work(max_concurrent_uploads=2)
    batches = [work.submit(PICTURE) for _ in range(3)]

    def process(batch_id):
        run_id, [upload_id] = str(batch_id), work.column(batch_id, "id")
        with ClaimKeeper(work.pipeline.states, run_id, lease_seconds=60) as keeper:
            return UploadProcessor(work.pipeline, keeper).process(upload_id, run_id, retries_left=0)

    with ThreadPoolExecutor(3) as runs:
        outcomes = list(runs.map(process, batches))

    assert all(isinstance(outcome, CompletedUpload) for outcome in outcomes)
    assert [work.counts(batch_id) for batch_id in batches] == [("completed", 1, 0)] * 3
    assert len(calls(model_server)) == 1


def test_a_copy_takes_over_when_the_first_attempt_fails(work, model_server):
    model_server.latency_seconds = 0.3
    # The first waits longer for its next attempt than the others, which hold all the threads.
    work = work(max_concurrent_uploads=2, retry_base_seconds=3)
    model_server.play("vision", [Fault.EMPTY])
    batch_id = copies_in_one_batch(work, 3)

    assert work.run(batch_id).success

    assert work.counts(batch_id) == ("completed", 3, 0)
    assert len(calls(model_server)) == 2
    assert len(set(work.column(batch_id, "description"))) == 1


def test_a_description_that_was_stored_before_the_embedding_failed_is_reused(work, model_server):
    work = work(max_concurrent_uploads=1)
    model_server.play("embedding", [Fault.WRONG_DIMENSION] * 100)
    first = work.submit(PICTURE)
    work.run(first)
    assert work.counts(first)[1] == 0
    assert all(work.column(first, "description"))
    model_server.play("embedding", [])

    second = work.submit(PICTURE)
    assert work.run(second).success

    assert len(calls(model_server)) == 1
    assert work.column(second, "description") == work.column(first, "description")


def test_a_note_of_a_dead_claim_delays_no_other_upload(work, model_server):
    work = work(max_concurrent_uploads=1)
    first, second = work.submit(PICTURE), work.submit(PICTURE)
    fingerprint = work.pipeline.analyzer.vision.fingerprint()
    [checksum] = work.column(first, "checksum")
    [upload_id] = work.column(first, "id")
    claims = [work.pipeline.states.start(upload_id, "one"), None]
    [other_id] = work.column(second, "id")
    claims[1] = work.pipeline.states.start(other_id, "two")

    def look(started):
        return look_up(
            work.pipeline.database, started.claim, started.row, checksum, fingerprint,
            of_all_users=False, lease_seconds=60,
        )  # fmt: skip

    assert look(claims[0]).is_ours_to_make
    assert not look(claims[1]).is_ours_to_make
    with work.pipeline.database.transaction() as connection:
        connection.execute(
            text("UPDATE uploads SET heartbeat_at = now() - interval '2 min' WHERE id = :id"),
            {"id": upload_id},
        )
    assert look(claims[1]).is_ours_to_make
    assert not look(claims[0]).is_ours_to_make
    assert forget_old_notes(work.pipeline.database) == 0
    with work.pipeline.database.transaction() as connection:
        connection.execute(
            text("UPDATE descriptions_in_work SET taken_at = now() - interval '25 hours'")
        )
    assert forget_old_notes(work.pipeline.database) == 1


@pytest.mark.parametrize("emptied", ["", None])
def test_a_description_that_an_upload_api_has_emptied_is_made_again(work, model_server, emptied):
    work = work(max_concurrent_uploads=1)
    first, again = work.submit(PICTURE), work.submit(PICTURE)
    assert work.run(first).success
    with work.pipeline.database.transaction() as connection:
        connection.execute(
            text("UPDATE uploads SET description = :emptied WHERE batch_id = :id"),
            {"emptied": emptied, "id": first},
        )

    assert work.run(again).success

    assert len(calls(model_server)) == 2
    assert all(work.column(again, "description"))


def test_a_server_that_cannot_be_asked_makes_nothing_stale(work, model_server):
    work = work(max_concurrent_uploads=1, refresh_stale=10)
    batch_id = work.submit(PICTURE)
    assert work.run(batch_id).success
    close_analyzers()
    work.pipeline.__dict__.pop("analyzer", None)
    model_server.stop()

    with pytest.raises(ServiceDownError):
        work.pipeline.analyzer.vision.fingerprint()
    assert "uploads_refreshed" not in sweep_once(work.instance, work.pipeline, LeftOut())
    assert work.column(batch_id, "processing_status") == ["completed"]
    model_server.start()


def test_the_sweep_refreshes_the_set_number_at_a_time(work, model_server, dialect):
    old = work(max_concurrent_uploads=1)
    batch_id = old.submit(PICTURE, "city.jpg", "night.jpg")
    assert old.run(batch_id).success
    left_out = LeftOut()
    assert sweep_once(old.instance, old.pipeline, left_out).get("uploads_refreshed", 0) == 0
    changed = of_another_model(old, model_server, dialect)
    new = work(max_concurrent_uploads=1, refresh_stale=2, **changed)

    assert work_for_a_sweep(new.instance, new.pipeline, left_out) == {"stale uploads": 2}
    assert sweep_once(new.instance, new.pipeline, left_out)["uploads_refreshed"] == 2
    new.run_what_is_asked_for()
    assert sweep_once(new.instance, new.pipeline, left_out)["uploads_refreshed"] == 1
    new.run_what_is_asked_for()

    assert new.counts(batch_id) == ("completed", 3, 0)
    current = new.pipeline.analyzer.vision.fingerprint()
    assert set(new.column(batch_id, "vision_fingerprint")) == {current}
    assert work_for_a_sweep(new.instance, new.pipeline, left_out) == {}
    assert not left_out


def test_the_commands_say_what_is_known_and_redo_what_is_stale(
    work, model_server, console, tmp_path
):
    work = work(max_concurrent_uploads=1)
    assert work.run(work.submit(PICTURE)).success
    folder = tmp_path / "files"
    folder.mkdir()
    source = work.pipeline.storage.open(work.uploads(newest(work))[0].file_path)
    (folder / "copy.jpg").write_bytes(source.read())
    variables = {
        "BATCH_PIPELINE_ANALYZER": "ollama",
        "BATCH_PIPELINE_OLLAMA_HOST": model_server.ollama_url,
    }

    said = console("submit", folder, **variables)
    as_json = console("submit", folder, "--json", **variables)
    nothing = console("reprocess", "--stage", "description", "--stale", **variables)
    model_server.digests["qwen3-vl:8b-instruct"] = "sha256:ffff0000"
    redone = console("reprocess", "--stage", "description", "--stale", "--json", **variables)
    thumbnails = console("reprocess", "--stage", "thumbnail", "--stale", **variables)

    assert "1 file already known: not described again." in said.out
    assert as_json.json["known"] == 1
    assert (nothing.code, "nothing to redo" in nothing.err) == (2, True)
    assert redone.json["reopened"] == 1
    assert (thumbnails.code, "leave --stale out" in thumbnails.err) == (2, True)


def newest(work):
    with work.pipeline.database.transaction() as connection:
        return connection.scalar(
            text("SELECT id FROM upload_batches ORDER BY created_at DESC LIMIT 1")
        )
