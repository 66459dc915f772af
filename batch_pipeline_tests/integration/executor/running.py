"""Runs jobs like a run worker, and returns what happened to each step."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

#: Longest wait for something that is expected to happen at once (seconds).
DEADLINE = 30
#: No lines on the console: they take much of the time of a short run.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Outcome:
    status: dg.DagsterRunStatus
    steps: Mapping[str, list[tuple[Any, ...]]]
    """The events of each step, in the order of the event log."""
    entries: list[dg.EventLogEntry]

    def kinds(self, step_key: str) -> list[str]:
        return [event[0] for event in self.steps[step_key]]

    @property
    def failure(self) -> str:
        """Return the error of the run, as the UI shows it."""
        (event,) = (
            entry.dagster_event
            for entry in self.entries
            if entry.dagster_event and entry.dagster_event.is_job_failure
        )
        return f"{event.message}\n{event.job_failure_data.error}"


def run_job(
    job: dg.JobDefinition,
    *,
    run_config: Mapping[str, Any] | None = None,
    instance: dg.DagsterInstance | None = None,
    raise_on_error: bool = False,
) -> Outcome:
    """Run `job` with its own executor in this process."""
    instance = instance or shared_instance()
    run = instance.create_run_for_job(job, run_config={**QUIET, **(run_config or {})})
    execute_run(InMemoryJob(job), run, instance, raise_on_error=raise_on_error)
    return outcome_of(instance, run.run_id)


@cache
def shared_instance() -> dg.DagsterInstance:
    """Serves the runs of all tests, in memory; making one takes longer than most of the runs."""
    return dg.DagsterInstance.ephemeral()


def outcome_of(instance: dg.DagsterInstance, run_id: str) -> Outcome:
    entries = list(instance.all_logs(run_id))
    steps: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for entry in entries:
        event = entry.dagster_event
        if event and event.step_key:
            steps[event.step_key].append((event.event_type_value, *_details(event)))
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return Outcome(run.status, dict(steps), entries)


def _details(event: dg.DagsterEvent) -> tuple[Any, ...]:
    if event.is_successful_output:
        return (event.step_output_data.step_output_handle,)
    if event.is_step_failure:
        return (event.step_failure_data.error.message, event.step_failure_data.error_source)
    if event.is_step_up_for_retry:
        return (event.step_retry_data.seconds_to_wait,)
    if event.is_step_materialization:
        return (event.asset_key,)
    if event.is_hook_event:
        return (event.message,)
    return ()
