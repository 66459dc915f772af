"""Indexes for search by words, by file name and by content.

They contain only uploads that search finds. So an upload in progress, whose row changes several
times, is added to them once.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

#: Words of the description, the file name (whole, and split at punctuation) and the camera; each as
#: written and without English endings. Long texts are cut, because the table would refuse a row
#: that is too long for the index. The function must not change while the index exists.
_FUNCTION = """
CREATE OR REPLACE FUNCTION upload_words(description text, filename text, metadata jsonb)
RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE COST 1000 AS $$
    SELECT to_tsvector('pg_catalog.english'::regconfig, words)
        || to_tsvector('pg_catalog.simple'::regconfig, words)
    FROM (
        SELECT concat_ws(
            ' ',
            left(description, 20000),
            left(filename, 500),
            regexp_replace(left(filename, 500), '[^[:alnum:]]+', ' ', 'g'),
            left(metadata ->> 'camera', 200)
        ) AS words
    ) AS joined
$$
"""
_INDEXES = {
    "ix_uploads_words": (sa.text("upload_words(description, filename, metadata::jsonb)"), "gin"),
    "ix_uploads_filename": (sa.text("lower(filename)"), "hash"),
    "ix_uploads_checksum": (sa.text("checksum"), "btree"),
}


def upgrade() -> None:
    """Build the indexes while other programs write; an incomplete index is built again."""
    with op.get_context().autocommit_block():
        op.execute(_FUNCTION)
        for name, (what, kind) in _INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.create_index(
                name,
                "uploads",
                [what],
                postgresql_using=kind,
                postgresql_concurrently=True,
                postgresql_where=sa.text("embedding_model IS NOT NULL"),
            )
