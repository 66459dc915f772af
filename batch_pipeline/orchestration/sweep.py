"""The sweep: asks Dagster which runs have ended, and has their uploads returned.

What is put right stands in ``services/upload_states.py``; a second sweep at the same time finds
nothing left to do.
"""

from collections.abc import Collection, Sequence

import dagster as dg

from batch_pipeline.orchestration.assets import backlog
from batch_pipeline.orchestration.tags import RUN_KEY_TAG
from batch_pipeline.services.dispatch import WaitingSlice, waiting_slices
from batch_pipeline.services.pipeline import Pipeline

_ENDED = (
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
)


@dg.op(
    required_resource_keys={"pipeline"},
    description="Returns uploads of dead workers, and ends batches in which nothing is open.",
)
def sweep(context: dg.OpExecutionContext) -> dg.Output[None]:
    """Sweep once; counts of what was found as metadata and as a materialization."""
    pipeline: Pipeline = context.resources.pipeline
    counts = sweep_once(context.instance, pipeline)
    context.log_event(dg.AssetMaterialization(backlog.key, metadata=counts))
    return dg.Output(None, metadata=counts)


def sweep_once(instance: dg.DagsterInstance, pipeline: Pipeline) -> dict[str, int]:
    """Put right what dead runs left behind; returns how much of what."""
    states = pipeline.states
    rescued = states.rescue(_ended(instance, states.owners()))
    abandoned = _abandoned(instance, waiting_slices(pipeline.database))
    reopened = states.open_slices_anew([(slice_.batch_id, slice_.number) for slice_ in abandoned])
    settled = states.reconcile_batches()
    return {
        "uploads_rescued": rescued.returned,
        "uploads_requeued": reopened,
        "batches_ended": sum(batch.status == "completed" for batch in settled),
    }


def launched_keys(instance: dg.DagsterInstance, keys: Collection[str]) -> dict[str, bool]:
    """Tell which keys have had a run, and whether one of those runs is still to end."""
    runs = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: list(keys)})) if keys else []
    alive: dict[str, bool] = {}
    for run in runs:
        key = run.tags[RUN_KEY_TAG]
        alive[key] = alive.get(key, False) or run.status not in _ENDED
    return alive


def _ended(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> list[str]:
    if not run_ids:
        return []
    runs = instance.get_runs(dg.RunsFilter(run_ids=list(run_ids), statuses=list(_ENDED)))
    return [run.run_id for run in runs]


def _abandoned(instance: dg.DagsterInstance, waiting: Sequence[WaitingSlice]) -> list[WaitingSlice]:
    alive = launched_keys(instance, [slice_.key for slice_ in waiting])
    return [slice_ for slice_ in waiting if alive.get(slice_.key) is False]
