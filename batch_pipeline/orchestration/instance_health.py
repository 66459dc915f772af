"""Health checks of Dagster for ``doctor``: its storage, its daemon, and Celery if it is used."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import psycopg
from dagster import DagsterRunStatus, RunsFilter
from sqlalchemy import text

from batch_pipeline.dagster_internals import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    PostgresRunStorage,
    PostgresScheduleStorage,
    TickStatus,
)
from batch_pipeline.database.failures import failures_named
from batch_pipeline.database.libpq import libpq_url
from batch_pipeline.masking import masked
from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.orchestration.dagster_storage.instance_storage import (
    DAEMON_NAME,
    dagster_storage_url,
)
from batch_pipeline.services.health.missing_home import missing_home
from batch_pipeline.services.progress.waiting import why_tick_failed
from batch_pipeline.settings import Settings
from batch_pipeline.wording import how_to_install

#: A daemon without a heartbeat for longer than this counts as stopped (seconds).
HEARTBEAT_SECONDS = 60
#: A server that accepts no connection for longer than this counts as unreachable (seconds).
_CONNECT_SECONDS = 10
_NEEDED = ("SENSOR", "SCHEDULER")
#: The part of the daemon that is needed when a run waits in the queue.
_RUN_QUEUE = "QUEUED_RUN_COORDINATOR"
#: Our sensors and schedules; a test compares them with the code location.
INSTIGATORS = (
    "pending_batches",
    "release_uploads_of_failed_runs",
    "cancel_batches_of_terminated_runs",
    "report_ended_batches",
    "sweep_on_start",
    "notifications",
    "backlog_sweep",
)
#: A sensor or schedule counts in a code location only if its last tick there began at most this
#: long before its newest tick anywhere (seconds). Each ticks about once a minute or more often.
EVALUATED_SECONDS = 600
_ENDED_TICKS = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
_DAEMONS = text("""
    SELECT DISTINCT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND starts_with(application_name, :prefix)
    ORDER BY application_name
