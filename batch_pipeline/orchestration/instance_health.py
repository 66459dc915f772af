"""Health of Dagster, for ``doctor``: its storage, its daemon, and Celery if that runs the steps."""

import time
from collections.abc import Iterator
from dataclasses import replace

from dagster_postgres import PostgresRunStorage

from batch_pipeline.masking import masked
from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.orchestration.dagster_storage.instance_storage import dagster_storage_url
from batch_pipeline.services.missing_home import missing_home
from batch_pipeline.settings import Settings

#: A daemon that has not been heard of for longer is taken for stopped (seconds).
HEARTBEAT_SECONDS = 60
_NEEDED = ("SENSOR", "SCHEDULER")


def check_dagster(settings: Settings) -> Iterator[HealthCheck]:
    """Check Dagster's storage, the heartbeats of its daemon and Celery's workers; never raises."""
    checks = [*_storage_and_daemon(settings)]
    if settings.celery_broker_url:
        checks += _celery(settings.celery_broker_url)
    for check in checks:
        yield replace(check, detail=masked(check.detail))


def _storage_and_daemon(settings: Settings) -> Iterator[HealthCheck]:
    if missing_home(settings):
        return  # as the first check of `services/health.py` says; asking would make one
    try:
        url = dagster_storage_url(settings).render_as_string(hide_password=False)
        heartbeats = PostgresRunStorage(url).get_daemon_heartbeats()
    except Exception as error:
        yield HealthCheck(
            "dagster storage",
            False,
            str(error).strip(),
            "correct BATCH_PIPELINE_DAGSTER_DATABASE_URL, or start the server",
        )
        return
    yield HealthCheck("dagster storage", True, "answers")
    silent = [
        name
        for name in _NEEDED
        if name not in heartbeats or time.time() - heartbeats[name].timestamp > HEARTBEAT_SECONDS
    ]
    yield HealthCheck(
        "dagster daemon",
        not silent,
        f"no heartbeat of {', '.join(silent).lower()}" if silent else "alive",
        "start it with `dagster dev` in the project's folder, or `dagster-daemon run`",
    )


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
            "install the extra `celery`; correct BATCH_PIPELINE_CELERY_BROKER_URL",
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
