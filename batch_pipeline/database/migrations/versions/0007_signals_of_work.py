"""Triggers that signal waiting uploads, and the table of runs that sensors have requested.

The triggers fire whichever program writes the rows. They add no measurable time to the stages of an
upload, because PostgreSQL checks the condition of a row trigger before it calls the function.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0007"
down_revision = "0006"

_CHANNEL = "batch_pipeline_work"
_FUNCTION = "batch_pipeline_signal_work"
_WAITS = "NEW.processing_status = 'pending' AND NEW.owner_run_id IS NULL"
_DID_NOT = (
    "OLD.processing_status <> 'pending' OR OLD.owner_run_id IS NOT NULL "
    "OR OLD.batch_id IS DISTINCT FROM NEW.batch_id"
)
_TRIGGERS = {
    ("batch_pipeline_uploads_added", "uploads"): "AFTER INSERT ON uploads FOR EACH STATEMENT",
    ("batch_pipeline_upload_waits", "uploads"): (
        "AFTER UPDATE OF processing_status, owner_run_id, batch_id ON uploads FOR EACH ROW "
        f"WHEN ({_WAITS} AND ({_DID_NOT}))"
    ),
    # When a batch has begun, its other slices may start. When a batch is reopened, its uploads may
    # already be pending.
    ("batch_pipeline_batch_opened", "upload_batches"): (
        "AFTER UPDATE OF status ON upload_batches FOR EACH ROW "
        "WHEN (NEW.status IN ('pending', 'processing') AND NEW.status <> OLD.status)"
    ),
}


def upgrade() -> None:
    """Create table and triggers; safe to repeat."""
    op.create_table(
        "asked_slices",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column(
            "asked_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        sa.PrimaryKeyConstraint("key", name="pk_asked_slices"),
        if_not_exists=True,
    )
    op.execute(f"""
        CREATE OR REPLACE FUNCTION {_FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('{_CHANNEL}', '');
            RETURN NULL;
        END $$
    """)
    for (name, table), rule in _TRIGGERS.items():
        op.execute(f"DROP TRIGGER IF EXISTS {name} ON {table}")
        op.execute(f"CREATE TRIGGER {name} {rule} EXECUTE FUNCTION {_FUNCTION}()")