""")


def check_dagster(settings: Settings) -> Iterator[HealthCheck]:
    """Check Dagster's storage, its daemon, our sensors and Celery's workers; never raises."""
    checks = [*_storage_and_daemon(settings)]
    if settings.celery_broker_url:
        checks += _celery(settings.celery_broker_url)
    for check in checks:
        yield replace(check, detail=masked(check.detail))


def _storage_and_daemon(settings: Settings) -> Iterator[HealthCheck]:
    if missing_home(settings):
        return  # `services/health/` reports this; checking the storage would create the home
    try:
        url = dagster_storage_url(settings).render_as_string(hide_password=False)
        # Dagster's storages would try for 12 s to reach a server that is not there.
        with failures_named():
            psycopg.connect(libpq_url(url), connect_timeout=_CONNECT_SECONDS).close()
            runs, ticks = PostgresRunStorage(url), PostgresScheduleStorage(url)
            heartbeats = runs.get_daemon_heartbeats()
            queued = runs.get_runs(RunsFilter(statuses=[DagsterRunStatus.QUEUED]), limit=1)
            states = ticks.all_instigator_state()
            daemons = _daemon_processes(runs)
    except Exception as error:
        yield HealthCheck(
            "dagster storage",
            False,
            str(error).strip(),
            "correct BATCH_PIPELINE_DAGSTER_DATABASE_URL or the rights of its role, or start the "
            "server",
        )
        return
    yield HealthCheck("dagster storage", True, "answers")
    if not heartbeats and not states:
        yield HealthCheck(
            "dagster daemon",
            False,
            f"no Dagster has ever run on this database (home {settings.home})",
            "start it with `make dev`. If it runs, it uses another home: run this command in the "
            "folder where Dagster was started, or set BATCH_PIPELINE_HOME",
        )
        return
    needed = (*_NEEDED, _RUN_QUEUE) if queued else _NEEDED
    silent = [
        name
        for name in needed
        if name not in heartbeats or time.time() - heartbeats[name].timestamp > HEARTBEAT_SECONDS
    ]
    yield HealthCheck(
        "dagster daemon",
        not silent,
        f"no heartbeat of {', '.join(silent).lower()}" if silent else "alive",
        "start it with `dagster dev` in the project's folder, or `dagster-daemon run`",
    )
    yield HealthCheck(
        "one daemon",
        len(daemons) < 2,
        f"{len(daemons)} use this database: {', '.join(daemons)}"
        if len(daemons) > 1
        else ", ".join(daemons) or "no connected process has the name of a daemon",
        "stop all but one: a second daemon does nothing, or starts the same runs again",
    )
    yield _sensors(ticks, states)


def _daemon_processes(runs: PostgresRunStorage) -> list[str]:
    """Return the application names of connected daemons, which `instance_storage` sets."""
    with runs.connect() as connection:
        return list(connection.execute(_DAEMONS, {"prefix": DAEMON_NAME}).scalars())


def _sensors(ticks: PostgresScheduleStorage, states: Sequence[InstigatorState]) -> HealthCheck:
    """Check that our sensors and schedules are on, and that their last ticks did not fail.

    Dagster keeps the rows of a code location that was renamed or removed, so a row counts only if
    it is still evaluated.
    """
    ours = [
        (state, _last_tick(ticks, state))
        for state in states
        if state.instigator_name in INSTIGATORS
    ]
    newest: dict[str, float] = {}
    for state, last in ours:
        name = state.instigator_name
        newest[name] = max(newest.get(name, 0.0), last.timestamp if last else 0.0)
    wrong = []
    failed, unused = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for state, last in ours:
        name = state.instigator_name
        if newest[name] - (last.timestamp if last else 0.0) > EVALUATED_SECONDS:
            if last:
                unused[state.origin.location_name].append(name)
        elif state.status is InstigatorStatus.STOPPED:
            wrong.append(f"{name} is switched off")
        elif last and last.status is TickStatus.FAILURE:
            error = last.error and (last.error.cause or last.error)
            failed[why_tick_failed(error.message) if error else "no reason was kept"].append(name)
    wrong += [
        f"{', '.join(sorted(names))}: last tick failed: {why}" for why, names in failed.items()
    ]
    wrong += [f"{name} was never evaluated" for name in INSTIGATORS if name not in newest]
    said = [
        f"no longer evaluated in the code location {location}: {', '.join(sorted(names))}"
        for location, names in unused.items()
    ]
    return HealthCheck(
        "sensors",
        not wrong,
        "; ".join((wrong or ["on, and their last ticks succeeded"]) + said),
        "in the UI, under Automation: switch on what is off, and see why a tick failed",
    )


def _last_tick(ticks: PostgresScheduleStorage, state: InstigatorState) -> InstigatorTick | None:
    """Return the last tick that has ended."""
    found = ticks.get_ticks(
        state.instigator_origin_id, state.selector_id, limit=1, statuses=_ENDED_TICKS
    )
    return found[0] if found else None


def _celery(broker: str) -> Iterator[HealthCheck]:
    try:
        from batch_pipeline.orchestration.celery.broker import (  # noqa: PLC0415 - imports Celery
            broker_outage,
            listening_workers,
        )

        outage = broker_outage(broker)
        workers = [] if outage else listening_workers(broker)
    except Exception as error:
        yield HealthCheck(
            "celery broker",
            False,
            str(error).strip(),
            f"{how_to_install('celery')}, or correct BATCH_PIPELINE_CELERY_BROKER_URL",
        )
        return
    yield HealthCheck(
        "celery broker",
        not outage,
        str(outage) if outage else "answers",
        "start the broker, or correct BATCH_PIPELINE_CELERY_BROKER_URL",
    )
    if not outage:
        yield HealthCheck(
            "celery workers",
            bool(workers),
            ", ".join(workers) or "none answers within two seconds; steps wait for one",
            "start one: `celery -A batch_pipeline.orchestration.celery.app worker -Q dagster`",
        )
