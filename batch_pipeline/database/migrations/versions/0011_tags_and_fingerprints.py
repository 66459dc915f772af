"""Tags and visible text of uploads, search by them, and what each result was made with.

The index of words is built anew, with a function of other arguments: what the one of migration 0008
says may not change while an index is there.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

#: Words of the description, the file name (as it stands, and taken apart at every sign), the
#: camera, tags and visible text; as they stand, and with English endings removed. Cut, as a text
#: that is too long for the index would be refused by the table. What it says may not change while
#: the index is there.
_FUNCTION = """
CREATE OR REPLACE FUNCTION upload_words(
    description text, filename text, metadata jsonb, tags text[], visible_text text
)
RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE COST 1000 AS $$
    SELECT to_tsvector('pg_catalog.english'::regconfig, words)
        || to_tsvector('pg_catalog.simple'::regconfig, words)
    FROM (
        SELECT concat_ws(
            ' ',
            left(description, 20000),
            left(filename, 500),
            regexp_replace(left(filename, 500), '[^[:alnum:]]+', ' ', 'g'),
            left(metadata ->> 'camera', 200),
            left(array_to_string(tags, ' '), 2000),
            left(visible_text, 8000)
        ) AS words
    ) AS joined
$$
"""
_INDEXES = {
    "ix_uploads_words": sa.text(
        "upload_words(description, filename, metadata::jsonb, vision_tags, visible_text)"
    ),
    "ix_uploads_tags": sa.text("vision_tags"),
}


def upgrade() -> None:
    """Build the indexes while others write; one whose building was interrupted is built anew."""
    op.execute(
        "ALTER TABLE uploads ADD COLUMN IF NOT EXISTS vision_tags text[] NOT NULL DEFAULT '{}', "
        "ADD COLUMN IF NOT EXISTS visible_text text, "
        "ADD COLUMN IF NOT EXISTS vision_fingerprint text, "
        "ADD COLUMN IF NOT EXISTS embedding_fingerprint text"
    )
    op.execute(_FUNCTION)
    with op.get_context().autocommit_block():
        for name, what in _INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.create_index(
                name,
                "uploads",
                [what],
                postgresql_using="gin",
                postgresql_concurrently=True,
                postgresql_where=sa.text("embedding_model IS NOT NULL"),
            )
        for column in ("vision_fingerprint", "embedding_fingerprint"):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS ix_uploads_{column}")
            op.create_index(
                f"ix_uploads_{column}",
                "uploads",
                [column],
                postgresql_concurrently=True,
                postgresql_where=sa.text("processing_status = 'completed'"),
            )
