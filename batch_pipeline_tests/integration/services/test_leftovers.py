"""`tidy` removes only files that are provably ours, whatever the database contains."""

import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, text

from batch_pipeline.database.embedded_server import postgres_programs
from batch_pipeline.database.identity import database_identity
from batch_pipeline.database.models import MadeThumbnail, Upload
from batch_pipeline.database.session import connect
from batch_pipeline.errors import PermanentError, RefusedError, ServiceDownError
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.deletion import file_ownership
from batch_pipeline.services.deletion.file_ownership import OWNER_NOTE, FileOwnership
from batch_pipeline.services.deletion.leftovers import MANY_FILES, Leftovers, remove_leftovers
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import CompletedUpload, UploadProcessor
from batch_pipeline.settings import Settings
from batch_pipeline.storage import Storage
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import add_batch, upload_rows
from batch_pipeline_tests.integration.console import Console
from batch_pipeline_tests.patience import DEADLINE, wait_until

MEDIA = Path(__file__).parents[2] / "cases" / "small"
USER = uuid.uuid4()

S3 = pytest.param("s3", marks=[pytest.mark.slow, pytest.mark.xdist_group("object_store")])


@pytest.fixture(params=["file", S3])
def storage_url(request, tmp_path) -> str:
    if request.param == "file":
        return str(tmp_path / "shared")
    return request.getfixturevalue("s3_url")


@pytest.fixture
def deploy(
    server: DatabaseServer, storage_url: str, change: Callable[..., Settings]
) -> Iterator[Callable[..., Pipeline]]:
    """Opens deployments on one storage, each with its own database."""
    with ExitStack() as stack:

        def open_(dump: Path | None = None) -> Pipeline:
            url = stack.enter_context(server.new_database(migrated=dump is None))
            if dump:
                run("pg_restore", "--no-owner", f"--dbname={url}", dump)
            pipeline = Pipeline(change(database_url=url, storage_url=storage_url))
            stack.callback(pipeline.close)
            return pipeline

        yield open_


def run(program: str, *arguments: object) -> None:
    subprocess.run([postgres_programs() / program, *map(str, arguments)], check=True)


def dump_of(pipeline: Pipeline, file: Path) -> Path:
    run(
        "pg_dump", "--format=custom", f"--file={file}", f"--dbname={pipeline.settings.database_url}"
    )
    return file


def add_and_work(pipeline: Pipeline, *names: str) -> uuid.UUID:
    submission = submit(
        [MEDIA / name for name in names],
        user_id=USER,
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
    )
    with ClaimKeeper(pipeline.states, "a run", lease_seconds=120) as keeper:
        processor = UploadProcessor(pipeline, keeper)
        for upload_id in submission.upload_ids:
            outcome = processor.process(upload_id, "a run", retries_left=0)
            assert isinstance(outcome, CompletedUpload), outcome
    return submission.batch_id


def tidy(pipeline: Pipeline, **options) -> Leftovers:
    return remove_leftovers(
        pipeline.database,
        pipeline.storage,
        pipeline.ownership,
        **{"grace_seconds": -1, **options},
    )


def contents(pipeline: Pipeline) -> dict[str, bytes]:
    """Return all files on the storage, except our note about its owner."""
    files, root = pipeline.storage._files, pipeline.storage._root
    found = {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}
    return {path: data for path, data in found.items() if path != OWNER_NOTE}


def delete_uploads(pipeline: Pipeline) -> None:
    with pipeline.database.transaction() as connection:
        connection.execute(delete(Upload))


def test_two_deployments_on_one_storage_touch_nothing_of_each_other(deploy):
    first, second = deploy(), deploy()
    add_and_work(first, "fog.webp")
    add_and_work(second, "sea.jpg")
    before = contents(first)
    for pipeline in (first, second, first):
        assert tidy(pipeline).files == []
    # Not even if each deployment tidies as if it owned the storage.
    for pipeline in (first, second):
        pipeline.ownership.take_over()
        assert tidy(pipeline, force=True).removed == 0
    assert contents(first) == before


