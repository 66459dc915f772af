"""The jobs of the pipeline."""

import dagster as dg

from batch_pipeline.orchestration.executors import build_executor
from batch_pipeline.orchestration.ops import finalize_batch, load_batch, process_upload
from batch_pipeline.orchestration.run_logs import LOGGERS
from batch_pipeline.orchestration.sweep import sweep
from batch_pipeline.orchestration.tags import JOB, SHORT_JOB
from batch_pipeline.settings import Settings


def build_process_batch(settings: Settings) -> dg.JobDefinition:
    """Build the job that processes the uploads of a batch; settings give its retry policy."""
    work = process_upload.with_retry_policy(
        dg.RetryPolicy(
            max_retries=settings.max_attempts - 1,
            delay=settings.retry_base_seconds,
            backoff=dg.Backoff.EXPONENTIAL,
            jitter=dg.Jitter.PLUS_MINUS,
        )
    )

    @dg.job(
        name="process_batch",
        description=(
            "Processes pending uploads of one batch. To process failed uploads again, use "
            "Re-execute from failure on the run, or `batch-pipeline retry`."
        ),
        executor_def=build_executor(settings),
        logger_defs=LOGGERS,
        tags=JOB,
    )
    def process_batch() -> None:
        finalize_batch(load_batch().map(work).collect())

    return process_batch


@dg.job(
    description="Returns uploads of dead workers and ends finished batches; safe at any time.",
    executor_def=dg.in_process_executor,
    logger_defs=LOGGERS,
    tags=SHORT_JOB,
)
def sweep_backlog() -> None:
    """Repair what a crash left behind."""
    sweep()
