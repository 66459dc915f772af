"""Unusable tables are refused by name, with the statement that fixes them; then they work."""

import re
import uuid
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from batch_pipeline.database import existing_tables
from batch_pipeline.database.existing_tables import COLUMNS
from batch_pipeline.database.session import (
    Database,
    create_database_if_missing,
    open_database,
    with_driver,
)
from batch_pipeline.errors import ConfigurationError, RefusedError
from batch_pipeline.services.batch_intake import submit
from batch_pipeline.services.health import check_health
from batch_pipeline.testing.api_tables import USABLE, USER, ApiTables

#: For each of our types, a similar type that is refused.
REFUSED_TYPES = {
    "uuid": "text",
    "text": "character(20)",
    "timestamptz": "text",
    "integer": "text",
    "bigint": "text",
    "jsonb": "text",
    "boolean": "text",
    "vector(1024)": "real[]",
}
COLUMNS_TO_REFUSE = [
    (table, column)
    for table, columns in COLUMNS.items()
    for column, kind in columns.items()
    if kind.type != "uuid"  # with foreign keys: see below
]


def upgrade(url: str) -> None:
    database = Database(with_driver(url, "psycopg", variable="X"))
    try:
        database.upgrade()
    finally:
        database.close()


@contextmanager
def api_database(server, tables: ApiTables):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        tables.create(connection)
        yield url, connection


def refusal(url: str) -> str:
    with pytest.raises(ConfigurationError, match="nothing was changed") as raised:
        upgrade(url)
    return str(raised.value)


def statements(refused: str) -> list[str]:
    return re.findall(r": ((?:ALTER|CREATE|UPDATE) .*;)$", refused, re.MULTILINE)


def test_every_column_of_another_type_is_named_and_the_statements_fix_it(server):
    types = {
        f"{table}.{column}": REFUSED_TYPES[COLUMNS[table][column].type]
        for table, column in COLUMNS_TO_REFUSE
    }
    tables = ApiTables("of other types", nullable=True, types=types)
    with api_database(server, tables) as (url, connection):
        refused = refusal(url)
        for table, column in COLUMNS_TO_REFUSE:
            assert f"- {table}.{column} is {types[f'{table}.{column}']}" in refused
        assert len(statements(refused)) == len(COLUMNS_TO_REFUSE)
        for statement in statements(refused):
            connection.execute(statement.encode())
        upgrade(url)


def test_ids_that_are_not_uuids_are_refused_with_what_to_do(server):
    types = {f"{table}.id": "varchar(36)" for table in COLUMNS} | {"uploads.batch_id": "varchar"}
    with api_database(server, ApiTables("text ids", types=types)) as (url, _):
        refused = refusal(url)
    assert "uploads.id is character varying(36)" in refused
    assert "TYPE uuid USING id::uuid" in refused
    assert "drop the foreign keys" in refused


@pytest.mark.parametrize(
    ("types", "before", "words"),
    [
        (
            {"uploads.processing_status": "state"},
            "CREATE TYPE state AS ENUM ('pending', 'analyzing', 'completed', 'failed')",
            "state, which has no value 'embedding'",
        ),
        (
            {
                "uploads.processing_status": "varchar(20) CHECK (processing_status IN "
                "('pending', 'processing', 'completed', 'failed'))"
            },
            "",
            "uploads.processing_status may not be 'analyzing', 'embedding'",
        ),
        ({"uploads.description": "varchar(500)"}, "", "any length must fit"),
        ({"uploads.thumbnail_path": "varchar(64)"}, "", "100 characters must fit"),
        ({"upload_batches.status": "varchar(9)"}, "", "10 characters must fit"),
    ],
    ids=["enum", "check", "description", "path", "status"],
)
def test_columns_that_we_could_not_write_are_refused_and_can_be_fixed(server, types, before, words):
    with api_database(server, ApiTables("x", types=types, before=before)) as (url, connection):
        refused = refusal(url)
        assert words in refused
        for statement in statements(refused):
            connection.execute(statement.encode())
        upgrade(url)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("uploads.checksum varchar(32)", "uploads.checksum is character varying(32), not text"),
        ("uploads.vision_tags jsonb", "uploads.vision_tags is jsonb, not text[]"),
        ("upload_batches.slices integer", "upload_batches.slices may be NULL"),
    ],
)
def test_a_column_of_the_api_with_the_name_of_one_of_ours_is_refused(server, column, words):
    table, _, definition = column.partition(".")
    with api_database(server, USABLE[1]) as (url, connection):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {definition}".encode())
        refused = refusal(url)
        assert words in refused
        for statement in statements(refused):
            connection.execute(statement.encode())
        upgrade(url)


