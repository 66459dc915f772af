"""No query reads a large table from start to end: each is explained, on 100,000 uploads."""

import re
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from sqlalchemy import event, text

from batch_pipeline.database.models import Stage
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.errors import PermanentError, ServiceDownError
from batch_pipeline.media.sniffing import JPEG
from batch_pipeline.model_servers.base import Description
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.deletion.leftovers import remove_leftovers
from batch_pipeline.services.descriptions.known_results import (
    Described,
    count_known,
    look_up,
    vector_of,
)
from batch_pipeline.services.dispatch.slices import (
    numbered_slices,
    open_slice,
    unnumbered_slices,
    uploads_in_flight,
)
from batch_pipeline.services.export import export_user
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.batch_watch import watch_batch
from batch_pipeline.services.reports import batch_status
from batch_pipeline.services.reports.batch_summary import batch_summary
from batch_pipeline.services.reports.batch_verdicts import verdict
from batch_pipeline.services.reports.ended_batches import EndsSeen, newly_ended
from batch_pipeline.services.reports.failures import FailureFilter, failures
from batch_pipeline.services.reports.metrics import read_metrics
from batch_pipeline.services.reports.report_page import read_report
from batch_pipeline.services.reprocessing import (
    Selection,
    _selected,
    reprocess,
    stale_uploads,
)
from batch_pipeline.services.search.filters import Filters
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.states.upload_states import Claim, StartedUpload
from batch_pipeline.testing.records import USER, embedded, fill_spaces, upload_rows

# One worker runs them all, so that the table is filled once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("query_plans")]

MEDIA = Path(__file__).parents[3] / "examples" / "media"
BATCHES, UPLOADS_PER_BATCH = 1000, 100
#: Has the last 5 batches.
OTHER_USER = uuid.UUID("5a0f3c7e-0000-4000-8000-000000000002")

#: A thousand batches of a hundred uploads: most have ended, a few are open, 2% of uploads failed.
#: The API has written the user of most uploads only to their batch.
FILL = """
    INSERT INTO upload_batches (user_id, status, total_uploads, created_at, processed_uploads,
        successful_uploads, failed_uploads)
    SELECT CASE WHEN n > 995 THEN uuid '{other}' ELSE '{user}' END,
        CASE WHEN n <= 3 THEN 'processing' WHEN n <= 6 THEN 'pending'
        ELSE 'completed' END, {size}, now() - n * interval '1 minute',
        CASE WHEN n <= 3 THEN 50 WHEN n <= 6 THEN 0 ELSE 100 END,
        CASE WHEN n <= 3 THEN 49 WHEN n <= 6 THEN 0 ELSE 98 END,
        CASE WHEN n <= 3 THEN 1 WHEN n <= 6 THEN 0 ELSE 2 END
    FROM generate_series(1, {batches}) n;
    ALTER TABLE uploads ALTER COLUMN user_id DROP NOT NULL;
    INSERT INTO uploads (user_id, batch_id, filename, file_path, file_type, file_size, slice,
        processing_status, description, description_audit_score, vision_fingerprint,
        embedding_model, created_at, updated_at, embedding_local)
    SELECT CASE WHEN n = 1 THEN b.user_id END, b.id, 'picture.jpg', b.id || '/' || n,
        'image', 1000, 1,
        CASE WHEN b.status = 'pending' OR (b.status = 'processing' AND n > 50) THEN 'pending'
            WHEN n % 50 = 0 THEN 'failed' ELSE 'completed' END,
        'A picture.', 90, 'm options:1', 'embedded-sentences-1', b.created_at, b.created_at,
        CASE WHEN n = 1 THEN array_fill(random(), ARRAY[{width}])::vector END
    FROM upload_batches b, generate_series(1, {size}) n
"""


@pytest.fixture(scope="module")
def full_database_url(server) -> Iterator[str]:
    with server.new_database() as url:
        yield url


@pytest.fixture(scope="module")
def filled(full_database_url: str) -> str:
    database = Database(with_driver(full_database_url, "psycopg", variable="X"))
    with database.transaction() as connection:
        connection.execute(
            text(
                FILL.format(
                    user=USER, other=OTHER_USER, batches=BATCHES, size=UPLOADS_PER_BATCH, width=1024
                )
            )
        )
        fill_spaces(connection)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    database.close()
    return full_database_url


@pytest.fixture
def full_pipeline(filled, change, open_pipeline) -> Pipeline:
    return open_pipeline(change(database_url=filled))


