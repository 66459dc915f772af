"""Which migration the tables have, which one this version needs, and how they are applied.

Alembic applies them. It is imported only for that: it takes a fifth of the start of a command, and
every process that opens the database compares the revisions.
"""

from functools import cache
from pathlib import Path

from sqlalchemy import Connection, text

_MIGRATIONS = Path(__file__).parent / "migrations"
#: Contains the newest migration of the tables. It does not have Alembic's usual name, because an
#: upload API may use Alembic, too.
VERSION_TABLE = "batch_pipeline_version"
#: Whether the table of Alembic's usual name may be ours: earlier versions used it.
_HAS_FORMER = text("""
    SELECT to_regclass('alembic_version') IS NOT NULL AND EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass('upload_batches') AND attname = 'died_runs'
    )
""")


def current_revision(connection: Connection) -> str | None:
    """Return the newest migration of the tables; None: there was none."""
    if not _has_table(connection):
        return _former_revision(connection)
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    return revision


def newest_revision() -> str:
    """Return the newest migration of this version."""
    return max(_revisions())


@cache
def _revisions() -> frozenset[str]:
    """Return all migrations of this version: the names of the files begin with them."""
    return frozenset(
        path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*_*.py")
    )


def _has_table(connection: Connection) -> bool:
    return connection.scalar(text(f"SELECT to_regclass('{VERSION_TABLE}')")) is not None


def _former_revision(connection: Connection) -> str | None:
    if not connection.scalar(_HAS_FORMER):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision if revision in _revisions() else None


def _rename_former(connection: Connection) -> None:
    with connection.begin():
        if _has_table(connection) or _former_revision(connection) is None:
            return
        for change in (
            f"ALTER TABLE alembic_version RENAME TO {VERSION_TABLE}",
            f"ALTER TABLE {VERSION_TABLE} RENAME CONSTRAINT alembic_version_pkc "
            f"TO {VERSION_TABLE}_pkc",
        ):
            connection.execute(text(change))


def apply_migrations(connection: Connection, revision: str = "head") -> None:
    """Apply the migrations up to a revision that the tables do not have yet.

    Each one has its own transaction.
    """
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415

    _rename_former(connection)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
