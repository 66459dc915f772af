"""Checks tables that an upload API has made, and says how to fix those that cannot be used.

``db upgrade`` runs these checks before it changes anything; ``doctor`` runs them too.
``readings.py`` defines how columns are read that the API leaves empty.
``docs/existing_database.md`` describes both.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, cast, func, literal_column, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.types import Text

from batch_pipeline.database.models import Base, BatchStatus, UploadStatus
from batch_pipeline.errors import ConfigurationError


@dataclass(frozen=True)
class Problem:
    """Something in the database that the pipeline cannot use."""

    reason: str
    fix: str
    """An SQL statement, or what to do."""

    def __str__(self) -> str:
        """Return reason and fix, for a person."""
        return f"{self.reason}: {self.fix}"


@dataclass(frozen=True)
class _Kind:
    """The types that a column may have, and the type that any other is changed to."""

    accepted: frozenset[str]
    type: str
    casts: Mapping[str, str] = field(default_factory=dict)
    """How values of another type are changed, by the category of that type in PostgreSQL
    (``pg_type.typcategory``: N are numbers, S texts, B booleans), or "" for every other category.
    Empty: they cannot be changed."""
    characters: int = 0
    """Longest text that we write into it; 0: we write no text, or its length is not known."""
    unlimited: bool = False
    """True: our texts may have any length, so the column must not have a limit."""
    words: tuple[str, ...] = ()
    """Words that we write into it: an ENUM must have these, a CHECK must allow them."""

    def cast(self, category: str, value: str) -> str:
        """Return an SQL expression that changes a value; empty if there is none."""
        return self.casts.get(category, self.casts.get("", "")).format(value)


def _text(characters: int = 0, *, unlimited: bool = False, words: tuple[str, ...] = ()) -> _Kind:
    accepted = frozenset({"text", "character varying", *({"enum"} if words else ())})
    return _Kind(accepted, "text", {"": "{}::text"}, characters, unlimited, words)


def _casts(type_: str) -> dict[str, str]:
    # Only texts can be cast to every type.
    return {"S": f"{{}}::{type_}", "": f"{{}}::text::{type_}"}


_ID = _Kind(frozenset({"uuid"}), "uuid", {**_casts("uuid"), "N": ""})
_MOMENT = _Kind(
    frozenset({"timestamp with time zone", "timestamp without time zone"}),
    "timestamptz",
    {**_casts("timestamptz"), "N": "to_timestamp({})"},
)
_TO_INTEGER = {**_casts("integer"), "N": "{}::integer", "B": "{}::integer"}
_WHOLE = _Kind(frozenset({"integer", "bigint", "smallint"}), "integer", _TO_INTEGER)
_SIZE = _Kind(
    _WHOLE.accepted, "bigint", {**_casts("bigint"), "N": "{}::bigint", "B": "{}::integer"}
)
_SCORE = _Kind(_WHOLE.accepted | {"real", "double precision"}, "integer", _TO_INTEGER)
_PATH_CHARACTERS = 100

#: By table: every column that upload APIs make. The migrations add a missing one.
COLUMNS: Mapping[str, Mapping[str, _Kind]] = {
    "upload_batches": {
        "id": _ID,
        "user_id": _ID,
        "status": _text(words=tuple(status.value for status in BatchStatus)),
        "total_uploads": _WHOLE,
        "processed_uploads": _WHOLE,
        "successful_uploads": _WHOLE,
        "failed_uploads": _WHOLE,
        "error_message": _text(unlimited=True),
        "created_at": _MOMENT,
        "updated_at": _MOMENT,
        "started_at": _MOMENT,
        "completed_at": _MOMENT,
    },
    "uploads": {
        "id": _ID,
        "user_id": _ID,
        "batch_id": _ID,
        "filename": _text(),
        "file_path": _text(_PATH_CHARACTERS),
        "file_type": _text(words=("image", "video")),
        "file_size": _SIZE,
        "mime_type": _text(30),
        "processing_status": _text(words=tuple(status.value for status in UploadStatus)),
        "description": _text(unlimited=True),
        "description_audit_score": _SCORE,
        "embedding_local": _Kind(frozenset({"vector"}), "vector(1024)"),
        "thumbnail_path": _text(_PATH_CHARACTERS),
        "video_codec": _text(30),
        "error_message": _text(unlimited=True),
        "metadata": _Kind(
            frozenset({"jsonb", "json"}), "jsonb", {"S": "{}::jsonb", "": "to_jsonb({})"}
        ),
        "hidden": _Kind(frozenset({"boolean"}), "boolean", {**_casts("boolean"), "N": "{} <> 0"}),
        "regeneration_count": _WHOLE,
        "last_regenerated_at": _MOMENT,
        "created_at": _MOMENT,
        "updated_at": _MOMENT,
    },
}

_DIALECT = PGDialect()  # type: ignore[no-untyped-call]
#: Our own columns, except ``name`` and ``priority``: an API may have these, too, and we read them
#: as text.
_OURS = {
    (table, column.name): column
    for table in COLUMNS
    for column in Base.metadata.tables[table].columns
    if column.name not in {*COLUMNS[table], "name", "priority"}
}
#: The first version of PostgreSQL with statistics of expressions.
_LEAST_SERVER = 14
#: The first version of pgvector whose index is read until enough rows match, as searches need
#: (`services/search/queries.py`).
_LEAST_VERSION = (0, 8)
#: Our role, its search_path, and whether it may not use a schema that exists.
_SESSION = text("""
    SELECT quote_ident(current_user) AS role, quote_ident(current_database()) AS database,
        quote_ident(current_database() || '_pipeline') AS new_database,
        coalesce(
            (SELECT string_agg(quote_ident(name), ', ' ORDER BY place)
                FROM unnest(current_schemas(false)) WITH ORDINALITY AS seen (name, place)),
            current_setting('search_path')
        ) AS path,
        (SELECT source = 'client' FROM pg_settings WHERE name = 'search_path') AS path_is_in_url,
        NOT has_schema_privilege(to_regnamespace(:schema), 'USAGE') AS is_locked