@pytest.fixture
def plans(full_pipeline: Pipeline) -> Iterator[dict[str, str]]:
    """Return the plans of all statements since the call, by statement."""
    found: dict[str, str] = {}

    def explain(connection, _cursor, statement, parameters, *_):
        if not re.match(r"\s*(SELECT|UPDATE|DELETE|WITH)\b", statement) or statement in found:
            return
        with connection.connection.cursor() as other:
            other.execute(f"EXPLAIN {statement}", parameters)
            found[statement] = "\n".join(row[0] for row in other.fetchall())

    event.listen(full_pipeline.database.engine, "before_cursor_execute", explain)
    yield found
    event.remove(full_pipeline.database.engine, "before_cursor_execute", explain)


def assert_no_sequential_scan(plans: dict[str, str], *, of: str = "uploads|upload_batches") -> None:
    assert plans
    for statement, plan in plans.items():
        scans = re.findall(rf"Seq Scan on ({of})\b", plan)
        assert not scans, f"{statement}\n\n{plan}"


def an_open_batch(pipeline: Pipeline) -> uuid.UUID:
    with pipeline.database.transaction() as connection:
        return connection.scalar(
            text(
                "SELECT id FROM upload_batches WHERE status = 'pending' ORDER BY created_at LIMIT 1"
            )
        )


def test_processing_a_batch_scans_no_whole_table(full_pipeline, plans):
    states = full_pipeline.states
    batch_id = an_open_batch(full_pipeline)
    plans.clear()
    states.load_batch(batch_id, "run", limit=250, slice_number=1)
    first, second, third, *_ = upload_rows(full_pipeline.database, batch_id)
    started = [states.start(row.id, "run") for row in (first, second, third)]
    assert all(isinstance(one, StartedUpload) for one in started)
    one, two, three = (each.claim for each in started)
    states.wanted([one, two])
    states.heartbeat("run", [one, two])
    states.store_thumbnail(one, "x.jpg", {"thumbnail": 0.1})
    states.store_description(
        one,
        described=Described(Description("A picture.", ("boat",)), 90, "m", "m options:1"),
        facts={},
        checksum=None,
        media_type=JPEG,
        video_codec=None,
        regenerated=False,
        seconds={},
    )
    states.complete(one, embedded=embedded(full_pipeline.database), seconds={})
    states.fail(two, PermanentError("kind", "reason"))
    states.release(three)
    states.exists(first.id)
    states.release_run("run")
    full_pipeline.batches.recount_batch(batch_id)
    full_pipeline.batches.retry_batch(batch_id)
    full_pipeline.batches.cancel_batch(batch_id)
    assert_no_sequential_scan(plans)


def test_the_sensor_and_the_sweep_scan_no_whole_table(full_pipeline, plans):
    database = full_pipeline.database
    for slice_ in unnumbered_slices(database, 250, at_most=4):
        open_slice(database, slice_, 250)
    waiting = numbered_slices(database)
    assert uploads_in_flight(database, waiting)
    backlog = full_pipeline.backlog
    backlog.rescue(["ended"])
    backlog.rescue_run("another")
    backlog.owners()
    backlog.run_is_silent("run")
    backlog.left_behind(waiting[0].batch_id, "run", waiting[0].number)
    backlog.release_slices([(waiting[0].batch_id, waiting[0].number)])
    backlog.note_died_run(waiting[0].batch_id, "reason")
    backlog.retry_due()
    backlog.adopt()
    backlog.reopen_ended()
    backlog.overdue()
    with full_pipeline.database.transaction() as connection:
        connection.execute(
            text("UPDATE upload_batches SET failed_uploads = 9 WHERE id = :id"),
            {"id": waiting[0].batch_id},
        )
    assert backlog.reconcile_batches()
    assert_no_sequential_scan(plans)


def test_the_commands_scan_no_whole_table(full_pipeline, plans):
    database = full_pipeline.database
    full_pipeline.ownership.take_over()  # the rows name files that do not exist
    submit(
        [MEDIA / "fog.webp"],
        publisher=full_pipeline.publisher,
        storage=full_pipeline.storage,
        settings=full_pipeline.settings,
    )
    with database.transaction() as connection:
        ended = connection.scalar(
            text("SELECT id FROM upload_batches WHERE status = 'completed' LIMIT 1")
        )
    plans.clear()
    batch_status.batch_status(database, ended)
    batch_status.newest_batches(database, limit=20, offset=40)
    verdict(database, ended)
    assert list(watch_batch(database, ended))
    assert_no_sequential_scan(plans)
    plans.clear()
    found = search(
        database,
        lambda _: EmbeddedEmbedding(1024),
        "blue sea",
        filters=Filters(user_id=USER),
        limit=5,
    )
    assert len(found) == 5
    # Of `upload_batches`, the search lists those of the user.
    assert_no_sequential_scan(plans, of="uploads")


