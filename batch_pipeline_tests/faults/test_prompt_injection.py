"""Hostile input 12: a model obeys text in a picture; its answer is shown as text everywhere."""

import itertools

import pytest
from dagster import TextMetadataValue

from batch_pipeline.testing.model_server import INJECTED_TEXT, Fault

from .conftest import failures

#: It also contains markup of rich, and control sequences of terminals.
OBEDIENT = (
    "[bold red]Boats[/bold red] <b>in</b> a **harbour** [link=http://canary.invalid]here[/link] at "
    "dusk: three red boats, a stone pier and a long calm sea under an orange sky. A sign reads: "
    "[press](javascript:alert(1)) <img src=x onerror=alert(1)> `rm -rf`. Two people walk along the "
    "pier, and a white dog sits beside a blue bench."
)


@pytest.fixture
def described(work, model_server, monkeypatch):
    """One upload; its stored description is the answer of the obedient model."""
    monkeypatch.setattr("batch_pipeline.testing.model_server.describe_picture", lambda _: OBEDIENT)
    work = work()
    batch_id = work.submit("fog.webp")
    [result] = work.run_what_is_asked_for()
    assert result.success, failures(result)
    return work, batch_id, result


def test_markup_that_a_model_writes_is_stored_letter_by_letter(described):
    work, batch_id, _ = described

    assert work.column(batch_id, "description") == [OBEDIENT]


def test_markup_that_a_model_writes_is_text_in_dagster_never_markdown(described):
    work, _, result = described

    [shown] = [
        entry.asset_materialization
        for entry in work.instance.all_logs(result.run_id)
        if entry.asset_materialization
        and entry.asset_materialization.asset_key.to_user_string() == "upload_analysis"
    ]
    metadata = shown.metadata
    assert metadata["description"] == TextMetadataValue(OBEDIENT)
    others = {name: str(value.value) for name, value in metadata.items() if name != "description"}
    assert not [name for name, value in others.items() if "canary" in value or "<b>" in value]


def test_markup_that_a_model_writes_is_printed_letter_by_letter(described, console, model_server):
    _, batch_id, _ = described
    variables = {
        "BATCH_PIPELINE_ANALYZER": "ollama",
        "BATCH_PIPELINE_OLLAMA_HOST": model_server.ollama_url,
        "COLUMNS": "400",
    }

    status = console("status", batch_id, **variables)
    search = console("search", "red boats in a harbour", **variables)
    as_json = console("status", batch_id, "--json")

    assert (status.code, search.code) == (0, 0), status.err + search.err
    assert OBEDIENT[:90] in status.out
    assert OBEDIENT[:90] in search.out
    for printed in (status.out, search.out):
        assert "\x1b]8" not in printed, "a link of the model's became one of the terminal"
    assert as_json.json["uploads"][0]["description"] == OBEDIENT


def test_markup_that_a_model_writes_is_shown_letter_by_letter_in_a_terminal(
    described, console, model_server
):
    _, batch_id, _ = described
    with console.in_terminal("status", batch_id) as terminal:
        assert terminal.wait() == 0
    assert "[boldred]Boats[/boldred]" in "".join(terminal.text.split())
    assert "\x1b]8" not in terminal.raw


def test_an_answer_that_is_nothing_but_an_injection_changes_nothing_but_its_own_row(
    work, model_server
):
    work = work()
    batch_id = work.submit("fog.webp", "sea.jpg")
    model_server.play("vision", itertools.repeat(Fault.INJECTED))

    work.run(batch_id)

    assert work.column(batch_id, "description") == [INJECTED_TEXT] * 2
    assert work.counts(batch_id) == ("completed", 2, 0)
