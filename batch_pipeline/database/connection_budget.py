"""How many connections to PostgreSQL the processes of a deployment open at most.

A server refuses connections beyond its ``max_connections`` (100 by default) or the ``CONNECTION
LIMIT`` of a role or a database, and the refused connection may be that of a run worker. So the size
of the pools depends on this limit and on how many runs may be in flight. If that many runs cannot
fit, the start is refused.

====================================  ==============================================
process                               connections at most
====================================  ==============================================
run worker of ``process_batch``       our pool + Dagster's pool + slots of model calls
process of a Celery worker            the same, if there is a broker
code server (evaluates the sensors)   our pool + Dagster's pool + one that waits for work
run worker of ``sweep_backlog``       our pool + Dagster's pool
daemon                                Dagster's pool
web server                            Dagster's pool + its own for the event log
commands (``submit``, ``watch``, …)   a few together
====================================  ==============================================

Pools open connections when threads need them, so all of these are rarely in use. With a second
server for Dagster's own storage there is more room than counted here.
"""

import psycopg
from sqlalchemy.engine import URL

from batch_pipeline.database.failures import failures_named
from batch_pipeline.database.libpq import libpq_url
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.settings import Settings

#: Dagster's pool, in every process: threads write events one at a time and read little.
DAGSTER_POOL = 5
#: Additional pool of the web server, for the pages that read the event log.
WEB_SERVER_POOL = 10
#: All commands that people run, together: two connections each.
COMMANDS = 6
#: Each process has one connection for the slots of model calls.
CALL_SLOTS = 1
#: Our pool needs at least two connections: one for the threads that keep claims alive, one for the
#: work. It has at most two more connections than uploads in progress.
LEAST_POOL, BESIDE_UPLOADS = 2, 2

#: The code server has one connection to listen for new work (`services/dispatch/signals.py`).
SIGNALS = 1

_WITHOUT_RUNS = 4 * DAGSTER_POOL + WEB_SERVER_POOL + COMMANDS + SIGNALS
_PER_WORKER = DAGSTER_POOL + CALL_SLOTS
#: Number of other processes that have our pool: code server and run worker of `sweep_backlog`.
_ALSO_POOLED = 2

#: The limit of the server, the role or the database. The smallest counts; `least` ignores NULL.
_LIMIT = """
    SELECT least(
        current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0),
        (SELECT least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1))
            FROM pg_roles, pg_database
            WHERE rolname = current_user AND NOT rolsuper AND datname = current_database())
    )
"""


def worst_case(settings: Settings, pool: int) -> int:
    """Count the connections of all processes when each has opened its maximum."""
    return _WITHOUT_RUNS + _ALSO_POOLED * pool + _workers(settings) * (_PER_WORKER + pool)


def _workers(settings: Settings) -> int:
    """Count the processes that process uploads, or wait for such processes."""
    celery = settings.celery_processes if settings.celery_broker_url else 0
    return settings.max_runs_in_flight + celery


def pool_size(settings: Settings, limit: int) -> int:
    """Return the size of our pool in each process, for a server that accepts `limit` connections.

    Raises:
        ConfigurationError: the server accepts too few connections for this number of runs.
    """
    workers = _workers(settings)
    share = (limit - _WITHOUT_RUNS - workers * _PER_WORKER) // (workers + _ALSO_POOLED)
    if share < LEAST_POOL:
        asked = f"BATCH_PIPELINE_MAX_RUNS_IN_FLIGHT={settings.max_runs_in_flight}"
        if settings.celery_broker_url:
            asked += f" with BATCH_PIPELINE_CELERY_PROCESSES={settings.celery_processes}"
        raise ConfigurationError(
            f"{asked} needs up to {worst_case(settings, LEAST_POOL)} connections, but "
            f"PostgreSQL accepts {limit}: lower it, or raise max_connections of the server and the "
            "CONNECTION LIMIT of role and database"
        )
    return min(share, settings.max_concurrent_uploads + BESIDE_UPLOADS)


def connection_limit(url: URL) -> int:
    """Read from the server how many connections it accepts from ordinary users.

    Raises:
        ConfigurationError: the URL contains something that PostgreSQL's library does not know.
        ServiceDownError: the server cannot be reached.
    """
    address = libpq_url(url.render_as_string(hide_password=False))
    with failures_named(), psycopg.connect(address, connect_timeout=10) as connection:
        row = connection.execute(_LIMIT).fetchone()
    return int(row[0]) if row else 0
