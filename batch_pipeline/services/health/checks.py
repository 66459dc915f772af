"""Health checks of everything the pipeline needs, except Dagster; each failure says what to do."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from batch_pipeline.database.connection_setup import is_pooled, time_limits
from batch_pipeline.database.embedded_server import server_users
from batch_pipeline.database.existing_tables import (
    Problem,
    has_tables,
    letter_problems,
    missing_columns,
    rows_left_alone,
    server_problems,
    table_problems,
)
from batch_pipeline.database.session import Database, connect
from batch_pipeline.database.spaces import find_space, local_width
from batch_pipeline.database.triggers import trigger_problems
from batch_pipeline.errors import ConfigurationError, PipelineError
from batch_pipeline.masking import masked
from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.services.deletion.file_ownership import FileOwnership
from batch_pipeline.services.health.missing_home import missing_home
from batch_pipeline.services.notifications.outbox import count_given_up
from batch_pipeline.services.notifications.sending import require_apprise, targets_of
from batch_pipeline.services.one_by_one import short_reason
from batch_pipeline.services.pauses import active_pauses
from batch_pipeline.services.progress.publishing import check_redis
from batch_pipeline.services.reports.batch_status import oldest_waiting, waiting_without_their_batch
from batch_pipeline.services.search.embedding_spaces import key_of_settings
from batch_pipeline.services.short_ids import batch_label
from batch_pipeline.settings import Settings
from batch_pipeline.storage import Storage
from batch_pipeline.wording import counted

#: Number of users whom a space answers, and of those whom another space answers.
_ANSWERED = text("""
    SELECT count(*) FILTER (WHERE space_id = CAST(:space AS integer)),
        count(*) FILTER (WHERE space_id IS DISTINCT FROM CAST(:space AS integer))
    FROM answering_spaces
""")
_RATE_LIMITS = text("""
    SELECT server, kind, reason, extract(epoch FROM not_before - now()) AS seconds
    FROM model_pauses WHERE not_before > now() ORDER BY server, kind
