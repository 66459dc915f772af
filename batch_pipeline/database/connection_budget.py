"""How many connections to PostgreSQL the processes of a deployment open at most.

A server refuses connections beyond its ``max_connections`` (100 unless somebody changed it), and it
may be a run worker's that is refused. So pools are sized by what is there, for as many runs as may
be in flight; a number of runs that cannot fit is refused at start.

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

Pools open connections when threads ask for them, so all of this is rarely in use. With a second
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
#: What the web server has besides, for the pages that read the event log.
WEB_SERVER_POOL = 10
#: Commands of people, all together: two each.
COMMANDS = 6
#: One connection per process agrees on the slots of model calls.
CALL_SLOTS = 1
#: Our pool: one for the threads that keep claims alive, one for the work, and no more than these
#: beside one per upload in work.
LEAST_POOL, BESIDE_UPLOADS = 2, 2

#: The code server hears of work on a connection of its own (`services/dispatch/signals.py`).
SIGNALS = 1

_WITHOUT_RUNS = 4 * DAGSTER_POOL + WEB_SERVER_POOL + COMMANDS + SIGNALS
_PER_WORKER = DAGSTER_POOL + CALL_SLOTS
#: Processes beside the run workers of `process_batch` that have our pool.
_ALSO_POOLED = 2

_LIMIT = """
    SELECT current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0)
"""


def worst_case(settings: Settings, pool: int) -> int:
    """Count the connections of all processes when each has opened all it may."""
    return _WITHOUT_RUNS + _ALSO_POOLED * pool + _workers(settings) * (_PER_WORKER + pool)


def _workers(settings: Settings) -> int:
    """Count the processes that process uploads, or wait for those that do."""
    celery = settings.celery_processes if settings.celery_broker_url else 0
    return settings.max_runs_in_flight + celery


def pool_size(settings: Settings, limit: int) -> int:
    """Size of our pool in each process, for a server that accepts `limit` connections.

    Raises:
        ConfigurationError: so many runs do not fit.
    """
    workers = _workers(settings)
    share = (limit - _WITHOUT_RUNS - workers * _PER_WORKER) // (workers + _ALSO_POOLED)
    if share < LEAST_POOL:
        asked = f"BATCH_PIPELINE_MAX_RUNS_IN_FLIGHT={settings.max_runs_in_flight}"
        if settings.celery_broker_url:
            asked += f" with BATCH_PIPELINE_CELERY_PROCESSES={settings.celery_processes}"
        raise ConfigurationError(
            f"{asked} needs up to {worst_case(settings, LEAST_POOL)} connections, PostgreSQL "
            f"accepts {limit}: lower it, or raise max_connections of the server"
        )
    return min(share, settings.max_concurrent_uploads + BESIDE_UPLOADS)


def connection_limit(url: URL) -> int:
    """Ask the server how many connections it accepts from ordinary users.

    Raises:
        ConfigurationError: the URL has something in it that PostgreSQL's library does not know.
        ServiceDownError: it cannot be reached.
    """
    address = libpq_url(url.render_as_string(hide_password=False))
    with failures_named(), psycopg.connect(address, connect_timeout=10) as connection:
        row = connection.execute(_LIMIT).fetchone()
    return int(row[0]) if row else 0
