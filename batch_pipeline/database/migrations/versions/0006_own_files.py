"""Proofs that we may remove a file: the identity of the database, and a record of each thumbnail.

Older thumbnails have no record, so they are never removed as leftovers.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "database_identity",
        sa.Column("id", sa.Uuid, nullable=False, server_default=sa.text("gen_random_uuid()")),
        sa.PrimaryKeyConstraint("id", name="pk_database_identity"),
    )
    op.execute("INSERT INTO database_identity DEFAULT VALUES")
    op.create_table(
        "made_thumbnails",
        sa.Column("upload_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column(
            "made_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("now()")
        ),
        sa.PrimaryKeyConstraint("upload_id", name="pk_made_thumbnails"),
    )
