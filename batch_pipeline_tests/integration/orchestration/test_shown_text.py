"""Dagster shows text from files and servers; it neither reorders a line nor acts as markup."""

import json
import logging
import shutil
import unicodedata

import dagster as dg
import pytest

from batch_pipeline.testing import model_server as scripted
from batch_pipeline.testing.records import upload_rows
from batch_pipeline.visible_text import visible

from .conftest import MEDIA

#: Reverses the direction of the text that follows, then colours a terminal.
TURNED = "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe\x1b[31m"
NAME = f"<img src=x>**{TURNED}**.jpg"
DESCRIPTION = (
    f"A harbour at dusk {TURNED} with three red boats, a stone pier and a long calm sea under an "
    "orange sky. Two people walk along the pier, and a white dog sits beside a blue bench."
)


@pytest.fixture
def hostile_upload(runner, model_server, monkeypatch, tmp_path):
    """Processes a file of that name, with a hostile model server; returns all events."""
    monkeypatch.setitem(
        scripted._STATUS_FAULTS, scripted.Fault.REFUSED_INPUT_400, (400, f"cannot read {TURNED}")
    )
    monkeypatch.setattr(scripted, "describe_picture", lambda _: DESCRIPTION)

    def work(source, *faults):
        model_server.play("vision", list(faults))
        shutil.copy(MEDIA / source, tmp_path / NAME)
        batch_id = runner.submit(tmp_path / NAME)
        result = runner.run(batch_id)
        [row] = upload_rows(runner.pipeline.database, batch_id)
        assert row.filename == NAME, "what is stored is the name itself"
        return row, [
            record for record in runner.instance.all_logs(result.run_id) if record.is_dagster_event
        ]

    return work


def strings_in(value):
    match value:
        case str():
            yield value
        case dict():
            for child in value.values():
                yield from strings_in(child)
        case list():
            for child in value:
                yield from strings_in(child)


def hidden_in(events):
    """Return strings of the events, causes and metadata that contain invisible characters."""
    stored = [json.loads(dg.serialize_value(event)) for event in events]
    return [
        text
        for text in strings_in(stored)
        if any(unicodedata.category(c)[0] == "C" and c != "\n" for c in text)
    ]


@pytest.mark.parametrize(
    ("play", "kind", "reason"),
    [
        (["truncated.jpg"], "truncated", "the JPEG ends before its picture does"),
        (["fog.webp", scripted.Fault.REFUSED_INPUT_400], "model_refused_input", "cannot read"),
    ],
)
def test_a_failed_step_shows_a_readable_name_and_reason(hostile_upload, caplog, play, kind, reason):
    caplog.set_level(logging.INFO)
    row, events = hostile_upload(*play)
    [failure] = [e for e in events if e.dagster_event.is_step_failure]
    shown = failure.dagster_event.step_failure_data.user_failure_data.metadata
    assert (shown["file"].value, shown["kind"].value) == (visible(NAME), kind)
    assert reason in shown["reason"].value
    assert shown["reason"].value == row.error_message
    assert hidden_in(events) == []
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in caplog.text


def test_an_upload_shows_a_readable_name_and_description_and_never_markdown(
    hostile_upload,
):
    row, events = hostile_upload("fog.webp")
    assert "gpj.exe" in row.description
    [made] = [
        e.dagster_event.step_materialization_data.materialization
        for e in events
        if e.dagster_event.is_step_materialization
        and e.dagster_event.asset_key.path == ["upload_analysis"]
    ]
    assert made.metadata["file"] == dg.MetadataValue.text(visible(NAME))
    assert made.metadata["description"] == dg.MetadataValue.text(visible(row.description))
    assert hidden_in(events) == []
    # Dagster's pages render the description of an event as Markdown.
    assert (
        made.description
        == f"img_src_x_gpj_exe_31m_jpg: completed, audit {row.description_audit_score}"
    )
