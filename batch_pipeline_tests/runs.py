"""Runs that a test records in Dagster by itself."""

from collections.abc import Mapping
from typing import Any

import dagster as dg


def record_run(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    *,
    tags: Mapping[str, str] | None = None,
    **values: Any,
) -> dg.DagsterRun:
    """Record a run with the tags of its job, as Dagster's daemon and its web server do."""
    return instance.create_run_for_job(job, tags={**job.run_tags, **(tags or {})}, **values)