""")
_EXTENSION = text("""
    SELECT current_setting('server_version_num')::int / 10000 AS server,
        to_regtype('vector') IS NOT NULL AS usable, current_user AS role,
        (SELECT quote_ident(n.nspname) FROM pg_extension e
            JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector') AS schema,
        EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') AS available,
        (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS version,
        (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS newest,
        (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
            OR has_database_privilege(current_database(), 'CREATE') AND EXISTS (
                SELECT FROM pg_available_extension_versions WHERE name = 'vector' AND trusted
            ) AS creatable
""")
_FOUND = text("""
    SELECT c.relname AS table, c.relkind, a.attname AS column,
        CASE WHEN t.typtype = 'e' THEN 'enum' ELSE format_type(t.oid, NULL) END AS type,
        format_type(a.atttypid, a.atttypmod) AS shown, a.atttypmod AS modifier,
        a.attgenerated <> '' OR a.attidentity = 'a' AS generated, NOT a.attnotnull AS may_be_null,
        ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid) AS labels,
        t.typcategory AS category, pg_get_expr(d.adbin, d.adrelid) AS default
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.oid IN (to_regclass('uploads'), to_regclass('upload_batches'))
    ORDER BY c.relname DESC, a.attnum
""")
_LETTERS = text("""
    SELECT lower('Ä') = 'ä' AS known, datname AS name, datctype AS ctype
    FROM pg_database WHERE datname = current_database()
""")
#: Tables with row-level security for our role, without a policy that shows it every row.
_HIDDEN = text("""
    SELECT c.relname AS table, current_user AS role
    FROM pg_class c
    WHERE c.oid IN (to_regclass('uploads'), to_regclass('upload_batches'))
        AND row_security_active(c.oid)
        AND NOT EXISTS (
            SELECT FROM pg_policy p
            WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd = '*'
                AND pg_get_expr(p.polqual, c.oid) = 'true'
                AND EXISTS (
                    SELECT FROM unnest(p.polroles) AS holder
                    WHERE holder = 0 OR pg_has_role(holder, 'USAGE')
                )
        )
    ORDER BY c.relname DESC
""")
#: Restrictive policies that apply to our role: each of them may hide rows or refuse changes that
#: other policies allow.
_RESTRICTING = text("""
    SELECT c.relname AS table, quote_ident(p.polname) AS policy, current_user AS role
    FROM pg_class c JOIN pg_policy p ON p.polrelid = c.oid
    WHERE c.oid IN (to_regclass('uploads'), to_regclass('upload_batches'))
        AND row_security_active(c.oid) AND NOT p.polpermissive
        AND (
            pg_get_expr(p.polqual, c.oid) <> 'true' OR pg_get_expr(p.polwithcheck, c.oid) <> 'true'
        )
        AND EXISTS (
            SELECT FROM unnest(p.polroles) AS holder
            WHERE holder = 0 OR pg_has_role(holder, 'USAGE')
        )
    ORDER BY c.relname DESC, p.polname
""")
#: A schema with tables of an upload API that the search_path leaves out, if ours would be made in
#: ``public``.
_OUT_OF_SIGHT = text("""
    SELECT u.relnamespace::regnamespace::text AS schema, current_user AS role
    FROM pg_class u JOIN pg_class b USING (relnamespace)
    WHERE u.relname = 'uploads' AND b.relname = 'upload_batches' AND current_schema() = 'public'
        AND to_regclass('uploads') IS NULL AND to_regclass('upload_batches') IS NULL
        AND NOT EXISTS (
            SELECT FROM pg_class v
            WHERE v.relnamespace = u.relnamespace AND v.relname = 'batch_pipeline_version'
        )
    ORDER BY 1 LIMIT 1
""")
_COLUMNS_OF = text("""
    SELECT c.relname AS table, array_agg(a.attname::text) AS columns
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relname = ANY (:tables)
        AND c.relnamespace = to_regnamespace(quote_ident(current_schema()))
    GROUP BY c.oid
""")
_CHECKS = text("""
    SELECT c.conname AS name, pg_get_expr(c.conbin, c.conrelid) AS condition
    FROM pg_constraint c
    JOIN pg_attribute a ON a.attrelid = c.conrelid AND c.conkey = ARRAY[a.attnum]
    WHERE c.contype = 'c' AND c.conrelid = to_regclass(:table) AND a.attname = :column
""")
_LEFT_ALONE = """
    SELECT {column}::text AS word, count(*) AS rows FROM {table}
    WHERE {column} IS NULL OR {column} NOT IN ({words}) GROUP BY 1 ORDER BY 1 LIMIT 5
"""


def require_usable_tables(connection: Connection) -> None:
    """Refuse tables and a server that the pipeline cannot use; missing tables are fine.

    Raises:
        ConfigurationError: the message has every reason, each with what to do.
    """
    problems = [
        *server_problems(connection),
        *table_problems(connection),
        *_taken_tables(connection),
    ]
    if problems:
        raise ConfigurationError(
            "the database cannot be used as it is; nothing was changed. What to do first:\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )


def require_all_columns(connection: Connection) -> None:
    """Refuse tables without the columns that the newest migration has made.

    Raises:
        ConfigurationError: the migrations were applied to tables of another schema.
    """
    if problems := [*missing_columns(connection)]:
        raise ConfigurationError("; ".join(map(str, problems)))


def table_problems(connection: Connection) -> Iterator[Problem]:
    """Find columns that the pipeline cannot read or write correctly, and tables out of sight."""
    yield from _out_of_sight(connection)
    for row in connection.execute(_FOUND):
        if row.relkind != "r":
            kinds = {
                "v": "a view",
                "m": "a materialized view",
                "f": "a foreign table",
                "p": "a partitioned table",
            }
            yield Problem(
                f"{row.table} is {kinds.get(row.relkind, 'not a table')}",
                _own_database(connection),
            )
            return
        kind = COLUMNS[row.table].get(row.column)
        name = f"{row.table}.{row.column}"
        if kind is None:
            yield from _taken(row)
            continue
        if row.generated and not (kind is _ID and row.type not in kind.accepted):
            yield Problem(f"{name} is generated, and cannot be written", "make it a plain column")
        elif row.type not in kind.accepted:
            yield _other_type(connection, row, kind)
        elif row.type == "enum":
            for word in kind.words:
                if word not in row.labels:
                    yield Problem(
                        f"{name} is of type {row.shown}, which has no value {word!r}",
                        f"ALTER TYPE {row.shown} ADD VALUE '{word}';",
                    )
        elif row.type == "character varying" and row.modifier > 0:
            limit = row.modifier - 4  # the modifier includes 4 bytes of header
            longest = max(kind.characters, *(len(word) for word in kind.words), 0)
            if kind.unlimited or limit < longest:
                needed = "any length" if kind.unlimited else f"{longest} characters"
                yield Problem(
                    f"{name} is {row.shown}, {needed} must fit",
                    f"ALTER TABLE {row.table} ALTER COLUMN {row.column} TYPE text;",
                )
        if kind.words and row.type in kind.accepted:
            yield from _refused_words(connection, row.table, row.column, kind.words)
    yield from _hidden_rows(connection)


def _hidden_rows(connection: Connection) -> Iterator[Problem]:
    """Find row-level security that may hide rows from our role, or refuse its changes."""
    for row in connection.execute(_HIDDEN):
        yield Problem(
            f"row-level security may hide rows of {row.table} from the role {row.role}",
            f'CREATE POLICY batch_pipeline ON {row.table} TO "{row.role}" USING (true);',
        )
    for row in connection.execute(_RESTRICTING):
        yield Problem(
            f"the policy {row.policy} may hide rows of {row.table} from the role {row.role}, or "
            "refuse its changes",
            f'as a superuser: ALTER ROLE "{row.role}" BYPASSRLS; or, for the other roles alone: '
            f"ALTER POLICY {row.policy} ON {row.table} TO …;",
        )


def _out_of_sight(connection: Connection) -> Iterator[Problem]:
    """Find tables of an upload API that we do not see, so that the upgrade would make new ones."""
    for row in connection.execute(_OUT_OF_SIGHT):
        yield Problem(
            f"the upload API has its tables in the schema {row.schema}, which the search_path of "
            f"the role {row.role} leaves out",
            f"{_search_path(connection, first=row.schema)} or, for tables apart from these: "
            f"{_own_schema(connection)}",
        )


def _search_path(connection: Connection, *, first: str = "", last: str = "") -> str:
    """Return the statements that let our role find tables or types of one more schema."""
    found = connection.execute(_SESSION, {"schema": first or last}).one()
    path = ", ".join(filter(None, [first, found.path, last]))
    grant = f"as a superuser: GRANT USAGE ON SCHEMA {first or last} TO {found.role}; "
    allow = grant if found.is_locked else ""
    if found.path_is_in_url:
        return f"{allow}in the options of BATCH_PIPELINE_DATABASE_URL: search_path = {path};"
    # A path for one database comes before a path for all of them.
    return f"{allow}ALTER ROLE {found.role} IN DATABASE {found.database} SET search_path = {path};"


def _own_schema(connection: Connection) -> str:
    """Return the statements that create a schema for our tables."""
    role = connection.execute(_SESSION, {"schema": ""}).one().role
    path = _search_path(connection, first="batch_pipeline")
    return f"CREATE SCHEMA batch_pipeline AUTHORIZATION {role}; {path}"


def _own_database(connection: Connection) -> str:
    """Return what to do if tables of an API cannot be used, whatever is changed."""
    found = connection.execute(_SESSION, {"schema": ""}).one()
    return (
        "give the pipeline a database of its own, and name it in BATCH_PIPELINE_DATABASE_URL: "
        f"CREATE DATABASE {found.new_database} OWNER {found.role} ENCODING 'UTF8' "
        "TEMPLATE template0;"
    )


def missing_columns(connection: Connection) -> Iterator[Problem]:
    """Find columns that the newest migration has made, but in tables of another schema."""
    found: dict[str, set[str]] = {table: set() for table in COLUMNS}
    for row in connection.execute(_FOUND):
        found[row.table].add(row.column)
    for table, columns in found.items():
        missing = sorted({column.name for column in Base.metadata.tables[table].columns} - columns)
        if missing:
            shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            yield Problem(
                f"{table} has no column {shown}, although all migrations were applied",
                "they were applied in another schema: correct the search_path of the role",
            )


def _taken_tables(connection: Connection) -> Iterator[Problem]:
    """Find tables that have the name of one of ours, but other columns.

    Our own table of an earlier version may lack a column, but has no others.
    """
    ours = {
        name: {column.name for column in table.columns}
        for name, table in Base.metadata.tables.items()
        if name not in COLUMNS
    }
    found = connection.execute(_COLUMNS_OF, {"tables": list(ours)}).all()
    if taken := sorted(row.table for row in found if _differ(ours[row.table], {*row.columns})):
        yield Problem(
            f"{', '.join(taken)} are tables of another program, and the pipeline needs these names",
            f"give our tables a schema of their own: {_own_schema(connection)}",
        )


def _differ(ours: set[str], found: set[str]) -> bool:
    return not ours <= found and not found <= ours


def _taken(row: Row[*tuple[Any, ...]]) -> Iterator[Problem]:
    """Find out whether a column of the API has the name of one of ours, but not its type."""
    ours = _OURS.get((row.table, row.column))
    if ours is None:
        return
    name, type_ = f"{row.table}.{row.column}", ours.type.compile(_DIALECT).lower()
    if row.shown != type_:
        found = f"{name} is {row.shown}, not {type_}"
    elif row.may_be_null and not ours.nullable:
        found = f"{name} may be NULL"
    else:
        return
    yield Problem(
        f"{found}; the pipeline needs a column of this name for itself",
        f"ALTER TABLE {row.table} RENAME COLUMN {row.column} TO {row.column}_of_api;",
    )


def has_tables(connection: Connection) -> bool:
    """Return whether there are tables of uploads or batches, ours or those of an upload API."""
    return connection.execute(_FOUND).first() is not None


@dataclass(frozen=True)
class LeftAlone(Problem):
    """Rows with a status that we do not know: they are neither processed nor counted."""

    is_mistaken: bool
    """The status is missing, or one of ours in other letter case. Else it is a word of the API."""


def rows_left_alone(connection: Connection) -> Iterator[LeftAlone]:
    """Find rows with an unknown status, by table and status."""
    for table, column in (("upload_batches", "status"), ("uploads", "processing_status")):
        ours = COLUMNS[table][column].words
        known = ", ".join(f"'{word}'" for word in ours)
        query = _LEFT_ALONE.format(table=table, column=column, words=known)
        for word, rows in connection.execute(text(query)).all():
            quoted = "NULL" if word is None else "'" + word.replace("'", "''") + "'"
            condition = f"{column} IS NULL" if word is None else f"{column} = {quoted}"
            yield LeftAlone(
                f"{rows} rows of {table} have the {column} {quoted} and are left alone",
                f"to have them processed: UPDATE {table} SET {column} = 'pending' "  # noqa: S608
                f"WHERE {condition};",
                is_mistaken=word is None or word.strip().lower() in ours,
            )


def server_problems(connection: Connection) -> Iterator[Problem]:
    """Find out why PostgreSQL or pgvector cannot be used; an extension we can create is fine."""
    found = connection.execute(_EXTENSION).one()
    if found.server < _LEAST_SERVER:
        yield Problem(
            f"PostgreSQL {found.server} is too old; {_LEAST_SERVER} or newer is needed",
            "upgrade the server, or name another in BATCH_PIPELINE_DATABASE_URL",
        )
    elif _is_old(found.version or found.newest):
        update = "ALTER EXTENSION vector UPDATE;"
        yield Problem(
            f"pgvector {found.version or found.newest} is too old; searches need "
            f"{'.'.join(map(str, _LEAST_VERSION))} or newer",
            f"install it on the server, then {update}" if _is_old(found.newest) else update,
        )
    elif found.usable:
        return
    elif found.schema:
        yield Problem(
            f"the extension vector is in the schema {found.schema}, which the search_path of the "
            f"role {found.role} leaves out",
            _search_path(connection, last=found.schema),
        )
    elif not found.available:
        yield Problem(
            "the server has no pgvector",
            "install it there, on Debian the package postgresql-…-pgvector of its version",
        )
    elif not found.creatable:
        yield Problem(
            f"the role {found.role} may not create the extension vector",
            "as a superuser, in this database: CREATE EXTENSION vector;",
        )


def letter_problems(connection: Connection) -> Iterator[Problem]:
    """Find out whether searches ignore the case of every letter; if not, searches still work."""
    found = connection.execute(_LETTERS).one()
    if not found.known:
        yield Problem(
            f"the database {found.name} has the LC_CTYPE {found.ctype}, which knows only the "
            "letters A to Z: searches do not find 'Äpfel' by 'äpfel', nor a part of the file name "
            "'Müller.jpg'",
            f"make a new database, CREATE DATABASE {found.name}_letters ENCODING 'UTF8' LOCALE "
            "'C.UTF-8' TEMPLATE template0, copy what is in this one (pg_dump, pg_restore), and "
            "name the new one in BATCH_PIPELINE_DATABASE_URL",
        )


def _is_old(version: str | None) -> bool:
    return version is not None and tuple(map(int, re.findall(r"\d+", version))) < _LEAST_VERSION


def _other_type(connection: Connection, row: Row[*tuple[Any, ...]], kind: _Kind) -> Problem:
    """Return how to change the type of a column, and its default with it."""
    found = f"{row.table}.{row.column} is {row.shown}"
    changed = kind.cast(row.category, row.column)
    if kind is _ID and not changed:
        return Problem(
            f"{found}, and ids that are not UUIDs cannot be used", _own_database(connection)
        )
    if not changed:
        return Problem(
            found,
            f"ALTER TABLE {row.table} RENAME COLUMN {row.column} TO {row.column}_before; "
            f"ALTER TABLE {row.table} ADD COLUMN {row.column} {kind.type};",
        )
    if kind is _ID:
        found += (
            "; first drop the foreign keys on it, and create them again after the columns on their "
            "other side are changed too (ids that are not UUIDs cannot be used)"
        )
    elif kind is _MOMENT and row.category == "N":
        found += (
            " (taken for seconds since 1970; if it counts milliseconds, use "
            f"{kind.cast('N', f'{row.column} / 1000.0')})"
        )
    alter = f"ALTER COLUMN {row.column}"
    default = _default(row, kind)
    return Problem(
        found,
        f"ALTER TABLE {row.table} {alter} DROP DEFAULT, {alter} TYPE {kind.type} USING {changed}"
        f"{f', {alter} SET DEFAULT {default}' if default else ''};",
    )


def _default(row: Row[*tuple[Any, ...]], kind: _Kind) -> str:
    """Return the default of a column after its type is changed; empty if it has none.

    PostgreSQL cannot change a default by the expression that changes the values.
    """
    if row.default is None:
        return ""
    if kind is _MOMENT and Base.metadata.tables[row.table].columns[row.column].server_default:
        return "now()"  # the default of the API may be a date, or count in another unit
    return kind.cast(row.category, f"({row.default})")


def _refused_words(
    connection: Connection, table: str, column: str, words: tuple[str, ...]
) -> Iterator[Problem]:
    names = {"table": table, "column": column}
    for check in connection.execute(_CHECKS, names).all():
        values = (
            func.unnest(cast(list(words), ARRAY(Text)))
            .table_valued(column, name=table)
            .render_derived()
        )
        # Not `text`: a colon in the condition would begin a parameter.
        refusing = select(values.c[column]).where(literal_column(f"NOT ({check.condition})"))
        refused = connection.scalars(refusing).all()
        if refused:
            yield Problem(
                f"{table}.{column} may not be {', '.join(map(repr, refused))}",
                f'ALTER TABLE {table} DROP CONSTRAINT "{check.name}";',
            )
