"""Table of call slots: it limits the calls in flight to each model server over all workers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0002"
down_revision = "0001"

_MOMENT = TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "model_call_slots",
        sa.Column("server", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("holder", sa.Uuid, nullable=False),
        sa.Column("wanted", sa.Integer, nullable=False),
        sa.Column("held", sa.Integer, nullable=False),
        sa.Column("since", _MOMENT, nullable=False),
        sa.Column("leased_until", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("server", "kind", "holder", name="pk_model_call_slots"),
    )
