"""Alembic migrations; `Database.upgrade` runs them."""

#: Selects the schemas in which functions of ours find tables, when they run with our rights: the
#: tables of an upload API may be in another schema than ours.
SEARCH_PATH = """
    SELECT string_agg(quote_ident(name), ', ' ORDER BY place)
    FROM unnest(current_schemas(false)) WITH ORDINALITY AS schemas (name, place)
"""

#: Selects the type of the facts about files: `jsonb`, or `json` in some tables of upload APIs.
TYPE_OF_FACTS = """
    SELECT format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = to_regclass('uploads') AND attname = 'metadata'
"""
