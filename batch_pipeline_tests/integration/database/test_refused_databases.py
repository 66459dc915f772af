"""Unusable tables are refused by name, with the statement that fixes them; then they work."""

import re
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row
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
from batch_pipeline.services.health.checks import check_health
from batch_pipeline.testing.api_tables import USABLE, USER, ApiTables

#: For each of our types, similar types that are refused.
REFUSED_TYPES = {
    "uuid": ["text"],
    "text": ["character(20)", "word", "text[]"],
    "timestamptz": ["text", "bigint", "date", "numeric", "time"],
    "integer": ["text", "numeric", "boolean"],
    "bigint": ["text", "numeric", "boolean"],
    "jsonb": ["text", "text[]", "xml"],
    "boolean": ["text", "smallint", "numeric", "bit(1)"],
    "vector(1024)": ["real[]"],
}
#: Defaults of such columns, as an API may have chosen them.
DEFAULTS_OF_OTHER_TYPES = {
    ("status", "character(20)"): "'pending'",
    ("processing_status", "character(20)"): "'pending'",
    ("status", "word"): "'pending'",
    ("processing_status", "word"): "'pending'",
    ("created_at", "text"): "now()",
    ("created_at", "bigint"): "(extract(epoch FROM now()) * 1000)::bigint",
    ("created_at", "date"): "CURRENT_DATE",
    ("created_at", "numeric"): "extract(epoch FROM now())",
    ("hidden", "text"): "'no'",
    ("hidden", "smallint"): "0",
    ("hidden", "numeric"): "0",
    ("hidden", "bit(1)"): "B'0'",
    ("total_uploads", "text"): "'0'",
    ("total_uploads", "numeric"): "0",
    ("metadata", "text"): "'{}'",
}
PAGE = Path(__file__).parents[3] / "docs/existing_database.md"
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


@pytest.mark.parametrize("turn", range(max(map(len, REFUSED_TYPES.values()))))
def test_every_column_of_another_type_is_named_and_the_statements_fix_it(server, turn):
    types, defaults = {}, {}
    for table, column in COLUMNS_TO_REFUSE:
        refused_types = REFUSED_TYPES[COLUMNS[table][column].type]
        type_ = types[f"{table}.{column}"] = refused_types[turn % len(refused_types)]
        if default := DEFAULTS_OF_OTHER_TYPES.get((column, type_)):
            defaults[f"{table}.{column}"] = default
    tables = ApiTables(
        "of other types",
        nullable=True,
        types=types,
        before="CREATE DOMAIN word AS text",
        defaults=defaults,
    )
    with api_database(server, tables) as (url, connection):
        refused = refusal(url)
        for table, column in COLUMNS_TO_REFUSE:
            assert f"- {table}.{column} is {types[f'{table}.{column}']}" in refused
        assert len(statements(refused)) == len(COLUMNS_TO_REFUSE)
        for statement in statements(refused):
            connection.execute(statement.encode())
        upgrade(url)

        [example] = re.findall(r"```sql\n(BEGIN;.*?)```", PAGE.read_text(), re.DOTALL)
        connection.execute(example.encode())
        for table in COLUMNS:
            found = connection.cursor(row_factory=dict_row).execute(f"SELECT * FROM {table}")
            row = found.fetchone()
            for column, expected in {
                "status": "pending",
                "processing_status": "pending",
                "hidden": False,
                "total_uploads": 0,
                "metadata": {},
            }.items():
                if f"{table}.{column}" in defaults:
                    assert row[column] == expected, column
            if f"{table}.created_at" in defaults:
                assert abs(row["created_at"] - datetime.now(UTC)) < timedelta(minutes=5)


def test_ids_that_are_uuids_of_another_type_can_be_changed_and_keep_their_default(server):
    types = {f"{table}.id": "varchar(36)" for table in COLUMNS} | {"uploads.batch_id": "varchar"}
    tables = ApiTables("text ids", types=types)
    with api_database(server, tables) as (url, connection):
        connection.execute("ALTER TABLE uploads ALTER id SET DEFAULT gen_random_uuid()::text")
        connection.execute("INSERT INTO upload_batches (user_id) VALUES (%s)", [USER])
        refused = refusal(url)
        assert "uploads.id is character varying(36); first drop the foreign keys" in refused
        connection.execute("ALTER TABLE uploads DROP CONSTRAINT uploads_batch_id_fkey")
        assert len(statements(refused)) == 3
        for statement in statements(refused):
            connection.execute(statement.encode())
        upgrade(url)
        connection.execute("INSERT INTO upload_batches (user_id) VALUES (%s)", [USER])
        connection.execute(
            "INSERT INTO uploads (user_id, filename, file_path, file_type, file_size) "
            "VALUES (%s, 'fog.webp', 'fog.webp', 'image', 1)",
            [USER],
        )


