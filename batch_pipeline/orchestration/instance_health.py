"""Health of Dagster, for ``doctor``: its storage and its daemon."""

import time
from collections.abc import Iterator

from dagster_postgres.run_storage import PostgresRunStorage

from batch_pipeline.model_servers.base import HealthCheck
from batch_pipeline.orchestration.instance_storage import dagster_storage_url
from batch_pipeline.settings import Settings

#: A daemon that has not been heard of for longer is taken for stopped (seconds).
HEARTBEAT_SECONDS = 60
_NEEDED = ("SENSOR", "SCHEDULER")


def check_dagster(settings: Settings) -> Iterator[HealthCheck]:
    """Check Dagster's storage and the heartbeats of its daemon; never raises."""
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