""")


def check_health(
    settings: Settings, *, quick: bool = False, longest_wait: timedelta = timedelta(hours=6)
) -> Iterator[HealthCheck]:
    """Check database, migrations, storage and model server, one after another; never raises.

    Unless `quick`, each model is asked a question with a known answer. The check fails if an upload
    has waited for longer than `longest_wait`.
    """
    for check in _checks(settings, quick=quick, longest_wait=longest_wait):
        yield replace(check, detail=masked(check.detail), hint=masked(check.hint))


def _checks(settings: Settings, *, quick: bool, longest_wait: timedelta) -> Iterator[HealthCheck]:
    if missing := missing_home(settings):
        yield HealthCheck("home", False, missing, "start Dagster first: `make dev`")
        return
    yield HealthCheck("home", True, str(settings.home))
    yield from _database(settings, longest_wait)
    yield _check("storage", lambda: _storage(settings), _storage_hint(settings))
    if settings.redis_url:
        yield _check(
            "redis",
            lambda: check_redis(settings.redis_url),
            "start it, or correct BATCH_PIPELINE_REDIS_URL; meanwhile uploads are processed, and "
            "progress is published on PostgreSQL only",
        )
    try:
        analyzer = build_analyzer(settings)
    except PipelineError as error:
        yield HealthCheck(
            "analyzer", False, str(error), "correct the setting that the message names"
        )
        return
    for model in (analyzer.vision, analyzer.embedding):
        checks = model.check()
        yield from checks
        if not quick and all(check.ok for check in checks):
            yield from model.try_out()


def _database(settings: Settings, longest_wait: timedelta) -> Iterator[HealthCheck]:
    where = "BATCH_PIPELINE_DATABASE_URL" if settings.database_url else "the embedded server's log"
    database: Database | None = None

    def reach() -> str:
        nonlocal database
        database = connect(settings)
        with database.transaction() as connection:
            return f"PostgreSQL {connection.scalar(text('SHOW server_version'))}"

    reached = _check("database", reach, f"start the server, or create the database; see {where}")
    yield reached
    if database is None:
        return
    try:
        if not reached.ok:
            return  # the other checks would repeat the error, with advice that does not help
        if not settings.database_url:
            yield HealthCheck("embedded server", True, _users(settings))
        migrations = _check(
            "migrations", lambda: _migrations(database), "run `batch-pipeline db upgrade`"
        )
        yield migrations
        if limits := _time_limits(database):
            yield HealthCheck("time limits", True, limits)
        if limits := _rate_limits(database):
            yield HealthCheck("rate limits", True, limits)
        if migrations.ok and (paused := active_pauses(database)):
            yield HealthCheck("pauses", True, "; ".join(map(str, paused)))
        tables = _check(
            "tables",
            lambda: _tables(database, upgraded=migrations.ok),
            "change them: docs/existing_database.md",
        )
        yield tables
        if migrations.ok and tables.ok:
            yield _check(
                "embedding space",
                lambda: _embedding_space(database, settings),
                "correct the settings of the embedding model",
            )
            yield _check("statuses", lambda: _statuses(database), "docs/existing_database.md")
            yield _check(
                "oldest waiting upload",
                lambda: _oldest_waiting(database, longest_wait),
                "`batch-pipeline status` says what it waits for; the ticks of pending_batches in "
                "the UI (Automation) also show it",
            )
            yield _check(
                "notifications",
                lambda: _notifications(database, settings),
                "`batch-pipeline notify --list` shows why; `notify --again` sends them again",
            )
            yield _check("owner of the storage", lambda: _storage_owner(database, settings), "")
    finally:
        database.close()


def _users(settings: Settings) -> str:
    users = server_users(settings.home)
    return "used by " + (
        ", ".join(f"{user.name} (process {user.pid})" for user in users) or "no other process"
    )


def _check(name: str, find: Callable[[], str], hint: str) -> HealthCheck:
    try:
        return HealthCheck(name, True, find())
    except ConfigurationError as error:
        return HealthCheck(name, False, str(error), "set or install what the message names")
    except DBAPIError as error:
        return HealthCheck(name, False, short_reason(error), hint)
    except Exception as error:
        return HealthCheck(name, False, str(error).strip(), hint)


def _migrations(database: Database) -> str:
    current, newest = database.revisions()
    if current != newest:
        raise PipelineError(f"the tables are at revision {current or 'none'}, not at {newest}")
    return f"at revision {current}"


def _embedding_space(database: Database, settings: Settings) -> str:
    """Return the space into which new vectors go, and how many users it answers.

    The check does not fail if older spaces still answer users.
    """
    key = key_of_settings(settings)
    with database.transaction() as connection:
        space = find_space(connection, key)
        users, waiting = connection.execute(_ANSWERED, {"space": space and space.id}).one()
        width = local_width(connection)
    found = f"{key.model}, {key.width} numbers"
    if width not in {-1, key.width}:
        found += f"; uploads.embedding_local stays empty: it is for {width} numbers"
    if waiting:
        found += (
            f"; answers {users} users, older spaces {waiting}: `batch-pipeline spaces` shows what "
            "is missing"
        )
    return found


def _time_limits(database: Database) -> str:
    """Return limits behind a pooler, where we cannot lift them for our connections; empty: none."""
    try:
        with database.transaction() as connection:
            raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
            limits = time_limits(raw) if is_pooled(raw) else []
    except Exception:  # the checks before have reported it
        return ""
    if not limits:
        return ""
    return (
        f"{', '.join(limits)}: the server ends longer statements of ours, and behind a pooler we "
        "cannot change that. Run ALTER ROLE … RESET … for the role of BATCH_PIPELINE_DATABASE_URL"
    )


def _rate_limits(database: Database) -> str:
    """Return the pauses for which model servers have asked (rate limits); empty: none."""
    try:
        with database.transaction() as connection:
            rows = connection.execute(_RATE_LIMITS).all()
    except Exception:  # the checks before have reported it
        return ""
    return "; ".join(
        f"{row.kind} calls to {row.server} wait for another {row.seconds:.0f} s: {row.reason}"
        for row in rows
    )


def _tables(database: Database, *, upgraded: bool) -> str:
    with database.transaction() as connection:
        _raise_if([*server_problems(connection), *table_problems(connection)])
        if upgraded:
            _raise_if([*missing_columns(connection), *trigger_problems(connection)])
        exist = has_tables(connection)
        limits = letter_problems(connection)
        found = "can be read and written" if exist else "none yet; the upgrade makes them"
        return "; ".join(map(str, [found, *limits]))


def _statuses(database: Database) -> str:
    with database.transaction() as connection:
        left_alone = list(rows_left_alone(connection))
    said = "; ".join(map(str, left_alone))
    if any(rows.is_mistaken for rows in left_alone):
        raise PipelineError(said)
    return said or "all known"


def _raise_if(problems: Iterable[Problem]) -> None:
    if said := "; ".join(map(str, problems)):
        raise PipelineError(said)


def _oldest_waiting(database: Database, longest_wait: timedelta) -> str:
    oldest = oldest_waiting(database)
    if oldest is None:
        return "none waits"
    waited = "for an unknown time" if oldest.waited is None else f"for {oldest.waited}"
    said = f"upload {oldest.upload_id} has waited {waited}"
    if oldest.batch_id is None:
        said += ", without a batch"
    else:
        label = batch_label(oldest.batch_id, oldest.batch_name)
        said += f"; its batch {label} is {oldest.batch_status or 'gone'}"
    if gone := waiting_without_their_batch(database):
        said += (
            f"; waiting uploads whose batch is gone: {gone} (set their batch_id to NULL, then the "
            "sweep puts them into a new batch)"
        )
    if oldest.waited is not None and oldest.waited > longest_wait:
        raise PipelineError(f"{said}, longer than {longest_wait}")
    return said


def _notifications(database: Database, settings: Settings) -> str:
    if settings.notify_url_list:
        require_apprise()
    targets = targets_of(settings)
    if given_up := count_given_up(database, [target.id for target in targets]):
        raise PipelineError(f"{counted(given_up, 'notification')} given up without a delivery")
    return (
        f"sent to {', '.join(target.name for target in targets)}" if targets else "no target is set"
    )


def _storage_owner(database: Database, settings: Settings) -> str:
    """Return which database owns the storage; another owner is not a failure.

    Raises:
        ServiceDownError: the storage holds none of the files that rows name.
    """
    location = settings.storage_location
    ownership = FileOwnership(database, Storage(location), settings)
    owner, this = ownership.owner(), f"this database ({ownership.identity})"
    if owner == ownership.identity:
        return f"{this} owns {location}, and may tidy it"
    if owner is None and not ownership.is_marked():
        ownership.would_own()  # raises an error if this is not the storage of the files
        return (
            f"no database owns {location} yet; {this} becomes the owner at its first submission "
            "or tidy, if the storage is then empty or the default one"
        )
    who = f"database {owner}" if owner else "no database"
    return (
        f"{who} owns {location}; {this} does not, so it does not tidy there. If only this database "
        "uses the storage, run `batch-pipeline tidy --take-over`"
    )


def _storage_hint(settings: Settings) -> str:
    if "://" in settings.storage_location and not settings.storage_location.startswith("file://"):
        return (
            "start the object store, make the bucket, or give the key the right to read, write "
            "and delete there; BATCH_PIPELINE_STORAGE_URL names the bucket, the client of the "
            "store has settings for address and key (for S3 AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID)"
        )
    return (
        "mount the folder, make it writable and look for free space, or set "
        "BATCH_PIPELINE_STORAGE_URL"
    )


def _storage(settings: Settings) -> str:
    Storage(settings.storage_location).check()
    return f"{settings.storage_location} can be written"
