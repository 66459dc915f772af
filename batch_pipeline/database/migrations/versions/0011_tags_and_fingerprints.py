"""Tags and visible text of uploads, search by them, and fingerprints of results.

The index of words is built again with a new function, which has more arguments. The function of
migration 0008 must not change while its index exists.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

#: Words of the description, the file name (whole, and split at punctuation), the camera, tags and
#: visible text; each as written and without English endings. Long texts are cut, because the table
#: would refuse a row that is too long for the index. The function must not change while the index
#: exists.
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
    """Build the indexes while other programs write; an incomplete index is built again."""
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