def test_a_batch_of_the_api_may_have_a_name_and_a_priority_already(server):
    with api_database(server, USABLE[1]) as (url, connection):
        connection.execute("ALTER TABLE upload_batches ADD name varchar(50), ADD priority integer")
        upgrade(url)


def test_a_partitioned_table_is_refused_before_anything_is_changed(server):
    with api_database(server, USABLE[1]) as (url, connection):
        connection.execute("DROP TABLE uploads")
        connection.execute("CREATE TABLE uploads (id uuid PRIMARY KEY) PARTITION BY HASH (id)")
        assert "uploads is a partitioned table" in refusal(url)


def test_a_check_may_contain_colons_and_percent_signs(server):
    check = "text CHECK (processing_status NOT LIKE 'old :state%')"
    with api_database(server, ApiTables("x", types={"uploads.processing_status": check})) as (
        url,
        connection,
    ):
        upgrade(url)
        connection.execute(
            "ALTER TABLE uploads ADD CHECK (processing_status NOT IN ('old :state', 'failed'))"
        )
        assert "uploads.processing_status may not be 'failed'" in refusal(url)


@pytest.mark.parametrize("type_", ["vector(768)", "vector", "vector(3000)"])
def test_a_vector_column_of_any_width_is_taken(server, type_):
    tables = ApiTables("x", types={"uploads.embedding_local": type_})
    with api_database(server, tables) as (url, _):
        upgrade(url)


@pytest.mark.parametrize(("word", "is_word_of_api"), [("archived", True), ("Pending", False)])
def test_doctor_names_a_status_that_we_do_not_know_and_fails_if_it_is_misspelled(
    pipeline, database_url, word, is_word_of_api
):
    with psycopg.connect(database_url, autocommit=True) as api:
        api.execute("INSERT INTO upload_batches (user_id, status) VALUES (%s, %s)", [USER, word])
    [statuses] = [found for found in check_health(pipeline.settings) if found.name == "statuses"]
    assert statuses.ok == is_word_of_api
    assert f"1 rows of upload_batches have the status '{word}'" in statuses.detail
    assert f"SET status = 'pending' WHERE status = '{word}';" in statuses.detail


def test_doctor_names_columns_that_were_changed_after_the_upgrade(pipeline, database_url):
    with psycopg.connect(database_url, autocommit=True) as api:
        api.execute("ALTER TABLE uploads ALTER COLUMN description TYPE varchar(100)")
    [tables] = [check for check in check_health(pipeline.settings) if check.name == "tables"]
    assert not tables.ok
    assert "ALTER COLUMN description TYPE text;" in tables.detail


def test_doctor_shows_an_error_of_the_database_without_our_statement(pipeline, database_url):
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("DROP TABLE answering_spaces CASCADE")
    found = {check.name: check for check in check_health(pipeline.settings)}
    assert found["embedding space"].detail == 'relation "answering_spaces" does not exist'


def test_doctor_says_that_an_empty_database_has_no_tables_yet(server, change):
    with server.new_database(migrated=False) as url:
        found = {check.name: check for check in check_health(change(database_url=url))}
    assert "run `batch-pipeline db upgrade`" in found["migrations"].hint
    assert found["tables"].detail == "none yet; the upgrade makes them"


def test_tables_of_an_api_that_the_search_path_leaves_out_are_named(server, change):
    with api_database(server, USABLE[0]) as (url, api):
        api.execute("CREATE SCHEMA api")
        api.execute("ALTER TABLE uploads SET SCHEMA api; ALTER TABLE upload_batches SET SCHEMA api")

        refused = refusal(url)
        [found] = [
            check for check in check_health(change(database_url=url)) if check.name == "tables"
        ]

        for said in (refused, found.detail):
            assert "has its tables in the schema api" in said
            assert "SET search_path = api, public" in said
        api.execute("CREATE SCHEMA batch_pipeline")
        upgrade(with_search_path(url, "batch_pipeline,public"))  # apart from those of the API
        upgrade(with_search_path(url, "api,public"))


def test_migrations_that_were_applied_in_another_schema_are_named(server, change):
    with api_database(server, USABLE[0]) as (url, api):
        api.execute("CREATE SCHEMA api")
        api.execute("CREATE TABLE api.uploads (LIKE uploads)")
        upgrade(url)

        moved = with_search_path(url, "api,public")
        [found] = [
            check for check in check_health(change(database_url=moved)) if check.name == "tables"
        ]

        what = "uploads has no column attempts, .*correct the search_path"
        assert re.search(what, found.detail)
        with pytest.raises(ConfigurationError, match=what):
            upgrade(moved)