@pytest.mark.slow
def test_after_a_restore_from_an_older_dump_nothing_is_removed(deploy, tmp_path):
    pipeline = deploy()
    add_and_work(pipeline, "fog.webp")
    dump = dump_of(pipeline, tmp_path / "yesterday")
    add_and_work(pipeline, "sea.jpg")
    before = contents(pipeline)
    restored = deploy(dump)
    assert not tidy(restored).is_owner
    restored.ownership.take_over()
    assert tidy(restored, force=True).files == []
    assert contents(pipeline) == before


def test_a_dump_made_during_a_submission_does_not_cost_its_originals(deploy, tmp_path):
    """The submission has a note on the storage, which is removed when the submission ends."""
    pipeline, dumps = deploy(), []
    submit(
        [MEDIA / "fog.webp", MEDIA / "sea.jpg"],
        publisher=pipeline.publisher,
        storage=pipeline.storage,
        settings=pipeline.settings,
        on_stored=lambda number, _: dumps.append(dump_of(pipeline, tmp_path / str(number))),
    )
    before = contents(pipeline)
    restored = deploy(dumps[0])
    restored.ownership.take_over()
    assert tidy(restored, force=True).files == []
    assert contents(pipeline) == before


def test_a_copy_of_the_database_whose_rows_are_deleted_removes_nothing(deploy, tmp_path):
    """A staging system from a dump that still uses the storage of production."""
    production = deploy()
    add_and_work(production, "fog.webp", "sea.jpg")
    before = contents(production)
    staging = deploy(dump_of(production, tmp_path / "dump"))
    delete_uploads(staging)
    found = tidy(staging, force=True)
    assert (found.is_owner, found.files) == (False, [])
    assert "tidy --take-over" in found.kept_because
    assert contents(production) == before


def test_files_of_others_are_left_alone_whatever_their_names(deploy):
    pipeline = deploy()
    foreign = {
        f"{uuid.uuid4()}/{uuid.uuid4()}/avatar.png": b"a face",
        f"{USER}/{uuid.uuid4()}/original.jpg": b"of an API whose row is in another database",
        f"{USER}/{uuid.uuid4()}/thumb_256.jpg": b"made by that API",
        f"{USER}/{uuid.uuid4()}/film.mp4.partial": b"an upload of theirs that is under way",
        ".batch_pipeline/submissions/notes.json": b"no note of ours",
    }
    for path, data in foreign.items():
        pipeline.storage.write(path, data)
    add_and_work(pipeline, "fog.webp")
    pipeline.ownership.take_over()
    assert tidy(pipeline, force=True).files == []
    assert foreign.items() <= contents(pipeline).items()


def test_a_storage_with_files_of_others_is_not_ours_until_somebody_says_so(deploy):
    pipeline = deploy()
    pipeline.storage.write("albums/2026/beach.jpg", b"a beach")
    add_and_work(pipeline, "fog.webp")
    delete_uploads(pipeline)
    before = contents(pipeline)
    assert not tidy(pipeline).is_owner
    assert contents(pipeline) == before
    pipeline.ownership.take_over()
    found = tidy(pipeline)
    assert found.removed == 1
    assert before.keys() - contents(pipeline).keys() == {found.files[0].path}


def test_the_thumbnail_of_a_deleted_upload_is_removed_and_the_original_stays(deploy):
    pipeline = deploy()
    batch_id = add_and_work(pipeline, "fog.webp", "sea.jpg")
    doomed, other = upload_rows(pipeline.database, batch_id)
    with pipeline.database.transaction() as connection:
        connection.execute(delete(Upload).where(Upload.id == doomed.id))
    assert tidy(pipeline, grace_seconds=3600).files == [], "it is too young"
    before = contents(pipeline)
    looked = tidy(pipeline, dry_run=True)
    assert [file.path for file in looked.files] == [doomed.thumbnail_path]
    assert contents(pipeline) == before
    assert tidy(pipeline).removed == 1
    assert before.keys() - contents(pipeline).keys() == {doomed.thumbnail_path}
    assert doomed.file_path in before
    with pipeline.database.transaction() as connection:
        assert list(connection.scalars(select(MadeThumbnail.upload_id))) == [other.id]


