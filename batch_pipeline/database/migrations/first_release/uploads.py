"""Tables of batches and uploads: the columns of upload APIs, our own columns, and indexes.

If an upload API has already created the tables, only missing columns and indexes are added. The
columns have constant defaults, so PostgreSQL rewrites no row. Indexes are built while other
programs write.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

from batch_pipeline.database.migrations import commit

_MOMENT = TIMESTAMP(timezone=True)
_NOW = sa.func.now()
_NEW_ID = sa.text("gen_random_uuid()")
_EMPTY = sa.text("'{}'::jsonb")
_NO_WORDS = sa.text("'{}'::text[]")


@dataclass(frozen=True)
class _Index:
    """An index. Its definition contains ``made_with``, unless a development version made it."""

    parts: list[Any]
    where: str | None = None
    using: str = "btree"
    made_with: str = ""


def create_or_extend() -> None:
    """Create both tables and their indexes, or their missing columns and indexes."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _name_claim_tokens()
    _create_or_extend("upload_batches", _batch_columns(), [_BATCH_KEY])
    _create_or_extend("uploads", _upload_columns(), [_UPLOAD_KEY, _UPLOAD_BATCH])


def _name_claim_tokens() -> None:
    """Rename the column of the fencing token, which was ``claim`` before revision 0009."""
    if "claim" in _columns("uploads") and "died_runs" in _columns("upload_batches"):
        op.alter_column("uploads", "claim", new_column_name="claim_token")
        commit()


def _columns(table: str) -> set[str]:
    inspector = sa.inspect(op.get_bind())
    found = inspector.get_columns(table) if inspector.has_table(table) else []
    return {column["name"] for column in found}


def _create_or_extend(
    table: str, columns: list[sa.Column[Any]], constraints: list[sa.Constraint]
) -> None:
    present = _columns(table)
    if not present:
        op.create_table(table, *columns, *constraints)
    for column in columns:
        if present and column.name not in present:
            # The API's rows have no value for a column without a default, and never get one.
            column.nullable = column.nullable or column.server_default is None
            op.add_column(table, column)
    with op.get_context().autocommit_block():
        for name, index in _INDEXES[table].items():
            _create_index(name, table, index)


def _create_index(name: str, table: str, index: _Index) -> None:
    # PostgreSQL keeps an index whose building was interrupted, but never uses it.
    useless = op.get_bind().scalar(
        sa.text(
            "SELECT TRUE FROM pg_index WHERE indexrelid = to_regclass(:name) "
            "AND NOT (indisvalid AND pg_get_indexdef(indexrelid) LIKE :made_with)"
        ),
        {"name": name, "made_with": f"%{index.made_with}%"},
    )
    if useless:
        op.execute(f'DROP INDEX CONCURRENTLY "{name}"')
    op.create_index(
        name,
        table,
        index.parts,
        if_not_exists=True,
        postgresql_concurrently=True,
        postgresql_using=index.using,
        postgresql_where=None if index.where is None else sa.text(index.where),
    )


def _batch_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", sa.Uuid, server_default=_NEW_ID, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("status", sa.Text, server_default="pending", nullable=False),
        sa.Column("total_uploads", sa.Integer, server_default="0", nullable=False),
        sa.Column("processed_uploads", sa.Integer, server_default="0", nullable=False),
        sa.Column("successful_uploads", sa.Integer, server_default="0", nullable=False),
        sa.Column("failed_uploads", sa.Integer, server_default="0", nullable=False),
        sa.Column("error_message", sa.Text),
        sa.Column("created_at", _MOMENT, server_default=_NOW, nullable=False),
        sa.Column("updated_at", _MOMENT, server_default=_NOW, nullable=False),
        sa.Column("started_at", _MOMENT),
        sa.Column("completed_at", _MOMENT),
        sa.Column("name", sa.Text),
        sa.Column("priority", sa.Text),
        sa.Column("slices", sa.Integer, server_default="0", nullable=False),
        sa.Column("died_runs", sa.Integer, server_default="0", nullable=False),
    ]


