"""The sweep: puts right, once a minute, whatever a crash, an outage or an outsider left behind.

Dagster is asked here which runs have ended or died. Uploads and batches are put right in
``services/states/backlog.py``, files in ``services/leftovers.py``. Every part is safe to repeat,
and two sweeps at once have the effect of one.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import dagster as dg
from pydantic import Field

from batch_pipeline.orchestration.assets import BATCHES, backlog
from batch_pipeline.orchestration.run_ends import (
    ENDED_RUN,
    clean_up_terminated_run,
    close_dead_runs,
    dead_runs,
    runs_of_keys,
)
from batch_pipeline.orchestration.tags import RUN_KEY_TAG
from batch_pipeline.services.dispatch.slices import WaitingSlice, waiting_slices
from batch_pipeline.services.leftovers import remove_leftovers
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_status import batches_ended_before
from batch_pipeline.services.states.backlog import Rescue

#: Jobs whose runs are looked after.
JOBS = ("process_batch", "sweep_backlog")
#: Old runs that one sweep deletes of each job, with their events.
_RUNS_DELETED_AT_ONCE = 500


class SweepParts(dg.Config):
    """What a sweep does."""

    tidy: bool = Field(
        True,
        description=(
            "Also look for files without an upload, and for old partitions and runs to delete."
        ),
    )


@dg.op(
    required_resource_keys={"pipeline"},
    description="Returns uploads of dead workers, closes their runs, retries what may pass now.",
)
def sweep(context: dg.OpExecutionContext, config: SweepParts) -> dg.Output[None]:
    """Sweep once; counts of what was found as metadata and as a materialization."""
    pipeline: Pipeline = context.resources.pipeline
    counts = sweep_once(context.instance, pipeline)
    if config.tidy:
        counts |= tidy(context.instance, pipeline)
    context.log_event(dg.AssetMaterialization(backlog.key, metadata=counts))
    return dg.Output(None, metadata=counts)


def sweep_once(instance: dg.DagsterInstance, pipeline: Pipeline) -> dict[str, int]:
    """Put right what dead runs left behind, and what is due; returns how much of what."""
    closed = close_dead_runs(instance, pipeline, JOBS)
    rescued = rescue_from_ended_runs(instance, pipeline)
    abandoned = _abandoned(instance, waiting_slices(pipeline.database))
    slices = [(slice_.batch_id, slice_.number) for slice_ in abandoned]
    reopened = pipeline.backlog.release_slices(slices)
    retried = pipeline.backlog.retry_due()
    adopted = pipeline.backlog.adopt()
    settled = pipeline.backlog.reconcile_batches()
    return {
        "runs_closed": closed,
        "uploads_rescued": rescued.returned,
        "uploads_quarantined": rescued.quarantined,
        "uploads_released": reopened,
        "uploads_retried": retried,
        "uploads_adopted": adopted,
        "batches_recounted": len(settled),
        "batches_ended": sum(batch.status == "completed" for batch in settled),
    }


def tidy(instance: dg.DagsterInstance, pipeline: Pipeline) -> dict[str, int]:
    """Remove what nothing refers to any more; looks at every stored folder, so not every minute."""
    removed = remove_leftovers(pipeline.database, pipeline.storage)
    return {
        "folders_removed": removed.folders,
        "partial_files_removed": removed.partial_files,
        "partitions_pruned": _prune_partitions(instance, pipeline),
        "runs_deleted": delete_old_runs(instance, pipeline),
    }


def delete_old_runs(
    instance: dg.DagsterInstance, pipeline: Pipeline, *, at_once: int = _RUNS_DELETED_AT_ONCE
) -> int:
    """Delete runs of ours that ended long ago, with their events, which Dagster keeps for ever."""
    days = pipeline.settings.keep_runs_days
    if not days:
        return 0
    before = datetime.now(UTC) - timedelta(days=days)
    old = [
        run
        for job in JOBS
        for run in instance.get_runs(
            dg.RunsFilter(job_name=job, statuses=list(ENDED_RUN), updated_before=before),
            limit=at_once,
            ascending=True,
        )
    ]
    for run in old:
        instance.delete_run(run.run_id)
    return len(old)


def work_for_a_sweep(instance: dg.DagsterInstance, pipeline: Pipeline) -> dict[str, int]:
    """Count what a sweep would find, without changing anything; empty: it is not needed."""
    waiting = waiting_slices(pipeline.database)
    found = {
        "runs without a worker": len(dead_runs(instance, pipeline, JOBS)),
        "uploads of ended runs": len(_ended(instance, pipeline)),
        "slices without a run": len(_abandoned(instance, waiting)),
        **pipeline.backlog.overdue(),
    }
    return {name: count for name, count in found.items() if count}


def rescue_from_ended_runs(instance: dg.DagsterInstance, pipeline: Pipeline) -> Rescue:
    """Return the uploads of runs that have ended, and of those whose lease has."""
    ended = _ended(instance, pipeline)
    for run in ended:
        if run.status == dg.DagsterRunStatus.CANCELED:
            clean_up_terminated_run(pipeline, run)
    return pipeline.backlog.rescue([run.run_id for run in ended])


def launched_keys(instance: dg.DagsterInstance, keys: list[str]) -> dict[str, bool]:
    """Tell which keys have had a run, and whether one of those runs is still to end."""
    alive: dict[str, bool] = {}
    for run in runs_of_keys(instance, keys):
        key = run.tags[RUN_KEY_TAG]
        alive[key] = alive.get(key, False) or run.status not in ENDED_RUN
    return alive


def _ended(instance: dg.DagsterInstance, pipeline: Pipeline) -> list[dg.DagsterRun]:
    """Runs that hold uploads although they have ended."""
    owners = pipeline.backlog.owners()
    if not owners:
        return []
    return list(instance.get_runs(dg.RunsFilter(run_ids=owners, statuses=list(ENDED_RUN))))


def _abandoned(instance: dg.DagsterInstance, waiting: list[WaitingSlice]) -> list[WaitingSlice]:
    alive = launched_keys(instance, [slice_.key for slice_ in waiting])
    return [slice_ for slice_ in waiting if alive.get(slice_.key) is False]


def _prune_partitions(instance: dg.DagsterInstance, pipeline: Pipeline) -> int:
    """Forget the partitions of batches that ended long ago; the batches themselves stay."""
    name = str(BATCHES.name)
    present = [UUID(key) for key in instance.get_dynamic_partitions(name)]
    days = pipeline.settings.keep_partitions_days
    old = batches_ended_before(pipeline.database, present, days=days)
    for batch_id in old:
        instance.delete_dynamic_partition(name, str(batch_id))
    return len(old)