def test_a_thumbnail_that_a_copy_of_the_row_names_stays(deploy):
    pipeline = deploy()
    [first, _] = upload_rows(pipeline.database, add_and_work(pipeline, "fog.webp", "sea.jpg"))
    columns = "user_id, filename, file_path, file_type, file_size, processing_status"
    with pipeline.database.transaction() as connection:
        connection.execute(
            text(f"INSERT INTO uploads ({columns}, thumbnail_path) SELECT {columns}, thumbnail_path"
                 " FROM uploads WHERE id = :id"),
            {"id": first.id},
        )  # fmt: skip
        connection.execute(delete(Upload).where(Upload.id == first.id))
    assert tidy(pipeline).files == []
    with pipeline.database.transaction() as connection:
        connection.execute(delete(Upload).where(Upload.thumbnail_path == first.thumbnail_path))
    assert [file.path for file in tidy(pipeline, dry_run=True).files] == [first.thumbnail_path]


def test_more_than_a_small_share_is_reported_and_not_removed(deploy):
    pipeline = deploy()
    add_and_work(pipeline, "fog.webp")
    gone = [uuid.uuid4() for _ in range(MANY_FILES + 1)]
    for upload_id in gone:
        pipeline.storage.write(pipeline.storage.thumbnail_path(USER, upload_id), b"thumbnail")
    with pipeline.database.transaction() as connection:
        connection.execute(
            text("INSERT INTO made_thumbnails VALUES (:id, :user)"),
            [{"id": upload_id, "user": USER} for upload_id in gone],
        )
    before = contents(pipeline)
    for dry_run in (True, False):
        found = tidy(pipeline, dry_run=dry_run)
        assert (len(found.files), found.removed) == (MANY_FILES + 1, 0)
        assert f"{MANY_FILES + 1} of {MANY_FILES + 2} files" in found.kept_because
    assert contents(pipeline) == before
    assert tidy(pipeline, dry_run=True, force=True).kept_because == "this was a dry run"
    assert tidy(pipeline, force=True).removed == MANY_FILES + 1
    assert len(contents(pipeline)) == 2


KILLED_SUBMISSION = """
import os, signal, sys
from pathlib import Path
from batch_pipeline.services import batch_intake
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.settings import load_settings
from batch_pipeline.storage import Storage

moment, user, *files = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
insert, rename = batch_intake._insert, Path.replace

def insert_and_die(*arguments):
    insert(*arguments)
    die()

def die_before_the_second_is_whole(partial, target):
    if target.name.startswith("original") and list(target.parents[1].glob("*/original.webp")):
        die()
    return rename(partial, target)

stored = lambda *_: None
match moment:
    case "before the first file": Storage.put = die
    case "in mid-file": Path.replace = die_before_the_second_is_whole
    case "after the first file": stored = die
    case "before the rows": batch_intake._insert = die
    case "after the commit": batch_intake._insert = insert_and_die
pipeline = Pipeline(load_settings())
batch_intake.submit(
    [Path(name) for name in files],
    user_id=__import__("uuid").UUID(user),
    publisher=pipeline.publisher,
    storage=pipeline.storage,
    settings=pipeline.settings,
    on_stored=stored,
)
"""


def killed_submission(pipeline: Pipeline, moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SUBMISSION, moment, str(USER)]
        + [str(MEDIA / name) for name in ("fog.webp", "sea.jpg")],
        env=os.environ
        | {
            "BATCH_PIPELINE_HOME": str(pipeline.settings.home),
            "BATCH_PIPELINE_DATABASE_URL": pipeline.settings.database_url,
            "BATCH_PIPELINE_STORAGE_URL": pipeline.settings.storage_url,
        },
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "left_over"),
    [
        ("before the first file", 0),
        ("in mid-file", 2),
        ("after the first file", 1),
        # On the storage, this moment looks the same as the moment after the commit.
        ("before the rows", 0),
        ("after the commit", 0),
    ],
)
def test_files_of_a_killed_submission_that_no_database_can_know_are_removed(
    deploy, storage_url, moment, left_over
):
    if moment == "in mid-file" and "://" in storage_url:
        pytest.skip("object stores know no half-written objects")
    pipeline = deploy()
    add_and_work(pipeline, "city.jpg")
    kept = contents(pipeline)
    killed_submission(pipeline, moment)
    before = contents(pipeline)
    assert tidy(pipeline, grace_seconds=3600).files == [], "it may be under way"
    stranger = deploy()
    stranger.ownership.take_over()
    assert tidy(stranger, force=True).files == [], "another database's submission"
    assert contents(pipeline) == before
    pipeline.ownership.take_over()
    found = tidy(pipeline, force=True)
    assert found.removed == len(found.files) == left_over
    after = contents(pipeline)
    if moment in {"before the rows", "after the commit"}:
        assert after == before
    else:
        assert after == kept