def _upload_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", sa.Uuid, server_default=_NEW_ID, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("batch_id", sa.Uuid),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("file_path", sa.Text, nullable=False),
        sa.Column("file_type", sa.Text, nullable=False),
        sa.Column("file_size", sa.BigInteger, nullable=False),
        sa.Column("mime_type", sa.Text),
        sa.Column("processing_status", sa.Text, server_default="pending", nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("description_audit_score", sa.Integer),
        sa.Column("embedding_local", Vector(1024)),
        sa.Column("thumbnail_path", sa.Text),
        sa.Column("video_codec", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("metadata", JSONB, server_default=_EMPTY, nullable=False),
        sa.Column("hidden", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("regeneration_count", sa.Integer, server_default="0", nullable=False),
        sa.Column("last_regenerated_at", _MOMENT),
        sa.Column("created_at", _MOMENT, server_default=_NOW, nullable=False),
        sa.Column("updated_at", _MOMENT, server_default=_NOW, nullable=False),
        sa.Column("slice", sa.Integer),
        sa.Column("dispatch_reason", sa.Text, server_default="new", nullable=False),
        sa.Column("owner_run_id", sa.Text),
        sa.Column("claim_token", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("heartbeat_at", _MOMENT),
        sa.Column("attempts", sa.Integer, server_default="0", nullable=False),
        sa.Column("not_before", _MOMENT),
        sa.Column("redo", ARRAY(sa.Text), server_default=_NO_WORDS, nullable=False),
        sa.Column("error_kind", sa.Text),
        sa.Column("vision_model", sa.Text),
        sa.Column("vision_tags", ARRAY(sa.Text), server_default=_NO_WORDS, nullable=False),
        sa.Column("visible_text", sa.Text),
        sa.Column("vision_fingerprint", sa.Text),
        sa.Column("embedding_fingerprint", sa.Text),
        sa.Column("embedding_model", sa.Text),
        sa.Column("stage_seconds", JSONB, server_default=_EMPTY, nullable=False),
        sa.Column("checksum", sa.Text),
        sa.Column("deaths", sa.Integer, server_default="0", nullable=False),
        sa.Column("server_deaths", sa.Integer, server_default="0", nullable=False),
        sa.Column("retries", sa.Integer, server_default="0", nullable=False),
        sa.Column("retry_at", _MOMENT),
    ]


_BATCH_KEY = sa.PrimaryKeyConstraint("id", name="pk_upload_batches")
_UPLOAD_KEY = sa.PrimaryKeyConstraint("id", name="pk_uploads")
_UPLOAD_BATCH = sa.ForeignKeyConstraint(
    ["batch_id"], ["upload_batches.id"], name="fk_uploads_batch_id", ondelete="SET NULL"
)

#: By table and name. Some indexes contain only uploads that search finds, so an upload in progress,
#: whose row changes several times, is added to them once.
_INDEXES = {
    "upload_batches": {
        # An upload API may leave `created_at` empty, or set it to ``infinity``: such batches come
        # last.
        "ix_upload_batches_newest": _Index(
            [sa.text("nullif(nullif(created_at, 'infinity'), '-infinity') DESC NULLS LAST"), "id"],
            made_with="NULLS LAST",
        ),
        "ix_upload_batches_open": _Index(
            ["created_at", "id"], "status IN ('pending', 'processing')"
        ),
        "ix_upload_batches_stopped": _Index(["id"], "status IN ('cancelled', 'failed')"),
    },
    "uploads": {
        "ix_uploads_batch": _Index(["batch_id", "created_at", "id"]),
        "ix_uploads_waiting": _Index(
            ["batch_id", "slice", "created_at", "id"],
            "processing_status = 'pending' AND owner_run_id IS NULL",
        ),
        "ix_uploads_held": _Index(
            ["owner_run_id"],
            "owner_run_id IS NOT NULL OR processing_status IN ('analyzing', 'embedding')",
        ),
        "ix_uploads_ended": _Index(["updated_at"], "processing_status IN ('completed', 'failed')"),
        "ix_uploads_retry_at": _Index(["retry_at"], "retry_at IS NOT NULL"),
        "ix_uploads_without_batch": _Index(
            ["created_at"], "batch_id IS NULL AND processing_status = 'pending'"
        ),
        "ix_uploads_embedding_model": _Index(["embedding_model"]),
        "ix_uploads_user": _Index(["user_id", "embedding_model"]),
        "ix_uploads_audit_score": _Index(["description_audit_score"]),
        "ix_uploads_words": _Index(
            [
                sa.text(
                    "upload_words(description, filename, upload_facts(metadata), vision_tags, "
                    "visible_text)"
                )
            ],
            "embedding_model IS NOT NULL",
            "gin",
            made_with="upload_facts",
        ),
        # A hash index, because names may be too long for a B-tree.
        "ix_uploads_filename": _Index(
            [sa.text("lower(filename)")], "embedding_model IS NOT NULL", "hash"
        ),
        "ix_uploads_checksum": _Index(["checksum"], "embedding_model IS NOT NULL"),
        "ix_uploads_tags": _Index(["vision_tags"], "embedding_model IS NOT NULL", "gin"),
        # These two find stale results. Nearly all rows have the same fingerprint.
        "ix_uploads_vision_fingerprint": _Index(
            ["vision_fingerprint"], "processing_status = 'completed'"
        ),
        "ix_uploads_embedding_fingerprint": _Index(
            ["embedding_fingerprint"], "processing_status = 'completed'"
        ),
    },
}
