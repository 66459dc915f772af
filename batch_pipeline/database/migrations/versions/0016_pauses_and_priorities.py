"""Pauses by people (of everything, users, batches, model servers), and priorities of batches."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Create table and column. If an upload API already has a column of that name, it is used."""
    op.create_table(
        "work_pauses",
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False, server_default=""),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column(
            "since", TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("now()")
        ),
        sa.PrimaryKeyConstraint("scope", "target", name="pk_work_pauses"),
        if_not_exists=True,
    )
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("upload_batches")}
    if "priority" not in columns:
        op.add_column("upload_batches", sa.Column("priority", sa.Text))
