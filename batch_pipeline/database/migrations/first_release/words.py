"""Functions that read an upload for search by words; the index of words contains their results."""

from alembic import op

#: Facts of a file as `jsonb`. In some tables of upload APIs the column is of type `json`, which may
#: hold what `jsonb` cannot: ``\u0000``, half of a surrogate pair, or a number of a million digits.
#: For a column of type `jsonb` the planner replaces the call by the column.
_FACTS_OF_JSONB = """
CREATE OR REPLACE FUNCTION upload_facts(metadata jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT metadata $$
"""
#: The pattern finds escapes in strings from left to right. It keeps simple ones and pairs of
#: surrogates, and removes those that no text of PostgreSQL can hold. What still cannot be converted
#: counts as empty. The function must not change while the index of words exists.
_FACTS_OF_JSON = r"""
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
#: Words of the description, the file name (whole, and split at punctuation), the camera, tags and
#: visible text; each as written and without English endings. Long texts are cut, because the table
#: would refuse a row that is too long for the index. The function must not change while the index
#: of words exists.
_WORDS = """
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


def create_functions() -> None:
    """Create the functions, or replace them by the same ones."""
    for function in (_FACTS_OF_JSONB, _FACTS_OF_JSON, _WORDS):
        op.execute(function)
