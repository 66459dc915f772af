"""Names of batches for people: given to `submit`, or taken from the folder."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column. If an upload API already has a column of that name, it is used."""
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("upload_batches")}
    if "name" not in columns:
        op.add_column("upload_batches", sa.Column("name", sa.Text))
