"""Batches have names, for people: what `submit` was given, or the folder's."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column; an upload API may have one of that name, which is then read."""
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("upload_batches")}
    if "name" not in columns:
        op.add_column("upload_batches", sa.Column("name", sa.Text))