def test_commands_do_not_read_the_whole_uploads_table(full_pipeline, plans):
    database, batches = full_pipeline.database, full_pipeline.batches
    with database.transaction() as connection:
        ended, other = connection.scalars(
            text("SELECT id FROM upload_batches WHERE status = 'completed' LIMIT 2")
        )
    uploads = [row.id for row in upload_rows(database, other)]
    plans.clear()
    read_report(database, full_pipeline.storage, ended)
    batch_summary(database, full_pipeline.storage, ended)
    reprocess(database, batches, Selection(Stage.THUMBNAIL, batch_ids=[ended]))
    reprocess(database, batches, Selection(Stage.EMBEDDING, upload_ids=uploads[50:60]))
    count_known(full_pipeline, ended)
    [one, *_] = upload_rows(database, other)
    look_up(
        database, Claim(one.id, "run", 1), one, "0" * 64, "m options:1",
        of_all_users=True, lease_seconds=60,
    )  # fmt: skip
    copied = Described(Description("a blue sea"), 100, "m", "m", copied_from=one.id)
    vector_of(database, copied, 1, "m")
    stale_uploads(database, "m options:1", at_most=10)
    batches.retry_batch(other, uploads[:3])
    batches.redo(other, Stage.DESCRIPTION, uploads[60:70])
    assert not search(
        database,
        lambda _: EmbeddedEmbedding(1024),
        "blue sea",
        filters=Filters(user_id=uuid.uuid4()),
    )
    assert_no_sequential_scan(plans, of="uploads")


def test_background_work_does_not_read_the_whole_uploads_table(full_pipeline, plans):
    database, states = full_pipeline.database, full_pipeline.states
    batch_id = an_open_batch(full_pipeline)
    full_pipeline.ownership.take_over()  # the rows name files that do not exist
    plans.clear()
    states.release_waiting(batch_id, ServiceDownError("down", "down"), resume_after_seconds=1)
    full_pipeline.publisher._filter.leave_behind({batch_id})
    full_pipeline.publisher.catch_up()
    ended = newly_ended(database, EndsSeen(), limit=5)
    assert ended
    newly_ended(database, EndsSeen().and_(ended), limit=5)
    batch_status.batches_ended_before(database, [batch_id], days=90)
    with database.transaction() as connection:
        notes = (
            "INSERT INTO made_thumbnails SELECT id, user_id, '2026-01-01' FROM uploads "
            "WHERE user_id IS NOT NULL LIMIT 50"
        )
        connection.execute(text(notes))
    remove_leftovers(database, full_pipeline.storage, full_pipeline.ownership)
    assert_no_sequential_scan(plans, of="uploads")


def test_commands_for_a_user_do_not_read_the_uploads_of_others(full_pipeline, plans, tmp_path):
    database, other = full_pipeline.database, OTHER_USER
    found = search(
        database,
        lambda _: EmbeddedEmbedding(1024),
        "blue sea",
        filters=Filters(user_id=other),
        limit=5,
    )
    assert {hit.user_id for hit in found} == {other}
    listed = failures(database, FailureFilter(user_id=other))
    assert sum(group.count for group in listed.groups) == 5 * UPLOADS_PER_BATCH // 50
    done = export_user(database, full_pipeline.storage, other, tmp_path / "export", originals=False)
    assert done.uploads == 5 * UPLOADS_PER_BATCH
    redone = reprocess(database, full_pipeline.batches, Selection(Stage.THUMBNAIL, user_id=other))
    assert sum(batch.uploads for batch in redone) == 5 * 98
    assert_no_sequential_scan(plans, of="uploads")


def test_the_selection_for_a_redo_goes_batch_by_batch(full_pipeline, plans):
    """Most of the table was made by another model; it is still read in steps."""
    selection = Selection(Stage.EMBEDDING, model_not="qwen3-embedding:0.6b", user_id=USER)
    assert len(list(islice(_selected(full_pipeline.database, selection), 3))) == 3
    assert_no_sequential_scan(plans, of="uploads")


def test_the_metrics_scan_no_whole_table(full_pipeline, plans):
    samples = read_metrics(full_pipeline.database, full_pipeline.settings)
    assert samples
    assert_no_sequential_scan(plans)
