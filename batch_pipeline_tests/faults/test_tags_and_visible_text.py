"""Answers with fields in a real batch: what is stored, where it is shown, what is refused."""

import uuid

import dagster as dg
import pytest

from batch_pipeline.orchestration.assets import upload_analysis
from batch_pipeline.services.reports.batch_status import batch_status
from batch_pipeline.services.reports.report_page import read_report, render_html
from batch_pipeline.services.search.filters import Filters
from batch_pipeline.services.search.queries import search
from batch_pipeline.testing.model_server import VISIBLE_TEXT, Fault

from .conftest import both_dialects, failures

STORED = ["sunset", "harbour", "red boat", "rtl", "two people"]


@both_dialects
def test_tags_and_visible_text_are_stored_shown_and_found(work, model_server):
    model_server.structured = True
    work = work(max_concurrent_uploads=2)
    batch_id = work.submit("sea.jpg", "ball_on_meadow.mp4")

    result = work.run(batch_id)

    assert result.success
    for row in work.uploads(batch_id):
        assert (row.vision_tags, row.visible_text) == (STORED, VISIBLE_TEXT)
        assert row.metadata["tags"] == STORED
        assert row.metadata["visible_text"] == VISIBLE_TEXT
        assert row.metadata["format"]
        assert "{" not in row.description
    database = work.pipeline.database
    shown = [
        entry.asset_materialization.metadata
        for entry in work.instance.all_logs(result.run_id)
        if entry.asset_materialization
        and entry.asset_materialization.asset_key == upload_analysis.key
    ]
    assert {metadata["tags"] for metadata in shown} == {
        dg.MetadataValue.text(", ".join(STORED)),
    }
    assert {metadata["visible_text"].value for metadata in shown} == {VISIBLE_TEXT}
    status = batch_status(database, batch_id)["uploads"][0]
    assert (status["tags"], status["visible_text"]) == (STORED, VISIBLE_TEXT)
    page = render_html(read_report(database, work.pipeline.storage, batch_id))
    assert "<bdi>red boat</bdi>" in page
    assert VISIBLE_TEXT in page

    model_of = work.pipeline.spaces.model_of
    both = search(database, model_of, "harbour", filters=Filters(tags=["Red_Boat", "#sunset"]))
    assert len(both) == 2
    assert (both[0].tags, both[0].visible_text) == (STORED, VISIBLE_TEXT)
    assert search(database, model_of, "harbour", filters=Filters(tags=["red boat", "cat"])) == []
    quoted = search(database, model_of, f'"{VISIBLE_TEXT}"')
    assert {hit.found_by for hit in quoted} == {"phrase"}
    worded = search(database, model_of, "two people harbour")
    assert {hit.found_by for hit in worded} == {"words"}
    assert len(search(database, model_of, "sea", filters=Filters(has_text=True))) == 2


@pytest.mark.parametrize("fault", [Fault.NOT_IN_FIELDS, Fault.CUT_FIELDS])
def test_an_answer_that_is_not_in_fields_is_retried_and_never_stored(work, model_server, fault):
    model_server.structured = True
    work = work(max_concurrent_uploads=1)
    model_server.play("vision", [fault, None, fault, fault])
    retried, failed = work.submit("sea.jpg"), work.submit("city.jpg")

    assert work.run(retried).success
    refused = work.run(failed)

    assert work.column(retried, "attempts") == [2]
    assert work.column(retried, "vision_tags") == [STORED]
    assert work.counts(failed) == ("completed", 0, 1)
    assert work.column(failed, "error_kind") == ["model_output_invalid"]
    assert "is not the JSON that was asked for" in failures(refused)[-1]
    [row] = work.uploads(failed)
    assert (row.description, row.vision_tags, row.visible_text) == (None, [], None)
    seeds = [
        call.body.get("options", call.body)["seed"] for call in model_server.calls_of("vision")
    ]
    assert len(set(seeds)) == 2, "another attempt is another seed"


def test_a_plain_description_removes_the_tags_of_an_older_one(work, model_server):
    model_server.structured = True
    work = work(max_concurrent_uploads=1)
    batch_id = work.submit("sea.jpg")
    work.run(batch_id)
    assert work.column(batch_id, "vision_tags") == [STORED]
    model_server.structured = False
    [upload] = work.uploads(batch_id)
    work.pipeline.batches.redo(batch_id, "description", [upload.id])

    [result] = work.run_what_is_asked_for()

    assert result.success
    [row] = work.uploads(batch_id)
    assert (row.vision_tags, row.visible_text) == ([], None)
    assert not {"tags", "visible_text"} & row.metadata.keys()
    assert row.metadata["format"] == "jpeg"


def test_a_tag_is_searched_by_the_command(work, model_server, console):
    model_server.structured = True
    work = work(max_concurrent_uploads=1)
    batch_id = work.submit("sea.jpg")
    work.run(batch_id)
    variables = {
        "BATCH_PIPELINE_ANALYZER": "ollama",
        "BATCH_PIPELINE_OLLAMA_HOST": model_server.ollama_url,
    }

    found = console("search", "sea", "--tag", "Harbour", "--tag", "sunset", "--json", **variables)
    none = console("search", "sea", "--tag", "cat", "--json", **variables)
    wrong = console("search", "sea", "--tag", "#", "--json", **variables)

    assert [uuid.UUID(hit["upload_id"]) for hit in found.json] == work.column(batch_id, "id")
    assert found.json[0]["tags"] == STORED
    assert none.json == []
    assert (wrong.code, "expected words or short names" in wrong.err) == (2, True)
