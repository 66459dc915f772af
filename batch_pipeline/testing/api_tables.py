"""Tables in every usable form that upload APIs make, with rows that have empty columns.

``database/existing_tables.py`` defines the types that a column may have. The tables of the tests
are made from that definition, so every type that it accepts is also tested.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from batch_pipeline.database.existing_tables import COLUMNS

USER = uuid.UUID("5a0f3c7e-0000-4000-8000-000000000002")

BATCH_STATUSES = COLUMNS["upload_batches"]["status"].words
UPLOAD_STATUSES = COLUMNS["uploads"]["processing_status"].words
#: Constraints of a careful API; a hastily written API has none.
_DEMANDED = {
    "upload_batches": ("user_id", "status"),
    "uploads": ("user_id", "filename", "file_path", "file_type", "file_size", "processing_status"),
}
_TYPES = {
    "uuid": "uuid",
    "text": "text",
    "timestamptz": "timestamptz",
    "integer": "integer",
    "bigint": "bigint",
    "vector(1024)": "vector(1024)",
    "jsonb": "jsonb",
    "boolean": "boolean",
}
_DEFAULTS = {
    "created_at": "now()",
    "updated_at": "now()",
    "status": "'pending'",
    "processing_status": "'pending'",
    "hidden": "false",
}


@dataclass(frozen=True)
class ApiTables:
    """One way in which an API has made its tables."""

    name: str
    nullable: bool = False
    """Whether every column but ``id`` may be empty."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Types that differ from ours: by our type, or by ``table.column``."""
    before: str = ""
    """Statements that run first, for the types."""
    users: bool = False
    """Whether ``user_id`` refers to a table of users."""
    defaults: Mapping[str, str] = field(default_factory=lambda: _DEFAULTS)
    """Defaults of columns, by column or by ``table.column``."""
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Columns of a table that lacks some, by table. The upgrade adds the others."""

    def create(self, connection: psycopg.Connection[Any]) -> None:
        """Make both tables, and a user."""
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(self.before.encode())
        connection.execute("CREATE TABLE users (id uuid PRIMARY KEY)")
        connection.execute("INSERT INTO users VALUES (%s)", [USER])
        for table in ("upload_batches", "uploads"):
            columns = ", ".join(self._columns(table))
            connection.execute(f"CREATE TABLE {table} ({columns})".encode())

    def _columns(self, table: str) -> Iterator[str]:
        for column, kind in COLUMNS[table].items():
            if column not in self.only.get(table, COLUMNS[table]):
                continue
            type_ = self.types.get(f"{table}.{column}") or self.types.get(kind.type)
            words = [column, type_ or _TYPES[kind.type]]
            if column == "id":
                words.append("PRIMARY KEY DEFAULT gen_random_uuid()")
            elif not self.nullable and column in _DEMANDED[table]:
                words.append("NOT NULL")
            if column == "user_id" and self.users:
                words.append("REFERENCES users (id)")
            if column == "batch_id":
                words.append("REFERENCES upload_batches (id) ON DELETE SET NULL")
            if default := self.defaults.get(f"{table}.{column}") or self.defaults.get(column):
                words.append(f"DEFAULT {default}")
            yield " ".join(words)


_ENUMS = """
    CREATE TYPE batch_status AS ENUM ('draft', 'pending', 'processing', 'completed', 'failed',
        'cancelled');
    CREATE TYPE upload_status AS ENUM ('draft', 'pending', 'analyzing', 'embedding', 'completed',
        'failed');
    CREATE TYPE media AS ENUM ('image', 'video');
