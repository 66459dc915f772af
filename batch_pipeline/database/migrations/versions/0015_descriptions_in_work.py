"""Table of descriptions in progress: copies that are processed together are described once."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Create the table; safe to repeat."""
    op.create_table(
        "descriptions_in_work",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("checksum", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("upload_id", sa.Uuid, nullable=False),
        sa.Column("claim_token", sa.BigInteger, nullable=False),
        sa.Column(
            "taken_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        sa.PrimaryKeyConstraint(
            "user_id", "checksum", "fingerprint", name="pk_descriptions_in_work"
        ),
        if_not_exists=True,
    )
