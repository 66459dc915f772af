"""Statistics of the format and the camera of uploads, for searches that filter by them.

Without them PostgreSQL assumes that every format and camera is rare, and reads all uploads instead
of the index of vectors. Among 40,000 vectors, a search for a common format took 259 ms without and
33 ms with the statistics.
"""

import sqlalchemy as sa
from alembic import op

from batch_pipeline.database.migrations import TYPE_OF_FACTS

revision = "0019"
down_revision = "0018"

#: The same expressions as in `search_filters`.
_FACTS = "coalesce(nullif(metadata, 'null'::jsonb), '{}'::jsonb)"
_EXPRESSIONS = {
    "batch_pipeline_uploads_format": f"({_FACTS} ->> 'format')",
    "batch_pipeline_uploads_camera": f"lower({_FACTS} ->> 'camera')",
}


def upgrade() -> None:
    """Create the statistics, and fill them; safe to repeat."""
    if op.get_bind().scalar(sa.text(TYPE_OF_FACTS)) != "jsonb":
        return  # an expression that converts `json` cannot have statistics
    for name, expression in _EXPRESSIONS.items():
        op.execute(f"CREATE STATISTICS IF NOT EXISTS {name} ON ({expression}) FROM uploads")
    op.execute("ANALYZE uploads")
