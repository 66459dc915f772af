"""Statistics of the date of uploads, for searches that filter by it.

Without them PostgreSQL assumes that 0.5 % of all uploads lie between two dates. Among 100,000
vectors, a search for the 75 % of three years compared all of these in 0.5 s, and takes 20 ms with
the statistics.
"""

import sqlalchemy as sa
from alembic import op

from batch_pipeline.database.migrations import TYPE_OF_FACTS

revision = "0022"
down_revision = "0021"

#: The same expression as in `search_filters`.
_DATE = """
    coalesce(
        coalesce(nullif(metadata, 'null'::jsonb), '{}'::jsonb) ->> 'captured_at',
        to_char(
            timezone('UTC', nullif(nullif(created_at, 'infinity'), '-infinity')),
            'YYYY-MM-DD"T"HH24:MI:SS'
        )
    ) COLLATE "C"
"""


def upgrade() -> None:
    """Create the statistics, and fill them; safe to repeat."""
    if op.get_bind().scalar(sa.text(TYPE_OF_FACTS)) != "jsonb":
        return  # an expression that converts `json` cannot have statistics
    op.execute(
        f"CREATE STATISTICS IF NOT EXISTS batch_pipeline_uploads_date ON ({_DATE}) FROM uploads"
    )
    op.execute("ANALYZE uploads")