def test_a_submission_whose_files_were_removed_as_left_over_does_not_become_a_batch(deploy):
    """A submission is stopped for more than a day, and continues."""
    pipeline = deploy()
    with pytest.raises(Exception, match="submit them again"):
        submit(
            [MEDIA / "fog.webp"],
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=pipeline.settings,
            on_stored=lambda *_: tidy(pipeline),
        )
    with pipeline.database.transaction() as connection:
        assert connection.scalar(text("SELECT count(*) FROM uploads")) == 0
    assert contents(pipeline) == {}


@pytest.mark.parametrize("storage_url", [S3], indirect=True)
def test_an_object_that_is_complete_only_after_a_ctrl_c_is_removed_as_left_over(
    deploy, monkeypatch
):
    """The client goes on in a thread of its own, also while the submission cleans up."""
    pipeline = deploy()
    put, finish = pipeline.storage._files.put_file, []

    def interrupted(*arguments):
        finish.append(lambda: put(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.storage._files, "put_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(
            [MEDIA / "fog.webp", MEDIA / "sea.jpg"],
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=pipeline.settings,
        )
    finish[0]()
    [note, original] = sorted(contents(pipeline))
    assert note.startswith(".batch_pipeline/submissions/")
    assert [file.path for file in tidy(pipeline).files] == [original]
    assert contents(pipeline) == {}


def test_a_submission_does_not_write_its_note_again_after_a_tidy(deploy, monkeypatch):
    """It stood still for more than a day, with files of which the tidy has removed the first."""
    monkeypatch.setattr(file_ownership, "_RENEW_SECONDS", 0)
    pipeline = deploy()
    with pytest.raises(RefusedError, match="submit them again"):
        submit(
            [MEDIA / "fog.webp", MEDIA / "sea.jpg"],
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=pipeline.settings,
            on_stored=lambda number, _: tidy(pipeline) if number == 1 else None,
        )
    assert contents(pipeline) == {}


def test_a_submission_that_goes_on_during_a_tidy_keeps_its_files(deploy, monkeypatch):
    """It stalled for more than a day, and becomes a batch after the tidy has found its note."""
    pipeline = deploy()
    stands_still, goes_on = threading.Event(), threading.Event()

    def stand_still(*_):
        stands_still.set()
        assert goes_on.wait(DEADLINE)

    with ThreadPoolExecutor(1) as pool:
        submission = pool.submit(
            submit,
            [MEDIA / "fog.webp"],
            publisher=pipeline.publisher,
            storage=pipeline.storage,
            settings=pipeline.settings,
            on_stored=stand_still,
        )
        assert stands_still.wait(DEADLINE)
        partial_files = pipeline.storage.partial_files

        def look_for_the_last_kind(**arguments):
            goes_on.set()
            submission.result(DEADLINE)
            return partial_files(**arguments)

        monkeypatch.setattr(pipeline.storage, "partial_files", look_for_the_last_kind)
        found = tidy(pipeline)
    assert (len(found.files), found.removed) == (1, 0)
    [row] = upload_rows(pipeline.database, submission.result().batch_id)
    assert pipeline.storage.exists(row.file_path)


def test_the_default_storage_is_ours_even_if_files_lie_there_already(
    settings, change, open_pipeline
):
    uploads = Path(settings.storage_location) / "kept"
    uploads.mkdir(parents=True)
    (uploads / "file").touch()
    assert open_pipeline(settings).ownership.claim()
    elsewhere = change(storage_url=settings.storage_location, home=settings.home / "other")
    assert open_pipeline(elsewhere).ownership.claim(), "the same database"


def test_two_first_submissions_at_once_make_their_database_the_owner(deploy, monkeypatch):
    pipeline = deploy()
    one, other = (
        FileOwnership(pipeline.database, Storage(pipeline.settings.storage_url), pipeline.settings)
        for _ in range(2)
    )
    is_empty = one._storage.is_empty

    def waits_for_a_lock() -> bool:
        waits = text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND "
            "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        with pipeline.database.transaction() as connection:
            return connection.scalar(waits) > 0

    with ThreadPoolExecutor(1) as pool:

        def look_while_the_other_claims() -> bool:
            claim = pool.submit(other.claim)
            wait_until(lambda: claim.done() or waits_for_a_lock(), "the other claim")
            return is_empty()

        monkeypatch.setattr(one._storage, "is_empty", look_while_the_other_claims)
        assert one.claim()
    assert pipeline.ownership.is_owner()


def test_the_small_file_of_a_check_does_not_make_the_storage_foreign(deploy):
    pipeline = deploy()
    pipeline.storage.write(".probe-of-doctor", b"probe")
    assert pipeline.ownership.claim()


@contextmanager
def unmounted(pipeline: Pipeline) -> Iterator[None]:
    """Leave only the empty mount point of the storage."""
    mount_point = Path(pipeline.settings.storage_url)
    away = mount_point.rename(mount_point.with_name("away"))
    mount_point.mkdir()
    yield
    mount_point.rmdir()  # fails if something was written there
    away.rename(mount_point)


def thumbnail_records(pipeline: Pipeline) -> int:
    with pipeline.database.transaction() as connection:
        return connection.scalar(select(func.count()).select_from(MadeThumbnail))


@pytest.mark.parametrize("storage_url", ["file"], indirect=True)
@pytest.mark.parametrize("rows", ["stay", "are deleted"])
def test_a_storage_that_is_not_mounted_is_neither_claimed_nor_tidied(deploy, rows):
    pipeline = deploy()
    add_and_work(pipeline, "fog.webp", "sea.jpg")
    if rows == "are deleted":
        delete_uploads(pipeline)
    with unmounted(pipeline):
        for dry_run in (True, False):
            with pytest.raises(ServiceDownError, match="is it mounted"):
                tidy(pipeline, dry_run=dry_run)
        with pytest.raises(ServiceDownError, match="is it mounted"):
            add_and_work(pipeline, "city.jpg")
        checks = {check.name: check for check in check_health(pipeline.settings, quick=True)}
        assert "is it mounted" in checks["owner of the storage"].detail
    assert thumbnail_records(pipeline) == 2
    assert pipeline.ownership.claim()


@pytest.mark.slow
@pytest.mark.parametrize("storage_url", ["file"], indirect=True)
def test_a_storage_that_goes_away_during_a_tidy_costs_no_record(deploy, monkeypatch):
    pipeline = deploy()
    add_and_work(pipeline, "fog.webp", "sea.jpg")
    delete_uploads(pipeline)
    claim = pipeline.ownership.claim

    with ExitStack() as away:

        def claim_and_lose_the_mount():
            is_ours = claim()
            away.enter_context(unmounted(pipeline))
            return is_ours

        monkeypatch.setattr(pipeline.ownership, "claim", claim_and_lose_the_mount)
        with pytest.raises(ServiceDownError, match="is it mounted"):
            tidy(pipeline, force=True)
    assert thumbnail_records(pipeline) == 2


@pytest.mark.slow
@pytest.mark.parametrize("storage_url", ["file"], indirect=True)
def test_a_storage_whose_files_are_gone_for_ever_is_used_again_after_a_take_over(deploy):
    pipeline = deploy()
    batch_id = add_and_work(pipeline, "fog.webp")
    shutil.rmtree(pipeline.settings.storage_url)
    with pytest.raises(ServiceDownError, match="tidy --take-over"):
        add_and_work(pipeline, "sea.jpg")
    pipeline.ownership.take_over()
    add_and_work(pipeline, "sea.jpg")
    [row] = upload_rows(pipeline.database, batch_id)
    with pytest.raises(PermanentError, match="holds no file"):
        pipeline.storage.open(row.file_path)


@pytest.mark.parametrize("file_path", ["/srv/uploads/a.jpg", "s3://bucket/a.jpg"])
def test_uploads_that_name_no_file_of_the_storage_do_not_keep_it_from_being_claimed(
    deploy, file_path
):
    pipeline = deploy()
    add_batch(pipeline.database, [{"file_path": file_path, "processing_status": "failed"}])
    assert pipeline.ownership.claim()


@contextmanager
def as_a_role_with_few_rights(url: str) -> Iterator[str]:
    """A role that may use the tables and nothing else."""
    role = f"role_{uuid.uuid4().hex}"
    database = connect(Settings(_env_file=None, database_url=url))
    with database.transaction() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
    try:
        yield role
    finally:
        with database.transaction() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
        database.close()


def test_every_role_sees_the_same_identity_of_a_database(database, settings):
    with as_a_role_with_few_rights(settings.database_url) as role:
        theirs = connect(settings)
        theirs.engine.dispose()
        identity = database_identity(database)
        with theirs.engine.connect() as connection:
            connection.execute(text(f"SET ROLE {role}"))
            connection.commit()
        assert database_identity(theirs) == identity
        theirs.close()


@pytest.fixture
def console(settings, tmp_path) -> Console:
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "BATCH_PIPELINE_HOME": str(settings.home),
        "BATCH_PIPELINE_DATABASE_URL": settings.database_url,
    }
    return Console(variables, tmp_path)