def with_search_path(url: str, schemas: str) -> str:
    options = {"options": f"-csearch_path={schemas}"}
    return make_url(url).update_query_dict(options).render_as_string(hide_password=False)


@contextmanager
def database_with(server_url, options):
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name} {options} TEMPLATE template0".encode())
        try:
            yield make_url(server_url).set(database=name).render_as_string(False)
        finally:
            owner.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_an_encoding_that_cannot_hold_everything_is_refused(server_url, change, encoding):
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with database_with(server_url, options) as url:
        for use in (upgrade, lambda url: open_database(change(database_url=url))):
            with pytest.raises(ConfigurationError, match=f"is {encoding}.*ENCODING 'UTF8'"):
                use(url)


@pytest.mark.parametrize(("locale", "warned"), [("C", True), ("C.UTF-8", False)])
def test_a_locale_that_knows_only_ascii_letters_is_warned_of(
    server_url, change, caplog, locale, warned
):
    with database_with(server_url, f"ENCODING 'UTF8' LOCALE '{locale}'") as url:
        upgrade(url)
        [tables] = [
            check for check in check_health(change(database_url=url)) if check.name == "tables"
        ]
    assert tables.ok
    for said in (caplog.text, tables.detail):
        assert ("has the LC_CTYPE C, which knows only the letters A to Z" in said) == warned
        assert ("LOCALE 'C.UTF-8' TEMPLATE template0" in said) == warned


@pytest.fixture
def role(server_url):
    """A role without rights."""
    name = f"role_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'".encode())
        yield name
        owner.execute(f"DROP ROLE {name}".encode())


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role, password="x").render_as_string(False)


def test_the_error_for_a_role_without_rights_names_the_missing_rights(server, role):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        refused = refusal(as_role(url, role))
        assert f"the role {role} may not create the extension vector" in refused
        for statement in re.findall(r"CREATE EXTENSION vector;", refused):
            owner.execute(statement.encode())
        with pytest.raises(ConfigurationError, match=r"denied for schema public[^$]*GRANT"):
            upgrade(as_role(url, role))
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {role}".encode())
        upgrade(as_role(url, role))
        with pytest.raises(ConfigurationError, match="permission denied to create database"):
            create_database_if_missing(make_url(as_role(url, role)), f"test_{uuid.uuid4().hex[:8]}")
        owner.execute(f"DROP OWNED BY {role}".encode())


def test_a_role_that_may_write_but_not_change_the_tables_is_told_to_own_them(server, role):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        owner.execute("CREATE EXTENSION vector; CREATE TABLE uploads (id uuid PRIMARY KEY)")
        owner.execute(f"GRANT ALL ON uploads TO {role}".encode())
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {role}".encode())
        with pytest.raises(ConfigurationError, match=r"(?s)must be owner of .* OWNER TO"):
            upgrade(as_role(url, role))
        owner.execute(f"DROP OWNED BY {role}".encode())


def test_row_level_security_that_hides_rows_from_our_role_is_named(server, change, role):
    """Hidden rows are not processed, and without rows there is nothing to do: no other sign."""
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        upgrade(url)
        owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}".encode())
        owner.execute("CREATE POLICY mine ON uploads USING (user_id::text = current_user)")
        ours = change(database_url=as_role(url, role))

        def tables():
            return {check.name: check for check in check_health(ours)}["tables"]

        assert tables().ok, tables().detail
        owner.execute("ALTER TABLE uploads ENABLE ROW LEVEL SECURITY")
        assert (
            f"row-level security may hide rows of uploads from the role {role}" in tables().detail
        )
        for statement in re.findall(r"CREATE POLICY [^;]*;", tables().detail):
            owner.execute(statement.encode())
        assert tables().ok, tables().detail
        owner.execute(f"DROP OWNED BY {role}".encode())


@pytest.mark.parametrize("fix", ["ALTER ROLE", "ALTER POLICY"])
def test_a_restrictive_policy_that_hides_rows_is_named_although_another_shows_them(
    server, change, role, fix
):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        upgrade(url)
        owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}".encode())
        owner.execute("ALTER TABLE uploads ENABLE ROW LEVEL SECURITY")
        owner.execute(f"CREATE POLICY all_rows ON uploads TO {role} USING (true)".encode())
        owner.execute("CREATE POLICY harmless ON uploads AS RESTRICTIVE USING (true)")
        owner.execute("CREATE POLICY others ON uploads AS RESTRICTIVE TO postgres USING (false)")
        ours = change(database_url=as_role(url, role))

        def tables():
            return {check.name: check for check in check_health(ours)}["tables"]

        assert tables().ok, tables().detail
        owner.execute(
            'CREATE POLICY "of Tenant" ON uploads AS RESTRICTIVE '
            "USING (user_id::text = current_setting('app.user', true))"
        )
        assert f'the policy "of Tenant" may hide rows of uploads from the role {role}' in (
            tables().detail
        )
        assert "harmless" not in tables().detail
        assert "others" not in tables().detail
        [statement] = re.findall(f"{fix} [^;]*;", tables().detail)
        owner.execute(statement.replace("…", "postgres").encode())
        assert tables().ok, tables().detail
        owner.execute(f"DROP OWNED BY {role}".encode())


