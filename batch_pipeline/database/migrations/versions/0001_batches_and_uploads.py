"""Tables of batches and uploads: the columns of upload APIs, and our own columns.

If an upload API has already created the tables, only missing columns and indexes are added. The
columns have constant defaults, so PostgreSQL rewrites no row. Indexes are built while other
programs write. The migration can be run again and continues where it stopped.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

revision = "0001"
down_revision = None

_MOMENT = TIMESTAMP(timezone=True)
_NOW = sa.func.now()
_NEW_ID = sa.text("gen_random_uuid()")
_EMPTY = sa.text("'{}'::jsonb")


def upgrade() -> None:
    """Create both tables and their indexes, or their missing columns and indexes."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _create_or_extend("upload_batches", _batch_columns(), [_BATCH_KEY])
    _create_or_extend("uploads", _upload_columns(), [_UPLOAD_KEY, _UPLOAD_BATCH])


def _create_or_extend(
    table: str, columns: list[sa.Column[Any]], constraints: list[sa.Constraint]
) -> None:
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table(table):
        op.create_table(table, *columns, *constraints)
        for name, (parts, options) in _INDEXES[table].items():
            op.create_index(name, table, parts, **options)
        return
    present = {column["name"] for column in inspector.get_columns(table)}
    for column in columns:
        if column.name not in present:
            op.add_column(table, column)
    with op.get_context().autocommit_block():
        for name, (parts, options) in _INDEXES[table].items():
            _drop_if_broken(name)
            op.create_index(
                name, table, parts, if_not_exists=True, postgresql_concurrently=True, **options
            )


def _drop_if_broken(index: str) -> None:
    """Drop an index whose building was interrupted. PostgreSQL keeps it but never uses it."""
    broken = op.get_bind().scalar(
        sa.text("SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"),
        {"name": index},
    )
    if broken:
        op.execute(f'DROP INDEX CONCURRENTLY "{index}"')


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
        sa.Column("redo", ARRAY(sa.Text), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("error_kind", sa.Text),
        sa.Column("vision_model", sa.Text),
        sa.Column("embedding_model", sa.Text),
        sa.Column("stage_seconds", JSONB, server_default=_EMPTY, nullable=False),
        sa.Column("checksum", sa.Text),
        sa.Column("deaths", sa.Integer, server_default="0", nullable=False),
        sa.Column("retries", sa.Integer, server_default="0", nullable=False),
        sa.Column("retry_at", _MOMENT),
    ]


_BATCH_KEY = sa.PrimaryKeyConstraint("id", name="pk_upload_batches")
_UPLOAD_KEY = sa.PrimaryKeyConstraint("id", name="pk_uploads")
_UPLOAD_BATCH = sa.ForeignKeyConstraint(
    ["batch_id"], ["upload_batches.id"], name="fk_uploads_batch_id", ondelete="SET NULL"
)


def _where(condition: str) -> dict[str, sa.TextClause]:
    return {"postgresql_where": sa.text(condition)}


#: By table and name: columns, options.
_INDEXES: dict[str, dict[str, tuple[list[Any], dict[str, Any]]]] = {
    "upload_batches": {
        "ix_upload_batches_newest": ([sa.text("created_at DESC"), "id"], {}),
        "ix_upload_batches_open": (
            ["created_at", "id"],
            _where("status IN ('pending', 'processing')"),
        ),
    },
    "uploads": {
        "ix_uploads_batch": (["batch_id", "created_at", "id"], {}),
        "ix_uploads_waiting": (
            ["batch_id", "slice", "created_at", "id"],
            _where("processing_status = 'pending' AND owner_run_id IS NULL"),
        ),
        "ix_uploads_held": (
            ["owner_run_id"],
            _where("owner_run_id IS NOT NULL OR processing_status IN ('analyzing', 'embedding')"),
        ),
        "ix_uploads_retry_at": (["retry_at"], _where("retry_at IS NOT NULL")),
        "ix_uploads_without_batch": (
            ["created_at"],
            _where("batch_id IS NULL AND processing_status = 'pending'"),
        ),
        "ix_uploads_embedding_model": (["embedding_model"], {}),
        "ix_uploads_user": (["user_id", "embedding_model"], {}),
        "ix_uploads_audit_score": (["description_audit_score"], {}),
    },
}
