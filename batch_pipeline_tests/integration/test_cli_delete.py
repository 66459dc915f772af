"""`delete` and `export` as commands: what they ask, refuse and print."""

import uuid
from pathlib import Path

import pytest

from batch_pipeline.services.batch_intake import submit
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import USER, add_batch, batch_row

MEDIA = Path(__file__).parents[2] / "examples" / "media"


@pytest.fixture
def dagster_url(server: DatabaseServer):
    with server.new_database(migrated=False) as url:
        yield url


@pytest.fixture
def command(console, dagster_url):
    """The command, with a Dagster that has never run."""

    def run(*arguments):
        return console(*arguments, BATCH_PIPELINE_DAGSTER_DATABASE_URL=dagster_url)

    return run


@pytest.fixture
def batch_id(pipeline):
    submission = submit(
        [MEDIA / "sea.jpg"],
        user_id=uuid.uuid4(),
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    )
    return submission.batch_id


@pytest.mark.slow
def test_delete_asks_counts_refuses_and_prints_a_receipt(command, batch_id):
    beginning = str(batch_id)[:8]
    refused = command("delete", "batch", beginning, "--yes")
    assert refused.code == 2
    assert f"batch-pipeline cancel {batch_id}" in refused.err
    assert command("cancel", beginning).code == 0
    unasked = command("delete", "batch", beginning)
    assert unasked.code == 2
    assert "use --yes" in unasked.err
    counted = command("delete", "batch", beginning, "--dry-run")
    assert counted.code == 0
    assert f"Would be deleted: batch {batch_id}" in counted.out
    assert ["originals", "1"] in [line.split() for line in counted.out.splitlines()]
    done = command("delete", "batch", beginning, "--yes", "--json")
    assert done.code == 0, done.err
    assert done.json["batches"] == [str(batch_id)]
    assert done.json["counts"] == {"batches": 1, "uploads": 1, "originals": 1}
    assert "sea" not in done.out
    again = command("delete", "batch", batch_id, "--yes")
    assert again.code == 2
    assert f"there is no batch {batch_id}: " in again.err


@pytest.mark.slow
def test_export_prints_what_it_wrote(command, pipeline, batch_id, tmp_path):
    user = batch_row(pipeline.database, batch_id).user_id
    done = command("export", str(user)[:8], tmp_path / "about", "--originals")
    assert done.code == 0, done.err
    assert "1 batch, 1 upload, 1 file" in done.out
    assert len(list((tmp_path / "about" / "originals").iterdir())) == 1
    assert command("export", user, tmp_path / "about").code == 2


def test_paths_of_rows_reach_the_terminal_as_literally_as_names(command, database, tmp_path):
    storage = tmp_path / "home" / "uploads"
    storage.mkdir()
    (storage / "another file").touch()  # an empty storage is not taken for missing files
    add_batch(database, [{"file_path": "red\x1b[31m\n/original.jpg"}])
    for arguments in (
        ["export", USER, tmp_path / "about", "--originals"],
        ["db", "backup", "x.tar", "--files"],
    ):
        done = command(*arguments)
        assert done.code == 0, done.err
        [line] = done.err.splitlines()
        assert line.startswith("missing    red\ufffd[31m /original.jpg: ")
