"""Health of everything the pipeline stands on, except Dagster; each finding says what to do."""

from collections.abc import Callable, Iterable, Iterator

from sqlalchemy import text

from batch_pipeline.database.existing_tables import Problem, rows_left_alone, table_problems
from batch_pipeline.database.session import Database, connect
from batch_pipeline.errors import PipelineError
from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.services.reports.batch_status import oldest_waiting
from batch_pipeline.settings import Settings
from batch_pipeline.storage import Storage

_COLUMN_WIDTH = text("""
    SELECT atttypmod FROM pg_attribute
    WHERE attrelid = to_regclass('uploads') AND attname = 'embedding_local'
""")


def check_health(settings: Settings) -> Iterator[HealthCheck]:
    """Check database, migrations, storage and model server, one after another; never raises."""
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
        migrations = _check(
            "migrations", lambda: _migrations(database), "run `batch-pipeline db upgrade`"
        )
        yield migrations
        yield _check(
            "embedding column",
            lambda: _column_width(database, settings),
            "set BATCH_PIPELINE_EMBEDDING_DIMENSIONS to the width of the column",
        )
        tables = _check(
            "tables", lambda: _tables(database, settings), "change them: docs/existing_database.md"
        )
        yield tables
        if migrations.ok and tables.ok:
            yield _check("statuses", lambda: _statuses(database), "docs/existing_database.md")
            yield _check("oldest waiting upload", lambda: _oldest_waiting(database), "")
    finally:
        database.close()


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


def _tables(database: Database, settings: Settings) -> str:
    with database.transaction() as connection:
        _raise_if(table_problems(connection, settings.embedding_dimensions))
    return "can be read and written"


def _statuses(database: Database) -> str:
    with database.transaction() as connection:
        _raise_if(rows_left_alone(connection))
    return "every row has one that the pipeline knows"


def _raise_if(problems: Iterable[Problem]) -> None:
    if said := "; ".join(map(str, problems)):
        raise PipelineError(said)


def _oldest_waiting(database: Database) -> str:
    oldest = oldest_waiting(database)
    if oldest is None:
        return "none waits"
    waited = "since nobody knows when" if oldest.waited is None else f"for {oldest.waited}"
    if oldest.batch_id is None:
        return f"upload {oldest.upload_id} waits {waited}, without a batch"
    status = oldest.batch_status or "gone"
    return f"upload {oldest.upload_id} waits {waited}; its batch {oldest.batch_id} is {status}"


def _storage(settings: Settings) -> str:
    Storage(settings.storage_location).check()
    return f"{settings.storage_location} can be written"
