"""The jobs ``pause`` and ``resume`` for people in the UI; ``services/pauses.py`` does the work."""

from dataclasses import replace

import dagster as dg
from pydantic import Field

from batch_pipeline.database.models import PauseScope
from batch_pipeline.errors import PipelineError
from batch_pipeline.orchestration.ops import parse_id
from batch_pipeline.orchestration.run_logs import LOGGERS
from batch_pipeline.orchestration.tags import SHORT_JOB
from batch_pipeline.services.pauses import Pause, active_pauses, chosen, pause, resume
from batch_pipeline.services.pipeline import Pipeline


class Target(dg.Config):
    """What is paused or resumed: everything, unless one field is set."""

    user: str | None = Field(None, description="Only the batches of this user (id).")
    batch: str | None = Field(None, description="Only this batch (id).")
    server: str | None = Field(
        None, description="Only calls to this model server, such as http://gpu1:11434."
    )


class PauseConfig(Target):
    """What to pause, and why."""

    reason: str = Field("", description="Reason, which is shown with the pause.")


@dg.op(
    required_resource_keys={"batch_pipeline"},
    description="Pauses; the metadata of its output says what is paused now.",
)
def pause_work(context: dg.OpExecutionContext, config: PauseConfig) -> dg.Output[None]:
    """Pause what the config names."""
    pipeline: Pipeline = context.resources.batch_pipeline
    scope, target = _chosen(config)
    try:
        paused = pause(pipeline.database, pipeline.settings, scope, target, config.reason)
    except PipelineError as error:
        raise _refused(str(error)) from error
    return _said(context, pipeline, "paused", paused)


@dg.op(
    required_resource_keys={"batch_pipeline"},
    description="Resumes; the metadata of its output says what is still paused.",
)
def resume_work(context: dg.OpExecutionContext, config: Target) -> dg.Output[None]:
    """Resume what the config names."""
    pipeline: Pipeline = context.resources.batch_pipeline
    try:
        resumed = resume(pipeline.database, *_chosen(config))
    except PipelineError as error:
        raise _refused(str(error)) from error
    return _said(context, pipeline, "resumed", resumed)


@dg.job(
    name="pause",
    description=(
        "Holds back everything, or the user, batch or model server that the config of the op "
        "names. Model calls in flight finish. After one second no new call begins."
    ),
    executor_def=dg.in_process_executor,
    logger_defs=LOGGERS,
    tags=SHORT_JOB,
)
def pause_job() -> None:
    """Pause from the UI."""
    pause_work()


@dg.job(
    name="resume",
    description=(
        "Ends the pause of everything, or of the user, batch or model server that the config of "
        "the op names."
    ),
    executor_def=dg.in_process_executor,
    logger_defs=LOGGERS,
    tags=SHORT_JOB,
)
def resume_job() -> None:
    """Resume from the UI."""
    resume_work()


def _chosen(config: Target) -> tuple[PauseScope, str]:
    user = parse_id(config.user, "user") if config.user else None
    batch = parse_id(config.batch, "batch") if config.batch else None
    try:
        return chosen(user, batch, config.server or None)
    except PipelineError as error:
        raise _refused(str(error)) from error


def _refused(reason: str) -> dg.Failure:
    return dg.Failure(description=reason, allow_retries=False)


def _said(
    context: dg.OpExecutionContext, pipeline: Pipeline, what: str, changed: Pause
) -> dg.Output[None]:
    # The name of the batch is left out, because this run stays when the batch is deleted.
    context.log.info("%s: %s", what, replace(changed, name=None))
    pauses = active_pauses(pipeline.database)
    now = "; ".join(str(replace(each, name=None)) for each in pauses)
    return dg.Output(None, metadata={"paused now": now or "nothing"})