"""

#: Every form in which tables can be used as they are.
USABLE = (
    ApiTables("as ours", users=True),
    ApiTables("nothing is demanded", nullable=True, defaults={}),
    ApiTables(
        "moments without a time zone, and other types",
        nullable=True,
        types={
            "timestamptz": "timestamp",
            "text": "varchar",
            "jsonb": "json",
            "integer": "bigint",
            "bigint": "integer",
            "uploads.description_audit_score": "double precision",
            "uploads.filename": "varchar(255)",
            "uploads.file_path": "varchar(500)",
            "uploads.processing_status": "varchar(20) CHECK (processing_status <> '')",
        },
    ),
    ApiTables(
        "native enums",
        nullable=True,
        before=_ENUMS,
        types={
            "integer": "smallint",
            "upload_batches.status": "batch_status",
            "uploads.processing_status": "upload_status",
            "uploads.file_type": "media",
        },
        defaults=_DEFAULTS | {"status": "'draft'", "processing_status": "'draft'"},
    ),
    ApiTables(
        "hardly any columns",
        only={
            "upload_batches": ("id", "status", "updated_at"),
            "uploads": ("id", "batch_id", "file_path", "processing_status", "updated_at"),
        },
    ),
)


#: A heartbeat of this age means that the worker is dead.
_AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


@dataclass(frozen=True)
class ApiRows:
    """The rows that `fill` has written."""

    large: uuid.UUID
    """A batch in progress with an upload for each status, column and value."""
    left_alone: Sequence[uuid.UUID]
    """Uploads with an unknown status."""


class Api:
    """Writes rows like an upload API that does not know our columns, nor those that it lacks."""

    def __init__(self, url: str, tables: ApiTables, *, file_path: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self._tables = tables
        self._file_path = file_path

    def __enter__(self) -> "Api":
        """Do nothing: the connection is already open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.connection.close()

    def add_batch(self, **values: Any) -> uuid.UUID:
        """Add a batch; `values` are the differences from a pending one."""
        batch = {
            "user_id": USER,
            "status": "pending",
            "total_uploads": 1,
            "updated_at": _AN_HOUR_AGO,
        }
        return self._add("upload_batches", batch | values)

    def add_upload(self, batch_id: uuid.UUID | None, **values: Any) -> uuid.UUID:
        """Add an upload; `values` are the differences from a pending picture."""
        upload = {
            "user_id": USER,
            "batch_id": batch_id,
            "filename": "fog.webp",
            "file_path": self._file_path,
            "file_type": "image",
            "file_size": 1,
            "processing_status": "pending",
            "updated_at": _AN_HOUR_AGO,
        }
        return self._add("uploads", upload | values)

    def fill(self, nullable: Sequence[tuple[str, str]]) -> ApiRows:
        """Add a row of each status with each column empty, and with moments at infinity."""
        large = self.add_batch(status="processing")
        for values in _strange("uploads", nullable):
            for status in UPLOAD_STATUSES:
                self.add_upload(large, **{"processing_status": status} | values)
        alone = []
        if ("uploads", "processing_status") in nullable:
            alone = [self.add_upload(large, processing_status=word) for word in (None, "draft")]
            self.add_upload(self.add_batch(status="draft"), processing_status="completed")
            self.add_upload(self.add_batch(status=None), processing_status="completed")
        for values in _strange("upload_batches", nullable):
            for status in BATCH_STATUSES:
                self.add_upload(self.add_batch(**{"status": status} | values))
        return ApiRows(large, alone)

    def nullable_columns(self) -> list[tuple[str, str]]:
        """Return the tables and columns that may be empty."""
        rows = self.connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_name IN ('uploads', 'upload_batches') AND is_nullable = 'YES'"
        ).fetchall()
        return [(table, column) for table, column in rows if column in COLUMNS[table]]

    def _add(self, table: str, values: Mapping[str, Any]) -> uuid.UUID:
        known = self._tables.only.get(table, COLUMNS[table])
        values = {column: value for column, value in values.items() if column in known}
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(sql.Placeholder() * len(values)),
        )
        row = self.connection.execute(statement, list(values.values())).fetchone()
        added: uuid.UUID = row[0] if row else uuid.UUID(int=0)
        return added


def _strange(table: str, nullable: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield values of one row each, which replace those of an ordinary row."""
    yield {}
    columns = [column for owner, column in nullable if owner == table]
    never_empty = {"status", "processing_status", "batch_id"}  # tested separately
    columns = [column for column in columns if column not in never_empty]
    yield from ({column: None} for column in columns)
    yield dict.fromkeys(columns)
    for column, kind in COLUMNS[table].items():
        if kind.type == "timestamptz":
            yield {column: "infinity"}
            yield {column: "-infinity"}
    if table == "uploads":
        yield {"metadata": "null"}
        yield from ({"metadata": value} for value in ("[]", '["Rome"]', '"Rome"', "5", "false"))
        yield {"metadata": '{"album": "Rome"}'}
