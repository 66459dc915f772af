"""The sweep: repairs once a minute what a crash, an outage or another program left behind.

This module asks Dagster which runs have ended or died. ``services/states/backlog.py`` repairs
uploads and batches, ``services/deletion/leftovers.py`` removes files. Every part may be repeated,
also by two sweeps at the same time. A run, a partition or a whole part that fails is left out and
named; everything else is done.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import dagster as dg
from dagster_postgres import PostgresEventLogStorage
from pydantic import Field

from batch_pipeline.database.lock_waits import short_lock_waits
from batch_pipeline.errors import ServiceDownError
from batch_pipeline.orchestration.assets import BATCHES, backlog, text_metadata
from batch_pipeline.orchestration.forgetting import DagsterHistory
from batch_pipeline.orchestration.run_ends import (
    ENDED_RUN,
    IN_FLIGHT,
    clean_up_terminated_run,
    close_dead_runs,
    dead_runs,
    name_of_run,
    our_runs,
    runs_of_keys,
)
from batch_pipeline.orchestration.tags import RUN_KEY_TAG
from batch_pipeline.services.deletion.leftovers import remove_leftovers
from batch_pipeline.services.descriptions.known_results import forget_old_notes
from batch_pipeline.services.dispatch.slices import numbered_slices
from batch_pipeline.services.dispatch.turns import WaitingSlice
from batch_pipeline.services.one_by_one import LeftOut, one_by_one
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_status import batches_ended_before
from batch_pipeline.services.reprocessing import refresh_stale, stale_uploads
from batch_pipeline.services.search.embedding_spaces import (
    key_of_settings,
    switch_users,
    users_to_switch,
)
from batch_pipeline.services.states.backlog import Rescue

_SWEEP = "sweep_backlog"
#: Jobs whose runs the sweep handles.
JOBS = ("process_batch", _SWEEP, "pause", "resume")
#: A sweep that takes longer gives no more signs of life, so the next one ends it (seconds). It
#: probably hangs, for example in a file system that does not answer.
_LONGEST_SWEEP_SECONDS = 3600.0
#: How many old runs of each job one sweep deletes, with their events.
_RUNS_DELETED_AT_ONCE = 500


class SweepParts(dg.Config):
    """The parts of a sweep."""

    tidy: bool = Field(
        True,
        description=(
            "Also look for files of ours that are left over, and for old partitions and runs."
        ),
    )


@dg.op(
    required_resource_keys={"batch_pipeline"},
    description="Returns uploads of dead workers, closes their runs, retries what may pass now.",
)
def sweep(context: dg.OpExecutionContext, config: SweepParts) -> dg.Output[None]:
    """Sweep once, and report the counts as metadata and as a materialization."""
    pipeline: Pipeline = context.resources.batch_pipeline
    left_out = LeftOut()
    with _signs_of_life(context.log, pipeline.settings.lease_seconds / 2):
        found: dict[str, Any] = dict(sweep_once(context.instance, pipeline, left_out))
        if config.tidy:
            found |= tidy(context.instance, pipeline, left_out)
    if left_out:
        context.log.warning(str(left_out))
        found["left_out"] = text_metadata(left_out)
    context.log_event(dg.AssetMaterialization(backlog.key, metadata=found))
    return dg.Output(None, metadata=found)


@contextmanager
def _signs_of_life(log: dg.DagsterLogManager, every_seconds: float) -> Iterator[None]:
    """Log a line now and then: a run that logs nothing for two leases counts as dead."""
    ended = threading.Event()
    end = time.monotonic() + _LONGEST_SWEEP_SECONDS

    def log_them() -> None:
        while not ended.wait(every_seconds) and time.monotonic() < end:
            log.info("the sweep is still at work")

    thread = threading.Thread(target=log_them, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@short_lock_waits()
def sweep_once(
    instance: dg.DagsterInstance, pipeline: Pipeline, left_out: LeftOut
) -> dict[str, int]:
    """Repair what dead runs left behind, and do what is due; returns counts.

    Rows that another transaction has locked are left out; the next sweep handles them.
    """

    def rescued() -> dict[str, int]:
        rescue = rescue_from_ended_runs(instance, pipeline, left_out)
        return {"uploads_rescued": rescue.returned, "uploads_quarantined": rescue.quarantined}

    def released() -> dict[str, int]:
        abandoned = _abandoned(instance, numbered_slices(pipeline.database))
        # A run that was terminated in the queue holds no upload, but its batch is to be cancelled.
        runs = runs_of_keys(instance, [slice_.key for slice_ in abandoned])
        waiting = {run.tags[RUN_KEY_TAG] for run in _clean_up_terminated(pipeline, runs, left_out)}
        counts = one_by_one(
            [slice_ for slice_ in abandoned if slice_.key not in waiting],
            lambda slice_: pipeline.backlog.release_slices([(slice_.batch_id, slice_.number or 0)]),
            left_out,
            named=lambda slice_: f"slice {slice_.number} of batch {slice_.label}",
        )
        return {"uploads_released": sum(counts)}

    def recounted() -> dict[str, int]:
        counted = pipeline.backlog.reconcile_batches(left_out)
        ended = sum(batch.status == "completed" for batch in counted)
        return {"batches_recounted": len(counted), "batches_ended": ended}

    def refreshed() -> dict[str, int]:
        at_most = pipeline.settings.refresh_stale
        if not at_most or pipeline.why_paused() or pipeline.analyzer_outage():
            return {}
        vision, batches = pipeline.analyzer.vision, pipeline.batches
        count = refresh_stale(pipeline.database, batches, vision.fingerprint(), at_most=at_most)
        return {"uploads_refreshed": count}

    def switched() -> dict[str, int]:
        key = key_of_settings(pipeline.settings)
        return {"users_switched": switch_users(pipeline.database, key)}

    return _each_part(
        {
            "closing dead runs": lambda: {
                "runs_closed": close_dead_runs(instance, pipeline, JOBS, left_out)
            },
            "rescuing uploads": rescued,
            "releasing slices": released,
            "reopening ended batches": lambda: {
                "uploads_found_in_ended_batches": pipeline.backlog.reopen_ended(left_out)
            },
            "retrying": lambda: {"uploads_retried": pipeline.backlog.retry_due(left_out)},
            "adopting": lambda: {"uploads_adopted": pipeline.backlog.adopt()},
            "recounting": recounted,
            "refreshing what is stale": refreshed,
            "switching to a complete embedding space": switched,
        },
        left_out,
    )


def tidy(instance: dg.DagsterInstance, pipeline: Pipeline, left_out: LeftOut) -> dict[str, int]:
    """Remove what is provably ours and no longer needed. This is too slow for every minute."""

    def removed() -> dict[str, int]:
        leftovers = remove_leftovers(pipeline.database, pipeline.storage, pipeline.ownership)
        if leftovers.kept_because:
            left_out.note("removing files", leftovers.kept_because)
        return {"files_left_over": len(leftovers.files), "files_removed": leftovers.removed}

    return _each_part(
        {
            "removing files": removed,
            "forgetting notes": lambda: {"notes_removed": forget_old_notes(pipeline.database)},
            "pruning partitions": lambda: {
                "partitions_pruned": _prune_partitions(instance, pipeline, left_out)
            },
            "deleting runs": lambda: {
                "runs_deleted": delete_old_runs(instance, pipeline, left_out)
            },
        },
        left_out,
    )


def delete_old_runs(instance: dg.DagsterInstance, pipeline: Pipeline, left_out: LeftOut) -> int:
    """Delete our old runs with their events, which Dagster itself keeps for ever."""
    days = pipeline.settings.keep_runs_days
    if not days:
        return 0
    # By the database's clock: a clock that is a year ahead would delete every run.
    before = pipeline.database.now() - timedelta(days=days)
    old = [
        run
        for job in JOBS
        for run in instance.get_runs(
            our_runs(job, ENDED_RUN, updated_before=before),
            limit=_RUNS_DELETED_AT_ONCE,
            ascending=True,
        )
    ]
    deleted = one_by_one(
        old, lambda run: instance.delete_run(run.run_id), left_out, named=name_of_run
    )
    return len(deleted)


def sweep_in_flight(
    instance: dg.DagsterInstance, pipeline: Pipeline, left_out: LeftOut
) -> dg.DagsterRun | None:
    """Return a sweep that is queued or at work.

    A sweep whose worker is gone does not count, because only the next sweep ends it. The worker
    counts as gone two leases after the last event of the sweep, or four minutes after the request
    if the sweep was not launched.
    """
    dead = {run.run_id for run in dead_runs(instance, pipeline, [_SWEEP], left_out)}
    runs = instance.get_runs(our_runs(_SWEEP, IN_FLIGHT))
    return next((run for run in runs if run.run_id not in dead), None)


def work_for_a_sweep(
    instance: dg.DagsterInstance, pipeline: Pipeline, left_out: LeftOut
) -> dict[str, int]:
    """Count what a sweep would find, without changing anything; empty if no sweep is needed."""

    def abandoned() -> dict[str, int]:
        numbered = numbered_slices(pipeline.database)
        return {"slices without a run": len(_abandoned(instance, numbered))}

    def stale() -> dict[str, int]:
        at_most = pipeline.settings.refresh_stale
        if not at_most or pipeline.why_paused() or pipeline.analyzer_outage():
            return {}
        fingerprint = pipeline.analyzer.vision.fingerprint()
        return {"stale uploads": stale_uploads(pipeline.database, fingerprint, at_most=at_most)}

    def complete() -> dict[str, int]:
        key = key_of_settings(pipeline.settings)
        return {"users to switch": len(users_to_switch(pipeline.database, key))}

    found = _each_part(
        {
            "looking for dead runs": lambda: {
                "runs without a worker": len(dead_runs(instance, pipeline, JOBS, left_out))
            },
            "looking for ended runs": lambda: {
                "uploads of ended runs": len(_ended(instance, pipeline))
            },
            "looking for lost slices": abandoned,
            "looking for what is due": pipeline.backlog.overdue,
            "looking for what is stale": stale,
            "looking for a complete embedding space": complete,
        },
        left_out,
    )
    return {name: count for name, count in found.items() if count}


@short_lock_waits()
def rescue_from_ended_runs(
    instance: dg.DagsterInstance, pipeline: Pipeline, left_out: LeftOut
) -> Rescue:
    """Return uploads of ended runs and of expired leases to pending.

    Rows that another transaction has locked are left out: they must not delay all other batches.
    """
    ended = _ended(instance, pipeline)
    waiting = {run.run_id for run in _clean_up_terminated(pipeline, ended, left_out)}
    return pipeline.backlog.rescue([run.run_id for run in ended], left_out, not_of=waiting)


def _clean_up_terminated(
    pipeline: Pipeline, ended: Iterable[dg.DagsterRun], left_out: LeftOut
) -> list[dg.DagsterRun]:
    """Cancel the batches of terminated runs; returns the runs that were left out.

    Those runs keep their uploads: otherwise a later sweep would not know that it has to cancel the
    batch.
    """
    terminated = [run for run in ended if run.status == dg.DagsterRunStatus.CANCELED]

    def clean_up(run: dg.DagsterRun) -> str:
        clean_up_terminated_run(pipeline, run)
        return run.run_id

    done = one_by_one(terminated, clean_up, left_out, named=name_of_run)
    return [run for run in terminated if run.run_id not in done]


def _each_part(
    parts: Mapping[str, Callable[[], Mapping[str, int]]], left_out: LeftOut
) -> dict[str, int]:
    """Do every part, even if others fail; returns their counts.

    Raises:
        ServiceDownError: no part could be done because of it.
    """
    outages = []

    def done(name: str) -> Mapping[str, int]:
        try:
            return parts[name]()
        except ServiceDownError as error:  # not all parts need both database and storage
            outages.append(error)
            left_out.note(name, error)
            return {}

    counted = one_by_one(parts, done, left_out, named=str)
    if outages and not any(counted):
        raise outages[0]
    return {name: count for counts in counted for name, count in counts.items()}


def launched_keys(instance: dg.DagsterInstance, keys: list[str]) -> dict[str, bool]:
    """Return the keys that have had a run; True means that this run has not ended yet."""
    alive: dict[str, bool] = {}
    for run in runs_of_keys(instance, keys):
        key = run.tags[RUN_KEY_TAG]
        alive[key] = alive.get(key, False) or run.status not in ENDED_RUN
    return alive


def _ended(instance: dg.DagsterInstance, pipeline: Pipeline) -> list[dg.DagsterRun]:
    """List ended runs that still hold uploads."""
    owners = pipeline.backlog.owners()
    if not owners:
        return []
    return list(instance.get_runs(dg.RunsFilter(run_ids=owners, statuses=list(ENDED_RUN))))


def _abandoned(instance: dg.DagsterInstance, waiting: list[WaitingSlice]) -> list[WaitingSlice]:
    alive = launched_keys(instance, [slice_.key for slice_ in waiting])
    return [slice_ for slice_ in waiting if alive.get(slice_.key) is False]


def _prune_partitions(instance: dg.DagsterInstance, pipeline: Pipeline, left_out: LeftOut) -> int:
    """Remove partitions and reports of batches that ended long ago; the batches stay.

    `delete_old_runs` deletes runs and their events. Reports belong to no run and would stay for
    ever. They can be deleted only if Dagster's storage is on PostgreSQL.
    """
    name = str(BATCHES.name)
    present = one_by_one(
        instance.get_dynamic_partitions(name), UUID, left_out, named=lambda key: f"partition {key}"
    )
    days = pipeline.settings.keep_partitions_days
    old = batches_ended_before(pipeline.database, present, days=days)
    on_postgres = isinstance(instance.event_log_storage, PostgresEventLogStorage)
    history = DagsterHistory(instance, pipeline) if old and on_postgres else None

    def prune(batch_id: UUID) -> None:
        # The partition is deleted last, because the next sweep finds the batch by it.
        if history is not None:
            history.forget_reports(batch_id)
        instance.delete_dynamic_partition(name, str(batch_id))

    pruned = one_by_one(
        old,
        prune,
        left_out,
        named=lambda batch_id: f"partition {batch_id}",
    )
    return len(pruned)
