"""The three ops of ``process_batch``: reserve uploads of a batch, process each, sum up.

The processing itself is in ``services/upload_processing.py``; this module translates it into what
Dagster shows.
"""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from batch_pipeline.errors import (
    PipelineError,
    RefusedError,
    ServiceDownError,
    WorkPausedError,
)
from batch_pipeline.executor import ALWAYS_TAG, interrupt_event, others_may_work
from batch_pipeline.orchestration.assets import (
    BATCHES,
    PREVIEW_SIDE,
    batch_progress,
    plain_stem,
    progress_materialization,
    progress_metadata,
    upload_materialization,
)
from batch_pipeline.orchestration.failures import (
    late_failure,
    outage_failure,
    stopped_failure,
    upload_failure,
)
from batch_pipeline.orchestration.resources import RunWorker
from batch_pipeline.orchestration.run_ends import cancel_batch_of_terminated_run
from batch_pipeline.orchestration.run_logs import naming
from batch_pipeline.orchestration.tags import tags_of_batch
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.reports.batch_status import batch_head
from batch_pipeline.services.short_ids import batch_label
from batch_pipeline.services.states.upload_states import LoadedBatch, SkippedUpload
from batch_pipeline.services.upload_processing import FailedUpload, outage_pause
from batch_pipeline.wording import counted

#: A mapping key ends in two underscores and the upload's id.
_KEY_END = re.compile(r"__([0-9a-f]{32})$")


class ProcessBatchConfig(dg.Config):
    """Which uploads a run takes."""

    batch_id: str = Field(description="Id of the batch, as `batch-pipeline submit` prints it.")
    slice: int | None = Field(
        None, description="Only this slice of the batch; empty: all pending uploads."
    )
    upload_ids: list[str] = Field(
        [],
        description="Only these uploads, including failed ones; empty: all pending uploads.",
    )


@dg.op(
    out=dg.DynamicOut(dg.Nothing),
    required_resource_keys={"batch_pipeline"},
    description="Marks the batch as `processing` and reserves its uploads for this run.",
)
def load_batch(
    context: dg.OpExecutionContext, config: ProcessBatchConfig
) -> Iterator[dg.DynamicOutput[None]]:
    """Reserve uploads, oldest first, and yield one output for each."""
    pipeline: Pipeline = context.resources.batch_pipeline
    batch_id = parse_id(config.batch_id, "batch_id")
    upload_ids = [parse_id(text, "upload_ids") for text in config.upload_ids]
    try:
        loaded, paused = _reserve(pipeline, batch_id, upload_ids, config.slice, context.run_id)
    except ServiceDownError as error:  # the database does not answer
        raise outage_failure(error, released=0) from None
    if loaded is None:
        context.log.error("there is no batch %s", batch_id)
        _report_taken(context, batch_id, None, f"there is no batch {batch_id}; nothing was done")
        return
    context.instance.add_dynamic_partitions(str(BATCHES.name), [str(batch_id)])
    tags = tags_of_batch(batch_id, loaded.progress.user_id, loaded.progress.name)
    context.instance.add_run_tags(context.run_id, tags)
    _report_taken(context, batch_id, loaded, _describe_taken(context, loaded, paused))
    for upload in loaded.reserved:
        yield dg.DynamicOutput(None, mapping_key=mapping_key(upload.filename, upload.id))
    if interrupt_event().is_set():  # no step will start, so no step would release the uploads
        _stop(context)


