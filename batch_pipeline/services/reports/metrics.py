"""Metrics of the pipeline for Prometheus; they are read from the database at each scrape.

Every query reads open uploads, or those that ended in the last minutes, by an index. No query
counts all uploads. ``docs/deployment.md`` explains the metrics.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import text

from batch_pipeline.database.failures import failures_named
from batch_pipeline.database.readings import (
    ACTIVE_PAUSE_SQL,
    HELD_SQL,
    NOT_PAUSED_SQL,
    OPEN_BATCH_SQL,
    PENDING_WORK_SQL,
    WAITING_SINCE,
    as_text,
)
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.services.one_by_one import LeftOut, one_by_one
from batch_pipeline.services.pauses import all_servers_paused
from batch_pipeline.settings import Settings

log = logging.getLogger(__name__)

#: Period that counts as recent, which is a few scrapes (seconds).
RECENT_SECONDS = 300


class Metric(NamedTuple):
    """A gauge and its query; the last column is the value, the columns before are the labels."""

    name: str
    description: str
    query: str


class Sample(NamedTuple):
    """One number of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


METRICS = (
    Metric(
        "batch_pipeline_open_uploads",
        "Uploads that have not ended, by state, without those of cancelled batches. `reserved`: a "
        "run has taken them but not begun. `paused`: their batch, their user, everything, or every "
        "model server of a kind is paused.",
        f"""
        SELECT v.state, v.number FROM (
            SELECT count(*) AS waiting,
                count(*) FILTER (WHERE {NOT_PAUSED_SQL} AND NOT :all_servers_paused) AS pending
            FROM uploads
            WHERE {PENDING_WORK_SQL}
        ) counted, LATERAL (
            VALUES ('pending', pending), ('paused', waiting - pending)
        ) AS v (state, number)
        WHERE v.state = 'pending' OR v.number > 0
        UNION ALL
        SELECT CASE processing_status::text
            WHEN 'pending' THEN 'reserved' ELSE processing_status::text END, count(*)
        FROM uploads
        WHERE {HELD_SQL}
        GROUP BY 1
        """,  # noqa: S608 - words of ours
    ),
    Metric(
        "batch_pipeline_oldest_pending_seconds",
        "How long the oldest pending upload has waited since it was submitted or retried; paused "
        "uploads do not count.",
        f"""
        SELECT coalesce(extract(epoch FROM now() - min({as_text(WAITING_SINCE)})), 0)
        FROM uploads
        WHERE {PENDING_WORK_SQL} AND {NOT_PAUSED_SQL} AND NOT :all_servers_paused
        """,  # noqa: S608 - words of ours
    ),
    Metric(
        "batch_pipeline_ended_uploads",
        "Uploads that ended in the last 300 s, by state.",
        """
        SELECT state, count(id) FROM unnest(ARRAY['completed', 'failed']) AS state
        LEFT JOIN uploads ON processing_status::text = state
            AND processing_status IN ('completed', 'failed')
            AND updated_at > now() - make_interval(secs => :recent) AND updated_at < 'infinity'
        GROUP BY 1
        """,
    ),
    Metric(
        "batch_pipeline_upload_errors",
        "Uploads that failed in the last 300 s, or wait after an error, by kind of error. Kinds "
        "that begin with model_ come from model servers.",
        f"""
        SELECT error_kind AS kind, 'waiting' AS state, count(*) FROM uploads
        WHERE {PENDING_WORK_SQL} AND error_kind IS NOT NULL
        GROUP BY 1
        UNION ALL
        SELECT coalesce(error_kind, 'unknown'), 'failed', count(*) FROM uploads
        WHERE processing_status IN ('completed', 'failed') AND processing_status = 'failed'
            AND updated_at > now() - make_interval(secs => :recent) AND updated_at < 'infinity'
        GROUP BY 1
        """,  # noqa: S608 - words of ours
    ),
    Metric(
        "batch_pipeline_stage_seconds",
        "Seconds per stage, for uploads that ended in the last 300 s.",
        """
        WITH recent AS MATERIALIZED (
            SELECT stage_seconds FROM uploads
            WHERE processing_status IN ('completed', 'failed')
                AND updated_at > now() - make_interval(secs => :recent) AND updated_at < 'infinity'
        )
        SELECT pair ->> 'key' AS stage, quantile,
            percentile_cont(quantile) WITHIN GROUP (ORDER BY (pair ->> 'value')::float)
        FROM recent, unnest(ARRAY[0.5, 0.95]) AS quantile, jsonb_path_query(
            stage_seconds, '$.keyvalue() ? (@.value.type() == "number")', silent => true) AS pair
        GROUP BY 1, 2
        """,
    ),
    Metric(
        "batch_pipeline_open_batches",
        "Batches that have not ended, by status.",
        f"""
        SELECT status, count(*) FROM upload_batches
        WHERE {OPEN_BATCH_SQL}
        GROUP BY 1
        """,  # noqa: S608 - words of ours
    ),
    Metric(
        "batch_pipeline_model_calls",
        "Calls to each model server, over all workers: `held` slots, and slots `wanted`.",
        """
        SELECT server, kind, state, sum(calls)
        FROM model_call_slots,
            LATERAL (VALUES ('held', held), ('wanted', wanted)) AS v (state, calls)
        WHERE leased_until > now()
        GROUP BY 1, 2, 3
        """,
    ),
    Metric(
        "batch_pipeline_model_usage",
        "Calls, tokens and seconds of model calls that were answered in the last 300 s. Calls "
        "without a user are checks by the pipeline itself.",
        """
        SELECT coalesce(user_id::text, '') AS "user", kind, model, what, sum(number)
        FROM model_calls, LATERAL (VALUES ('calls', 1), ('tokens_in', tokens_in),
            ('tokens_out', tokens_out), ('seconds', seconds)) AS v (what, number)
        WHERE answered_at > now() - make_interval(secs => :recent)
        GROUP BY 1, 2, 3, 4
        """,
    ),
    Metric(
        "batch_pipeline_model_pause_seconds",
        "Seconds until a model server that asked for a pause (rate limit) may be called again.",
        """
        SELECT server, kind, extract(epoch FROM not_before - now())
        FROM model_pauses
        WHERE not_before > now()
        """,
    ),
    Metric(
        "batch_pipeline_paused_seconds",
        "Seconds since a person paused something, by scope (everything, user, batch, server). "
        "Batches that have ended are left out.",
        f"""
        SELECT scope, target, extract(epoch FROM now() - since)
        FROM work_pauses
        WHERE {ACTIVE_PAUSE_SQL}
        """,  # noqa: S608 - words of ours
    ),
)


