"""Renames the column of the fencing token to ``claim_token``."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Rename the column, unless migration 0001 has already created it with the new name."""
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("uploads")}
    if "claim_token" not in columns:
        op.alter_column("uploads", "claim", new_column_name="claim_token")