@dg.op(
    ins={"upload": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
    required_resource_keys={"batch_pipeline", "batch_pipeline_worker"},
    description="Thumbnail, description, audit, embedding and storage of one upload.",
)
def process_upload(context: dg.OpExecutionContext) -> Iterator[dg.Output[None]]:
    """Process the upload that the mapping key names, and show the result."""
    # The message of the step has waited in the broker. If the run was terminated meanwhile, a
    # person may have reopened the batch, and the upload is for the next run.
    if context.run.is_finished or context.run.status is dg.DagsterRunStatus.CANCELING:
        raise late_failure(context.run)
    worker: RunWorker = context.resources.batch_pipeline_worker
    if worker.service_down:
        raise stopped_failure(worker.service_down)
    if worker.paused:
        context.log.info("not begun: %s", worker.paused)
        yield dg.Output(None)
        return
    upload_id = upload_id_of(context.get_mapping_key() or "")
    pipeline: Pipeline = context.resources.batch_pipeline
    retries = pipeline.settings.max_attempts - 1
    interrupted = interrupt_event()
    try:
        with naming(context.run, upload_id=upload_id):
            outcome = worker.processor.process(
                upload_id,
                context.run_id,
                retries_left=retries - context.retry_number,
                interrupted=interrupted.is_set,
                while_waiting=others_may_work,
            )
    except ServiceDownError as error:
        first = worker.note_outage(error)
        released = _release_reserved(context, error, resume_after_seconds=outage_pause(error))
        if first is error:
            raise outage_failure(error, released=released) from None
        raise stopped_failure(first) from None
    except WorkPausedError as error:
        worker.paused = error
        released = _release_reserved(context)
        context.log.info("%s; uploads of the run that are pending again: %s", error, released + 1)
        yield dg.Output(None)
        return
    except dg.DagsterExecutionInterruptedError:
        _stop(context)
        raise
    if interrupted.is_set():
        _stop(context)
    if isinstance(outcome, SkippedUpload):
        context.log.info("skipped: %s", outcome.reason)
        yield dg.Output(None)
        return

    report = outcome.report
    thumbnail = worker.processor.shown_thumbnail(report, PREVIEW_SIDE)
    if report.progress and worker.progress_meter.is_due(report.progress):
        context.log_event(progress_materialization(report.progress))
    if isinstance(outcome, FailedUpload):
        raise upload_failure(outcome, thumbnail)
    context.log_event(upload_materialization(report, thumbnail))
    yield dg.Output(None)


@dg.op(
    ins={"uploads": dg.In(dg.Nothing)},
    required_resource_keys={"batch_pipeline"},
    description="Logs the batch's counts, also if uploads failed. Nothing depends on this op. The "
    "final report is the asset batch_report.",
    tags={ALWAYS_TAG: "true"},
)
def finalize_batch(context: dg.OpExecutionContext) -> dg.Output[None]:
    """Show the counts of the batch at the end of this run."""
    pipeline: Pipeline = context.resources.batch_pipeline
    batch_id = batch_of_config(context.run_config)
    try:
        head = batch_head(pipeline.database, batch_id)
    except PipelineError as error:  # the batch was deleted, or the database is down
        return dg.Output(None, metadata={"outcome": str(error)})
    counts = {
        name: head[name]
        for name in ("status", "total_uploads", "successful_uploads", "failed_uploads")
    }
    context.log.log(
        "WARNING" if counts["failed_uploads"] else "INFO",
        "batch %s is %s: %s, %s completed, %s failed",
        batch_label(batch_id, head["name"]),
        head["status"],
        counted(head["total_uploads"], "upload"),
        head["successful_uploads"],
        head["failed_uploads"],
    )
    return dg.Output(None, metadata=counts)


def batch_of_config(run_config: Mapping[str, Any]) -> uuid.UUID:
    """Read the batch from the config of a run; the step fails if it is not an id."""
    return parse_id(run_config["ops"]["load_batch"]["config"]["batch_id"], "batch_id")


def mapping_key(filename: str, upload_id: uuid.UUID) -> str:
    """Name a mapped step: a readable stem of the file's name, then the upload's id."""
    return f"{plain_stem(filename)}__{upload_id.hex}"


def upload_id_of(key: str) -> uuid.UUID:
    """Read the upload's id back from a mapping key."""
    found = _KEY_END.search(key)
    if found is None:
        raise RefusedError(f"the mapping key {key!r} does not end in an upload id")
    return uuid.UUID(found.group(1))


def _reserve(
    pipeline: Pipeline,
    batch_id: uuid.UUID,
    upload_ids: Sequence[uuid.UUID],
    slice_number: int | None,
    run_id: str,
) -> tuple[LoadedBatch | None, WorkPausedError | None]:
    """Reserve uploads for a run, and return why none are reserved if the work is paused."""
    paused = pipeline.why_paused(batch_id)
    if not paused and (outage := pipeline.analyzer_outage()):
        released = pipeline.states.release_waiting(
            batch_id,
            outage,
            slice_number=slice_number,
            upload_ids=upload_ids,
            resume_after_seconds=outage_pause(outage),
        )
        raise outage_failure(outage, released=released)
    loaded = pipeline.states.load_batch(
        batch_id,
        run_id,
        slice_number=slice_number,
        upload_ids=upload_ids,
        limit=pipeline.settings.uploads_per_run,
        paused=paused is not None,
    )
    return loaded, paused


def _describe_taken(
    context: dg.OpExecutionContext, loaded: LoadedBatch, paused: WorkPausedError | None
) -> str:
    progress = loaded.progress
    label = batch_label(progress.batch_id, progress.name)
    if loaded.expected_total != progress.total:
        context.log.warning(
            "batch %s has a total of %s, but %s rows; the total was corrected",
            label,
            counted(loaded.expected_total, "upload"),
            progress.total,
        )
    if progress.status in {"completed", "cancelled", "failed"}:
        outcome = f"the batch is {progress.status}; nothing was done"
    elif paused:
        outcome = f"took no upload, because {paused}"
    else:
        outcome = f"took {counted(len(loaded.reserved), 'upload')}"
    context.log.info("batch %s: %s", label, outcome)
    return outcome


def _report_taken(
    context: dg.OpExecutionContext, batch_id: uuid.UUID, loaded: LoadedBatch | None, outcome: str
) -> None:
    if loaded is None:
        context.log_event(dg.AssetObservation(batch_progress.key, metadata={"outcome": outcome}))
        return
    context.log_event(
        dg.AssetObservation(
            batch_progress.key,
            description=outcome,
            partition=str(batch_id),
            metadata={
                "outcome": outcome,
                "uploads_taken": len(loaded.reserved),
                "uploads_announced": loaded.expected_total,
                "uploads_found": loaded.progress.total,
                **progress_metadata(loaded.progress),
            },
        )
    )


def _stop(context: dg.OpExecutionContext) -> None:
    """Release what the run has not started; if a person ended the run, cancel the batch."""
    cancel_batch_of_terminated_run(
        context.instance, context.resources.batch_pipeline, context.run_id
    )
    _release_reserved(context)


def _release_reserved(
    context: dg.OpExecutionContext,
    reason: ServiceDownError | None = None,
    *,
    resume_after_seconds: float = 0,
) -> int:
    """Release at once what the run has reserved and will not start."""
    pipeline: Pipeline = context.resources.batch_pipeline
    try:
        return pipeline.states.release_run(
            context.run_id, reason, resume_after_seconds=resume_after_seconds
        )
    except ServiceDownError as error:  # the database is down; leases expire by themselves
        context.log.warning("uploads could not be released: %s", error)
        return 0


def parse_id(text: str, field: str) -> uuid.UUID:
    """Read an id from the field of a config or a partition; the step fails if it is not one."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise dg.Failure(
            description=f"{field}: {text!r} is not an id; expected 32 hexadecimal digits (a UUID)",
            allow_retries=False,
        ) from None
