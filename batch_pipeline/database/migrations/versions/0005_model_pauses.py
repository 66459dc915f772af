"""Table of the pauses that model servers ask for, so that all workers keep to a rate limit."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "model_pauses",
        sa.Column("server", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("not_before", TIMESTAMP(timezone=True), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("server", "kind", name="pk_model_pauses"),
        if_not_exists=True,
    )
