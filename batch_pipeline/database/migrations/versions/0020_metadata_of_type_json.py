r"""Metadata of type `json` that `jsonb` cannot hold, in tables of upload APIs.

PostgreSQL stores ``\u0000``, half of a surrogate pair or a number of a million digits in a column
of type `json`, but refuses to convert it to `jsonb`. Our statements that read such metadata failed,
and so did changes of the row, because the index of words contains the conversion. Now all of them
call a function that converts it always. For a column of type `jsonb` the planner replaces the call
by the column, so existing indexes and statistics fit.
"""

import sqlalchemy as sa
from alembic import op

from batch_pipeline.database.migrations import TYPE_OF_FACTS

revision = "0020"
down_revision = "0019"

_OF_JSONB = """
CREATE OR REPLACE FUNCTION upload_facts(metadata jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT metadata $$
"""
#: The pattern finds escapes in strings from left to right. It keeps simple ones and pairs of
#: surrogates, and removes those that no text of PostgreSQL can hold. What still cannot be converted
#: counts as empty. The function must not change while the index exists.
_OF_JSON = r"""
CREATE OR REPLACE FUNCTION upload_facts(metadata json) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE COST 1000 AS $$
BEGIN
    RETURN regexp_replace(
        metadata::text,
        '(\\[^u]|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u(0000|[dD][89a-fA-F]..)', '\1', 'g'
    )::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN NULL;
END $$
"""
_INDEX = "ix_uploads_words"
_WORDS = "upload_words(description, filename, upload_facts(metadata), vision_tags, visible_text)"


def upgrade() -> None:
    """Create the functions, and build the index again if it has the conversion."""
    op.execute(_OF_JSONB)
    op.execute(_OF_JSON)
    if op.get_bind().scalar(sa.text(TYPE_OF_FACTS)) != "json":
        return
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.create_index(
            _INDEX,
            "uploads",
            [sa.text(_WORDS)],
            postgresql_using="gin",
            postgresql_concurrently=True,
            postgresql_where=sa.text("embedding_model IS NOT NULL"),
        )
