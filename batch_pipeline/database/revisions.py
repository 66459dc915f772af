"""Which migration the tables have, which one this version needs, and how they are applied.

Alembic applies them. It is imported only for that: it takes a fifth of the start of a command, and
every process that opens the database compares the revisions.
"""

import re
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, text

_MIGRATIONS = Path(__file__).parent / "migrations"
#: Contains the newest migration of the tables. It does not have Alembic's usual name, because an
#: upload API may use Alembic, too.
VERSION_TABLE = "batch_pipeline_version"
#: The table of development versions, if it is ours. Their revisions were 0001 to 0026: all numbers
#: before the first migration that exists now.
_FORMER_TABLE = "alembic_version"
_HAS_FORMER = text(f"""
    SELECT to_regclass('{_FORMER_TABLE}') IS NOT NULL AND EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass('upload_batches') AND attname = 'died_runs'
    )
""")  # noqa: S608 - of constants


def current_revision(connection: Connection) -> str | None:
    """Return the newest migration of the tables; None: there was none."""
    table = _version_table(connection)
    return _revision_in(table, connection) if table else None


def newest_revision() -> str:
    """Return the newest migration of this version."""
    return _revisions()[-1]


@cache
def _revisions() -> list[str]:
    """Return the migrations of this version, oldest first; their files begin with them."""
    files = (_MIGRATIONS / "versions").glob("[0-9]*_*.py")
    return sorted(path.name.partition("_")[0] for path in files)


def apply_migrations(connection: Connection) -> None:
    """Apply the migrations that the tables do not have yet. Each one has its own transactions."""
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415

    _forget_development(connection)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _forget_development(connection: Connection) -> None:
    """Let the first migration run again, if a development version has made the tables."""
    with connection.begin():
        table = _version_table(connection)
        if table and _is_of_development(_revision_in(table, connection)):
            connection.execute(text(f"DROP TABLE {table}"))


def _version_table(connection: Connection) -> str | None:
    if connection.scalar(text(f"SELECT to_regclass('{VERSION_TABLE}')")) is not None:
        return VERSION_TABLE
    if connection.scalar(_HAS_FORMER) and _is_of_development(
        _revision_in(_FORMER_TABLE, connection)
    ):
        return _FORMER_TABLE
    return None


def _revision_in(table: str, connection: Connection) -> str | None:
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {table}"))  # noqa: S608
    return revision


def _is_of_development(revision: str | None) -> bool:
    if revision is None or not re.fullmatch("[0-9]{4}", revision):
        return False
    return "0001" <= revision < _revisions()[0]
