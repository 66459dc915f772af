"""Alembic migrations; `Database.upgrade` runs them."""

from alembic import op


def commit() -> None:
    """Commit what a migration has done so far.

    A migration must not hold the lock of a table while it waits for the lock of another one: a
    program that locks them in the other order would wait for the migration, and one of the two
    would fail.
    """
    with op.get_context().autocommit_block():
        pass