@pytest.mark.slow
def test_the_command_lists_and_removes_and_names_the_owner(console, pipeline, tmp_path):
    pipeline.ownership.claim()
    upload_id = uuid.uuid4()
    path = pipeline.storage.thumbnail_path(USER, upload_id)
    pipeline.storage.write(path, b"thumbnail")
    with pipeline.database.transaction() as connection:
        connection.execute(
            text("INSERT INTO made_thumbnails VALUES (:id, :user, '2026-01-01')"),
            {"id": upload_id, "user": USER},
        )
    listed = console("tidy", "--dry-run", "--json")
    assert listed.code == 0
    assert listed.json == {
        "owner": True,
        "files": [{"path": path, "reason": "thumbnail of an upload that was deleted"}],
        "removed": 0,
        "kept_because": "this was a dry run",
    }
    assert "1 file would be removed" in console("tidy", "--dry-run").out
    assert pipeline.storage.exists(path)

    foreign = tmp_path / "foreign"
    (foreign / "albums").mkdir(parents=True)
    refused = console("tidy", BATCH_PIPELINE_STORAGE_URL=str(foreign))
    assert refused.code == 1
    assert "tidy --take-over" in refused.err

    assert "1 file removed" in console("tidy").out
    assert not pipeline.storage.exists(path)
    mine = console("tidy", "--take-over", BATCH_PIPELINE_STORAGE_URL=str(foreign))
    assert mine.out == f"This database owns {foreign} now.\n0 files removed.\n"


def test_doctor_names_the_owner_of_the_storage_and_whether_tidy_may_remove_files(deploy):
    def said(pipeline: Pipeline) -> str:
        checks = check_health(pipeline.settings, quick=True)
        [check] = [check for check in checks if check.name == "owner of the storage"]
        assert check.ok
        return check.detail

    one, other = deploy(), deploy()
    assert "no database owns" in said(one)
    assert "yet" in said(one)
    remove_leftovers(one.database, one.storage, one.ownership)
    assert one.ownership.identity in said(one)
    assert "and may tidy it" in said(one)
    assert f"database {one.ownership.identity} owns" in said(other)
    assert "so it does not tidy there" in said(other)
    one.ownership._write_owner(None)
    assert said(other).startswith("no database owns")
    assert "--take-over" in said(other)
    other.ownership.take_over()
    assert "and may tidy it" in said(other)