@pytest.mark.parametrize("identity", ["", "GENERATED ALWAYS AS IDENTITY"])
def test_ids_that_are_numbers_are_refused_without_a_statement_that_cannot_work(server, identity):
    with api_database(server, USABLE[1]) as (url, connection):
        connection.execute("DROP TABLE uploads")
        connection.execute(f"CREATE TABLE uploads (id bigint {identity} PRIMARY KEY)".encode())
        refused = refusal(url)
        assert "uploads.id is bigint, and ids that are not UUIDs cannot be used" in refused
        assert not re.search("ALTER", refused)
        follow_into_a_database_of_its_own(refused, url, connection)


def follow_into_a_database_of_its_own(refused: str, url: str, connection) -> None:
    [create] = statements(refused)
    name = re.findall(r"CREATE DATABASE (\w+) ", create)[0]
    connection.execute(create.encode())
    try:
        upgrade(make_url(url).set(database=name).render_as_string(hide_password=False))
    finally:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


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


@pytest.mark.parametrize(
    ("create", "kind"),
    [
        (
            "CREATE TABLE uploads (id uuid PRIMARY KEY) PARTITION BY HASH (id)",
            "a partitioned table",
        ),
        ("CREATE VIEW uploads AS SELECT id, status FROM upload_batches", "a view"),
    ],
)
def test_a_view_or_partitioned_table_is_refused_before_anything_is_changed(server, create, kind):
    with api_database(server, USABLE[1]) as (url, connection):
        connection.execute("DROP TABLE uploads")
        connection.execute(create.encode())
        refused = refusal(url)
        assert f"uploads is {kind}" in refused
        follow_into_a_database_of_its_own(refused, url, connection)


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
def test_a_vector_column_of_any_width_is_accepted(server, type_):
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
        [statement, *_] = re.findall("ALTER ROLE [^;]*;", refused)
        api.execute(statement.encode())
        upgrade(url)


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
def test_a_locale_that_knows_only_ascii_letters_causes_a_warning(
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
    """Hidden rows are not processed, and nothing else shows that they are missing."""
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


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_error_for_an_extension_outside_the_search_path_shows_that_path(
    server, role, everywhere
):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        owner.execute('CREATE SCHEMA "else where"; CREATE EXTENSION vector SCHEMA "else where"')
        owner.execute(f"CREATE SCHEMA api AUTHORIZATION {role}".encode())
        where = "" if everywhere else f"IN DATABASE {make_url(url).database}"
        owner.execute(f"ALTER ROLE {role} {where} SET search_path = api".encode())
        refused = refusal(as_role(url, role))
        assert 'in the schema "else where", which the search_path' in refused
        follow(refused, owner)
        upgrade(as_role(url, role))
        found = owner.execute("SELECT to_regclass('api.uploads') IS NOT NULL").fetchone()
        assert found == (True,), "our tables are made in the schema that the role had"
        owner.execute(f"DROP OWNED BY {role} CASCADE".encode())


def follow(refused: str, owner) -> None:
    """Run every statement of a refusal, without a change."""
    found = re.findall(r"(?:GRANT|CREATE|ALTER) [^;]*;", refused)
    assert found
    for statement in found:
        owner.execute(statement.encode())


def test_the_error_for_a_search_path_in_the_url_says_to_change_it_there(server):
    with (
        server.new_database(migrated=False) as url,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        owner.execute("CREATE SCHEMA elsewhere; CREATE EXTENSION vector SCHEMA elsewhere")
        owner.execute("CREATE SCHEMA api")
        refused = refusal(with_search_path(url, "api"))
        [path] = re.findall(r"options of BATCH_PIPELINE_DATABASE_URL: search_path = (.*);", refused)
        assert path == "api, elsewhere"
        upgrade(with_search_path(url, path.replace(" ", "")))


def test_the_statements_for_a_schema_of_our_own_can_be_run_as_they_are(server, role):
    with api_database(server, USABLE[0]) as (url, owner):
        owner.execute("CREATE SCHEMA api; CREATE TABLE outages (id uuid, user_id uuid)")
        for table in ("uploads", "upload_batches", "outages"):
            owner.execute(f"ALTER TABLE {table} SET SCHEMA api".encode())
            owner.execute(f"ALTER TABLE api.{table} OWNER TO {role}".encode())
        owner.execute(f"GRANT USAGE, CREATE ON SCHEMA api TO {role}".encode())
        owner.execute(f"ALTER ROLE {role} SET search_path = api, public".encode())
        follow(refusal(as_role(url, role)), owner)
        upgrade(as_role(url, role))
        owner.execute(f"DROP OWNED BY {role} CASCADE".encode())


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


def test_date_styles_and_time_zones_of_the_database_do_not_change_times(
    settings, database_url, open_pipeline
):
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
