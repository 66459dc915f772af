"""Tables as upload APIs make them, in every usable form, with rows that leave things empty.

The types that a column may have stand in ``database/existing_tables.py``; the tables of the tests
are made from that description, so that a type which is accepted there is also tried.
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
#: What a careful API demands of its rows; one that was written in a hurry demands nothing.
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
    """Statements that make what the types need."""
    users: bool = False
    """Whether ``user_id`` refers to a table of users."""

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
            if column in _DEFAULTS:
                words.append(f"DEFAULT {_DEFAULTS[column]}")
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
    ApiTables("nothing is demanded", nullable=True),
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
    ),
)


#: Whoever had them in work is gone.
_AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


@dataclass(frozen=True)
class ApiRows:
    """What `fill` has written."""

    large: uuid.UUID
    """A batch in work with an upload for each status, column and value."""
    left_alone: Sequence[uuid.UUID]
    """Uploads whose status is none of ours."""


class Api:
    """Writes the rows that an upload API writes, knowing none of our columns."""

    def __init__(self, url: str, *, file_path: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self._file_path = file_path

    def __enter__(self) -> "Api":
        """Nothing to do; the connection is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.connection.close()

    def add_batch(self, **values: Any) -> uuid.UUID:
        """Add a batch, with what differs from a pending one."""
        batch = {"user_id": USER, "total_uploads": 1, "updated_at": _AN_HOUR_AGO}
        return self._add("upload_batches", batch | values)

    def add_upload(self, batch_id: uuid.UUID | None, **values: Any) -> uuid.UUID:
        """Add an upload, with what differs from a pending picture."""
        upload = {
            "user_id": USER,
            "batch_id": batch_id,
            "filename": "fog.webp",
            "file_path": self._file_path,
            "file_type": "image",
            "file_size": 1,
            "updated_at": _AN_HOUR_AGO,
        }
        return self._add("uploads", upload | values)

    def fill(self, nullable: Sequence[tuple[str, str]]) -> ApiRows:
        """Leave each of the columns empty in a row of each status, and moments at infinity."""
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
        """Tables and columns that may be empty."""
        rows = self.connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_name IN ('uploads', 'upload_batches') AND is_nullable = 'YES'"
        ).fetchall()
        return [(table, column) for table, column in rows if column in COLUMNS[table]]

    def _add(self, table: str, values: Mapping[str, Any]) -> uuid.UUID:
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(sql.Placeholder() * len(values)),
        )
        row = self.connection.execute(statement, list(values.values())).fetchone()
        added: uuid.UUID = row[0] if row else uuid.UUID(int=0)
        return added


def _strange(table: str, nullable: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Values of one row each, beside those of an ordinary one."""
    yield {}
    columns = [column for owner, column in nullable if owner == table]
    never_empty = {"status", "processing_status", "batch_id"}  # tried by themselves
    columns = [column for column in columns if column not in never_empty]
    yield from ({column: None} for column in columns)
    yield dict.fromkeys(columns)
    for column, kind in COLUMNS[table].items():
        if kind.type == "timestamptz":
            yield {column: "infinity"}
            yield {column: "-infinity"}
    if table == "uploads":
        yield {"metadata": "null"}
        yield {"metadata": '{"album": "Rome"}'}
