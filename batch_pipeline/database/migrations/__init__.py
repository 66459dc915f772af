"""Alembic migrations; `Database.upgrade` runs them."""

from alembic import op

#: Selects the schemas in which functions of ours find tables, when they run with our rights: the
#: tables of an upload API may be in another schema than ours.
SEARCH_PATH = """
    SELECT string_agg(quote_ident(name), ', ' ORDER BY place)
    FROM unnest(current_schemas(false)) WITH ORDINALITY AS schemas (name, place)
"""


def commit() -> None:
    """Commit what a migration has done so far.

    A migration must not hold the lock of a table while it waits for that of another one: a program
    that locks them in the other order would wait for the migration, and one of both would fail.
    """
    with op.get_context().autocommit_block():
        pass
