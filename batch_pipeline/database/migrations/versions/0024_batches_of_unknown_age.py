"""The list of batches begins with the newest; batches of unknown age come last.

An upload API may leave ``created_at`` empty, or set it to ``infinity``. Such batches came first,
and could fill the first pages.
"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

_NAME = "ix_upload_batches_newest"
_KNOWN = "nullif(nullif(created_at, 'infinity'), '-infinity')"


def upgrade() -> None:
    """Build the index again, while other programs write."""
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}")
        op.create_index(
            _NAME,
            "upload_batches",
            [sa.text(f"{_KNOWN} DESC NULLS LAST"), "id"],
            postgresql_concurrently=True,
        )
