"""Batches and uploads, as an upload API knows them, with our columns beside theirs."""

import sqlalchemy as sa
from alembic import context, op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

revision = "0001"
down_revision = None

_MOMENT = TIMESTAMP(timezone=True)
_NOW = sa.func.now()
_NEW_ID = sa.text("gen_random_uuid()")
_EMPTY = sa.text("'{}'::jsonb")


def upgrade() -> None:
    """Create both tables and their indexes."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "upload_batches",
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
        sa.PrimaryKeyConstraint("id", name="pk_upload_batches"),
    )
    op.create_index(
        "ix_upload_batches_newest", "upload_batches", [sa.text("created_at DESC"), "id"]
    )
    op.create_index(
        "ix_upload_batches_open",
        "upload_batches",
        ["created_at", "id"],
        postgresql_where=sa.text("status IN ('pending', 'processing')"),
    )
    dimensions = context.config.attributes["embedding_dimensions"]
    op.create_table(
        "uploads",
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
        sa.Column("embedding_local", Vector(dimensions)),
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
        sa.Column("claim", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("heartbeat_at", _MOMENT),
        sa.Column("attempts", sa.Integer, server_default="0", nullable=False),
        sa.Column("not_before", _MOMENT),
        sa.Column("redo", ARRAY(sa.Text), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("error_kind", sa.Text),
        sa.Column("vision_model", sa.Text),
        sa.Column("embedding_model", sa.Text),
        sa.Column("stage_seconds", JSONB, server_default=_EMPTY, nullable=False),
        sa.Column("checksum", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["upload_batches.id"],
            name="fk_uploads_batch_id",
            ondelete="SET NULL",
        ),
    )
    op.create_index("ix_uploads_batch", "uploads", ["batch_id", "created_at", "id"])
    op.create_index(
        "ix_uploads_waiting",
        "uploads",
        ["batch_id", "slice", "created_at", "id"],
        postgresql_where=sa.text("processing_status = 'pending' AND owner_run_id IS NULL"),
    )
    op.create_index(
        "ix_uploads_owner",
        "uploads",
        ["owner_run_id"],
        postgresql_where=sa.text("owner_run_id IS NOT NULL"),
    )
    op.create_index("ix_uploads_embedding_model", "uploads", ["embedding_model"])
    op.create_index(
        "ix_uploads_embedding",
        "uploads",
        ["embedding_local"],
        postgresql_using="hnsw",
        postgresql_ops={"embedding_local": "vector_cosine_ops"},
    )
