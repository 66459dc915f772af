"""Costs of model calls in a real batch: exactly what the server has counted."""

from collections import Counter
from itertools import repeat

from sqlalchemy import text

from batch_pipeline.database.session import Database
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.model_servers.base import Usage
from batch_pipeline.orchestration.assets import upload_analysis
from batch_pipeline.orchestration.batch_reports import report_of
from batch_pipeline.services.model_costs import costs_by_user, total
from batch_pipeline.services.reports.batch_status import (
    batch_status,
    newest_batches,
    upload_status,
)
from batch_pipeline.services.reports.batch_summary import batch_summary
from batch_pipeline.services.reports.metrics import read_metrics
from batch_pipeline.services.reports.report_page import read_report, render_html
from batch_pipeline.testing.model_server import Fault, Thinking

from .conftest import both_dialects

FILES = ("sea.jpg", "city.jpg", "night.jpg", "ball_on_meadow.mp4")


def all_calls(pipeline) -> Usage:
    return total(of.cost for of in costs_by_user(pipeline.database))


def own_questions(pipeline) -> Usage:
    return total(of.cost for of in costs_by_user(pipeline.database) if of.user_id is None)


def tokens(usage) -> Counter:
    return Counter({"in": usage.tokens_in, "out": usage.tokens_out})


@both_dialects
def test_the_sums_of_a_batch_are_what_the_server_counted(work, model_server, dialect):
    work = work(max_concurrent_uploads=2)
    batch_id = work.submit(*FILES)
    # Useless answers cost too: a loop, and a thought that left no room for an answer.
    model_server.play("vision", [Fault.LOOP])
    model_server.thinking = Thinking("template")

    result = work.run(batch_id)

    assert work.counts(batch_id) == ("completed", len(FILES), 0)
    everything, ours = all_calls(work.pipeline), own_questions(work.pipeline)
    assert tokens(everything) == model_server.tokens
    assert everything.calls == len(model_server.calls)
    assert ours.calls == (dialect == "openai"), "one word is embedded to learn the length"

    database = work.pipeline.database
    status = batch_status(database, batch_id)
    cost = status["cost"]
    assert cost["tokens_in"] + ours.tokens_in == model_server.tokens["in"]
    assert cost["tokens_out"] == model_server.tokens["out"]
    for name in ("calls", "tokens_in", "tokens_out"):
        assert sum(upload["cost"][name] for upload in status["uploads"]) == cost[name]
        assert sum(model[name] for model in cost["models"]) == cost[name]
        assert newest_batches(database)[0]["cost"][name] == cost[name]
    assert [model["kind"] for model in cost["models"]] == ["vision", "embedding"]
    assert cost["seconds"] > 0

    materialized = [
        entry.asset_materialization
        for entry in work.instance.all_logs(result.run_id)
        if entry.asset_materialization
    ]
    said = {
        str(of.metadata["upload_id"].value): of.metadata
        for of in materialized
        if of.asset_key == upload_analysis.key
    }
    for upload in status["uploads"]:
        if upload["attempts"] == 1:
            metadata = said[str(upload["upload_id"])]
            assert metadata["tokens_in"].value == upload["cost"]["tokens_in"]
            assert metadata["tokens_out"].value == upload["cost"]["tokens_out"]
            assert metadata["model_calls"].value == upload["cost"]["calls"]

    metrics = Counter()
    for sample in read_metrics(database, work.pipeline.settings):
        if sample.name == "batch_pipeline_model_usage":
            metrics[sample.labels["what"]] += sample.value
    assert metrics["tokens_in"] == everything.tokens_in
    assert metrics["tokens_out"] == everything.tokens_out

    report = read_report(database, work.pipeline.storage, batch_id)
    assert f"{cost['tokens_in']:,}" in render_html(report)
    *_, of_batch = report_of(batch_summary(database, work.pipeline.storage, batch_id))
    assert of_batch.metadata["tokens_in"].value == cost["tokens_in"]
    models = [record.data for record in of_batch.metadata["model_usage"].value.records]
    assert sum(model["tokens_out"] for model in models) == cost["tokens_out"]


def test_an_upload_keeps_its_costs_when_its_batch_is_deleted(work):
    work = work()
    batch_id = work.submit("sea.jpg")
    assert work.run(batch_id).success
    database, [upload] = work.pipeline.database, work.uploads(batch_id)
    before = upload_status(database, upload.id)["cost"]

    with database.transaction() as connection:
        connection.execute(text("DELETE FROM upload_batches"))

    assert before["calls"] == 2
    assert upload_status(database, upload.id)["cost"] == before


def test_calls_without_a_result_are_kept(work, model_server):
    work = work(max_concurrent_uploads=1)
    batch_id = work.submit("sea.jpg")
    model_server.play("vision", repeat(Fault.LOOP))

    assert not work.run(batch_id).success

    assert work.counts(batch_id) == ("completed", 0, 1)
    assert tokens(all_calls(work.pipeline)) == model_server.tokens
    assert batch_status(work.pipeline.database, batch_id)["cost"]["calls"] == 2


def test_a_call_is_kept_once_though_the_database_is_away_when_it_is_answered(
    work, model_server, monkeypatch
):
    work = work(max_concurrent_uploads=1)
    batch_id = work.submit("sea.jpg")
    execute, lost = Database.execute, []

    def lose_every_first_answer(self, statement, parameters):
        """Commit the row, and lose the connection before the reply."""
        row = execute(self, statement, parameters)
        if "of_tokens_in" in parameters and parameters["of_id"] not in lost:
            lost.append(parameters["of_id"])
            raise ServiceDownError("database_down", "the connection was lost")
        return row

    monkeypatch.setattr(Database, "execute", lose_every_first_answer)

    assert work.run(batch_id).success

    assert len(lost) >= 2
    assert tokens(all_calls(work.pipeline)) == model_server.tokens
