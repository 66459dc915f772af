"""The number that fences a claim is named for what it is: ``claim_token``."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Rename the column; one that migration 0001 made has the name already."""
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("uploads")}
    if "claim_token" not in columns:
        op.alter_column("uploads", "claim", new_column_name="claim_token")
