"""Index on the end of uploads, so that metrics read the last minutes and not the whole table."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_NAME = "ix_uploads_ended"


def upgrade() -> None:
    """Build the index while other programs write; an incomplete index is built again."""
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}")
        op.create_index(
            _NAME,
            "uploads",
            ["updated_at"],
            postgresql_concurrently=True,
            postgresql_where=sa.text("processing_status IN ('completed', 'failed')"),
        )