@pytest.mark.parametrize("check", ["FOR INSERT WITH CHECK (false)", "FOR DELETE USING (false)"])
def test_a_restrictive_policy_that_refuses_changes_is_named(server, change, role, check):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        upgrade(url)
        owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}".encode())
        owner.execute("ALTER TABLE uploads ENABLE ROW LEVEL SECURITY")
        owner.execute(f"CREATE POLICY all_rows ON uploads TO {role} USING (true)".encode())
        owner.execute(f"CREATE POLICY no ON uploads AS RESTRICTIVE {check}".encode())
        found = {
            found.name: found for found in check_health(change(database_url=as_role(url, role)))
        }
        owner.execute(f"DROP OWNED BY {role}".encode())
    assert not found["tables"].ok
    assert "the policy no may hide rows of uploads" in found["tables"].detail


def test_an_extension_out_of_sight_is_named_with_the_search_path(server, server_url):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        owner.execute("CREATE SCHEMA elsewhere; CREATE EXTENSION vector SCHEMA elsewhere")
        assert "in the schema elsewhere, which the search_path" in refusal(url)


def test_a_pgvector_that_is_too_old_for_searches_is_named_with_its_update(database_url, change):
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    old = "pgvector 0.7.4 is too old; searches need 0.8 or newer: ALTER EXTENSION vector UPDATE;"
    assert old in refusal(database_url)
    checks = {check.name: check for check in check_health(change(), quick=True)}
    assert old in checks["tables"].detail


def test_a_server_that_is_too_old_is_named(server, monkeypatch):
    monkeypatch.setattr(existing_tables, "_LEAST_SERVER", 99, raising=False)
    with server.new_database(migrated=False) as url:
        assert re.search(r"PostgreSQL \d+ is too old; 99 or newer is needed", refusal(url))


def test_dates_and_zones_of_the_database_change_nothing(settings, database_url, open_pipeline):
    with psycopg.connect(database_url, autocommit=True) as owner:
        name = make_url(database_url).database
        for setting in ("DateStyle = German", "TimeZone = Japan", "IntervalStyle = iso_8601"):
            owner.execute(f"ALTER DATABASE {name} SET {setting}".encode())
    pipeline = open_pipeline(settings)
    with pipeline.database.transaction() as connection:
        moment, span = connection.exec_driver_sql(
            "SELECT timestamptz '2026-01-02 03:04:05+00', interval '1 day 2 hours'"
        ).one()
    assert (str(moment), str(span)) == ("2026-01-02 03:04:05+00:00", "1 day, 2:00:00")


def test_a_submission_to_an_api_that_does_not_know_the_user_is_refused_and_leaves_nothing(
    server, change, open_pipeline, tmp_path
):
    picture = tmp_path / "one.gif"
    picture.write_bytes(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;")
    with api_database(server, USABLE[0]) as (url, connection):
        upgrade(url)
        pipeline = open_pipeline(change(database_url=url))

        def submitted(**user):
            return submit(
                [picture],
                publisher=pipeline.publisher,
                storage=pipeline.storage,
                settings=pipeline.settings,
                **user,
            )

        with pytest.raises(RefusedError, match=r"knows no user 00000000-.*--user"):
            submitted()
        stored = Path(pipeline.settings.storage_location)
        assert not list(stored.rglob("original.*"))
        assert submitted(user_id=USER).batch_id
        connection.execute("ALTER TABLE upload_batches ADD COLUMN album text")
        connection.execute("UPDATE upload_batches SET album = ''")
        connection.execute("ALTER TABLE upload_batches ALTER COLUMN album SET NOT NULL")
        with pytest.raises(RefusedError, match='null value in column "album"'):
            submitted(user_id=USER)
        connection.execute("ALTER TABLE upload_batches ALTER COLUMN album DROP NOT NULL")
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN RAISE EXCEPTION ''no credit left''; END'; "
            "CREATE TRIGGER refuse BEFORE INSERT ON upload_batches FOR EACH ROW "
            "EXECUTE FUNCTION refuse()"
        )
        with pytest.raises(RefusedError, match="no credit left"):
            submitted(user_id=USER)
        pipeline.close()
