"""Health of everything the pipeline stands on, except Dagster; each finding says what to do."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from sqlalchemy import text

from batch_pipeline.database.embedded_server import server_users
from batch_pipeline.database.session import Database, connect
from batch_pipeline.errors import PipelineError
from batch_pipeline.masking import masked
from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.settings import Settings
from batch_pipeline.storage import Storage

_COLUMN_WIDTH = text("""
    SELECT atttypmod FROM pg_attribute
    WHERE attrelid = to_regclass('uploads') AND attname = 'embedding_local'
""")


def check_health(settings: Settings) -> Iterator[HealthCheck]:
    """Check database, migrations, storage and model server, one after another; never raises."""
    for check in _checks(settings):
        yield replace(check, detail=masked(check.detail), hint=masked(check.hint))


def _checks(settings: Settings) -> Iterator[HealthCheck]:
    yield from _database(settings)
    yield _check(
        "storage",
        lambda: _storage(settings),
        "make the folder writable and look for free space, or set BATCH_PIPELINE_STORAGE_URL",
    )
    try:
        yield from build_analyzer(settings).check()
    except PipelineError as error:
        yield HealthCheck("analyzer", False, str(error), "correct BATCH_PIPELINE_ANALYZER")


def _database(settings: Settings) -> Iterator[HealthCheck]:
    where = "BATCH_PIPELINE_DATABASE_URL" if settings.database_url else "the embedded server's log"
    database: Database | None = None

    def reach() -> str:
        nonlocal database
        database = connect(settings)
        with database.transaction() as connection:
            return f"PostgreSQL {connection.scalar(text('SHOW server_version'))}"

    reached = _check("database", reach, f"start the server; look at {where}")
    yield reached
    if database is None:
        return
    try:
        if not reached.ok:
            return  # the others would only repeat it, with advice that does not help
        if not settings.database_url:
            yield HealthCheck("embedded server", True, _users(settings))
        yield _check("migrations", lambda: _migrations(database), "run `batch-pipeline db upgrade`")
        yield _check(
            "embedding column",
            lambda: _column_width(database, settings),
            "set BATCH_PIPELINE_EMBEDDING_DIMENSIONS to the width of the column",
        )
    finally:
        database.close()


def _users(settings: Settings) -> str:
    users = server_users(settings.home)
    return "used by " + (
        ", ".join(f"{user.name} (process {user.pid})" for user in users) or "nobody else"
    )


def _check(name: str, find: Callable[[], str], hint: str) -> HealthCheck:
    try:
        return HealthCheck(name, True, find())
    except Exception as error:
        return HealthCheck(name, False, str(error).strip(), hint)


def _migrations(database: Database) -> str:
    current, newest = database.revisions()
    if current != newest:
        raise PipelineError(f"the tables are at revision {current or 'none'}, not at {newest}")
    return f"at revision {current}"


def _column_width(database: Database, settings: Settings) -> str:
    with database.transaction() as connection:
        width = connection.scalar(_COLUMN_WIDTH)
    if width != settings.embedding_dimensions:
        raise PipelineError(
            f"the column holds {width} numbers, the setting says {settings.embedding_dimensions}"
        )
    return f"{width} numbers"


def _storage(settings: Settings) -> str:
    Storage(settings.storage_location).check()
    return f"{settings.storage_location} can be written"