def read_metrics(database: Database, settings: Settings) -> list[Sample]:
    """Read all metrics, each by its query; one that cannot be read is left out with a warning.

    Raises:
        ServiceDownError: the database does not answer.
        ConfigurationError: the setting of a model server is not an address.
    """
    left_out = LeftOut()
    with database.transaction() as connection:
        values = {
            "recent": RECENT_SECONDS,
            "all_servers_paused": all_servers_paused(connection, settings),
        }

        def read(metric: Metric) -> list[Sample]:
            with failures_named(), connection.begin_nested():
                rows = connection.execute(text(metric.query), values).all()
            return [_sample(metric.name, row) for row in rows]

        samples = one_by_one(METRICS, read, left_out, named=lambda metric: metric.name)
    if left_out:
        log.warning("%s", left_out)
    return [sample for of_metric in samples for sample in of_metric]


def _sample(name: str, row: AnyRow) -> Sample:
    *labels, name_of_value = row._fields
    values = [str(getattr(row, label)) for label in labels]
    value = float(getattr(row, name_of_value))
    return Sample(name, dict(zip(labels, values, strict=True)), value)


class DatabaseCollector(Collector):
    """Reads the database at each scrape; nothing is kept between scrapes."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """List the metrics without reading the database."""
        return [GaugeMetricFamily(metric.name, metric.description) for metric in METRICS]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Read the metrics and yield them."""
        samples = read_metrics(self._database, self._settings)
        for metric in METRICS:
            family = GaugeMetricFamily(metric.name, metric.description)
            for sample in samples:
                if sample.name == metric.name:
                    family.add_sample(sample.name, dict(sample.labels), sample.value)
            yield family


def metrics_registry(database: Database, settings: Settings) -> CollectorRegistry:
    """Return a registry with all metrics of a database, for ``prometheus_client``."""
    registry = CollectorRegistry()
    registry.register(DatabaseCollector(database, settings))
    return registry
