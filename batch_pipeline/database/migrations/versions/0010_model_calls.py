"""Table of answered calls to model servers, with their costs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create the table; safe to repeat."""
    op.create_table(
        "model_calls",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("upload_id", sa.Uuid),
        sa.Column("batch_id", sa.Uuid),
        sa.Column("user_id", sa.Uuid),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("tokens_in", sa.Integer, nullable=False),
        sa.Column("tokens_out", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column(
            "answered_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        sa.PrimaryKeyConstraint("id", name="pk_model_calls"),
        if_not_exists=True,
    )
    for name, column in (("batch", "batch_id"), ("user", "user_id")):
        op.create_index(f"ix_model_calls_{name}", "model_calls", [column], if_not_exists=True)
    op.create_index(
        "ix_model_calls_answered_at", "model_calls", ["answered_at"], if_not_exists=True
    )
