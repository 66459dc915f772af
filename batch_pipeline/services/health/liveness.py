"""Checks that Dagster's code server and daemon are alive, for health checks of containers.

The check of the code server uses gRPC's health protocol. The check of the daemon reads the
heartbeats that it writes. Dagster is not imported, because its own checks take 1.4 and 2.1 s of a
core.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from batch_pipeline.database.libpq import libpq_url
from batch_pipeline.database.names import DAGSTER_DATABASE, JOB_TAG, OUR_JOB, RUNS_IN_FLIGHT
from batch_pipeline.errors import RefusedError

if TYPE_CHECKING:
    from batch_pipeline.settings import Settings

#: The name under which Dagster's code server answers.
_SERVICE = "DagsterApi"
#: Timeout for an answer; a code server that evaluates sensors on a busy host is slow (seconds).
ANSWER_SECONDS = 8.0
#: The daemon writes a heartbeat every 30 s. After this time without one it counts as hanging
#: (seconds).
HEARTBEAT_SECONDS = 180.0

_OLDEST = """
    SELECT max(extract(epoch FROM (now() AT TIME ZONE 'utc') - timestamp)) FROM (
        SELECT DISTINCT ON (daemon_type) timestamp FROM daemon_heartbeats
        WHERE daemon_type IN ('SENSOR', 'SCHEDULER')
        ORDER BY daemon_type, timestamp DESC
    ) AS newest
"""

#: Our runs that are queued or running, and the last tick of the sensor that launches them. The
#: query begins with the newest tick, because the table has all ticks of a week.
_DISPATCH = """
    WITH ticks AS NOT MATERIALIZED (
        SELECT * FROM job_ticks
        WHERE type = 'SENSOR' AND strpos(tick_body, '"job_name": "pending_batches"') > 0
    ), ended AS (
        SELECT CAST(tick_body AS json) AS tick
        FROM ticks WHERE status <> 'STARTED' ORDER BY id DESC LIMIT 1
    )
    SELECT (
        SELECT count(*) FROM runs WHERE pipeline_name = 'process_batch'
            AND status = ANY (%(in_flight)s) AND EXISTS (
                SELECT FROM run_tags
                WHERE run_tags.run_id = runs.run_id AND key = %(tag)s AND value = %(ours)s
            )
    ), (
        SELECT extract(epoch FROM (now() AT TIME ZONE 'utc') - timestamp)
        FROM ticks ORDER BY id DESC LIMIT 1
    ), coalesce(tick -> 'error' -> 'cause' ->> 'message', tick -> 'error' ->> 'message'),
        tick ->> 'skip_reason'
    FROM ended
"""
_OUR_RUNS = {"in_flight": list(RUNS_IN_FLIGHT), "tag": JOB_TAG, "ours": OUR_JOB}


class NeverRunError(RefusedError):
    """No daemon of Dagster has ever used the database."""


@dataclass(frozen=True)
class Dispatch:
    """The last tick of the sensor that launches runs."""

    runs_in_flight: int
    age: float
    """Time since the newest tick began (seconds)."""
    error: str | None
    """Why the last tick failed; None: it did not."""
    said: str | None
    """Why it launched nothing; None: it launched a run, or it failed."""


def check_code_server(host: str, port: int) -> str:
    """Check that the code server serves; returns a sentence about it.

    Raises:
        RefusedError: it does not answer, or reports that it does not serve.
    """
    import grpc  # noqa: PLC0415 - `status` asks only for the daemon
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

    address = f"{host}:{port}"
    # Like Dagster's own client, this ignores a proxy in the environment.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=_SERVICE), timeout=ANSWER_SECONDS
            )
        except grpc.RpcError as error:
            reason = str(error.details())
            raise RefusedError(f"no code server answers at {address}: {reason}") from error
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise RefusedError(f"the code server at {address} does not serve yet")
    return f"the code server at {address} serves"


def check_daemon(settings: "Settings") -> str:
    """Check that the daemon is alive; returns a sentence about it.

    If the database does not answer, the sentence says that the state is not known. That is not an
    error, because a restart of the daemon would not help.

    Raises:
        NeverRunError: no heartbeat was ever written.
        RefusedError: its heartbeats have stopped.
    """
    try:
        with psycopg.connect(_dagster_database(settings), connect_timeout=5) as connection:
            row = connection.execute(_OLDEST).fetchone()
    except psycopg.errors.UndefinedTable:
        row = None
    except (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege) as error:
        return f"not known: the database of Dagster does not answer: {error}"
    age = row[0] if row else None
    if age is None:
        raise NeverRunError("the daemon has written no heartbeat: start `dagster-daemon run`")
    if age > HEARTBEAT_SECONDS:
        raise RefusedError(f"the daemon's last heartbeat is {age:.0f} s old: restart it")
    return f"the daemon lives: its last heartbeat is {age:.0f} s old"


def newest_dispatch(settings: "Settings") -> Dispatch | None:
    """Read what the sensor `pending_batches` did last; None if that is unknown."""
    try:
        with psycopg.connect(_dagster_database(settings), connect_timeout=5) as connection:
            row = connection.execute(_DISPATCH, _OUR_RUNS).fetchone()
    except (
        psycopg.OperationalError,
        psycopg.errors.UndefinedTable,
        psycopg.errors.InsufficientPrivilege,
    ):
        return None
    return Dispatch(row[0], float(row[1]), *row[2:]) if row else None


def _dagster_database(settings: "Settings") -> str:
    """Return the URL of Dagster's database for libpq; for SQLAlchemy see `dagster_storage_url`."""
    if settings.dagster_database_url:
        return libpq_url(settings.dagster_database_url)
    if settings.database_url:
        return psycopg.conninfo.make_conninfo(
            libpq_url(settings.database_url), dbname=DAGSTER_DATABASE
        )
    from batch_pipeline.database.embedded_server import (  # noqa: PLC0415 - not in a container
        embedded_server_url,
    )

    return psycopg.conninfo.make_conninfo(
        libpq_url(embedded_server_url(settings.home)), dbname=DAGSTER_DATABASE
    )
