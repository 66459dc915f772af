"""What a batch waits for, as `status` and `watch` show it."""

import psycopg
import pytest
from sqlalchemy import func, make_url, update

from batch_pipeline.database.models import Outage, PauseScope
from batch_pipeline.database.readings import interval
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.services.notifications.outbox import end_outages
from batch_pipeline.services.pauses import pause
from batch_pipeline.services.progress.waiting import what_it_waits_for, why_batches_wait
from batch_pipeline.services.short_ids import short
from batch_pipeline.testing.records import add_batch


@pytest.fixture
def daemon(server):
    """Dagster's database, with heartbeats of a living daemon."""
    with server.new_database(migrated=False) as url:
        with psycopg.connect(url) as connection:
            connection.execute(
                "CREATE TABLE daemon_heartbeats (daemon_type text, daemon_id text, timestamp"
                " timestamp, body text)"
            )
            connection.execute(
                "INSERT INTO daemon_heartbeats SELECT kind, 'x', now() AT TIME ZONE 'UTC', ''"
                " FROM unnest(ARRAY['SENSOR', 'SCHEDULER']) AS kind"
            )
        yield url


@pytest.fixture
def waits(database, change, daemon):
    def waits(batch, **values):
        return what_it_waits_for(database, change(dagster_database_url=daemon, **values), batch)

    return waits


def test_a_batch_waits_behind_the_uploads_of_other_batches(database, waits):
    batch = add_batch(database, 3)
    held = {"owner_run_id": "run", "processing_status": "analyzing"}
    named, unnamed = (
        add_batch(database, [held] * number + [{}], status="processing", name=name)
        for number, name in ((2, "Rome"), (1, None))
    )
    ahead = f"Rome ({short(named)}), {short(unnamed)}"
    assert waits(batch) == f"waits behind 3 uploads of 2 batches: {ahead}"


def test_a_batch_waits_while_a_service_is_down(database, pipeline, waits):
    batch = add_batch(database, 1)
    pipeline.states.release_waiting(
        batch, ServiceDownError("model_server_down", "refused"), resume_after_seconds=0
    )
    assert waits(batch) == "waits, because model_server_down: refused"
    completed = {
        "processing_status": "completed",
        "updated_at": func.now(),
        "vision_model": "embedded-vision-4",
    }
    add_batch(database, [completed], status="completed")
    with database.transaction() as connection:
        earlier = Outage.seen_at - interval(3600)
        connection.execute(update(Outage).values(seen_at=earlier))
    assert end_outages(database) == 1
    assert waits(batch) == "waits for its run to be launched"


def test_a_batch_waits_if_a_setting_is_wrong(database, waits):
    batch = add_batch(database, [{"error_kind": "configuration", "error_message": "no model"}])
    assert waits(batch) == "waits, because configuration: no model"


def test_a_paused_batch_waits_until_it_is_resumed(database, waits, change):
    batch = add_batch(database, 1)
    pause(database, change(), PauseScope.BATCH, str(batch), "wrong folder")
    assert waits(batch).startswith(f"waits, because batch {short(batch)} has been paused since ")
    servers = {"analyzer": "ollama", "ollama_host": "http://gpu1:11434"}
    other = add_batch(database, 1)
    assert "paused" not in waits(other, **servers)
    pause(database, change(**servers), PauseScope.SERVER, "http://gpu1:11434")
    assert waits(other, **servers).startswith("waits, because every vision server is paused: ")


def test_a_batch_waits_for_its_run_if_nothing_else_delays_it(database, waits):
    assert waits(add_batch(database, 1)) == "waits for its run to be launched"
    launched = add_batch(database, [{"slice": 1}], slices=1)
    assert waits(launched) == "waits for its run, which is launched but has not begun"


def test_a_batch_asks_whether_dagster_runs_only_if_no_daemon_is_alive(database, waits, daemon):
    batch = add_batch(database, 1)
    with psycopg.connect(daemon) as connection:
        connection.execute("UPDATE daemon_heartbeats SET timestamp = now() - interval '1 day'")
    assert "is Dagster running? the daemon's last heartbeat is" in waits(batch)


@pytest.mark.parametrize("statement", ["DELETE FROM", "DROP TABLE"])
def test_a_dagster_that_has_never_run_is_started_like_the_guide_says(
    database, change, waits, daemon, statement
):
    batch = add_batch(database, 1)
    with psycopg.connect(daemon) as connection:
        connection.execute(f"{statement} daemon_heartbeats".encode())
    for said in (waits(batch), why_batches_wait(change(dagster_database_url=daemon))):
        assert "It has never run on this database: start it with `make dev`; " in said
        assert "dagster-daemon" not in said


def test_a_role_that_may_not_read_dagsters_tables_still_gets_a_reason(database, change, daemon):
    batch = add_batch(database, 1)
    with psycopg.connect(daemon, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE job_ticks (id int, type text, status text, timestamp timestamp,"
            " tick_body text)"
        )
        connection.execute("CREATE TABLE runs (run_id text, pipeline_name text, status text)")
        connection.execute("CREATE TABLE run_tags (run_id text, key text, value text)")
        connection.execute("CREATE ROLE looks_only LOGIN")
        try:
            url = make_url(daemon).set(username="looks_only").render_as_string(hide_password=False)
            settings = change(dagster_database_url=url)
            said = what_it_waits_for(database, settings, batch), why_batches_wait(settings)
        finally:
            connection.execute("DROP ROLE looks_only")
    assert said == ("waits for its run to be launched", "")
