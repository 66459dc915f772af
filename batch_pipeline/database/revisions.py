"""Which migration the tables have, which one this version needs, and how they are applied.

Alembic applies them. It is imported only for that: it takes a fifth of the start of a command, and
every process that opens the database compares the revisions.
"""

from functools import cache
from pathlib import Path

from sqlalchemy import Connection, text

_MIGRATIONS = Path(__file__).parent / "migrations"


def current_revision(connection: Connection) -> str | None:
    """Return the newest migration of the tables; None: there was none."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


@cache
def newest_revision() -> str:
    """Return the newest migration of this version: the file's name begins with it."""
    return max(
        path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*_*.py")
    )


def apply_migrations(connection: Connection, revision: str = "head") -> None:
    """Apply the migrations up to a revision that the tables do not have yet.

    Each one has its own transaction.
    """
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
